"""Likely label errors: out-of-fold probabilities of logistic regression, through confident learning.

Source: Northcutt, Jiang and Chuang 2021; `cleanlab` computes it.
"""

from dataclasses import dataclass

import numpy as np

from dogbreeds.core.errors import UserError
from dogbreeds.evaluation import metrics
from dogbreeds.evaluation.logistic_regression import TrainingProblem

FOLDS = 5
# Strengths, `C`, that are tried on the first fold, in this order, until one is worse.
_STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
_RESAMPLINGS = 200


@dataclass(frozen=True)
class LabelErrors:
    """What the labels look like to classifiers that have not seen the images.

    Attributes:
        probabilities: [n, classes] float32, by a classifier that was fitted without the image and its copies.
        images: [k] indices of images whose labels are likely wrong, the worst first.
        suggested: [k] int, the likely class of each.
        scores: [k] quality of the given label in [0, 1]; low is worse.
        share: estimated share of wrong labels.
        interval: its 95 % interval, from resampled images.
    """

    probabilities: np.ndarray
    images: np.ndarray
    suggested: np.ndarray
    scores: np.ndarray
    share: float
    interval: tuple[float, float]


def check_cleanlab() -> None:
    """Raise `UserError` unless cleanlab is installed."""
    from importlib.util import find_spec

    if find_spec("cleanlab") is None:
        raise UserError(
            "cleanlab is not installed. The audit finds label errors with it. Type pip install 'dogbreeds[audit]', or"
            " make setup EXTRAS=audit."
        )


def find_label_errors(features: np.ndarray, labels: np.ndarray, groups: np.ndarray, classes: int) -> LabelErrors:
    """Find likely label errors.

    Args:
        features: [n, d] of any float type.
        labels: [n] int, class of each image.
        groups: [n] int, the same for copies of an image, none of which may vouch for another.
        classes: number of classes, each with an image or more.
    """
    return from_probabilities(_out_of_fold(features, labels, groups, classes), labels)


def from_probabilities(probabilities: np.ndarray, labels: np.ndarray) -> LabelErrors:
    """Find likely label errors from a classifier's predictions for images that it has not seen.

    Args:
        probabilities: [n, classes].
        labels: [n] int, class of each image.
    """
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

    # A class without images has no threshold in confident learning.
    present = np.unique(labels)
    own = np.searchsorted(present, labels)
    of_present = probabilities[:, present].astype(np.float64)
    of_present /= of_present.sum(axis=1, keepdims=True)
    scores = get_label_quality_scores(own, of_present, method="self_confidence")
    found = find_label_issues(own, of_present, filter_by="both", n_jobs=1)
    images = np.flatnonzero(found)
    images = images[np.argsort(scores[images], kind="stable")]
    share, interval = _share_of_errors(own, of_present)
    return LabelErrors(
        probabilities, images, present[of_present[images].argmax(axis=1)], scores[images], share, interval
    )


def _share_of_errors(labels: np.ndarray, probabilities: np.ndarray) -> tuple[float, tuple[float, float]]:
    """Estimate the share of wrong labels by the off-diagonal part of the confident joint, and its interval."""
    classes = probabilities.shape[1]
    images = np.arange(len(labels))
    sums = np.bincount(labels, probabilities[images, labels], classes)
    thresholds = sums / np.maximum(np.bincount(labels, minlength=classes), 1)
    confident = np.where(probabilities >= thresholds - 1e-6, probabilities, 0)
    counted = np.asarray(confident.any(axis=1))
    wrong = np.logical_and(counted, confident.argmax(axis=1) != labels)

    def share(sample: np.ndarray) -> float:
        # As cleanlab calibrates the joint: each given class has its true number of images.
        given = np.bincount(labels[sample], minlength=classes)
        of_counted = np.bincount(labels[sample], counted[sample], classes)
        of_wrong = np.bincount(labels[sample], wrong[sample], classes)
        shares = np.divide(of_wrong, of_counted, out=np.zeros(classes), where=of_counted > 0)
        return float((given * shares).sum() / len(sample))

    generator = np.random.Generator(np.random.Philox(key=[0, len(labels)]))
    resampled = [share(generator.integers(0, len(labels), len(labels))) for _ in range(_RESAMPLINGS)]
    low, high = np.quantile(resampled, [0.025, 0.975])
    return share(images), (float(low), float(high))


def _out_of_fold(features: np.ndarray, labels: np.ndarray, groups: np.ndarray, classes: int) -> np.ndarray:
    """Return the probabilities of each image by a classifier that was fitted without it and its copies."""
    folds = folds_of(labels, groups)
    problem = TrainingProblem(features, labels, classes)
    images = np.arange(len(labels))

    def loss(logits: np.ndarray, of: np.ndarray) -> float:
        return float(-np.log(np.maximum(metrics.probabilities(logits)[np.arange(len(of)), of], 1e-12)).mean())

    first = folds == 0
    weights, best, strength = None, np.inf, _STRENGTHS[0]
    start = None
    for tried in _STRENGTHS:
        fit = problem.fit(tried, weights, left_out=first)
        weights = fit.weights
        value = loss(problem.logits(fit, images[first]), labels[first])
        if value >= best:
            break
        best, strength, start = value, tried, weights
    probabilities = np.empty((len(labels), classes), np.float32)
    for fold in range(FOLDS):
        own = folds == fold
        if own.any():
            fit = problem.fit(strength, start, left_out=own)
            probabilities[own] = metrics.probabilities(problem.logits(fit, images[own]))
    return probabilities


def folds_of(labels: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Return the fold of each image, from 0 to before `FOLDS`: copies have the same one, classes are spread evenly."""
    folds = np.empty(len(labels), int)
    generator = np.random.Generator(np.random.Philox(key=[1, len(labels)]))
    order = generator.permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    folds[order] = np.arange(len(labels)) % FOLDS
    # The fold of a group is that of its first image.
    _, firsts, of_image = np.unique(groups, return_index=True, return_inverse=True)
    return folds[firsts[of_image]]
