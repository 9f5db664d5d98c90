"""Calibration: whether a network's confidence matches its accuracy, and the temperature that corrects it.

Source: Guo, Pleiss, Sun and Weinberger 2017, "On calibration of modern neural networks".
"""

from dataclasses import dataclass

import numpy as np

from dogbreeds.evaluation.metrics import probabilities, score

# The number of bins in the paper.
BINS = 15
# Images that a half must have, so that a temperature can be fitted on it.
_MIN_IMAGES_PER_HALF = 10
# Bounds of the logarithm: temperatures from 0.05 to 20. Beyond these, confidence carries no information.
_LOG_TEMPERATURE_BOUNDS = (-3.0, 3.0)


@dataclass(frozen=True)
class Bin:
    """Images of similar confidence.

    Attributes:
        confidence: their mean confidence, in [0, 1].
        accuracy: proportion of them that are classified correctly.
        n: how many they are.
    """

    confidence: float
    accuracy: float
    n: int


def _bin_indices(confidence: np.ndarray) -> np.ndarray:
    """[n] int from 0; a confidence of 1 falls into the last bin."""
    return np.minimum((confidence * BINS).astype(int), BINS - 1)


def bins(confidence: np.ndarray, correct: np.ndarray) -> list[Bin]:
    """Group images by confidence into `BINS` bins of equal width. Empty bins are left out.

    Args:
        confidence: [n] in [0, 1], the highest probability of each image.
        correct: [n] bool, whether the image is classified correctly.
    """
    indices = _bin_indices(confidence)
    return [
        Bin(confidence=float(confidence[inside].mean()), accuracy=float(correct[inside].mean()), n=int(inside.sum()))
        for inside in (indices == index for index in range(BINS))
        if inside.any()
    ]


def calibration_error(confidence: np.ndarray, correct: np.ndarray) -> float:
    """Compute the expected calibration error: the mean gap between confidence and accuracy, weighted by images.

    Args:
        confidence: [n] in [0, 1], the highest probability of each image.
        correct: [n] bool, whether the image is classified correctly.
    """
    indices = _bin_indices(confidence)
    gaps = np.bincount(indices, confidence, BINS) - np.bincount(indices, correct, BINS)
    return float(np.abs(gaps).sum() / len(confidence))


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Fit the temperature that minimises the log loss; above 1 means that the network is overconfident.

    Args:
        logits: [n, classes].
        labels: [n] int.

    Returns:
        What logits are to be divided by, from 0.05 to 20.
    """
    from scipy.optimize import minimize_scalar

    wide = logits.astype(np.float64)
    optimum = minimize_scalar(
        lambda log_temperature: score(wide / np.exp(log_temperature), labels).loss,
        bounds=_LOG_TEMPERATURE_BOUNDS,
        method="bounded",
    )
    return float(np.exp(optimum.x))


def cross_fitted(logits: np.ndarray, labels: np.ndarray, seed: int) -> tuple[np.ndarray, float]:
    """Scale each half of the images by the temperature fitted on the other half.

    This serves when there are no other images to fit a temperature on.

    Args:
        logits: [n, classes].
        labels: [n] int.
        seed: of the split into halves.

    Returns:
        [n, classes] probabilities, and the geometric mean of both temperatures. With fewer than 20 images, unscaled
        probabilities and 1.
    """
    if len(labels) < 2 * _MIN_IMAGES_PER_HALF:
        return probabilities(logits), 1.0
    order = np.random.default_rng(seed).permutation(len(labels))
    halves = order[: len(order) // 2], order[len(order) // 2 :]
    scaled = np.empty(logits.shape, np.float64)
    temperatures = []
    for half, other in (halves, halves[::-1]):
        temperature = fit_temperature(logits[other], labels[other])
        scaled[half] = probabilities(logits[half], temperature)
        temperatures.append(temperature)
    return scaled, float(np.sqrt(temperatures[0] * temperatures[1]))
