"""Results by class: recall, precision and F1 of each class, and the classes that are confused with each other."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dogbreeds.evaluation.metrics import Proportion


@dataclass(frozen=True)
class ClassScore:
    """The results of one class.

    Attributes:
        name: name of the class.
        correct: its recall: the proportion of its images that are classified correctly.
        precision: proportion of the images predicted as this class that belong to it; NaN if none is.
        f1: harmonic mean of recall and precision; 0 if no image is correct.
        mistaken_for: the class that its other images are predicted as most often; empty if all are correct.
        mistaken_n: number of its images that are predicted as that class.
    """

    name: str
    correct: Proportion
    precision: float
    f1: float
    mistaken_for: str
    mistaken_n: int


@dataclass(frozen=True)
class ConfusedClasses:
    """Two classes that are confused with each other. The field names are the columns of `confusions.csv`.

    Attributes:
        first: the class that is mistaken for the other more often.
        second: the other class.
        there: number of images of the first that are predicted as the second.
        back: number of images of the second that are predicted as the first.
    """

    first: str
    second: str
    there: int
    back: int


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Count images by true class and predicted class.

    Args:
        labels: [n] int.
        predicted: [n] int.
        classes: number of classes.

    Returns:
        [classes, classes] counts; rows are true classes, columns predicted ones.
    """
    return np.bincount(labels * classes + predicted, minlength=classes**2).reshape(classes, classes)


def class_scores(matrix: np.ndarray, names: Sequence[str]) -> list[ClassScore]:
    """Compute the results of each class that has images, worst first.

    Args:
        matrix: [classes, classes] counts of images; rows are true classes, columns predicted ones.
        names: names of the classes.
    """
    found = [_class_score(matrix, index, names) for index in np.flatnonzero(matrix.sum(axis=1)).tolist()]
    return sorted(found, key=lambda score: (score.correct.value, score.f1))


def _class_score(matrix: np.ndarray, index: int, names: Sequence[str]) -> ClassScore:
    support = int(matrix[index].sum())
    predicted = int(matrix[:, index].sum())
    correct = int(matrix[index, index])
    wrong = matrix[index].copy()
    wrong[index] = 0
    return ClassScore(
        name=names[index],
        correct=Proportion(correct, support),
        precision=correct / predicted if predicted else math.nan,
        f1=2 * correct / (support + predicted),
        mistaken_for=names[int(wrong.argmax())] if wrong.any() else "",
        mistaken_n=int(wrong.max()),
    )


def confusions(matrix: np.ndarray, names: Sequence[str]) -> list[ConfusedClasses]:
    """List the pairs of classes that are confused with each other, most frequent first.

    Args:
        matrix: [classes, classes] counts of images; rows are true classes, columns predicted ones.
        names: names of the classes.
    """
    both = np.triu(matrix + matrix.T, k=1)
    pairs = sorted(zip(*np.nonzero(both), strict=True), key=lambda pair: -both[pair])
    return [
        _confused_classes(matrix, names, first, second)
        if matrix[first, second] >= matrix[second, first]
        else _confused_classes(matrix, names, second, first)
        for first, second in pairs
    ]


def _confused_classes(matrix: np.ndarray, names: Sequence[str], first: int, second: int) -> ConfusedClasses:
    return ConfusedClasses(
        first=names[first],
        second=names[second],
        there=int(matrix[first, second]),
        back=int(matrix[second, first]),
    )
