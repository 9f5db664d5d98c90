"""Results of an audit: what looks wrong with the images of a data set."""

from dataclasses import dataclass

import numpy as np

from dogbreeds.evaluation.class_scores import confusion_matrix
from dogbreeds.evaluation.label_errors import LabelErrors
from dogbreeds.evaluation.metrics import PairedOutcome

NEAR_DUPLICATE, LABEL_ERROR, OUTLIER, QUALITY = "near_duplicate", "label_error", "outlier", "quality"
FINDINGS = (NEAR_DUPLICATE, LABEL_ERROR, OUTLIER, QUALITY)
COLUMNS = ("image", "finding", "score", "suggestion")
# The split whose image of two copies is the one to leave out: the other one keeps its meaning.
_LEFT_OUT_FIRST = ("train", "val", "test")


@dataclass(frozen=True)
class Finding:
    """Something about an image.

    Attributes:
        image: index of the image.
        finding: one of `FINDINGS`.
        score: how sure it is, in [0, 1]; higher is worse.
        suggestion: the other image, the likely class, or what is the matter.
        other: index of the other image of two copies; -1 for the other findings.
    """

    image: int
    finding: str
    score: float
    suggestion: str
    other: int = -1


@dataclass(frozen=True)
class ConfusablePair:
    """Two classes that are taken for each other.

    Attributes:
        first, second: the classes.
        confused: images of either that are taken for the other.
        n: images of both.
    """

    first: int
    second: int
    confused: int
    n: int


@dataclass(frozen=True)
class Audit:
    """What an audit found, and what its page shows.

    Attributes:
        data: name of the data set.
        backbone: whose features were compared.
        class_names: name of each class.
        ids: name of each image: those of train, then val, then test.
        splits: [n] name of the split of each image.
        labels: [n] int, given class.
        findings: of each kind the worst first.
        labels_found: what classifiers say of the labels.
        confusable: pairs of classes, the most confused first.
        inflation: what copies of test images among the training images do to the test accuracy: a linear classifier
            with them compared with one without; None if there are none, or no test images.
        places: [n, 2] in [0, 1], of each image on the map.
        neighbours: [n, k] int32, the nearest images of each.
        seconds: duration of the audit, without the pass over the images.
    """

    data: str
    backbone: str
    class_names: tuple[str, ...]
    ids: tuple[str, ...]
    splits: np.ndarray
    labels: np.ndarray
    findings: tuple[Finding, ...]
    labels_found: LabelErrors
    confusable: tuple[ConfusablePair, ...]
    inflation: PairedOutcome | None
    places: np.ndarray
    neighbours: np.ndarray
    seconds: float

    def of(self, kind: str) -> tuple[Finding, ...]:
        """Return the findings of a kind, the worst first."""
        return tuple(finding for finding in self.findings if finding.finding == kind)

    @property
    def across(self) -> tuple[Finding, ...]:
        """The copies that are in two splits."""
        return tuple(each for each in self.of(NEAR_DUPLICATE) if self.splits[each.image] != self.splits[each.other])

    def counts(self) -> dict[str, dict[str, int]]:
        """Return the number of images of each class by split, by the names of both."""
        names = dict.fromkeys(self.splits.tolist())
        by_split = {
            name: np.bincount(self.labels[self.splits == name], minlength=len(self.class_names)) for name in names
        }
        return {
            class_name: {name: int(counts[label]) for name, counts in by_split.items()}
            for label, class_name in enumerate(self.class_names)
        }

    def rows(self) -> list[tuple[object, ...]]:
        """Return the rows of the table of findings, below its `COLUMNS`."""
        return [(self.ids[each.image], each.finding, round(each.score, 4), each.suggestion) for each in self.findings]


def copy_to_leave_out(first: int, second: int, splits: np.ndarray) -> tuple[int, int]:
    """Return two copies, the one to leave out first: training images before validation images before test images."""
    ranks = [_LEFT_OUT_FIRST.index(splits[image]) for image in (first, second)]
    return (first, second) if ranks[0] < ranks[1] else (second, first)


def confusable_pairs(probabilities: np.ndarray, labels: np.ndarray, most: int = 15) -> tuple[ConfusablePair, ...]:
    """Return the pairs of classes that are most often taken for each other, as a share of their images.

    Args:
        probabilities: [n, classes] out-of-fold.
        labels: [n] int.
        most: how many pairs at most.
    """
    classes = probabilities.shape[1]
    table = confusion_matrix(labels, probabilities.argmax(axis=1), classes)
    sizes = np.bincount(labels, minlength=classes)
    pairs = [
        ConfusablePair(
            first, second, int(table[first, second] + table[second, first]), int(sizes[first] + sizes[second])
        )
        for first, second in np.argwhere(np.triu(table + table.T, 1) > 0)
    ]
    return tuple(sorted(pairs, key=lambda pair: (-pair.confused / pair.n, pair.first, pair.second))[:most])
