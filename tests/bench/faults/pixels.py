"""Preflights of the study: each backbone with each pixel convention, on the statistics or features of real pretraining.

The check for backbones without BatchNorm is measured on the same backbones, with their BatchNorm layers hidden from it,
and on a small network that has none.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dogbreeds.core.paths import home
from dogbreeds.data.dataset import Dataset, Split
from dogbreeds.experiments.isolation import process_state_restored
from dogbreeds.experiments.run import Run
from dogbreeds.models import model
from dogbreeds.models.preprocessing import MODES
from dogbreeds.training import preflight
from dogbreeds.training.pixel_fit import PixelFit, measure_reading
from tests.bench.faults import layernorm
from tests.bench.faults.backbones import CLASSES, Backbone, open_images

# Samples of training images; a pair of backbone and convention is right only if it is right on all of them.
SAMPLES = 3
# Samples for the check without BatchNorm. Each has classes of its own.
READ_SAMPLES = 6
# The checks: of BatchNorm's statistics, and by a probe of the features.
BATCHNORM, PROBE = "batchnorm", "probe"


@dataclass(frozen=True)
class Pair:
    """A backbone with a pixel convention.

    Attributes:
        backbone: its name.
        mode: pixel convention.
        is_native: whether it is the one of pretraining.
        mismatches: [samples] whether the preflight reports a mismatch.
        distances: [samples] what it measured, by convention: KL divergences, or accuracies of the probe.
        check: `BATCHNORM` or `PROBE`.
    """

    backbone: str
    mode: str
    is_native: bool
    mismatches: tuple[bool, ...]
    distances: tuple[dict[str, float], ...]
    check: str = BATCHNORM

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
    """Return the pair of a backbone with each pixel convention, by its BatchNorm statistics."""
    fits = [measure_fit(backbone, classes, sample) for sample in range(SAMPLES)]
    return _pairs(backbone.name, backbone.run().model.pixels, fits, BATCHNORM)


def measure_hidden_pairs(backbone: Backbone, classes: int = CLASSES, samples: int = READ_SAMPLES) -> list[Pair]:
    """Return the pair of a backbone with each pixel convention, with its BatchNorm layers hidden from the preflight."""
    run = backbone.run("preflight=warn")
    with process_state_restored():
        fits = _readings(run.model.build(0), run, backbone.photos, classes, samples)
    return _pairs(backbone.name, run.model.pixels, fits, PROBE)


def measure_layernorm_pairs(weights: Path, classes: int = layernorm.CLASSES) -> list[Pair]:
    """Return the pair of the network without BatchNorm with each convention. It is pretrained if there are no weights.

    Args:
        weights: file of its weights, which is written if it is not there.
        classes: classes of drawn dogs to sample from.
    """
    run = Backbone("layernorm", ("model=miniature",)).run("preflight=warn")
    with process_state_restored():
        fits = _readings(layernorm.pretrained(weights), run, None, classes, READ_SAMPLES)
    return _pairs("layernorm", layernorm.PIXELS, fits, PROBE)


def _readings(network: model.Backbone, run: Run, photos: str | None, classes: int, samples: int) -> list[PixelFit]:
    """Read samples of images, each of other classes, or of other images if the classes are few."""
    source, _ = open_images(photos, classes)
    order = np.random.default_rng(0).permutation(classes)
    disjoint = classes >= 5 * samples
    fits = []
    for sample in range(samples):
        rows = np.arange(sample, len(source.labels), samples)
        if disjoint:
            rows = np.flatnonzero(np.isin(source.labels, order[sample::samples]))
        split = Split(source, rows)
        fits.append(measure_reading(network, split, run.preflight.images, run.data, run.features.open_cache()))
    return fits


def _pairs(name: str, native: str, fits: list[PixelFit], check: str) -> list[Pair]:
    return [
        Pair(
            name,
            mode,
            mode == native,
            tuple(any(found.certain for found in preflight.check_pixels(fit, mode, native)) for fit in fits),
            tuple(_measured(fit) for fit in fits),
            check,
        )
        for mode in MODES
    ]


def _measured(fit: PixelFit) -> dict[str, float]:
    if fit.reading is None:
        return fit.distances
    return {mode: reading.accuracy.value for mode, reading in fit.reading.conventions.items()}


def main() -> None:
    """Measure the check without BatchNorm, and print it: `python -m tests.bench.faults.pixels`."""
    import json
    import time

    from dogbreeds.experiments.prepare import _import_tensorflow
    from tests.bench.faults.backbones import backbones
    from tests.bench.faults.report import preflights

    _import_tensorflow()
    started = time.perf_counter()
    pairs = [pair for backbone in backbones().values() for pair in measure_hidden_pairs(backbone)]
    pairs += measure_layernorm_pairs(home() / "multirun" / "faults" / "layernorm.weights.h5")
    for pair in pairs:
        print(pair.backbone, pair.mode, sum(pair.mismatches), "of", len(pair.mismatches), json.dumps(pair.distances))
    print("\n".join(preflights(pairs)))
    print(f"{time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
