"""Which recorded attempt, or saved file, a command is about."""

import contextlib
import logging
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from omegaconf import DictConfig, OmegaConf

from dogbreeds.core.errors import MissingFileError, UserError
from dogbreeds.core.spec import Spec, text
from dogbreeds.core.text import digest
from dogbreeds.data.dataset import Data, Dataset
from dogbreeds.experiments.compose import part
from dogbreeds.features.cache import FeatureCache
from dogbreeds.inference.evaluation_set import EvaluationSet, _shown
from dogbreeds.tracking.mlflow_backend import Mlflow
from dogbreeds.tracking.records import RANKING, Record, short

if TYPE_CHECKING:
    from dogbreeds.inference.classifier import Classifier

log = logging.getLogger(__name__)

LATEST, BEST = "latest", "best"


@dataclass(frozen=True, kw_only=True)
class Only(Spec):
    """Which runs are in it."""

    group = "only"
    model: str | None = text(example="effnetb0", optional=True)
    data: str | None = text(example="stanford_dogs", optional=True)

    def holds(self, record: Record) -> bool:
        """Whether a run is wanted; a model and data go by the name of their option or by their own."""
        model = {record.params["model.architecture"].lower(), record.tags.get("choice.model", "")}
        data = {record.params["data.name"].lower(), record.tags.get("choice.data", "")}
        return (self.model is None or self.model.lower() in model) and (self.data is None or self.data.lower() in data)

    def __str__(self) -> str:
        return " ".join(f"only.{name}={value}" for name, value in (("model", self.model), ("data", self.data)) if value)


def store(config: DictConfig, why: str, wanted: str = LATEST) -> Mlflow:
    """Where a command's config says that attempts are recorded.

    Args:
        config: with the group `tracking`.
        why: what the command needs it for, as a sentence.
        wanted: the run, or a saved file, of which nothing is recorded: any way of recording will do then.

    Raises:
        UserError: with tracking=none.
    """
    tracking = part(config, "tracking")
    if not isinstance(tracking, Mlflow) and not is_file(wanted):
        raise UserError(f"tracking=none was chosen. {why} Type tracking=mlflow.")
    return cast(Mlflow, tracking)


def find(tracking: Mlflow, wanted: str, only: Only, key: str = "run", network: bool = True) -> Record:
    """The attempt that a word names.

    Args:
        tracking: where attempts are recorded.
        wanted: `latest`, `best` (by validation accuracy), or the beginning of a run's id.
        only: among which attempts `latest` and `best` are sought.
        key: of the setting that holds the word, for errors.
        network: whether the attempt must have kept its network.

    Raises:
        UserError: where it names no finished attempt, several, or one without what is needed.
    """
    if wanted not in (LATEST, BEST):
        return _by_id(tracking, wanted, key, network)
    records = [record for record in tracking.records() if only.holds(record) and (_kept(record) or not network)]
    if not records:
        which = f"{' that kept its network' if network else ''}{f' with {only}' if str(only) else ''}"
        raise UserError(
            f"Experiment '{tracking.experiment}' has no finished attempt{which}. {key}={wanted} is one of those. "
            f"Type python -m dogbreeds.train first{', or name a saved network by its file' if network else ''}."
        )
    if wanted == LATEST:
        return records[0]
    data = sorted({record.params["data.name"] for record in records})
    # Accuracies on different photos say nothing about which is better
    if len(data) > 1:
        raise UserError(
            f"{key}=best was asked for, and experiment '{tracking.experiment}' has attempts on {' and '.join(data)}."
            f" The best is among those on the same photos. Type only.data={records[0].params['data.name']}, for"
            " example."
        )
    return max(records, key=lambda record: record.metrics.get(RANKING, 0.0))


def _kept(record: Record) -> bool:
    return record.tags.get("model") == "kept"


def _by_id(tracking: Mlflow, wanted: str, key: str, network: bool) -> Record:
    found = tracking.named(wanted.lower())
    if len(found) != 1:
        some = found or [record for record in tracking.records() if _kept(record) or not network]
        there = (
            f"; {'it names' if found else 'the newest are'} {', '.join(short(record.run_id) for record in some[:4])}"
            if some
            else ""
        )
        raise UserError(
            f"{key}={wanted} names {len(found) or 'no'} run{'s' if len(found) > 1 else ''} of experiment"
            f" '{tracking.experiment}'. It must be latest, best, or the beginning of one run's id{there}. Type"
            f" {key}=latest, for example."
        )
    (record,) = found
    if record.status != "FINISHED" or "verdict" not in record.tags:
        state = (
            f"has not finished ({record.status})"
            if record.status != "FINISHED"
            else "is no training: it has no verdict"
        )
        raise UserError(
            f"{key}={wanted} {state}. It must be an attempt that was trained to its end. Type {key}=latest, for"
            " example."
        )
    if network and not _kept(record):
        why = record.tags.get("model", "tracking.model=none, or another job of its sweep did better")
        raise UserError(
            f"{key}={wanted} kept no network ({why}). There must be one. Type {key}=best, or run it by itself: "
            "python -m dogbreeds.train with its overrides."
        )
    return record


@contextlib.contextmanager
def opened(tracking: Mlflow, wanted: str, only: Only) -> "Iterator[tuple[Record | None, Classifier, Path]]":
    """The attempt that a word names, its trained network, and the network's file while the body runs; of a saved file there is no attempt."""
    from dogbreeds.inference.classifier import load

    place = Path(wanted).expanduser()
    if is_file(wanted):
        if not place.is_file():
            raise MissingFileError(
                f"run={wanted} is not a file. It must be a network that was saved as .keras, or a run. Type run=latest,"
                " for example."
            )
        yield None, load(place), place
        return
    record = find(tracking, wanted, only)
    with tempfile.TemporaryDirectory() as folder:
        file = tracking.network(record.run_id, Path(folder))
        yield record, load(file), file


def dataset(tracking: Mlflow, record: Record, root: str | None) -> tuple[Data, Dataset]:
    """The photos that an attempt was trained and measured on, opened again: numbers on any others would not be beside its own.

    Args:
        tracking: where it is recorded.
        record: the attempt.
        root: the folder that holds the photos now; None for the one that held them then.

    Returns:
        How the photos are read, and the photos in their splits.

    Raises:
        MissingFileError: where they are not there any more.
        UserError: where they are others.
    """
    config = cast(DictConfig, OmegaConf.create(tracking.config(record.run_id)))
    if root is not None:
        if "root" not in config["data"]:
            raise UserError(
                f"data.root={root} was given, and the photos of run {short(record.run_id)} are drawn. Only photos that"
                " lie somewhere have a root. Type the command without data.root."
            )
        config["data"]["root"] = root
    data: Data = part(config, "data")
    opened = data.open()
    if opened.fingerprint != record.params["data.fingerprint"]:
        place = f" at {root or config['data']['root']}" if "root" in config["data"] else ""
        raise UserError(
            f"The photos{place} are others than run {short(record.run_id)} had, or stand in other splits. They must be"
            " the same files, none more and none less. Type data.root=<folder> with those, or train on these first."
        )
    return data, opened


def is_file(wanted: str) -> bool:
    """Whether a word names a saved network, and not a run."""
    return wanted.endswith((".keras", ".h5")) or "/" in wanted


def folder_name(record: Record | None, file: Path) -> str:
    """What a folder of results is called: after the run, or after a saved file, of which others may be called alike."""
    return short(record.run_id) if record is not None else f"{file.stem}-{digest(os.fsencode(file.resolve()))[:6]}"


def said(record: Record) -> str:
    """A run in a few words, for people."""
    accuracy = record.metrics.get(RANKING)
    measured = f", {100 * accuracy:.1f} % on validation" if accuracy is not None else ""
    return (
        f"run {short(record.run_id)}, {record.params['model.architecture']} on {record.params['data.name']}{measured}"
    )


def of_run(
    tracking: Mlflow,
    record: Record,
    split: str | None,
    root: str | None,
    classifier: "Classifier",
    arrays: FeatureCache,
) -> EvaluationSet:
    """A split of the photos that a run had.

    Args:
        tracking: where it is recorded.
        record: the run.
        split: `train`, `val` or `test`; None for test where there is one, else val.
        root: the folder that holds the photos now; None for the one that held them then.
        classifier: the run's network.
        arrays: where photos are kept once they are decoded.

    Raises:
        MissingFileError, UserError: where they are not there, are others, or cannot be read.
    """
    data, whole = dataset(tracking, record, root)
    for note in whole.notes:
        log.warning(note)
    place = split or ("test" if whole.test is not None else "val")
    if place not in whole.splits:
        raise UserError(
            f"split={place} was asked for, and {whole.name} has no such photos. It has {', '.join(whole.splits)}. Type"
            " split=val, for example."
        )
    return _shown(place, whole.splits[place], data, classifier, arrays)
