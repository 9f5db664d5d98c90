"""The command `python -m dogbreeds.evaluate`: how good a trained network is, and what it gets wrong."""

import dataclasses
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import hydra
import numpy as np
from omegaconf import DictConfig

from dogbreeds import baseline, calibration, command, evaluation, output, tta
from dogbreeds.classifier import spoken
from dogbreeds.evaluation import Evaluation
from dogbreeds.kept import Store
from dogbreeds.metrics import probabilities
from dogbreeds.pictures import Mistake
from dogbreeds.record import Predictions, Record, short
from dogbreeds.report import FILES, Report, augmented_said, score_lines
from dogbreeds.run import part
from dogbreeds.runs import Only, folder_name, is_file, opened, said, store
from dogbreeds.spec import Refused, Spec, home, integer, one_of, text
from dogbreeds.subject import Subject, of_folder, of_run
from dogbreeds.terminal import progress
from dogbreeds.tta import Tta

if TYPE_CHECKING:
    from dogbreeds.classifier import Classifier

log = logging.getLogger(__name__)

_SPLITS = ("train", "val", "test")


@dataclass(frozen=True, kw_only=True)
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
            raise Refused(f"split={self.split} and photos={self.photos} were given. A network is evaluated on one of the two. Leave one out.")
        if self.photos is None and is_file(self.run):
            raise Refused(
                f"run={self.run} is a file, which does not know the photos it was trained on. Photos must be named. Type photos=path/to/photos, too."
            )


@hydra.main(version_base="1.3", config_path=str(home() / "conf"), config_name="evaluate")
@command.alone
def task(config: DictConfig) -> None:
    """Evaluates, writes the report, and adds it to the run."""
    wanted = Wanted(**{field.name: command.word(config, field.name) for field in dataclasses.fields(Wanted)})
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
        with output.folder(place, FILES) as folder:  # made first: that it cannot be written must not be found out at the end
            found, logits = _evaluate(wanted, views, trained, classifier, subject)
            about = _about(record, trained, name, subject, logits)
            title = f"{'Run ' + short(record.run_id) if record else file.name} on {subject.place}"
            shown = _mistakes(classifier, subject, logits, wanted.mistakes)
            facts = _facts(record, file, subject)
            Report(title, about, facts, found, classifier.class_names, subject.ids, subject.labels, logits, shown).write(folder)
            if record is not None:
                numbers = {f"evaluation/{subject.place}/{key}": value for key, value in found.metrics().items()}
                tracking.add(record.run_id, folder, f"evaluation/{subject.place}", numbers)
    Store.release()
    _print(found, about, place)


def _evaluate(
    wanted: Wanted, views: int, trained: Mapping[str, Predictions], classifier: "Classifier", subject: Subject
) -> tuple[Evaluation, np.ndarray]:
    logits, seconds = _logits(classifier, subject, 0)
    if not np.isfinite(logits).all():
        raise Refused("The network's answers are not numbers. A network must give some. Evaluate another run: type run=best, for example.")
    fitted = _temperature(trained, subject.place)
    found = evaluation.evaluate(logits, subject.labels, classifier.class_names, fitted, wanted.seed)
    if views == 1:
        return found, logits
    shares, all_seconds = probabilities(logits), seconds
    for number in range(1, views):
        seen, more = _logits(classifier, subject, number)
        shares, all_seconds = shares + probabilities(seen), all_seconds + more
    gained = evaluation.augmented(logits, shares / views, subject.labels, views, all_seconds / seconds, subject.place, wanted.seed)
    return replace(found, augmented=gained), logits


def _logits(classifier: "Classifier", subject: Subject, number: int) -> tuple[np.ndarray, float]:
    """[n, classes] logits of a view of the photos, and the seconds that they took."""
    batch, found = classifier.batch_size(), []
    classifier.logits(subject.array[subject.rows[:1]])  # compiled before the time is taken
    what = f"view {number} of {subject.place}" if number else subject.place
    started = time.perf_counter()
    with progress(what, len(subject.rows), "photos") as advance:
        for start in range(0, len(subject.rows), batch):
            photos = tta.view(subject.array[subject.rows[start : start + batch]], number)
            found.append(classifier.logits(photos))
            advance(len(photos))
    return np.concatenate(found), time.perf_counter() - started


def _temperature(trained: Mapping[str, Predictions], place: str) -> tuple[float, str] | None:
    """A temperature from what training said of validation photos, for others; None where there are none that the answers do not come from."""
    if place == "val" or "val" not in trained:
        return None
    val = trained["val"]
    return calibration.temperature(val.logits, val.labels), f"{len(val.labels):,} validation photos"


def _mistakes(classifier: "Classifier", subject: Subject, logits: np.ndarray, count: int) -> tuple[Mistake, ...]:
    shares, called = probabilities(logits), logits.argmax(axis=1)
    confidence = np.where(called == subject.labels, -1, shares.max(axis=1))
    worst = [position for position in np.argsort(-confidence, kind="stable")[:count] if confidence[position] >= 0]
    names = [spoken(name) for name in classifier.class_names]
    return tuple(
        Mistake(np.array(subject.array[subject.rows[at]]), names[subject.labels[at]], names[called[at]], float(confidence[at])) for at in worst
    )


def _about(record: Record | None, trained: Mapping[str, Predictions], name: str, subject: Subject, logits: np.ndarray) -> tuple[str, ...]:
    """What a reader must know first."""
    sentences = [f"{name[0].upper() if record else name[0]}{name[1:]}, evaluated on {subject.about} ({subject.place})."]
    if record is None:
        return (*sentences, "What it was trained on is not known here: photos that it has seen flatter it.")
    sentences.append(f"{record.tags['verdict'].replace('_', ' ').capitalize()}: {record.tags.get('verdict.reason', '').rstrip('.')}.")
    if subject.place == "train":
        sentences.append("It was trained on these very photos: that flatters it, and says nothing about others.")
    if subject.place == "val":
        sentences.append("Its best epoch was chosen on these photos, which flatters it a little.")
    before = trained.get(subject.place)
    if before is not None and list(before.ids) == list(subject.ids):
        apart = np.abs(probabilities(before.logits) - probabilities(logits)).max()
        sentences.append(f"The saved network gives the probabilities that training measured, to within {apart:.0e}.")
    return (*sentences, baseline.said(record, subject.place, len(subject.ids)))


def _facts(record: Record | None, file: Path, subject: Subject) -> dict[str, str]:
    facts = {"photos": f"{subject.about}, {subject.place}"}
    if record is None:
        return facts | {"network": str(file)}
    kept = ("model.architecture", "model.weights", "model.image_size", "preprocessing.mode", "head", "phase", "unfreeze.plan", "optimizer.lr", "seed")
    facts |= {"run": record.run_id, "name": record.name, "data": record.params["data.name"]}
    facts |= {key: record.params[key] for key in kept if key in record.params}
    return facts | {key: record.tags[key] for key in ("git.commit", "version.keras", "version.tensorflow") if key in record.tags}


def _print(found: Evaluation, about: Sequence[str], place: Path) -> None:
    lines = score_lines(found)
    widths = [max(len(line[column]) for line in lines) for column in range(4)]
    for name, value, interval, n in lines:
        print(f"{name:{widths[0]}}  {value:>{widths[1]}}  {interval:>{widths[2]}}  n = {n}")
    print("\n".join(filter(None, (found.calibration.said, augmented_said(found), *about[1:]))))
    print(f"report  {place / 'report.html'}")


if __name__ == "__main__":
    command.main(task, "evaluate")
