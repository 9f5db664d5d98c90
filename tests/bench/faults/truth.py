"""What the study takes for the truth about a run, from images and labels that its verdict does not see.

The truth is the accuracy of a tuned and cross-validated logistic regression on the same features, on rows that neither
the run nor its verdict uses, and with their correct labels.
"""

import math
import warnings
from collections.abc import Callable

import numpy as np

# Strengths of the regularisation that cross-validation chooses from, for standardised features, the strongest first.
_STRENGTHS = (1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 1.0)
# Weaker regularisation is no longer tried once the accuracy has fallen by this much.
_FALL = 0.01
_FOLDS = 3

Classify = Callable[[np.ndarray], np.ndarray]


def tuned_logistic_regression(features: np.ndarray, labels: np.ndarray) -> tuple[Classify, float]:
    """Fit a logistic regression whose regularisation three-fold cross-validation has chosen.

    Args:
        features: [n, d] float32.
        labels: [n] int.

    Returns:
        A function from features [m, d] to predicted labels [m], and the chosen strength, `C` of scikit-learn.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold

    project = _standardised(features)
    inputs = project(features)
    # Each strength starts from the weights of the one before it.
    models = [LogisticRegression(tol=3e-4, max_iter=300, warm_start=True) for _ in range(_FOLDS)]
    with warnings.catch_warnings():
        # With few images, a class may have fewer than there are folds.
        warnings.simplefilter("ignore")
        folds = list(StratifiedKFold(_FOLDS, shuffle=True, random_state=0).split(inputs, labels))
        best, most = _STRENGTHS[0], 0.0
        for strength in _STRENGTHS:
            accuracy = float(
                np.mean(
                    [
                        model.set_params(C=strength)
                        .fit(inputs[train], labels[train])
                        .score(inputs[held_out], labels[held_out])
                        for model, (train, held_out) in zip(models, folds, strict=True)
                    ]
                )
            )
            # Of equals, the strongest regularisation.
            if accuracy > most:
                best, most = strength, accuracy
            elif accuracy < most - _FALL:
                break
        model = LogisticRegression(C=best, tol=3e-4, max_iter=300).fit(inputs, labels)
    return lambda others: model.predict(project(others)), best


def _standardised(features: np.ndarray) -> Classify:
    """Return the projection onto the standardised features, in as many dimensions as their rows span.

    A regularised linear classifier has no weights outside that span, so it is the same with fewer dimensions.
    """
    mean = features.mean(axis=0)
    deviation = features.std(axis=0)
    scale = np.where(deviation > 1e-6, deviation, np.inf)
    if len(features) >= features.shape[1]:
        return lambda others: (others - mean) / scale
    basis, _ = np.linalg.qr(((features - mean) / scale).T)
    return lambda others: ((others - mean) / scale) @ basis


# --- right and wrong, image by image ------------------------------------------


def to_hex(right: np.ndarray) -> str:
    """Write [n] bool, whether each image is classified correctly, as hexadecimal digits."""
    return np.packbits(right.astype(bool)).tobytes().hex()


def from_hex(digits: str, n: int) -> np.ndarray:
    """Read what `to_hex` wrote of n images."""
    return np.unpackbits(np.frombuffer(bytes.fromhex(digits), np.uint8), count=n).astype(bool)


def paired_error(first: np.ndarray, second: np.ndarray) -> float:
    """Return the standard error of the difference of two accuracies on the same images.

    Args:
        first: [n] bool, whether the first is right.
        second: [n] bool, whether the second is right.
    """
    difference = first.astype(float) - second
    # Two that agree on every image are not known to be equal: half an image counts as a disagreement.
    return math.sqrt(max(float(difference.var()), 0.5 / len(first)) / len(first))
