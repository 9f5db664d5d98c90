"""Calibration error, reliability bins and temperature scaling, on data with a known temperature."""

import numpy as np
import pytest

from dogbreeds.evaluation.calibration import bins, calibration_error, cross_fitted, fit_temperature
from dogbreeds.evaluation.metrics import probabilities


def drawn(true_temperature: float, n: int = 4000, classes: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Return logits, and labels drawn from their probabilities at a temperature."""
    rng = np.random.default_rng(5)
    logits = rng.normal(scale=3, size=(n, classes))
    shares = probabilities(logits, true_temperature)
    labels = (shares.cumsum(axis=1) < rng.random((n, 1))).sum(axis=1)
    return logits, labels


def test_calibration_error_is_the_mean_gap_between_confidence_and_accuracy() -> None:
    confidence = np.array([0.9] * 10 + [0.5] * 10)
    correct = np.array([True] * 6 + [False] * 4 + [True] * 5 + [False] * 5)
    # The gap is 0.3 on half of the images, 0 on the other half.
    assert calibration_error(confidence, correct) == pytest.approx(0.15)
    assert [(round(bin.confidence, 3), bin.accuracy, bin.n) for bin in bins(confidence, correct)] == [
        (0.5, 0.5, 10),
        (0.9, 0.6, 10),
    ]


def test_bins_put_a_confidence_of_1_into_the_last_bin() -> None:
    (only,) = bins(np.array([1.0, 1.0]), np.array([True, False]))
    assert (only.confidence, only.accuracy, only.n) == (1.0, 0.5, 2)


@pytest.mark.parametrize("truth", [0.5, 1.0, 2.5])
def test_fit_temperature_finds_the_temperature_that_labels_were_drawn_at(truth: float) -> None:
    assert fit_temperature(*drawn(truth)) == pytest.approx(truth, rel=0.06)


def test_cross_fitted_lowers_the_calibration_error_and_preserves_the_ranking() -> None:
    logits, labels = drawn(2.5)
    correct = logits.argmax(axis=1) == labels
    scaled, temperature = cross_fitted(logits, labels, seed=0)
    assert temperature == pytest.approx(2.5, rel=0.06)
    assert calibration_error(probabilities(logits).max(axis=1), correct) > 0.2
    assert calibration_error(scaled.max(axis=1), correct) < 0.03
    assert (scaled.argmax(axis=1) == logits.argmax(axis=1)).all()
    assert np.allclose(scaled.sum(axis=1), 1)


def test_cross_fitted_scales_each_half_by_the_temperature_of_the_other() -> None:
    logits, labels = drawn(1.0, n=40)
    order = np.random.default_rng(3).permutation(40)
    half, other = order[:20], order[20:]
    scaled, _ = cross_fitted(logits, labels, seed=3)
    assert np.allclose(scaled[half], probabilities(logits[half], fit_temperature(logits[other], labels[other])))
