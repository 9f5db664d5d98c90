"""Logistic regression: equal to another implementation's, and chosen on validation."""

import numpy as np
import pytest

from dogbreeds.evaluation.logistic_regression import STRENGTHS, fit_path, fit_tuned, within_one_standard_error
from dogbreeds.evaluation.metrics import Proportion


def blobs(rng: np.random.Generator, n: int, width: int, classes: int, spread: float) -> tuple[np.ndarray, np.ndarray]:
    """Return features [n, width] float32 of classes that overlap, each feature with a scale of its own, and labels."""
    labels = np.arange(n) % classes
    centres = np.random.default_rng(5).normal(size=(classes, width))
    scales = np.linspace(0.1, 30, width)
    return ((centres[labels] + spread * rng.normal(size=(n, width))) * scales + 7).astype(np.float32), labels


@pytest.mark.parametrize(("n", "width"), [(300, 20), (40, 90)], ids=["more images", "more features"])
@pytest.mark.parametrize("weighted", [False, True])
def test_fit_equals_that_of_scikit_learn(rng: np.random.Generator, n: int, width: int, weighted: bool) -> None:
    from sklearn.linear_model import LogisticRegression as Other
    from sklearn.preprocessing import StandardScaler

    features, labels = blobs(rng, n, width, 4, spread=3.0)
    class_weights = np.array([1.0, 4.0, 0.5, 2.0]) if weighted else None
    weights = class_weights[labels] if class_weights is not None else None
    scaled = StandardScaler().fit(features, sample_weight=weights)
    for fit in fit_path(features, labels, 4, class_weights=class_weights, strengths=(1e-3, 1e-1, 1e1)):
        other = Other(C=fit.strength, tol=1e-8, max_iter=5_000).fit(scaled.transform(features), labels, weights)
        probabilities = np.exp(fit.logits(features))
        probabilities /= probabilities.sum(axis=1, keepdims=True)
        assert np.allclose(probabilities, other.predict_proba(scaled.transform(features)), atol=5e-3)


def test_a_class_without_images_and_a_constant_feature_are_no_obstacle(rng: np.random.Generator) -> None:
    features, labels = blobs(rng, 90, 6, 3, spread=0.5)
    features[:, 2] = 4.0
    features[5, 1] = np.nan
    (fit,) = fit_path(features, labels, 5, strengths=(1.0,))
    assert (fit.logits(features).argmax(axis=1) == labels).mean() > 0.95
    assert np.isfinite(fit.weights).all()
    assert np.isfinite(fit.bias).all()
    assert fit.scale[2] == 0


def test_a_path_starts_each_fit_from_the_one_before_and_reads_only_its_rows(rng: np.random.Generator) -> None:
    features, labels = blobs(rng, 400, 30, 5, spread=4.0)
    rows = np.arange(0, 400, 2)
    path = list(fit_path(features, labels[rows], 5, rows, strengths=(1e-2, 2e-2)))
    (alone,) = fit_path(features[rows], labels[rows], 5, strengths=(2e-2,))
    assert np.allclose(path[1].logits(features), alone.logits(features), atol=2e-2)
    assert path[1].iterations <= alone.iterations
    again = list(fit_path(features, labels[rows], 5, rows, strengths=(1e-2, 2e-2)))
    assert all(np.array_equal(first.weights, second.weights) for first, second in zip(path, again, strict=True))


@pytest.mark.parametrize(("n", "chosen"), [(960, 3), (100, 2), (10, 0), (10**9, 4)])
def test_the_first_accuracy_within_one_standard_error_of_the_highest_depends_on_the_number_of_images(
    n: int, chosen: int
) -> None:
    # One standard error of 0.788 is 0.0132 with 960 images, 0.041 with 100 and 0.129 with 10.
    assert within_one_standard_error([0.726, 0.733, 0.772, 0.786, 0.788, 0.780], n) == chosen


def test_the_most_accurate_strength_on_validation_is_chosen(rng: np.random.Generator) -> None:
    features, labels = blobs(rng, 240, 120, 4, spread=6.0)
    train, val = np.arange(120), np.arange(120, 240)
    chosen, points = fit_tuned(features, (train, labels[train]), (val, labels[val]), 4)
    accuracies = {fit.strength: fit for fit in fit_path(features, labels[train], 4, train)}
    measured = {
        strength: int((fit.logits(features, val).argmax(axis=1) == labels[val]).sum())
        for strength, fit in accuracies.items()
    }
    assert [point.strength for point in points] == list(STRENGTHS[: len(points)])
    assert {point.strength: point.accuracy for point in points} == {
        strength: Proportion(correct, 120) for strength, correct in list(measured.items())[: len(points)]
    }
    best = max(points, key=lambda point: (point.accuracy.value, -point.loss))
    assert chosen.strength == best.strength
    # With so few images weak regularisation only raises the loss, and the path ends before it.
    assert len(points) < len(STRENGTHS)
    assert points[-1].loss > best.loss
