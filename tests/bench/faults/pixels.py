"""Preflights of the study: each backbone with each pixel convention, on BatchNorm statistics of real pretraining."""

from dataclasses import dataclass

import numpy as np

from dogbreeds.data.dataset import Dataset, Split
from dogbreeds.experiments.isolation import process_state_restored
from dogbreeds.models.preprocessing import MODES
from dogbreeds.training import preflight
from dogbreeds.training.batchnorm_statistics import PixelFit
from tests.bench.faults.backbones import CLASSES, Backbone, open_images

# Samples of training images; a pair of backbone and convention is right only if it is right on all of them.
SAMPLES = 3


@dataclass(frozen=True)
class Pair:
    """A backbone with a pixel convention.

    Attributes:
        backbone: its name.
        mode: pixel convention.
        is_native: whether it is the one of pretraining.
        mismatches: [samples] whether the preflight reports a mismatch.
        distances: [samples] what it measured, by convention.
    """

    backbone: str
    mode: str
    is_native: bool
    mismatches: tuple[bool, ...]
    distances: tuple[dict[str, float], ...]

    @property
    def is_right(self) -> bool:
        """Whether the preflight accepted the native convention, or refused another, on every sample."""
        return all(mismatch != self.is_native for mismatch in self.mismatches)


def measure_fit(backbone: Backbone, classes: int = CLASSES, sample: int = 0) -> PixelFit:
    """Measure how well each convention fits a backbone, on a sample of its images. The fit is cached.

    Args:
        backbone: pretrained backbone.
        classes: classes that there are.
        sample: number of the sample, from 0; samples share no image.
    """
    run = backbone.run("preflight=warn")
    source, class_names = open_images(backbone.photos, classes)
    rows = Split(source, np.arange(sample, len(source.labels), SAMPLES))
    with process_state_restored():
        fit = run.preflight.measure_pixel_fit(
            run.model.build(0),
            Dataset("study", tuple(class_names), rows, rows, None),
            run.data,
            run.features.open_cache(),
        )
    if fit is None:
        raise RuntimeError("preflight=warn measures the fit")
    return fit


def measure_pairs(backbone: Backbone, classes: int = CLASSES) -> list[Pair]:
    """Return the pair of a backbone with each pixel convention."""
    native = backbone.run().model.pixels
    fits = [measure_fit(backbone, classes, sample) for sample in range(SAMPLES)]
    return [
        Pair(
            backbone.name,
            mode,
            mode == native,
            tuple(any(found.certain for found in preflight.check_pixels(fit, mode, native)) for fit in fits),
            tuple(fit.distances for fit in fits),
        )
        for mode in MODES
    ]
