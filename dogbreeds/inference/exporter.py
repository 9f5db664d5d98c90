"""Exporter: writes a trained network in other formats, and checks that each gives the probabilities of the original."""

import io
import itertools
import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dogbreeds.core import files, signals
from dogbreeds.core.console import progress
from dogbreeds.core.countdown import Countdown
from dogbreeds.core.errors import UserError
from dogbreeds.data.image import ImageLoader, decode
from dogbreeds.inference import export_formats
from dogbreeds.inference.export_formats import FORMATS, PredictBatch
from dogbreeds.models.precision import FLOAT32_TOLERANCE

if TYPE_CHECKING:
    from dogbreeds.inference.classifier import Classifier

log = logging.getLogger(__name__)

# Heights and widths that fit no network, so that the resize inside each format has work to do in both directions.
_ODD_SIZES = ((37, 91), (91, 37), (500, 333), (333, 500))
# Upper bound on the pixels of a batch of equally large images.
_MAX_BATCH_PIXELS = 32 * 224 * 224
# Side length in pixels of the largest example image that is logged with a model.
_EXAMPLE_SIZE = 224


@dataclass
class ParityCheck:
    """Comparison of an exported format with the trained network.

    Attributes:
        max_difference: largest absolute difference of a probability, over all classes and images.
        same_class: number of images with the same most probable class.
        n: number of images.
    """

    max_difference: float = 0.0
    same_class: int = 0
    n: int = 0

    def within(self, tolerance: float) -> bool:
        """Return whether the largest difference is at most `tolerance`; NaN is not."""
        return self.max_difference <= tolerance


@dataclass(frozen=True)
class ExportedFormat:
    """A format that was written and checked.

    Attributes:
        name: key in `FORMATS`.
        size: bytes on disk.
        parity: comparison with the trained network.
    """

    name: str
    size: int
    parity: ParityCheck

    @property
    def agrees(self) -> bool:
        """Whether it gives the probabilities of the trained network, within the format's tolerance."""
        return self.parity.within(FORMATS[self.name].tolerance)


def export_and_check(
    names: Sequence[str], classifier: "Classifier", images: Sequence[ImageLoader], folder: Path
) -> list[ExportedFormat]:
    """Write each format and compare it with the trained network; remove a file that does not agree.

    Args:
        names: keys of `FORMATS`.
        classifier: the network.
        images: to compare predictions on.
        folder: to write into.
    """
    exported: dict[str, PredictBatch] = {}
    countdown = Countdown("formats", len(names))
    for name in names:
        started = time.perf_counter()
        # A signal must not interrupt the native code of a converter.
        with signals.deferred():
            exported[name] = export_formats.load(name, export_formats.write(name, classifier, folder))
        log.info("%s: written in %.1f s", name, time.perf_counter() - started)
        countdown.advance()
    with progress("checking", len(images), "images") as advance:
        checks = compare(
            exported, export_formats.keras_predictor(classifier.model), (image() for image in images), advance
        )
    formats = [ExportedFormat(name, _disk_size(folder / FORMATS[name].file), check) for name, check in checks.items()]
    for each in formats:
        if not each.agrees:
            files.remove(folder / FORMATS[each.name].file)
    return formats


def logits(classifier: "Classifier", images: Iterable[ImageLoader]) -> np.ndarray:
    """Compute the trained network's logits of images as training does: decoded as there, and in batches.

    Args:
        classifier: the network.
        images: any number of them, of any size.

    Returns:
        [n, classes] logits.
    """
    loaders = iter(images)
    batches = []
    while batch := [classifier.decode(image) for image in itertools.islice(loaders, classifier.batch_size())]:
        batches.append(classifier.logits(np.stack(batch)))
    return np.concatenate(batches)


def check_served(classifier: "Classifier", encoded: bytes, answer: Mapping[str, Any]) -> None:
    """Check that a served model answers as the trained network does.

    Args:
        classifier: the trained network.
        encoded: content of the image file that it was asked about.
        answer: its prediction, by column.

    Raises:
        UserError: it names another class, or a probability differs.
    """
    probabilities, (name,) = export_formats.keras_predictor(classifier.model)(decode(encoded, "example")[None])
    expected = dict(zip(classifier.class_names, probabilities[0].tolist(), strict=True))
    answered = answer["probabilities"]
    difference = max(abs(expected[each] - probability) for each, probability in answered.items())
    # Two classes may be as probable as each other, to within the tolerance.
    is_top = expected[name] - expected[answer["class"]] <= FLOAT32_TOLERANCE
    if not (is_top and difference <= FLOAT32_TOLERANCE):
        raise UserError(
            f"The served model does not match the trained network: a probability differs by {difference:.2g}. At most"
            f" {FLOAT32_TOLERANCE:g} is allowed, so nothing was registered. Export another run: type run=<its id>."
        )


def require_agreement(formats: Sequence[ExportedFormat]) -> None:
    """Raise `UserError` if a format does not agree with the trained network."""
    wrong = [each for each in formats if not each.agrees]
    if wrong:
        first = wrong[0]
        others = f", nor does {' or '.join(each.name for each in wrong[1:])}" if wrong[1:] else ""
        raise UserError(
            f"{first.name} does not match the trained network{others}: a probability differs by"
            f" {first.parity.max_difference:.2g}. At most {FORMATS[first.name].tolerance:g} is allowed, so its file was"
            " removed and nothing was registered. Type formats=[…] with those that match."
        )


def write_checks(file: Path, formats: Sequence[ExportedFormat]) -> None:
    """Write size and parity of each format as JSON."""
    checks = {
        each.name: {
            "bytes": each.size,
            "allowed": FORMATS[each.name].tolerance,
            "agrees": each.agrees,
            "difference": each.parity.max_difference,
            "same": each.parity.same_class,
            "n": each.parity.n,
        }
        for each in formats
    }
    file.write_text(json.dumps(checks, indent=2) + "\n", encoding="utf-8")


def example_jpeg(image: ImageLoader) -> bytes:
    """Encode an image as a small JPEG, to be logged as a model's input example."""
    from PIL import Image

    small = Image.fromarray(image())
    small.thumbnail((_EXAMPLE_SIZE, _EXAMPLE_SIZE))
    encoded = io.BytesIO()
    small.save(encoded, "JPEG")
    return encoded.getvalue()


def _disk_size(path: Path) -> int:
    """Return the bytes of a file, or of all files below a folder."""
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return path.stat().st_size


# --- parity -----------------------------------------------------------


def compare(
    formats: Mapping[str, PredictBatch],
    trained: PredictBatch,
    images: Iterable[np.ndarray],
    advance: Callable[[int], None],
) -> dict[str, ParityCheck]:
    """Compare the predictions of all formats with those of the trained network, in one pass over the images.

    Args:
        formats: prediction function of each format, by its name.
        trained: prediction function of the trained network.
        images: each [h, w, 3] uint8.
        advance: called with the number of images just done.

    Raises:
        UserError: the trained network's probabilities are not finite.
    """
    checks = {name: ParityCheck() for name in formats}
    for batch in _equal_size_batches(images):
        expected, expected_classes = trained(batch)
        if not np.isfinite(expected).all():
            raise UserError(
                "The network's outputs are not finite numbers. Only a network with finite outputs can be exported. Type"
                " run=best, for example."
            )
        for name, predict in formats.items():
            probabilities, classes = predict(batch)
            check = checks[name]
            same_shape = probabilities.shape == expected.shape
            difference = float(np.abs(probabilities - expected).max()) if same_shape else np.inf
            # np.maximum, because max() would drop NaN.
            check.max_difference = float(np.maximum(check.max_difference, difference))
            check.same_class += sum(one == other for one, other in zip(classes, expected_classes, strict=True))
            check.n += len(batch)
        advance(len(batch))
    return checks


def _equal_size_batches(images: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Stack consecutive images of one size into batches [b, h, w, 3] of bounded size."""
    batch: list[np.ndarray] = []
    for image in images:
        if batch and (image.shape != batch[0].shape or (len(batch) + 1) * image.size > 3 * _MAX_BATCH_PIXELS):
            yield np.stack(batch)
            batch = []
        batch.append(image)
    if batch:
        yield np.stack(batch)


def with_odd_sizes(images: list[ImageLoader]) -> list[ImageLoader]:
    """Append copies of the first images, resized to `_ODD_SIZES`."""
    return images + [partial(_squeezed, image, *size) for image, size in zip(images, _ODD_SIZES, strict=False)]


def _squeezed(image: ImageLoader, height: int, width: int) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.fromarray(image()).resize((width, height)))
