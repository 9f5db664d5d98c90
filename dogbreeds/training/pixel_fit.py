"""Measure how well each pixel convention fits a backbone, on a sample of training images. The fit is cached.

A backbone with BatchNorm layers is asked by their running statistics, and no labels are needed. Another is asked by a
probe of its features.
"""

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dogbreeds.core.console import progress
from dogbreeds.core.errors import UserError
from dogbreeds.core.source import plugin_source
from dogbreeds.core.text import digest
from dogbreeds.data.dataset import Data, Split
from dogbreeds.data.decoder import decoder_identity, decoder_to_size
from dogbreeds.data.image import UnreadableImageError
from dogbreeds.features.cache import FeatureCache
from dogbreeds.models.preprocessing import MODES
from dogbreeds.training.batchnorm_statistics import (
    LAYERS,
    batchnorm_divergences,
    first_batchnorms,
    has_trained_statistics,
    in_convention,
    num_used,
)
from dogbreeds.training.pixel_reading import PixelReading, choose_rows, read_pixels, thumbnails

if TYPE_CHECKING:
    import keras

    from dogbreeds.models.model import Backbone

# Multiplications of a reading, all conventions together: well under a minute on two cores. A large backbone is given
# fewer images for it, but never fewer than the least number.
_MAX_MULTIPLICATIONS = 5e11
_MIN_IMAGES = 24
# Part of the identity of a cached reading. Increase it with any change of how images are chosen or scored.
_READING_VERSION = 1


@dataclass(frozen=True)
class PixelFit:
    """How well each pixel convention fits a backbone.

    Attributes:
        has_statistics: whether the backbone has trained BatchNorm layers, which `distances` then refers to.
        distances: by convention, lower is better. With trained BatchNorm layers: KL divergence in nats of their inputs
            from their running statistics, the median over channels and the mean over layers. Without: fraction of the
            variance between images, at the backbone's output, that is lost relative to the best convention.
        reading: how well a probe reads each convention; None with trained BatchNorm layers, or if the labelled images
            are too few.
    """

    has_statistics: bool
    distances: dict[str, float]
    reading: PixelReading | None = None

    @property
    def best(self) -> str:
        """The convention with the smallest distance."""
        return min(self.distances, key=lambda mode: self.distances[mode])

    def metrics(self) -> dict[str, float]:
        """Return the distances and the probe's accuracies by name, as they are recorded."""
        return self.distances | (self.reading.metrics() if self.reading is not None else {})

    def __str__(self) -> str:
        ranked = sorted(self.distances.items(), key=lambda item: item[1])
        return ", ".join(f"{mode} {format_distance(distance)}" for mode, distance in ranked)


def format_distance(distance: float) -> str:
    """Format a distance with its significant digits."""
    return f"{distance:.3f}" if distance < 0.1 else f"{distance:.2f}" if distance < 10 else f"{distance:,.0f}"


def measure_fit(backbone: "Backbone", split: Split, images: int, data: Data, cache: FeatureCache) -> PixelFit:
    """Measure the fit, by the running statistics if the backbone has trained BatchNorm layers, or else by a probe.

    Args:
        backbone: whose weights are pretrained, or new.
        split: training images to take the sample from.
        images: size of the sample.
        data: how images are decoded and resized, and what happens to unreadable ones.
        cache: where the fit is cached.

    Raises:
        UserError: if no sampled image can be read.
    """
    layers = first_batchnorms(backbone.network)
    if not any(has_trained_statistics(layer) for layer, _ in layers):
        return measure_reading(backbone, split, images, data, cache)
    rows = _spread(split.rows, images)

    def compute(distances: np.ndarray, start: int, notes: dict[str, Any]) -> Generator[int, None, None]:
        decoded, _ = _decode(backbone, split, rows, data)
        with progress("preflight", len(MODES) * num_used(len(decoded)), "images") as advance:
            distances[:] = batchnorm_divergences(backbone.network, layers, decoded, advance)
        yield len(distances)

    identity = _identity(backbone, split, rows, data) | {"layers": LAYERS}
    found = cache.get_or_compute("preflight", identity, (len(MODES),), "float64", compute).rows
    return PixelFit(True, dict(zip(MODES, found.tolist(), strict=True)))


def measure_reading(backbone: "Backbone", split: Split, images: int, data: Data, cache: FeatureCache) -> PixelFit:
    """Measure the fit without BatchNorm: the lost variance between images, and how well a probe reads them.

    Args:
        backbone, split, images, data, cache: as in `measure_fit`. A large backbone is given fewer images.

    Raises:
        UserError: if no sampled image can be read.
    """
    affordable = int(_MAX_MULTIPLICATIONS / len(MODES) / max(multiplications(backbone.network), 1))
    images = min(images, max(_MIN_IMAGES, affordable))
    labelled = choose_rows(split.labels, split.rows, images)
    rows = _spread(split.rows, images) if labelled is None else labelled

    def compute(table: np.ndarray, start: int, notes: dict[str, Any]) -> Generator[int, None, None]:
        decoded, labels = _decode(backbone, split, rows, data)
        with progress("preflight", len(MODES) * len(decoded), "images") as advance:
            features = pooled_features(backbone.network, decoded, advance)
        reading = read_pixels(features, thumbnails(decoded), labels)
        table[:] = np.nan
        table[:-1, 0] = lost_variance(list(features.values()))
        if reading is not None:
            table[:, 1:] = reading.table()
        yield len(table)

    labels_digest = digest(split.source.labels[rows].tobytes())
    identity = _identity(backbone, split, rows, data) | {"reading": _READING_VERSION, "labels": labels_digest}
    # A row for each convention, and one for the thumbnails.
    shape = (len(MODES) + 1, 1 + len(PixelReading.COLUMNS))
    table = np.asarray(cache.get_or_compute("preflight", identity, shape, "float64", compute).rows)
    reading = PixelReading.from_table(table[:, 1:], MODES) if np.isfinite(table[:, 1:]).all() else None
    return PixelFit(False, dict(zip(MODES, table[:-1, 0].tolist(), strict=True)), reading)


def pooled_features(
    network: "keras.Model", images: np.ndarray, advance: Callable[[int], None] = lambda images: None
) -> dict[str, np.ndarray]:
    """Compute the output of a backbone for images in each convention, averaged over its positions.

    Args:
        network: the backbone.
        images: [n, size, size, 3] RGB in [0, 255].
        advance: called with the number of images just done, in each convention.

    Returns:
        [n, channels] float32 by convention.
    """
    import tensorflow as tf

    # Of feature maps, of tokens, or none of a vector.
    positions = tuple(range(1, len(network.output.shape) - 1))
    pooled = tf.function(
        lambda pixels: tf.reduce_mean(network(pixels, training=False), axis=positions), reduce_retracing=True
    )
    return {
        mode: np.concatenate([pooled(pixels).numpy() for pixels in in_convention(images, mode, advance)])
        for mode in MODES
    }


def multiplications(network: "keras.Model") -> int:
    """Estimate the multiplications for an image: each kernel is used once at each position of its layer's output."""
    return sum(
        int(np.prod(part.kernel.shape)) * int(np.prod([size or 1 for size in layer.output.shape[1:-1]]))
        for layer in network.layers
        # An encoder layer has its kernels within it.
        for part in layer._flatten_layers()
        if getattr(part, "kernel", None) is not None
    )


def lost_variance(features: list[np.ndarray]) -> list[float]:
    """Compute for each convention the fraction of the features' variance between images that is lost.

    The variance is relative to the mean square of the features, and the fraction relative to the best convention.

    Args:
        features: [n, channels] of each convention.
    """
    outputs = [each.astype(np.float64) for each in features]
    variances = [each.var(axis=0).sum() / max(float((each**2).mean(axis=0).sum()), 1e-30) for each in outputs]
    largest = max(variances)
    return [1 - variance / largest if largest > 0 else 0.0 for variance in variances]


def _spread(rows: np.ndarray, images: int) -> np.ndarray:
    """Return rows that are spread evenly over all of them."""
    return rows[np.unique(np.linspace(0, len(rows) - 1, images).astype(int))]


def _identity(backbone: "Backbone", split: Split, rows: np.ndarray, data: Data) -> dict[str, Any]:
    return {
        "photos": split.source.fingerprint,
        "rows": rows.tolist(),
        "size": backbone.network.input.shape[1],
        "resize": data.resize,
        "backbone": backbone.fingerprint,
        **decoder_identity(data.chosen_decoder),
        **plugin_source(data),
    }


def _decode(backbone: "Backbone", split: Split, rows: np.ndarray, data: Data) -> tuple[np.ndarray, np.ndarray]:
    """Return the resized images of some rows and their labels, without those that `data.on_corrupt=skip` skips.

    Raises:
        UserError: if none can be read.
    """
    decode = decoder_to_size(backbone.network.input.shape[1], data.resize, data.chosen_decoder)
    sampled = set(rows.tolist())
    images, labels = [], []
    for row, load in enumerate(split.source.loaders()):
        if row in sampled:
            try:
                images.append(decode(load))
            except UnreadableImageError:
                if data.on_corrupt == "stop":
                    raise
            else:
                labels.append(split.source.labels[row])
    if not images:
        raise UserError(
            f"None of {len(rows)} sampled training images can be read. The preflight needs some of them. Repair the"
            " files, or set data.root to another folder."
        )
    return np.stack(images), np.asarray(labels)
