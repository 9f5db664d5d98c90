"""Linear classifiers of standardised features, which are read in parts.

A memory-mapped array that is larger than memory is never copied whole.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

# Bytes of the float64 features that are in memory at once.
_PART_BYTES = 32 << 20
# A feature is constant if its standard deviation is below this share of its mean.
_CONSTANT = 1e-6
_TINY = np.finfo(np.float64).tiny


class StackedRows:
    """Arrays of the same width, one below the other, that are read by row and never copied whole.

    Args:
        arrays: [m_i, d] of any float type; at least one.
    """

    def __init__(self, arrays: Sequence[np.ndarray]):
        self._arrays = arrays
        self._firsts = np.cumsum([0, *map(len, arrays)])
        self.shape = (int(self._firsts[-1]), arrays[0].shape[1])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """Return rows [k, d], whose numbers continue from one array to the next."""
        owners = np.searchsorted(self._firsts, rows, side="right") - 1
        found = np.empty((len(rows), self.shape[1]), np.result_type(*self._arrays))
        for owner in np.unique(owners):
            found[owners == owner] = self._arrays[owner][rows[owners == owner] - self._firsts[owner]]
        return found


# Features of images, one row each.
FeatureArray = np.ndarray | StackedRows


@dataclass(frozen=True)
class LinearClassifier:
    """A linear classifier of features.

    Attributes:
        mean: [d] float64, weighted mean of each feature.
        scale: [d] float64, one over its standard deviation; 0 for a feature that is constant.
        weights: [d, classes] float64, of the standardised features.
        bias: [classes] float64.
    """

    mean: np.ndarray
    scale: np.ndarray
    weights: np.ndarray
    bias: np.ndarray

    def logits(self, features: FeatureArray, rows: np.ndarray | None = None) -> np.ndarray:
        """Score images. The highest score is the predicted class.

        Args:
            features: [m, d].
            rows: [n] rows of `features` to score; None for all.

        Returns:
            [n, classes] float32.
        """
        rows = _all_rows(features) if rows is None else rows
        logits = np.empty((len(rows), len(self.bias)), np.float32)
        for part, block in standardised(features, rows, self.mean, self.scale):
            logits[part] = block @ self.weights + self.bias
        return logits

    def dense(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the classifier as a dense layer: [d, classes] and [classes] float32. Standardisation is folded in."""
        kernel = self.scale[:, None] * self.weights
        return kernel.astype(np.float32), (self.bias - self.mean @ kernel).astype(np.float32)


def _all_rows(features: FeatureArray) -> np.ndarray:
    """Return [m], all rows of features."""
    return np.arange(len(features))


def _parts(features: FeatureArray, rows: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield float64 features of consecutive rows, and where these are among `rows`."""
    step = max(1, _PART_BYTES // (8 * max(1, features.shape[1])))
    for first in range(0, len(rows), step):
        part = slice(first, first + step)
        yield part, features[rows[part]].astype(np.float64)


def standardised(
    features: FeatureArray, rows: np.ndarray, mean: np.ndarray, scale: np.ndarray
) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield standardised float64 features of consecutive rows, and where these are among `rows`."""
    for part, block in _parts(features, rows):
        block -= mean
        block[~np.isfinite(block)] = 0.0
        block *= scale
        yield part, block


@dataclass(frozen=True)
class TrainingRows:
    """The training images of a linear classifier, and how their features are standardised.

    Attributes:
        rows: [n] rows of the features.
        weights: [n] float64, weight of each image.
        mean: [d] float64, weighted mean of each feature.
        scale: [d] float64, one over its standard deviation; 0 for a feature that is constant.
    """

    rows: np.ndarray
    weights: np.ndarray
    mean: np.ndarray
    scale: np.ndarray

    @classmethod
    def of(
        cls, features: FeatureArray, labels: np.ndarray, rows: np.ndarray | None, class_weights: np.ndarray | None
    ) -> "TrainingRows":
        """Standardise features by some of their rows.

        Args:
            features: [m, d] of any float type. Values that are not finite count as the feature's mean.
            labels: [n] int, class of each training image.
            rows: [n] rows of `features` to train on; None for all.
            class_weights: [classes] weight of an image of each class; None if all are 1.
        """
        rows = _all_rows(features) if rows is None else rows
        weights = np.ones(len(labels)) if class_weights is None else class_weights[labels].astype(np.float64)
        return cls(rows, weights, *_standardisation(features, rows, weights))

    def blocks(self, features: FeatureArray) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield standardised float64 features of consecutive images, and where these are among the training images."""
        return standardised(features, self.rows, self.mean, self.scale)

    def span(self, features: FeatureArray) -> np.ndarray | None:
        """Return [d, n], an orthonormal basis of the space that the images span, if they are fewer than the features.

        A regularised linear classifier has no weights outside that space.
        """
        from scipy.linalg import qr

        if len(self.rows) >= features.shape[1]:
            return None
        return qr(np.concatenate([block for _, block in self.blocks(features)]).T, mode="economic")[0]


def _standardisation(features: FeatureArray, rows: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the weighted mean of each feature and one over its standard deviation, of the values that are finite."""
    width = features.shape[1]
    total, sums, squares = np.zeros(width), np.zeros(width), np.zeros(width)
    # Near the mean, so that squares of large values do not hide a small variance.
    shift = features[rows[:1]][0].astype(np.float64)
    shift[~np.isfinite(shift)] = 0.0
    for part, block in _parts(features, rows):
        block -= shift
        finite = np.isfinite(block)
        if finite.all():
            total += weights[part].sum()
        else:
            block[~finite] = 0.0
            total += weights[part] @ finite
        sums += weights[part] @ block
        squares += weights[part] @ np.square(block, out=block)
    offset = sums / np.maximum(total, _TINY)
    mean = shift + offset
    deviation = np.sqrt(np.maximum(squares / np.maximum(total, _TINY) - offset**2, 0.0))
    varies = np.isfinite(deviation) & (deviation > _CONSTANT * np.maximum(np.abs(mean), np.abs(offset)))
    return mean, np.divide(1.0, deviation, out=np.zeros(width), where=varies)
