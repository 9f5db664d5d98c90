"""Find the recorded run, or the saved network file, that a command works on."""

import contextlib
import logging
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dogbreeds.core.errors import MissingFileError, UserError
from dogbreeds.core.source import top_level
from dogbreeds.core.spec import Spec, text
from dogbreeds.core.text import digest, mask_passwords, shorten
from dogbreeds.data.corrections import open_corrected
from dogbreeds.data.dataset import Data, Dataset
from dogbreeds.experiments.compose import build_spec, settings_of
from dogbreeds.experiments.plugins import is_allowed, is_module_name
from dogbreeds.features.cache import FeatureCache
from dogbreeds.inference.evaluation_set import EvaluationSet, split_evaluation_set
from dogbreeds.tracking.mlflow_backend import Mlflow
from dogbreeds.tracking.records import RANKING_METRIC, Record, is_path, short
from dogbreeds.tracking.saved_network import check_class_count
from dogbreeds.tracking.saved_run import SavedRun

if TYPE_CHECKING:
    from dogbreeds.inference.classifier import Classifier

log = logging.getLogger(__name__)

_LATEST = "latest"
_BEST = "best"


@dataclass(frozen=True, kw_only=True)
class Only(Spec):
    """Filter of recorded runs.

    Attributes:
        model: option or architecture of the model, in any case; None for all.
        data: option or name of the data, in any case; None for all.
    """

    group = "only"
    model: str | None = text(example="effnetb0", optional=True)
    data: str | None = text(example="stanford_dogs", optional=True)

    @classmethod
    def of(cls, config: DictConfig) -> "Only":
        """Return the filter that a command's config describes.

        Raises:
            UserError: if a value or a setting is not allowed.
        """
        return cls(**settings_of(config, "only", "model", "data"))

    def holds(self, record: Record) -> bool:
        """Return whether a run passes the filter."""
        model = {record.params["model.architecture"].lower(), record.tags.get("choice.model", "")}
        data = {record.params["data.name"].lower(), record.tags.get("choice.data", "")}
        return (self.model is None or self.model.lower() in model) and (self.data is None or self.data.lower() in data)

    def __str__(self) -> str:
        return " ".join(f"only.{name}={value}" for name, value in (("model", self.model), ("data", self.data)) if value)


def mlflow_tracking(config: DictConfig, purpose: str, run: str = _LATEST) -> Mlflow:
    """Return where a command's config says that runs are recorded.

    Args:
        config: config with the group `tracking`.
        purpose: sentence for the error: what the command needs MLflow for.
        run: run that the command works on. If it is a saved network file, any tracking is accepted.

    Raises:
        UserError: with tracking=none.
    """
    tracking = build_spec(config, "tracking")
    if not isinstance(tracking, Mlflow) and not is_network_file(run):
        raise UserError(f"tracking=none was given. {purpose} Type tracking=mlflow.")
    # The first line of the command, before imports that take seconds.
    log.info("loading %s", run if is_network_file(run) else f"runs of experiment '{tracking.experiment}'")
    return cast(Mlflow, tracking)


def find_record(tracking: Mlflow, run: str, only: Only, key: str = "run", needs_network: bool = True) -> Record:
    """Find a finished run.

    Args:
        tracking: where runs are recorded.
        run: `latest`, `best` (by validation accuracy), or the beginning of a run's id.
        only: filter of the runs among which `latest` and `best` are found.
        key: name of the setting that `run` comes from, for errors.
        needs_network: whether the run must have a saved network.

    Raises:
        UserError: if no run matches, several do, or the run is unfinished or lacks what is needed.
    """
    if run not in (_LATEST, _BEST):
        return _find_by_id(tracking, run, key, needs_network)
    records = [
        record for record in tracking.records() if only.holds(record) and (has_network(record) or not needs_network)
    ]
    if not records:
        which = f"{' with a saved network' if needs_network else ''}{f' for {only}' if str(only) else ''}"
        raise UserError(
            f"Experiment '{tracking.experiment}' has no finished run{which}. {key}={run} needs one in"
            f" {mask_passwords(tracking.uri)}, which DOGBREEDS_HOME and tracking.uri choose. "
            f"Type python -m dogbreeds.train first{', or name a saved network by its file' if needs_network else ''}."
        )
    if run == _LATEST:
        return records[0]
    data = sorted({record.params["data.name"] for record in records})
    # Accuracies on different data do not rank networks.
    if len(data) > 1:
        raise UserError(
            f"{key}=best was given, and experiment '{tracking.experiment}' has runs on {' and '.join(data)}. The best"
            f" run is defined for one data set only. Type only.data={records[0].params['data.name']}, for example."
        )
    return max(records, key=lambda record: record.metrics.get(RANKING_METRIC, 0.0))


def has_network(record: Record) -> bool:
    """Return whether the trained network of a run is saved."""
    return record.tags.get("model") == "kept"


def _find_by_id(tracking: Mlflow, run: str, key: str, needs_network: bool) -> Record:
    matches = tracking.runs_with_prefix(run.lower())
    if len(matches) != 1:
        listed = matches or [record for record in tracking.records() if has_network(record) or not needs_network]
        ids = ", ".join(short(record.run_id) for record in listed[:4])
        hint = f"; {'it matches' if matches else 'the newest are'} {ids}" if ids else ""
        raise UserError(
            f"{key}={run} names {len(matches) or 'no'} run{'s' if len(matches) > 1 else ''} of experiment"
            f" '{tracking.experiment}'. It must be latest, best, or the beginning of one run's id{hint}. Type"
            f" {key}=latest, for example."
        )
    (record,) = matches
    if record.status != "FINISHED" or "verdict" not in record.tags:
        state = (
            f"has not finished ({record.status})"
            if record.status != "FINISHED"
            else "is not a training run: it has no verdict"
        )
        raise UserError(
            f"{key}={run} {state}. It must be a training run that has finished. Type {key}=latest, for example."
        )
    if needs_network and not has_network(record):
        reason = record.tags.get("model", "tracking.model=none, or another job of its sweep did better")
        raise UserError(
            f"{key}={run} has no saved network ({reason}). One is needed. Type {key}=best, or run it by itself: "
            "python -m dogbreeds.train with its overrides."
        )
    return record


@contextlib.contextmanager
def open_network(tracking: Mlflow, run: str, only: Only) -> "Iterator[tuple[Record | None, Classifier, Path]]":
    """Open a run's trained network, or a saved network file.

    Args:
        tracking: where runs are recorded.
        run: `latest`, `best`, the beginning of a run's id, a saved network file, or the folder of a saved run.
        only: filter of the runs among which `latest` and `best` are found.

    Yields:
        The run (None for a file), its network with the decoder and the runtime of the run, and the network's file,
        until the block ends. A file without its run decodes as the network itself resizes, in TensorFlow.

    Raises:
        MissingFileError, UserError: if there is no such run, file or network, or if it is not the network of the run.
    """
    from dogbreeds.inference.classifier import load

    path = Path(run).expanduser()
    if is_network_file(run):
        saved = SavedRun.read(run) if path.is_dir() else None
        path = saved.network if saved is not None else path
        if not path.is_file():
            raise MissingFileError(
                f"run={run} is not a file. It must be a network that was saved as .keras, or a run. Type run=latest,"
                " for example."
            )
        yield None, load(path) if saved is None else _as_in_run(load(path), saved.params), path
        return
    record = find_record(tracking, run, only)
    with tempfile.TemporaryDirectory() as folder:
        file = tracking.download_network(record.run_id, Path(folder))
        classifier = load(file)
        check_class_count(record, classifier.class_names)
        yield record, _as_in_run(classifier, record.params), file


def _as_in_run(classifier: "Classifier", params: Mapping[str, str]) -> "Classifier":
    """Return a network with the decoder, the runtime and the precision of the run that has these parameters."""
    runtime, precision = params["features.runtime"], params["features.precision"]
    return replace(classifier, decoder=params["data.decoder"], runtime=runtime, precision=precision)


def open_dataset(
    tracking: Mlflow, record: Record, root: str | None, plugins: Sequence[str] = ()
) -> tuple[Data, Dataset]:
    """Open the dataset that a run was trained and measured on: only on the same images are other numbers comparable.

    Args:
        tracking: where the run is recorded.
        record: the run.
        root: folder that contains the images now; None for the recorded one.
        plugins: that the running command names. Those that the run named are not taken over.

    Returns:
        Settings of the data, and the dataset.

    Raises:
        MissingFileError: if the images are missing.
        UserError: if the images or their splits have changed.
    """
    config = recorded_config(tracking, record)
    if root is not None:
        if "root" not in config["data"]:
            raise UserError(
                f"data.root={root} was given, and run {short(record.run_id)} was trained on generated images. Only data"
                " from a folder has a root. Type the command without data.root."
            )
        config["data"]["root"] = root
    _check_plugin(record, config["data"], plugins)
    data: Data = build_spec(config, "data", plugins)
    dataset = open_corrected(data)
    if dataset.fingerprint != record.params["data.fingerprint"]:
        place = f" in {root or config['data']['root']}" if "root" in config["data"] else ""
        raise UserError(
            f"The images{place} are not those of run {short(record.run_id)}, or they are in other splits. They must be"
            " the same files, without additions or removals. Type data.root=<folder> with those files, or train on"
            " these images first."
        )
    return replace(data, decoder=record.params["data.decoder"]), dataset


def recorded_config(tracking: Mlflow, record: Record) -> DictConfig:
    """Return the composed config of a run.

    Raises:
        UserError: it cannot be downloaded, or is damaged.
    """
    from yaml import YAMLError  # type: ignore[import-untyped]

    text = tracking.config(record.run_id)
    try:
        config = OmegaConf.create(text)
        if isinstance(config, DictConfig) and isinstance(config.get("data"), DictConfig):
            return config
        why = "it has no settings of the data"
    except (YAMLError, OmegaConfBaseException, ValueError, TypeError) as error:
        why = shorten(str(error), 160)
    raise UserError(
        f"The config of run {short(record.run_id)} is damaged ({why}). It must be as the run recorded it, since it says"
        " which images the run has. Restore config/config.yaml among the run's artifacts, or name another run."
    )


def _check_plugin(record: Record, data: object, plugins: Sequence[str]) -> None:
    """Check that the class of a run's data is one of the package or of a plugin.

    Raises:
        UserError: if it belongs to a module that is no plugin of this command.
    """
    name = str(data.get("_target_")) if isinstance(data, DictConfig) else ""
    module = top_level(name)
    if is_module_name(name) and module != top_level(__name__) and not is_allowed(name, plugins):
        raise UserError(
            f"Run {short(record.run_id)} was trained on data of the class {name}, and {module} is no plugin of this"
            " command. The config of a run does not decide which code runs. Type"
            f" 'plugins=[{module}]' if you trust that module, or install it with its entry point."
        )


def is_network_file(run: str) -> bool:
    """Return whether a setting names a saved network file rather than a run."""
    return run.endswith((".keras", ".h5")) or is_path(run)


def results_folder(record: Record | None, file: Path) -> str:
    """Return the name of the folder for a network's results.

    Args:
        record: run of the network; None for a saved network file.
        file: file of the network. A digest of its path tells files with the same name apart.
    """
    return short(record.run_id) if record is not None else f"{file.stem}-{digest(os.fsencode(file.resolve()))[:6]}"


def describe_run(record: Record) -> str:
    """Describe a run in a few words: its id, architecture, data and validation accuracy."""
    accuracy = record.metrics.get(RANKING_METRIC)
    measured = f", {100 * accuracy:.1f} % on validation" if accuracy is not None else ""
    return (
        f"run {short(record.run_id)}, {record.params['model.architecture']} on {record.params['data.name']}{measured}"
    )


def evaluation_set_of_run(
    tracking: Mlflow,
    record: Record,
    split: str | None,
    root: str | None,
    classifier: "Classifier",
    cache: FeatureCache,
    plugins: Sequence[str] = (),
) -> EvaluationSet:
    """Open a split of the dataset that a run was trained on.

    Args:
        tracking: where the run is recorded.
        record: the run.
        split: `train`, `val` or `test`; None for test if there is one, else val.
        root: folder that contains the images now; None for the recorded one.
        classifier: the run's network.
        cache: cache of the decoded images.
        plugins: that the running command names.

    Raises:
        MissingFileError, UserError: if the images are missing, have changed, or cannot be read.
    """
    data, dataset = open_dataset(tracking, record, root, plugins)
    for note in dataset.notes:
        log.warning(note)
    name = split_name(dataset, split)
    return split_evaluation_set(name, dataset.splits[name], data, classifier, cache)


def split_name(dataset: Dataset, split: str | None) -> str:
    """Return the name of the split to use.

    Args:
        dataset: the data.
        split: `train`, `val` or `test`; None for test if there is one, else val.

    Raises:
        UserError: the data has no such split.
    """
    name = split or ("test" if dataset.test is not None else "val")
    if name not in dataset.splits:
        raise UserError(
            f"split={name} was given, and {dataset.name} has no such split. It has {', '.join(dataset.splits)}. Type"
            " split=val, for example."
        )
    return name
