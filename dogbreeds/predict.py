"""The command `python -m dogbreeds.predict run=… images=…`: predicts the classes of images, and explains them."""

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
from dogbreeds.core.paths import config_folder
from dogbreeds.core.spec import Spec, boolean, integer, one_of, path
from dogbreeds.core.text import counted
from dogbreeds.experiments.recorded_runs import Only, describe_run, mlflow_tracking, open_network
from dogbreeds.inference.image_sources import ImageSource, find_images, parse_images
from dogbreeds.inference.predictions import Csv, JsonLines
from dogbreeds.inference.predictor import inference_function, predict_images
from dogbreeds.reports.predictions_table import PredictionsTable

if TYPE_CHECKING:
    from dogbreeds.inference.classifier import Classifier
    from dogbreeds.inference.grad_cam import OverlayWriter

log = logging.getLogger(__name__)

# Format by the suffix of an output file.
_FORMATS = {".txt": "table", ".csv": "csv", ".jsonl": "jsonl", ".json": "jsonl"}
# Exit code when some images could not be read.
_SOME_UNREADABLE = 2
# Between two updates of the progress bar. Predictions arrive a batch at a time; an update for each would flicker.
_UPDATE_SECONDS = 0.2


@dataclass(frozen=True, kw_only=True)
class Settings(Spec):
    """Settings of the command.

    Attributes:
        run: which run's network, or the path of a saved network.
        top: classes per prediction.
        format: of the output; null for the one that the output's suffix names, or a table.
        batch_size: images per batch; None for one that suits this machine.
        explain: whether to draw Grad-CAM overlays.
        explain_dir: folder of the overlays.
        output: file for the predictions; None for standard output.
    """

    group = ""
    run: str = path(example="latest")
    top: int = integer(at_least=1, example=3)
    format: str = one_of("table", "jsonl", "csv", optional=True)
    batch_size: int | None = integer(at_least=1, example=32, optional=True)
    explain: bool = boolean()
    explain_dir: str = path(example="explained")
    output: str | None = path(example="predictions.csv", optional=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.format is None:
            object.__setattr__(self, "format", files.format_of(self.output, _FORMATS, default="table"))


@dataclass
class Counts:
    """Number of images that were read, and that could not be read."""

    readable: int = 0
    unreadable: int = 0


@hydra.main(version_base="1.3", config_path=str(config_folder()), config_name="predict")
@cli.standalone
def task(config: DictConfig) -> None:
    """Predict images."""
    settings = Settings(**{field.name: cli.typed_value(config, field.name) for field in dataclasses.fields(Settings)})
    only = Only.of(config)
    plain_config: Any = OmegaConf.to_container(config)
    texts = parse_images(plain_config["images"])
    tracking = mlflow_tracking(config, "A run's network is loaded from MLflow.", settings.run)
    source = find_images(texts, sys.stdin.buffer if sys.stdin else io.BytesIO())
    with (
        files.output_stream(settings.output, "predictions.csv") as output,
        open_network(tracking, settings.run, only) as (record, classifier, file),
    ):
        name = describe_run(record) if record else file
        log.info("%s: %d classes, %d px", name, len(classifier.class_names), classifier.image_size)
        counts = _predict(classifier, source, settings, output)
    if settings.output is not None:
        print(settings.output)
    if counts.unreadable:
        sys.exit(_SOME_UNREADABLE)


def _predict(classifier: "Classifier", source: ImageSource, settings: Settings, output: TextIO) -> Counts:
    """Write each prediction as soon as its batch is done, and log a summary at the end."""
    overlays = _overlay_writer(classifier, settings) if settings.explain else None
    infer = inference_function(classifier, settings.explain)
    batch_size = settings.batch_size or classifier.batch_size()
    top = min(settings.top, len(classifier.class_names))
    formatter = _formatter(classifier, settings, top, output)
    counts = Counts()
    started = time.monotonic()
    predictions = predict_images(classifier, infer, source.images, batch_size=batch_size, top=top, overlays=overlays)
    with _progress_bar(source.total, output) as advance, contextlib.closing(predictions):
        output.write(formatter.heading)
        for prediction in predictions:
            if prediction.error:
                print(prediction.error, file=sys.stderr, flush=True)
            counts.unreadable += bool(prediction.error)
            counts.readable += not prediction.error
            output.write(formatter(prediction))
            output.flush()
            advance(1)
    _log_summary(counts, time.monotonic() - started, overlays)
    return counts


def _log_summary(counts: Counts, seconds: float, overlays: "OverlayWriter | None") -> None:
    read = counted(counts.readable, "image")
    unreadable = f"; {counts.unreadable:,} could not be read" if counts.unreadable else ""
    folder = f"; overlays in {overlays.folder}" if overlays is not None and counts.readable else ""
    rate = counts.readable / max(seconds, 1e-9)
    log.info("%s in %.1f s, %.0f images/s%s%s", read, seconds, rate, unreadable, folder)


def _overlay_writer(classifier: "Classifier", settings: Settings) -> "OverlayWriter":
    from dogbreeds.inference.grad_cam import OverlayWriter

    overlays = OverlayWriter(Path(settings.explain_dir).expanduser(), classifier.resize)
    overlays.prepare()
    return overlays


def _formatter(
    classifier: "Classifier", settings: Settings, top: int, output: TextIO
) -> JsonLines | Csv | PredictionsTable:
    if settings.format == "jsonl":
        return JsonLines()
    if settings.format == "csv":
        return Csv(top, settings.explain)
    width = console.terminal_width(output)
    styled = width is not None and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return PredictionsTable(classifier.class_names, top, width, styled)


@contextlib.contextmanager
def _progress_bar(total: int | None, output: TextIO) -> Iterator[Callable[[int], None]]:
    """Yield a function that takes the number of images just done; draw a bar unless it would mix with predictions."""
    if total is None or output.isatty() or not sys.stderr.isatty():
        yield lambda newly_done: None
        return
    with progress("images", total, "images") as advance:
        pending = 0
        updated = time.monotonic()

        def add(newly_done: int) -> None:
            nonlocal pending, updated
            pending += newly_done
            if time.monotonic() - updated >= _UPDATE_SECONDS:
                advance(pending)
                pending, updated = 0, time.monotonic()

        yield add
        advance(pending)


if __name__ == "__main__":
    cli.main(task, "predict")
