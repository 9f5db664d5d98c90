"""The command `python -m dogbreeds.predict run=… images=…`: what breeds a trained network sees in photos, and in what of them."""

import contextlib
import dataclasses
import io
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import hydra
from omegaconf import DictConfig, OmegaConf

from dogbreeds import cli
from dogbreeds.core import console, files
from dogbreeds.core.console import progress
from dogbreeds.core.paths import home
from dogbreeds.core.spec import Spec, boolean, integer, one_of, text
from dogbreeds.experiments.recorded_runs import Only, opened, said, store
from dogbreeds.inference import image_sources
from dogbreeds.inference.predictions import Csv, JsonLines, Table
from dogbreeds.inference.predictor import answers, network

if TYPE_CHECKING:
    from dogbreeds.inference.classifier import Classifier
    from dogbreeds.inference.grad_cam import Overlays

log = logging.getLogger(__name__)

# Exit code
_SOME_UNREAD = 2
# Between two steps of the bar: answers come a batch at a time, and each by itself would look like haste
_SHOWN_SECONDS = 0.2


@dataclass(frozen=True, kw_only=True)
class Wanted(Spec):
    """What is said of the photos, and how."""

    group = ""
    run: str = text(example="latest")
    top: int = integer(at_least=1, example=3)
    format: str = one_of("table", "jsonl", "csv")
    batch_size: int | None = integer(at_least=1, example=32, optional=True)
    explain: bool = boolean()
    explain_dir: str = text(example="explained")
    output: str | None = text(example="breeds.csv", optional=True)


@dataclass
class Tally:
    """How many photos were read, and how many could not be."""

    read: int = 0
    unread: int = 0


@hydra.main(version_base="1.3", config_path=str(home() / "conf"), config_name="predict")
@cli.alone
def task(config: DictConfig) -> None:
    """Says what each photo shows."""
    wanted = Wanted(**{field.name: cli.word(config, field.name) for field in dataclasses.fields(Wanted)})
    only = Only(**config["only"])
    plain: Any = OmegaConf.to_container(config)
    typed = image_sources.typed(plain["images"])
    tracking = store(config, "A run's network is found through MLflow, which kept it.", wanted.run)
    found = image_sources.found(typed, sys.stdin.buffer if sys.stdin else io.BytesIO())
    with (
        files.sink(wanted.output, "breeds.csv") as sink,
        opened(tracking, wanted.run, only) as (record, classifier, place),
    ):
        log.info(
            "%s: %d breeds, %d px", said(record) if record else place, len(classifier.class_names), classifier.size
        )
        tally = _predict(classifier, found, wanted, sink)
    if wanted.output is not None:
        print(wanted.output)
    if tally.unread:
        sys.exit(_SOME_UNREAD)


def _predict(classifier: "Classifier", found: image_sources.Images, wanted: Wanted, sink: TextIO) -> Tally:
    """Writes an answer a photo as soon as its batch is done, and says at the end how it went."""
    overlays = _overlays(classifier, wanted) if wanted.explain else None
    run = network(classifier, wanted.explain)
    batch, top = wanted.batch_size or classifier.batch_size(), min(wanted.top, len(classifier.class_names))
    lines, tally, started = _lines(classifier, wanted, top, sink), Tally(), time.monotonic()
    with (
        _bar(found.total, sink) as advance,
        contextlib.closing(answers(classifier, run, found.photos, batch, top, overlays)) as told,
    ):
        sink.write(lines.heading)
        for answer in told:
            if answer.error:
                print(answer.error, file=sys.stderr, flush=True)
            tally.unread += bool(answer.error)
            tally.read += not answer.error
            sink.write(lines(answer))
            sink.flush()
            advance(1)
    seconds = time.monotonic() - started
    unread = f"; {tally.unread:,} could not be read" if tally.unread else ""
    where = f"; overlays in {overlays.folder}" if overlays is not None and tally.read else ""
    count = f"{tally.read:,} photo{'' if tally.read == 1 else 's'}"
    log.info("%s in %.1f s, %.0f images/s%s%s", count, seconds, tally.read / max(seconds, 1e-9), unread, where)
    return tally


def _overlays(classifier: "Classifier", wanted: Wanted) -> "Overlays":
    from dogbreeds.inference.grad_cam import Overlays

    overlays = Overlays(Path(wanted.explain_dir).expanduser(), classifier.resize)
    overlays.prepare()
    return overlays


def _lines(classifier: "Classifier", wanted: Wanted, top: int, sink: TextIO) -> JsonLines | Csv | Table:
    if wanted.format == "jsonl":
        return JsonLines()
    if wanted.format == "csv":
        return Csv(top, wanted.explain)
    width = console.columns(sink)
    coloured = width is not None and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return Table(classifier.class_names, top, width, coloured)


@contextlib.contextmanager
def _bar(total: int | None, sink: TextIO) -> Iterator[Callable[[int], None]]:
    """A bar, where it does not stand among the answers."""
    if total is None or sink.isatty() or not sys.stderr.isatty():
        yield lambda done: None
        return
    with progress("photos", total, "images") as advance:
        waiting, shown = 0, time.monotonic()

        def add(done: int) -> None:
            nonlocal waiting, shown
            waiting += done
            if time.monotonic() - shown >= _SHOWN_SECONDS:
                advance(waiting)
                waiting, shown = 0, time.monotonic()

        yield add
        advance(waiting)


if __name__ == "__main__":
    cli.main(task, "predict")
