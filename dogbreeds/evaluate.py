"""The command `python -m dogbreeds.evaluate`: how good a trained network is, and what it gets wrong."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import hydra
import numpy as np
from omegaconf import DictConfig

from dogbreeds import cli
from dogbreeds.core import files
from dogbreeds.core.errors import UserError
from dogbreeds.core.paths import home
from dogbreeds.core.spec import Spec, integer, one_of, text
from dogbreeds.evaluation.metrics import probabilities
from dogbreeds.evaluation.results import Predictions
from dogbreeds.evaluation.summary import Evaluation
from dogbreeds.experiments.compose import part
from dogbreeds.experiments.recorded_runs import Only, folder_name, is_file, of_run, opened, said, store
from dogbreeds.features.cache import FeatureCache
from dogbreeds.inference.evaluation_set import EvaluationSet, of_folder
from dogbreeds.inference.evaluator import evaluated, mistakes
from dogbreeds.inference.tta import Tta
from dogbreeds.reports import baseline_note
from dogbreeds.reports.evaluation_report import FILES, Report, augmented_said, score_lines
from dogbreeds.tracking.records import Record, short

log = logging.getLogger(__name__)

_SPLITS = ("train", "val", "test")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wanted(Spec):
    """What is evaluated on what."""

    group = ""
    run: str = text(example="latest")
    split: str | None = one_of(*_SPLITS, optional=True)
    photos: str | None = text(example="path/to/photos", optional=True)
    on_corrupt: str = one_of("stop", "skip")
    mistakes: int = integer(at_least=0, example=24)
    seed: int = integer(at_least=0, example=0)
    output: str | None = text(example="evaluation", optional=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.photos is not None and self.split is not None:
            raise UserError(
                f"split={self.split} and photos={self.photos} were given. A network is evaluated on one of the two."
                " Leave one out."
            )
        if self.photos is None and is_file(self.run):
            raise UserError(
                f"run={self.run} is a file, which does not know the photos it was trained on. Photos must be named."
                " Type photos=path/to/photos, too."
            )


@hydra.main(version_base="1.3", config_path=str(home() / "conf"), config_name="evaluate")
@cli.alone
def task(config: DictConfig) -> None:
    """Evaluates, writes the report, and adds it to the run."""
    wanted = Wanted(**{field.name: cli.word(config, field.name) for field in dataclasses.fields(Wanted)})
    views, only = Tta(**config["tta"]).views, Only(**config["only"])
    tracking = store(config, "A run's network is found through MLflow, which kept it.", wanted.run)
    arrays = part(config, "features").store()
    with opened(tracking, wanted.run, only) as (record, classifier, file):
        name = said(record) if record else str(file)
        log.info("%s: %d breeds, %d px", name, len(classifier.class_names), classifier.size)
        if wanted.photos is not None:
            subject = of_folder(wanted.photos, wanted.on_corrupt, classifier, arrays)
        else:
            subject = of_run(tracking, cast(Record, record), wanted.split, config["data"]["root"], classifier, arrays)
        own = home() / "multirun/evaluation" / folder_name(record, file) / subject.place
        place = Path(wanted.output).expanduser() if wanted.output else own
        trained = tracking.predictions(record.run_id) if record else {}
        # Made first: that it cannot be written must not be found out at the end
        with files.folder(place, FILES) as folder:
            found, logits = evaluated(classifier, subject, views, wanted.seed, trained)
            about = _about(record, trained, name, subject, logits)
            title = f"{'Run ' + short(record.run_id) if record else file.name} on {subject.place}"
            shown = mistakes(classifier, subject, logits, wanted.mistakes)
            facts = _facts(record, file, subject)
            Report(
                title, about, facts, found, classifier.class_names, subject.ids, subject.labels, logits, shown
            ).write(folder)
            if record is not None:
                numbers = {f"evaluation/{subject.place}/{key}": value for key, value in found.metrics().items()}
                tracking.add(record.run_id, folder, f"evaluation/{subject.place}", numbers)
    FeatureCache.release()
    _print(found, about, place)


def _about(
    record: Record | None, trained: Mapping[str, Predictions], name: str, subject: EvaluationSet, logits: np.ndarray
) -> tuple[str, ...]:
    """What a reader must know first."""
    sentences = [f"{name[0].upper() if record else name[0]}{name[1:]}, evaluated on {subject.about} ({subject.place})."]
    if record is None:
        return (*sentences, "What it was trained on is not known here: photos that it has seen flatter it.")
    sentences.append(
        f"{record.tags['verdict'].replace('_', ' ').capitalize()}: {record.tags.get('verdict.reason', '').rstrip('.')}."
    )
    if subject.place == "train":
        sentences.append("It was trained on these very photos: that flatters it, and says nothing about others.")
    if subject.place == "val":
        sentences.append("Its best epoch was chosen on these photos, which flatters it a little.")
    before = trained.get(subject.place)
    if before is not None and list(before.ids) == list(subject.ids):
        apart = np.abs(probabilities(before.logits) - probabilities(logits)).max()
        sentences.append(f"The saved network gives the probabilities that training measured, to within {apart:.0e}.")
    return (*sentences, baseline_note.said(record, subject.place, len(subject.ids)))


def _facts(record: Record | None, file: Path, subject: EvaluationSet) -> dict[str, str]:
    facts = {"photos": f"{subject.about}, {subject.place}"}
    if record is None:
        return facts | {"network": str(file)}
    kept = (
        "model.architecture",
        "model.weights",
        "model.image_size",
        "preprocessing.mode",
        "head",
        "phase",
        "unfreeze.plan",
        "optimizer.lr",
        "seed",
    )
    facts |= {"run": record.run_id, "name": record.name, "data": record.params["data.name"]}
    facts |= {key: record.params[key] for key in kept if key in record.params}
    return facts | {
        key: record.tags[key] for key in ("git.commit", "version.keras", "version.tensorflow") if key in record.tags
    }


def _print(found: Evaluation, about: Sequence[str], place: Path) -> None:
    lines = score_lines(found)
    widths = [max(len(line[column]) for line in lines) for column in range(4)]
    for name, value, interval, n in lines:
        print(f"{name:{widths[0]}}  {value:>{widths[1]}}  {interval:>{widths[2]}}  n = {n}")
    print("\n".join(filter(None, (found.calibration.said, augmented_said(found), *about[1:]))))
    print(f"report  {place / 'report.html'}")


if __name__ == "__main__":
    cli.main(task, "evaluate")
