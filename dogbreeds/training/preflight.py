"""Preflight: checks of the pixel convention, the data and the initial loss, before time is spent on training.

`make faults` measures the error rates of the pixel check.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dogbreeds.core.errors import UserError
from dogbreeds.core.spec import Spec, integer, number, one_of
from dogbreeds.data.dataset import Data, Dataset
from dogbreeds.features.cache import FeatureCache
from dogbreeds.models.preprocessing import MODES, VALUE_RANGES
from dogbreeds.training.pixel_fit import PixelFit, format_distance, measure_fit
from dogbreeds.training.pixel_reading import PixelReading

if TYPE_CHECKING:
    from dogbreeds.models.model import Backbone

log = logging.getLogger(__name__)

# The thresholds were chosen on one half of the seeds of `make faults`, which reports on the other half.
# KL divergence up to which a convention fits, even if another fits better.
_MISMATCH_NATS = 0.05
# A certain mismatch has at least this many times the divergence of the best convention.
_MISMATCH_RATIO = 3.0
# KL divergence beyond which a convention does not fit, even if it is the best.
_NO_FIT_NATS = 2.0
# Without BatchNorm, a certain mismatch leaves at most this fraction of the variance between images.
_VARIANCE_RATIO = 0.1
# Range of a new head's initial loss, as multiples of ln(classes).
_INITIAL_LOSS = (0.5, 1.5)


@dataclass(frozen=True)
class Finding:
    """A problem found by a check.

    Attributes:
        check: `pixels`, `duplicates`, `near_duplicates`, `labels` or `initial_loss`.
        certain: whether there is no doubt, so that training would waste time.
        message: what was received, what is allowed, what to type.
    """

    check: str
    certain: bool
    message: str


@dataclass(frozen=True, kw_only=True)
class Preflight(Spec):
    """The checks before training.

    Attributes:
        action: on a certain finding, `stop` raises an error, and `warn` trains and tags the run; `none` checks nothing.
        images: number of training images that the backbone is given in every pixel convention.
        max_duplicate_fraction: fraction of a split's images that may also be in another split, in [0, 1].
    """

    group = "preflight"
    action: str = one_of("stop", "warn", "none")
    images: int = integer(at_least=8, at_most=4096, example=64)
    max_duplicate_fraction: float = number(at_least=0, at_most=1, example=0.01)

    def report(self, findings: Sequence[Finding]) -> None:
        """Log the findings as warnings.

        Raises:
            UserError: at the first certain finding, if `action` is `stop`.
        """
        for finding in findings:
            if finding.certain and self.action == "stop":
                raise UserError(finding.message)
            log.warning("preflight: %s", finding.message)

    def check_data(self, dataset: Dataset) -> list[Finding]:
        """Check that labels are in range, that every class has training images, and that no image is in two splits.

        The number of logits needs no check: a head is built with one for each class name.
        """
        if self.action == "none":
            return []
        return [*_check_labels(dataset), *_check_duplicates(dataset, self.max_duplicate_fraction)]

    def measure_pixel_fit(
        self, backbone: "Backbone", dataset: Dataset, data: Data, cache: FeatureCache
    ) -> PixelFit | None:
        """Measure how well each pixel convention fits the backbone on a sample of training images. The fit is cached.

        Args:
            backbone: whose weights are pretrained, or new.
            dataset: the sample is taken from its training split.
            data: how images are resized, and what happens to unreadable ones.
            cache: where the distances are cached.

        Returns:
            The fit; None if `action` is `none`.

        Raises:
            UserError: if no sampled image can be read.
        """
        return None if self.action == "none" else measure_fit(backbone, dataset.train, self.images, data, cache)


# --- pixel convention ---------------------------------------------------------


def check_pixels(fit: PixelFit, mode: str, native: str) -> list[Finding]:
    """Check the chosen pixel convention against the backbone.

    Args:
        fit: from `Preflight.measure_pixel_fit`.
        mode: the chosen convention.
        native: the convention that the model's config names.
    """
    if fit.reading is not None and fit.reading.is_mismatch(mode):
        return _misread(fit.reading, mode, native)
    if not fit.has_statistics:
        # The config's convention, not the chosen one, is the mismatch: the chosen one is right.
        config_is_wrong = fit.reading is not None and fit.reading.is_mismatch(native)
        return [] if config_is_wrong else _check_variance(fit, mode, native)
    best, distance = fit.best, fit.distances[mode]
    if distance > max(_MISMATCH_NATS, _MISMATCH_RATIO * fit.distances[best]):
        return _mismatch(
            f"preprocessing.mode={mode} does not match the pretrained weights. BatchNorm's running statistics fit"
            f" {best} pixels (KL divergence {format_distance(fit.distances[best])} nats; {mode}:"
            f" {format_distance(distance)}).",
            "native" if best == native else best,
        )
    if distance > _NO_FIT_NATS:
        return [
            Finding(
                "pixels",
                False,
                f"No pixel convention fits BatchNorm's running statistics (KL divergence in nats: {fit}). Either the"
                " images differ strongly from those of pretraining, or the weights belong to another backbone. Check"
                " some images, and model.weights.",
            )
        ]
    return []


def told_convention(fit: PixelFit) -> str | None:
    """Return the only convention that the fit does not exclude; None if it does not tell.

    Args:
        fit: from `Preflight.measure_pixel_fit`.
    """
    if fit.has_statistics:
        if fit.distances[fit.best] > _NO_FIT_NATS:
            return None
        possible = [mode for mode in MODES if not check_pixels(fit, mode, mode)]
    elif fit.reading is not None:
        possible = [mode for mode in MODES if not fit.reading.is_mismatch(mode)]
    else:
        return None
    return possible[0] if len(possible) == 1 else None


def _check_variance(fit: PixelFit, mode: str, native: str) -> list[Finding]:
    """Check the convention of a backbone without trained BatchNorm layers."""
    lost = fit.distances[mode]
    if mode != native and lost > 1 - _VARIANCE_RATIO:
        return _mismatch(
            f"preprocessing.mode={mode} makes the backbone's output nearly the same for all images"
            f" ({100 * (1 - lost):.1f} % of the variance with {fit.best} pixels). No trained BatchNorm layer tells the"
            " convention of pretraining, but nothing can be learned from such an output.",
            "native" if fit.best == native else fit.best,
        )
    if mode != native:
        return [
            Finding(
                "pixels",
                False,
                f"preprocessing.mode={mode} ({VALUE_RANGES[mode]}) differs from the model's config, which names"
                f" {native} pixels ({VALUE_RANGES[native]}). The backbone has no trained BatchNorm layer that tells"
                " which is right. Set preprocessing=native, unless the other convention is intended.",
            )
        ]
    return []


def _misread(reading: PixelReading, mode: str, native: str) -> list[Finding]:
    """Return the finding that a probe reads another convention better, for a backbone without BatchNorm."""
    best, chosen = reading.conventions[reading.best], reading.conventions[mode]
    return _mismatch(
        f"preprocessing.mode={mode} does not match the pretrained weights. No trained BatchNorm layer tells the"
        f" convention of pretraining, but a linear probe reads {best.accuracy.n} labelled images best with"
        f" {reading.best} pixels ({best.accuracy.correct} correct; {mode}: {chosen.accuracy.correct};"
        f" p = {chosen.p_value:.1g}).",
        # The config's convention, unless it is worse too.
        reading.best if reading.is_mismatch(native) else "native",
    )


def _mismatch(problem: str, fix: str) -> list[Finding]:
    """Return a certain finding about pixels: the problem, and the convention to set."""
    return [Finding("pixels", True, f"{problem} Set preprocessing={fix}, or preflight=warn to train anyway.")]


def pixel_fit_line(fit: PixelFit, mode: str) -> str:
    """Format the fit as a log line."""
    if fit.has_statistics:
        distance = format_distance(fit.distances[mode])
        return f"pixels: KL divergence of {mode} from BatchNorm's running statistics is {distance} nats ({fit})"
    variances = ", ".join(
        f"{name} {100 * (1 - lost):.0f} %" for name, lost in sorted(fit.distances.items(), key=lambda item: item[1])
    )
    line = f"pixels: no trained BatchNorm to check; relative variance between images by convention: {variances}"
    return line if fit.reading is None else f"{line}; {fit.reading}"


# --- initial loss -------------------------------------------------------------


def check_initial_loss(loss: float, classes: int, new_head: bool) -> list[Finding]:
    """Check that the loss before the first step is about ln(classes), or lower if the head is already trained.

    Args:
        loss: mean cross-entropy in nats.
        classes: number of classes.
        new_head: whether the head has new weights.
    """
    chance = math.log(classes)
    low, high = _INITIAL_LOSS
    if math.isfinite(loss) and loss <= high * chance and (not new_head or loss >= low * chance):
        return []
    expected = (
        f"about ln({classes}) = {chance:.2f} with a new head"
        if new_head
        else f"below ln({classes}) = {chance:.2f}, because the head is trained"
    )
    return [
        Finding(
            "initial_loss",
            False,
            f"The loss before the first step is {loss:.2f}. It should be {expected}. Features that are far too large,"
            " or leaked labels, cause such a loss: check preprocessing and data.",
        )
    ]


# --- data ---------------------------------------------------------------------


def _check_labels(dataset: Dataset) -> list[Finding]:
    """Check that labels are in range, and that every class has training images."""
    classes = len(dataset.class_names)
    for name, split in dataset.splits.items():
        labels = split.labels
        if len(labels) and (labels.min() < 0 or labels.max() >= classes):
            bad = labels[(labels < 0) | (labels >= classes)][0]
            text = (
                f"{name} has an image with label {bad}. Labels must be 0 to {classes - 1}, one for each class name."
                " Correct the labels of the data set."
            )
            return [Finding("labels", True, text)]
    absent = np.setdiff1d(np.arange(classes), dataset.train.labels)
    if len(absent):
        names = ", ".join(dataset.class_names[label] for label in absent[:3])
        text = (
            f"{len(absent)} of {classes} classes have no training images ({names}). Every class needs at least one. Add"
            " images, or remove the class."
        )
        return [Finding("labels", True, text)]
    return []


def _check_duplicates(dataset: Dataset, allowed: float) -> list[Finding]:
    """Find images with identical bytes in two splits."""
    findings = []
    digests = {name: [split.source.digests[row] for row in split.rows] for name, split in dataset.splits.items()}
    for first, second in (("train", "val"), ("train", "test"), ("val", "test")):
        positions = {digest: index for index, digest in enumerate(digests.get(first, []))}
        duplicates = [
            (index, positions[digest]) for index, digest in enumerate(digests.get(second, [])) if digest in positions
        ]
        if not duplicates:
            continue
        image, other = (
            dataset.splits[name].source.ids[dataset.splits[name].rows[index]]
            for name, index in zip((second, first), duplicates[0], strict=True)
        )
        total = len(dataset.splits[second].rows)
        text = (
            f"{len(duplicates)} of {total:,} images of {second} are also in {first}, such as {image} = {other}."
            f" preflight.max_duplicate_fraction allows {allowed:g} of them, because duplicates inflate the result."
            " Remove them from one of the two splits, or set preflight=warn."
        )
        findings.append(Finding("duplicates", len(duplicates) / total > allowed, text))
    return findings


def near_duplicates_finding(pairs: Sequence[tuple[str, str]], total: int) -> list[Finding]:
    """State that test images are near-duplicates of training images; empty without any.

    Args:
        pairs: names of a test image, and of the training image that it is a copy of.
        total: number of test images.
    """
    if not pairs:
        return []
    image, other = pairs[0]
    text = (
        f"{len(pairs):,} of {total:,} images of test are near-duplicates of images of train, such as {image} of"
        f" {other}. Copies inflate the test accuracy. Type python -m dogbreeds.audit with the same settings of the data"
        " to see them, and data.exclude=audit.csv to train without them."
    )
    return [Finding("near_duplicates", False, text)]
