"""Reference probe: what a closed-form classifier reaches on the features that a head trains on.

Ridge regression on standardised features, its targets one-hot; nearest class mean where that would take too long. Both
are deterministic, and read the features in parts: a memory-mapped array larger than memory is never copied whole.
SciPy is imported where it is used, so that importing this module is cheap.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from dogbreeds.evaluation.linear_classifier import LinearClassifier, TrainingRows, standardised

RIDGE = "ridge"
NEAREST_MEAN = "nearest mean"

# Penalties that are tried, as multiples of the mean eigenvalue of the features' Gram matrix. On the real features that
# were tried, of 2 to 120 classes, the best one was among them; smaller ones fit few images too closely.
_PENALTIES = 10.0 ** np.arange(-1, 2, 0.5)
# Images that are left out, one by one, to choose the penalty. The squared error of more would choose the same.
_MAX_LEFT_OUT = 1000
# Multiplications above which ridge gives way to the nearest class mean: a few seconds on two cores.
_MAX_MULTIPLICATIONS = 2e11
# The least that an image's leverage leaves of its error.
_LEAST_SHARE = 1e-6
_TINY = np.finfo(np.float64).tiny


@dataclass(frozen=True)
class ReferenceProbe(LinearClassifier):
    """A fitted linear classifier of features. Its scores are no calibrated logits.

    Attributes:
        method: `RIDGE` or `NEAREST_MEAN`.
        left_out: [k] of the training images, those that were left out one by one; empty without ridge.
        left_out_scores: [k, classes] float64, their scores by a fit without each.
        facts: numbers about the fit, by name: `penalty` of ridge.
    """

    method: str
    left_out: np.ndarray = field(default_factory=lambda: np.empty(0, int))
    left_out_scores: np.ndarray = field(default_factory=lambda: np.empty((0, 0)))
    facts: dict[str, float] = field(default_factory=dict)


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
    train = TrainingRows.of(features, labels, rows, class_weights)
    fit = _fit_nearest_mean if _is_too_large(len(train.rows), features.shape[1]) else _fit_ridge
    return fit(features, train, labels, classes)


def left_out_images(n: int) -> np.ndarray:
    """Return which of n training images ridge leaves out one by one: [k] int, ascending."""
    return np.unique(np.linspace(0, n - 1, min(n, _MAX_LEFT_OUT)).astype(int))


def _is_too_large(images: int, width: int) -> bool:
    """Whether ridge would take too long: a Gram matrix, and a Cholesky decomposition for each penalty."""
    rank = min(images, width)
    for_each_penalty = rank**3 / 3 + rank**2 * min(images, _MAX_LEFT_OUT)
    return images * width * rank + len(_PENALTIES) * for_each_penalty > _MAX_MULTIPLICATIONS


# --- ridge --------------------------------------------------------------------


def _fit_ridge(features: np.ndarray, train: TrainingRows, labels: np.ndarray, classes: int) -> ReferenceProbe:
    """Fit ridge regression with the penalty that has the least squared error on images that are left out one by one.

    The prediction of an image that is left out follows from its leverage, without another fit. (Accuracy would be the
    measure that counts, but it is too coarse to choose by: on real features it chose worse where the classes are many.)
    """
    from scipy.linalg import cho_solve, cholesky, solve_triangular

    rows, weights = train.rows, train.weights
    bias = np.bincount(labels, weights, classes) / weights.sum()
    roots = np.sqrt(weights)[:, None]
    # Features are rotated into it.
    span = train.span(features)

    def parts(of_rows: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
        for part, block in standardised(features, of_rows, train.mean, train.scale):
            yield part, block if span is None else block @ span

    def targets(chosen: slice | np.ndarray) -> np.ndarray:
        return roots[chosen] * (np.eye(classes)[labels[chosen]] - bias)

    rank = min(len(rows), features.shape[1])
    gram = np.zeros((rank, rank))
    products = np.zeros((rank, classes))
    for part, block in parts(rows):
        block *= roots[part]
        gram += block.T @ block
        products += block.T @ targets(part)
    left_out = left_out_images(len(rows))
    images = np.concatenate([block for _, block in parts(rows[left_out])]) * roots[left_out]
    own_targets = targets(left_out)
    unit = max(np.trace(gram) / rank, _TINY)
    lowest, penalty, solution, predictions = np.inf, 0.0, products, own_targets
    for tried in unit * _PENALTIES:
        triangle = cholesky(gram + tried * np.eye(rank), lower=True, overwrite_a=True, check_finite=False)
        found = cho_solve((triangle, True), products, check_finite=False)
        whitened = solve_triangular(triangle, images.T, lower=True, check_finite=False)
        leverage = np.square(whitened).sum(axis=0) + weights[left_out] / weights.sum()
        errors = (own_targets - images @ found) / np.maximum(1 - leverage, _LEAST_SHARE)[:, None]
        if (error := np.square(errors).sum()) < lowest:
            lowest, penalty, solution, predictions = error, tried, found, own_targets - errors
    return ReferenceProbe(
        train.mean,
        train.scale,
        solution if span is None else span @ solution,
        bias,
        RIDGE,
        left_out,
        bias + predictions / roots[left_out],
        {"penalty": float(penalty)},
    )


# --- nearest class mean -------------------------------------------------------


def _fit_nearest_mean(features: np.ndarray, train: TrainingRows, labels: np.ndarray, classes: int) -> ReferenceProbe:
    """Classify by the nearest mean of a class, in standardised features. A class without images is never predicted."""
    sums = np.zeros((classes, features.shape[1]))
    for part, block in train.blocks(features):
        sums += np.eye(classes)[labels[part]].T @ block
    counts = np.bincount(labels, minlength=classes)
    means = sums / np.maximum(counts, 1)[:, None]
    # Half the squared distance to each mean, without the part that is the same for all of them.
    bias = np.where(counts > 0, -np.square(means).sum(axis=1) / 2, np.finfo(np.float32).min / 2)
    return ReferenceProbe(train.mean, train.scale, means.T, bias, NEAREST_MEAN)
