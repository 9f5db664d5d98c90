"""Reference probe: what a closed-form classifier reaches on the features that a head trains on.

Ridge regression on standardised features, its targets one-hot; nearest class mean where that would take too long. Both
are deterministic, and read the features in parts: a memory-mapped array larger than memory is never copied whole.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

RIDGE = "ridge"
NEAREST_MEAN = "nearest class mean"

# Bytes of the float64 features that are in memory at once.
_PART_BYTES = 32 << 20
# Multiplications above which ridge gives way to the nearest class mean: some seconds on two cores.
_MAX_MULTIPLICATIONS = 2e11
# Features or images, whichever are fewer, above which ridge does: the size of its eigendecomposition.
_MAX_RANK = 3000
# Multiplications of an eigendecomposition, divided by the cube of its size.
_EIGENDECOMPOSITION = 10
# Penalties that are tried, as multiples of the mean eigenvalue of the features' Gram matrix, largest first.
_PENALTIES = 10.0 ** np.arange(2, -3.5, -0.5)
# Eigenvalues below this share of the largest one are rounding errors.
_ROUNDING = 1e-10
# A feature is constant if its standard deviation is below this share of its mean.
_CONSTANT = 1e-6
# Images that are left out one by one to choose the penalty; more give the same choice.
_MAX_LEFT_OUT = 4000


@dataclass(frozen=True)
class ReferenceProbe:
    """A fitted linear classifier of features.

    Attributes:
        method: `RIDGE` or `NEAREST_MEAN`.
        mean: [d] float64, weighted mean of each feature.
        scale: [d] float64, one over its standard deviation; 0 for a feature that is constant.
        weights: [d, classes] float64, of the standardised features.
        bias: [classes] float64.
        facts: numbers about the fit, by name: `penalty` and `leave_one_out_accuracy` of ridge.
    """

    method: str
    mean: np.ndarray
    scale: np.ndarray
    weights: np.ndarray
    bias: np.ndarray
    facts: dict[str, float] = field(default_factory=dict)

    def logits(self, features: np.ndarray, rows: np.ndarray | None = None) -> np.ndarray:
        """Score images. The highest score is the predicted class; the scores are no calibrated logits.

        Args:
            features: [m, d].
            rows: [n] rows of `features` to score; None for all.

        Returns:
            [n, classes] float32.
        """
        rows = _all_rows(features) if rows is None else rows
        logits = np.empty((len(rows), len(self.bias)), np.float32)
        for part, block in _standardised(features, rows, self.mean, self.scale):
            logits[part] = block @ self.weights + self.bias
        return logits


def fit_probe(
    features: np.ndarray,
    labels: np.ndarray,
    classes: int,
    rows: np.ndarray | None = None,
    class_weights: np.ndarray | None = None,
) -> ReferenceProbe:
    """Fit the reference probe.

    Args:
        features: [m, d] of any float type. Values that are not finite count as the feature's mean.
        labels: [n] int, class of each training image.
        classes: number of classes; some may have no image.
        rows: [n] rows of `features` to train on; None for all.
        class_weights: [classes] weight of an image of each class; None if all are 1.
    """
    rows = _all_rows(features) if rows is None else rows
    weights = np.ones(len(labels)) if class_weights is None else class_weights[labels].astype(np.float64)
    mean, scale = _standardisation(features, rows, weights)
    fit = _fit_nearest_mean if _is_too_large(len(rows), features.shape[1]) else _fit_ridge
    return fit(features, rows, labels, classes, weights, mean, scale)


def _is_too_large(images: int, width: int) -> bool:
    rank = min(images, width)
    return rank > _MAX_RANK or images * width * rank + _EIGENDECOMPOSITION * rank**3 > _MAX_MULTIPLICATIONS


# --- features, in parts -------------------------------------------------------


def _all_rows(features: np.ndarray) -> np.ndarray:
    return np.arange(len(features))


def _parts(features: np.ndarray, rows: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield float64 features of consecutive rows, and where these are among `rows`."""
    step = max(1, _PART_BYTES // (8 * max(1, features.shape[1])))
    for first in range(0, len(rows), step):
        part = slice(first, first + step)
        yield part, features[rows[part]].astype(np.float64)


def _standardised(
    features: np.ndarray, rows: np.ndarray, mean: np.ndarray, scale: np.ndarray
) -> Iterator[tuple[slice, np.ndarray]]:
    for part, block in _parts(features, rows):
        block -= mean
        block *= scale
        block[~np.isfinite(block)] = 0.0
        yield part, block


def _standardisation(features: np.ndarray, rows: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the weighted mean of each feature and one over its standard deviation, of the values that are finite."""
    width = features.shape[1]
    total, sums, squares = np.zeros(width), np.zeros(width), np.zeros(width)
    for part, block in _parts(features, rows):
        finite = np.isfinite(block)
        block[~finite] = 0.0
        total += weights[part] @ finite
        sums += weights[part] @ block
    mean = sums / np.maximum(total, np.finfo(float).tiny)
    # A second pass, because the difference of two large sums would have lost the small variances.
    for part, block in _parts(features, rows):
        block -= mean
        block[~np.isfinite(block)] = 0.0
        squares += weights[part] @ np.square(block, out=block)
    deviation = np.sqrt(squares / np.maximum(total, np.finfo(float).tiny))
    varies = np.isfinite(deviation) & (deviation > _CONSTANT * np.abs(mean))
    return mean, np.divide(1.0, deviation, out=np.zeros(width), where=varies)


# --- ridge --------------------------------------------------------------------


def _fit_ridge(
    features: np.ndarray,
    rows: np.ndarray,
    labels: np.ndarray,
    classes: int,
    weights: np.ndarray,
    mean: np.ndarray,
    scale: np.ndarray,
) -> ReferenceProbe:
    """Fit ridge regression with the penalty that leaves the most images right that are left out one by one.

    All penalties share an eigendecomposition: of the features' Gram matrix, or of the images' where they are fewer.
    Of a linear smoother, the prediction of an image that is left out follows from its leverage, without another fit.
    """
    bias = np.bincount(labels, weights, classes) / weights.sum()
    roots = np.sqrt(weights)[:, None]
    targets = roots * (np.eye(classes)[labels] - bias)
    width = features.shape[1]
    if width <= len(rows):
        gram = np.zeros((width, width))
        products = np.zeros((width, classes))
        for part, block in _standardised(features, rows, mean, scale):
            block *= roots[part]
            gram += block.T @ block
            products += block.T @ targets[part]
        eigenvalues, vectors = _eigh(gram)
    else:
        block = np.concatenate([block for _, block in _standardised(features, rows, mean, scale)]) * roots
        products = block.T @ targets
        eigenvalues, left = _eigh(block @ block.T)
        vectors = block.T @ (left / np.sqrt(eigenvalues))
    # [rank, classes]: solutions are `vectors @ (projected / (eigenvalues + penalty))`.
    projected = vectors.T @ products
    penalties = _PENALTIES * (eigenvalues.mean() if len(eigenvalues) else 1.0)
    correct = np.zeros(len(penalties))
    left_out = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), _MAX_LEFT_OUT)).astype(int))
    for part, block in _standardised(features, rows[left_out], mean, scale):
        chosen = left_out[part]
        axes = (roots[chosen] * block) @ vectors
        for index, penalty in enumerate(penalties):
            leverage = np.square(axes) @ (1 / (eigenvalues + penalty)) + weights[chosen] / weights.sum()
            residuals = targets[chosen] - axes @ (projected / (eigenvalues + penalty)[:, None])
            residuals /= np.maximum(1 - leverage, _ROUNDING)[:, None]
            predicted = (bias + (targets[chosen] - residuals) / roots[chosen]).argmax(axis=1)
            correct[index] += weights[chosen] @ (predicted == labels[chosen])
    best = int(correct.argmax())
    return ReferenceProbe(
        RIDGE,
        mean,
        scale,
        vectors @ (projected / (eigenvalues + penalties[best])[:, None]),
        bias,
        {"penalty": float(penalties[best]), "leave_one_out_accuracy": float(correct[best] / weights[left_out].sum())},
    )


def _eigh(gram: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the eigenvalues of a Gram matrix, and their vectors as columns, without those that are rounding errors."""
    from scipy.linalg import eigh

    eigenvalues, vectors = eigh(gram, overwrite_a=True, check_finite=False)
    is_real = eigenvalues > _ROUNDING * max(eigenvalues[-1], _ROUNDING)
    return eigenvalues[is_real], vectors[:, is_real]


# --- nearest class mean -------------------------------------------------------


def _fit_nearest_mean(
    features: np.ndarray,
    rows: np.ndarray,
    labels: np.ndarray,
    classes: int,
    weights: np.ndarray,
    mean: np.ndarray,
    scale: np.ndarray,
) -> ReferenceProbe:
    """Classify by the nearest mean of a class, in standardised features. A class without images is never predicted."""
    sums = np.zeros((classes, features.shape[1]))
    for part, block in _standardised(features, rows, mean, scale):
        np.add.at(sums, labels[part], block)
    counts = np.bincount(labels, minlength=classes)
    means = sums / np.maximum(counts, 1)[:, None]
    # Half the squared distance to each mean, without the part that is the same for all of them.
    bias = np.where(counts > 0, -np.square(means).sum(axis=1) / 2, -np.inf)
    return ReferenceProbe(NEAREST_MEAN, mean, scale, means.T, np.maximum(bias, np.finfo(np.float32).min), {})
