"""Whether a network's confidence can be believed, and the one number that mends it.

Source: Guo, Pleiss, Sun and Weinberger 2017, "On calibration of modern neural networks".
"""

from dataclasses import dataclass

import numpy as np

from dogbreeds.evaluation.metrics import probabilities, score

# The paper's
BINS = 15
# Photos in a half to fit a temperature on
_FEWEST = 10
# 0.05 to 20: beyond, confidence means nothing
_LOG_TEMPERATURES = (-3.0, 3.0)


@dataclass(frozen=True)
class Bin:
    """Photos of about the same confidence: its mean, the share of them that were right, and how many they are."""

    confidence: float
    accuracy: float
    n: int


def _numbers(confidence: np.ndarray) -> np.ndarray:
    """Which bin each photo falls into, counted from 0; certainty is in the last."""
    return np.minimum((confidence * BINS).astype(int), BINS - 1)


def bins(confidence: np.ndarray, right: np.ndarray) -> list[Bin]:
    """Puts photos into bins of equal width by confidence; empty ones are left out.

    Args:
        confidence: [n] in [0, 1], the first breed's probability.
        right: [n] bool.
    """
    number = _numbers(confidence)
    return [
        Bin(float(confidence[here].mean()), float(right[here].mean()), int(here.sum()))
        for here in (number == bin for bin in range(BINS))
        if here.any()
    ]


def calibration_error(confidence: np.ndarray, right: np.ndarray) -> float:
    """The expected calibration error: how far accuracy lies from confidence, on average over the photos."""
    number = _numbers(confidence)
    gaps = np.bincount(number, confidence, BINS) - np.bincount(number, right, BINS)
    return float(np.abs(gaps).sum() / len(confidence))


def temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The number that logits must be divided by for the lowest log loss; above 1 the network was too sure of itself.

    Args:
        logits: [n, classes].
        labels: [n] int.
    """
    from scipy.optimize import minimize_scalar

    wide = logits.astype(np.float64)
    found = minimize_scalar(
        lambda log: score(wide / np.exp(log), labels).loss, bounds=_LOG_TEMPERATURES, method="bounded"
    )
    return float(np.exp(found.x))


def cross_fitted(logits: np.ndarray, labels: np.ndarray, seed: int) -> tuple[np.ndarray, float]:
    """Scales each half of the photos by the temperature of the other one, for want of photos that it could be fitted on alone.

    Returns:
        [n, classes] probabilities, and the geometric mean of both temperatures; of fewer than 20 photos, unscaled ones, and 1.
    """
    if len(labels) < 2 * _FEWEST:
        return probabilities(logits), 1.0
    order = np.random.default_rng(seed).permutation(len(labels))
    halves = order[: len(order) // 2], order[len(order) // 2 :]
    scaled, found = np.empty(logits.shape, np.float64), []
    for here, other in (halves, halves[::-1]):
        found.append(temperature(logits[other], labels[other]))
        scaled[here] = probabilities(logits[here], found[-1])
    return scaled, float(np.sqrt(found[0] * found[1]))
