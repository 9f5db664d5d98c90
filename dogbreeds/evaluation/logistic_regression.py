"""Multinomial logistic regression on standardised features, along a path of regularisation strengths.

The loss is convex, so there is no learning rate, and the result does not depend on a seed. SciPy is imported where it
is used, so that importing this module is cheap.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from dogbreeds.evaluation.linear_classifier import LinearClassifier, TrainingRows
from dogbreeds.evaluation.metrics import Proportion, score

# `C` of scikit-learn: the inverse of the penalty on the squared weights of standardised features.
STRENGTHS = tuple(float(strength) for strength in np.round(10.0 ** np.arange(-5, 1.01, 0.5), 7))
# Iterations for each strength, at most; started from the weights of the strength before, about 30 are needed.
_MAX_ITERATIONS = 200
# Strengths without a better accuracy or loss after which a path ends.
_PATIENCE = 3
# L-BFGS ends when the loss falls by less than this share in an iteration.
_TOLERANCE = 1e-6


@dataclass(frozen=True)
class LogisticRegression(LinearClassifier):
    """A fitted logistic regression. The softmax of its scores are probabilities.

    Attributes:
        strength: `C`.
        iterations: of L-BFGS.
    """

    strength: float
    iterations: int


def fit_path(
    features: np.ndarray,
    labels: np.ndarray,
    classes: int,
    rows: np.ndarray | None = None,
    class_weights: np.ndarray | None = None,
    strengths: Sequence[float] = STRENGTHS,
) -> Iterator[LogisticRegression]:
    """Fit a logistic regression for each strength of regularisation, in the given order.

    Each starts from the weights of the one before, so the order from strong to weak regularisation is the fastest.

    Args:
        features: [m, d] of any float type. Values that are not finite count as the feature's mean.
        labels: [n] int, class of each training image.
        classes: number of classes; some may have no image.
        rows: [n] rows of `features` to train on; None for all.
        class_weights: [classes] weight of an image of each class; None if all are 1.
        strengths: values of `C`, above 0.
    """
    from scipy.linalg import eigh
    from scipy.optimize import minimize

    train = TrainingRows.of(features, labels, rows, class_weights)
    total = train.weights.sum()
    basis = train.span(features)
    blocks = [block if basis is None else block @ basis for _, block in train.blocks(features)]
    inputs = np.concatenate(blocks)
    # Along the principal components, where the loss has about this curvature.
    variances, components = eigh((inputs.T * train.weights) @ inputs / total)
    basis = components if basis is None else basis @ components
    inputs = (inputs @ components).astype(np.float32)
    curvatures = np.maximum(variances, 0.0) * (1 - 1 / classes) / classes
    targets = np.eye(classes, dtype=np.float32)[labels]
    shares = (train.weights / total).astype(np.float32)[:, None]
    # [r + 1, classes]; the last row is the bias, which has no penalty.
    solution = np.zeros((inputs.shape[1] + 1, classes))
    solution[-1] = np.log(np.maximum((shares * targets).sum(axis=0), 0.1 / total))
    for strength in strengths:
        penalty = 1 / (strength * total)
        # In units in which the curvature is about 1 in each direction.
        units = np.append(1 / np.sqrt(curvatures + penalty), np.sqrt(classes))[:, None]

        def loss(scaled: np.ndarray, units: np.ndarray = units, penalty: float = penalty) -> tuple[float, np.ndarray]:
            weights = scaled.reshape(units.size, classes) * units
            logits = inputs @ weights[:-1].astype(np.float32)
            logits += weights[-1].astype(np.float32)
            logits -= logits.max(axis=1, keepdims=True)
            correct = logits[np.arange(len(labels)), labels]
            probabilities = np.exp(logits, out=logits)
            sums = probabilities.sum(axis=1, keepdims=True)
            cross_entropy = float(np.sum(shares[:, 0] * (np.log(sums[:, 0]) - correct), dtype=np.float64))
            probabilities /= sums
            probabilities -= targets
            probabilities *= shares
            gradient = np.append(inputs.T @ probabilities, probabilities.sum(axis=0)[None], axis=0).astype(np.float64)
            gradient[:-1] += penalty * weights[:-1]
            value = cross_entropy + penalty / 2 * float(np.square(weights[:-1]).sum())
            return value, (gradient * units).ravel()

        found = minimize(
            loss,
            (solution / units).ravel(),
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": _MAX_ITERATIONS, "ftol": _TOLERANCE, "gtol": 0.0, "maxcor": 10},
        )
        solution = found.x.reshape(units.size, classes) * units
        weights, bias = basis @ solution[:-1], solution[-1].copy()
        yield LogisticRegression(train.mean, train.scale, weights, bias, strength, int(found.nit))


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
    features: np.ndarray,
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
