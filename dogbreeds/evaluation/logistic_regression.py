"""Multinomial logistic regression on standardised features, along a path of regularisation strengths.

The loss is convex, so there is no learning rate, and the result does not depend on a seed. SciPy is imported where it
is used, so that importing this module is cheap.
"""

import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from dogbreeds.evaluation.lbfgs import minimise
from dogbreeds.evaluation.linear_classifier import FeatureArray, LinearClassifier, TrainingRows
from dogbreeds.evaluation.metrics import Proportion, score

# `C` of scikit-learn: the inverse of the penalty on the squared weights of standardised features.
STRENGTHS = tuple(float(strength) for strength in np.round(10.0 ** np.arange(-5, 1.01, 0.5), 7))
# Iterations for each strength, at most; started from the weights of the strength before, about 30 are needed.
_MAX_ITERATIONS = 200
# Strengths without a better accuracy or loss after which a path ends.
_PATIENCE = 3
# L-BFGS ends when the loss falls by less than this share in an iteration.
_TOLERANCE = 1e-6
# Images whose logits are in memory at once.
_IMAGES_AT_ONCE = 8192
# Above this size, rotated features are in a temporary file.
_MAX_BYTES_IN_MEMORY = 1 << 30


@dataclass(frozen=True)
class LogisticRegression(LinearClassifier):
    """A fitted logistic regression. The softmax of its scores are probabilities.

    Attributes:
        strength: `C`.
        iterations: of L-BFGS.
    """

    strength: float
    iterations: int


@dataclass(frozen=True)
class Solution:
    """The weights of a fit, of standardised features along their principal components.

    Attributes:
        weights: [r + 1, classes] float64; the last row is the bias, which has no penalty.
        strength: `C`.
        iterations: of L-BFGS.
    """

    weights: np.ndarray
    strength: float
    iterations: int


def within_one_standard_error(accuracies: Sequence[float], n: int) -> int:
    """Return the index of the first of several accuracies that is within one standard error of the highest.

    Of a path from strong to weak regularisation it is the most regularised fit that is about as good as the best one.
    Source: Breiman et al. 1984, Classification and Regression Trees, section 3.4.3.

    Args:
        accuracies: in [0, 1], on the same images.
        n: number of images.
    """
    best = max(accuracies)
    least = best - math.sqrt(best * (1 - best) / n)
    return next(index for index, accuracy in enumerate(accuracies) if accuracy >= least)


class TrainingProblem:
    """The training images of logistic regressions, prepared once for all strengths.

    Memory is that of the images' features in float32, or of a fixed part of them where they are many.

    Args:
        features: [m, d] of any float type. Values that are not finite count as the feature's mean.
        labels: [n] int, class of each training image.
        classes: number of classes; some may have no image.
        rows: [n] rows of `features` to train on; None for all.
        class_weights: [classes] weight of an image of each class; None if all are 1.
    """

    def __init__(
        self,
        features: FeatureArray,
        labels: np.ndarray,
        classes: int,
        rows: np.ndarray | None = None,
        class_weights: np.ndarray | None = None,
    ):
        from scipy.linalg import eigh

        self._train = train = TrainingRows.of(features, labels, rows, class_weights)
        self._labels = labels
        self._classes = classes
        basis = train.span(features)

        def parts() -> Iterator[tuple[slice, np.ndarray]]:
            for part, block in train.blocks(features):
                yield part, block if basis is None else block @ basis

        rank = features.shape[1] if basis is None else basis.shape[1]
        gram = np.zeros((rank, rank))
        for part, block in parts():
            gram += (block.T * train.weights[part]) @ block
        # Along the principal components, where the loss has about this curvature.
        variances, components = eigh(gram / train.weights.sum(), overwrite_a=True, check_finite=False)
        self._curvatures = np.maximum(variances, 0.0) * (1 - 1 / classes) / classes
        self._basis = components if basis is None else basis @ components
        self._inputs = _float32_array((len(labels), rank))
        for part, block in parts():
            self._inputs[part] = block @ components

    def fit(self, strength: float, start: np.ndarray | None = None, left_out: np.ndarray | None = None) -> Solution:
        """Fit a logistic regression.

        Args:
            strength: `C`, above 0.
            start: [r + 1, classes], weights of another fit, from which it starts; the nearer, the faster. None for 0.
            left_out: [n] bool, training images that have no part in it; None for no image.
        """
        weights = self._train.weights if left_out is None else np.where(left_out, 0.0, self._train.weights)
        total = weights.sum()
        shares = (weights / total).astype(np.float32)
        if start is None:
            start = np.zeros((self._inputs.shape[1] + 1, self._classes))
            frequencies = np.bincount(self._labels, weights, self._classes) / total
            start[-1] = np.log(np.maximum(frequencies, 0.1 / total))
        penalty = 1 / (strength * total)
        # In units in which the curvature is about 1 in each direction.
        units = np.append(1 / np.sqrt(self._curvatures + penalty), np.sqrt(self._classes))[:, None]

        def loss(scaled: np.ndarray) -> tuple[float, np.ndarray]:
            weights = scaled.reshape(units.size, self._classes) * units
            value, gradient = self._cross_entropy(weights.astype(np.float32), shares)
            gradient[:-1] += penalty * weights[:-1]
            return value + penalty / 2 * float(np.square(weights[:-1]).sum()), (gradient * units).ravel()

        found = minimise(loss, (start / units).ravel(), max_iterations=_MAX_ITERATIONS, tolerance=_TOLERANCE)
        return Solution(found.x.reshape(units.size, self._classes) * units, strength, found.iterations)

    def _cross_entropy(self, weights: np.ndarray, shares: np.ndarray) -> tuple[float, np.ndarray]:
        """Return the mean cross-entropy and its gradient, [r + 1, classes] float64.

        Args:
            weights: [r + 1, classes] float32.
            shares: [n] float32, of each image in the mean.
        """
        value = 0.0
        gradient = np.zeros(weights.shape)
        for first in range(0, len(self._labels), _IMAGES_AT_ONCE):
            part = slice(first, first + _IMAGES_AT_ONCE)
            inputs, labels = self._inputs[part], self._labels[part]
            images = np.arange(len(labels))
            logits = inputs @ weights[:-1]
            logits += weights[-1]
            logits -= logits.max(axis=1, keepdims=True)
            correct = logits[images, labels]
            probabilities = np.exp(logits, out=logits)
            sums = probabilities.sum(axis=1, keepdims=True)
            value += float(np.sum(shares[part] * (np.log(sums[:, 0]) - correct), dtype=np.float64))
            probabilities /= sums
            probabilities[images, labels] -= 1
            probabilities *= shares[part, None]
            gradient[:-1] += inputs.T @ probabilities
            gradient[-1] += probabilities.sum(axis=0)
        return value, gradient

    def logits(self, solution: Solution, images: np.ndarray) -> np.ndarray:
        """Score some of the training images, which may have been left out: [k, classes] float32.

        Args:
            solution: from `fit`.
            images: [k] positions among the training images.
        """
        weights = solution.weights.astype(np.float32)
        return self._inputs[images] @ weights[:-1] + weights[-1]

    def classifier(self, solution: Solution) -> LogisticRegression:
        """Return a fit as a classifier of features as they are given."""
        weights, bias = self._basis @ solution.weights[:-1], solution.weights[-1].copy()
        train = self._train
        return LogisticRegression(train.mean, train.scale, weights, bias, solution.strength, solution.iterations)


def _float32_array(shape: tuple[int, int]) -> np.ndarray:
    """Return a new array, in memory or, if it is large, in a temporary file that is removed with it."""
    if 4 * shape[0] * shape[1] <= _MAX_BYTES_IN_MEMORY:
        return np.empty(shape, np.float32)
    return np.memmap(tempfile.TemporaryFile(), np.float32, "w+", shape=shape)


def fit_path(
    features: FeatureArray,
    labels: np.ndarray,
    classes: int,
    rows: np.ndarray | None = None,
    class_weights: np.ndarray | None = None,
    strengths: Sequence[float] = STRENGTHS,
) -> Iterator[LogisticRegression]:
    """Fit a logistic regression for each strength of regularisation, in the given order.

    Each starts from the weights of the one before, so the order from strong to weak regularisation is the fastest.

    Args:
        features, labels, classes, rows, class_weights: as of `TrainingProblem`.
        strengths: values of `C`, above 0.
    """
    problem = TrainingProblem(features, labels, classes, rows, class_weights)
    weights = None
    for strength in strengths:
        solution = problem.fit(strength, weights)
        weights = solution.weights
        yield problem.classifier(solution)


@dataclass(frozen=True)
class PathPoint:
    """What one strength of regularisation reaches on validation.

    Attributes:
        strength: `C`.
        accuracy: on validation.
        loss: mean cross-entropy on validation, in nats.
    """

    strength: float
    accuracy: Proportion
    loss: float


def fit_tuned(
    features: FeatureArray,
    train: tuple[np.ndarray, np.ndarray],
    val: tuple[np.ndarray, np.ndarray],
    classes: int,
    class_weights: np.ndarray | None = None,
    strengths: Sequence[float] = STRENGTHS,
) -> tuple[LogisticRegression, list[PathPoint]]:
    """Fit logistic regressions from strong to weak regularisation, and choose the most accurate one on validation.

    Of equally accurate ones it is that with the least loss. The path ends after `_PATIENCE` strengths without a better
    accuracy or loss.

    Args:
        features: [m, d] of any float type.
        train: rows [n] of `features`, and labels [n].
        val: rows and labels to choose by.
        classes: number of classes.
        class_weights: as in `fit_path`.
        strengths: values of `C` to try, ascending.

    Returns:
        The chosen one, and the path up to where it ended.
    """
    rows, labels = val
    points: list[PathPoint] = []
    best: LogisticRegression | None = None
    best_merit, lowest_loss = (-np.inf, -np.inf), np.inf
    without_gain = 0
    for fit in fit_path(features, train[1], classes, train[0], class_weights, strengths):
        scores = score(fit.logits(features, rows), labels)
        points.append(PathPoint(fit.strength, scores.accuracy, scores.loss))
        merit = (scores.accuracy.value, -scores.loss)
        without_gain = 0 if merit > best_merit or scores.loss < lowest_loss else without_gain + 1
        if best is None or merit > best_merit:
            best, best_merit = fit, merit
        lowest_loss = min(lowest_loss, scores.loss)
        if without_gain == _PATIENCE:
            break
    if best is None:
        raise ValueError("there must be a strength to try")
    return best, points
