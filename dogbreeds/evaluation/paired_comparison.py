"""Paired comparison: whether two networks differ on the same images, and on which classes."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from dogbreeds.core.errors import UserError
from dogbreeds.evaluation.metrics import PairedOutcome, Proportion
from dogbreeds.evaluation.results import Predictions

# Confusions of fewer images are not listed: a single image is weak evidence.
_MIN_CONFUSED_IMAGES = 2


@dataclass(frozen=True)
class Change:
    """How the results of a class changed from the first network to the second.

    Attributes:
        name: name of the class.
        before: number of its images that the first network classifies correctly.
        after: number of its images that the second network classifies correctly.
        pair: paired outcome on its images.
        adjusted_p: p-value of `pair`, adjusted for the number of classes.
    """

    name: str
    before: int
    after: int
    pair: PairedOutcome
    adjusted_p: float

    @property
    def net(self) -> int:
        """How many more of its images are correct; negative if fewer."""
        return self.pair.gained - self.pair.lost


@dataclass(frozen=True)
class Confusion:
    """Images of a class that one network confuses with another class and the other network classifies correctly.

    Attributes:
        true: name of their class.
        predicted: name of the class that the one network predicts.
        images: number of these images.
    """

    true: str
    predicted: str
    images: int


@dataclass(frozen=True)
class Comparison:
    """The predictions of two networks for the images that both have in a split.

    Attributes:
        split: name of the split.
        labels: [n] int, true classes of the shared images.
        first: [n] int, classes that the first network predicts.
        second: [n] int, classes that the second network predicts.
        images: number of images that each network has in the split; n of them are shared.
        class_names: in the order of the labels.
    """

    split: str
    labels: np.ndarray
    first: np.ndarray
    second: np.ndarray
    images: tuple[int, int]
    class_names: tuple[str, ...]

    @property
    def accuracies(self) -> tuple[Proportion, Proportion]:
        """Accuracies of the first and of the second network on the shared images."""
        n = len(self.labels)
        before = int((self.first == self.labels).sum())
        after = int((self.second == self.labels).sum())
        return Proportion(before, n), Proportion(after, n)

    @property
    def pair(self) -> PairedOutcome:
        """Paired outcome on all shared images."""
        return self._pair(np.ones(len(self.labels), bool))

    def _pair(self, selected: np.ndarray) -> PairedOutcome:
        """Paired outcome on some of the images: [n] bool."""
        before = (self.first == self.labels)[selected]
        after = (self.second == self.labels)[selected]
        return PairedOutcome.of(before, after, self.split)

    @cached_property
    def changes(self) -> tuple[Change, ...]:
        """All classes that have images, most changed first; of equal changes, the one with the lower p-value first."""
        present = [label for label in range(len(self.class_names)) if (self.labels == label).any()]
        pairs = [self._pair(self.labels == label) for label in present]
        adjusted = adjust_p_values([pair.p_value for pair in pairs])
        changes = [
            self._change(label, pair, adjusted_p)
            for label, pair, adjusted_p in zip(present, pairs, adjusted, strict=True)
        ]
        return tuple(sorted(changes, key=lambda change: (-abs(change.net), change.pair.p_value, change.name)))

    def _change(self, label: int, pair: PairedOutcome, adjusted_p: float) -> Change:
        selected = self.labels == label
        return Change(
            name=self.class_names[label],
            before=int((self.first[selected] == label).sum()),
            after=int((self.second[selected] == label).sum()),
            pair=pair,
            adjusted_p=adjusted_p,
        )

    def different(self, alpha: float) -> list[Change]:
        """List the classes that differ significantly, most changed first.

        Args:
            alpha: significance level of the adjusted p-value.
        """
        return [change for change in self.changes if change.adjusted_p <= alpha]

    def images_needed(self, alpha: float) -> int:
        """Compute how many images a single class must gain or lose to differ significantly.

        No image of the class may change the other way, and no other class may change.

        Args:
            alpha: significance level of the adjusted p-value.
        """
        return 1 + int(np.ceil(np.log2(len(self.changes) / alpha)))

    def introduced(self, names: Sequence[str]) -> list[Confusion]:
        """List confusions of these classes that only the second network makes repeatedly, most frequent first."""
        return self._confusions(names, right=self.first, wrong=self.second)

    def fixed(self, names: Sequence[str]) -> list[Confusion]:
        """List confusions of these classes that only the first network makes repeatedly, most frequent first."""
        return self._confusions(names, right=self.second, wrong=self.first)

    def _confusions(self, names: Sequence[str], right: np.ndarray, wrong: np.ndarray) -> list[Confusion]:
        changed = (right == self.labels) & (wrong != self.labels)
        counts = Counter(zip(self.labels[changed].tolist(), wrong[changed].tolist(), strict=True))
        found = [
            Confusion(true=self.class_names[true], predicted=self.class_names[predicted], images=images)
            for (true, predicted), images in counts.items()
        ]
        frequent = [
            confusion for confusion in found if confusion.true in names and confusion.images >= _MIN_CONFUSED_IMAGES
        ]
        return sorted(frequent, key=lambda confusion: (-confusion.images, confusion.true, confusion.predicted))


def adjust_p_values(values: Sequence[float]) -> list[float]:
    """Adjust p-values for the number of tests, so that they control the false discovery rate.

    Of the tests whose adjusted p-value is at most a level, at most that share is expected to be false.

    Args:
        values: the p-value of each test, in [0, 1].

    Source: Benjamini and Hochberg 1995.
    """
    from scipy.stats import false_discovery_control

    return false_discovery_control(values, method="bh").tolist()


def compare(first: Predictions, second: Predictions, split: str) -> Comparison:
    """Compare two networks on the images that both have in a split. Images are matched by name.

    Args:
        first: predictions of the network to compare with.
        second: predictions of the network that is compared with it.
        split: name of the split.

    Raises:
        UserError: the classes differ, no image is shared, or a shared image has different labels.
    """
    _check_classes(first, second)
    first_rows, second_rows = _shared_rows(first, second, split)
    differs = first.labels[first_rows] != second.labels[second_rows]
    if differs.any():
        raise UserError(
            f"{first.ids[first_rows[differs.argmax()]]} has another class in first than in second. An image of the same"
            " name must be the same image. Train both on the same data."
        )
    class_names = (
        first.class_names or second.class_names or tuple(f"class {label}" for label in range(first.logits.shape[1]))
    )
    return Comparison(
        split=split,
        labels=first.labels[first_rows],
        first=first.logits.argmax(axis=1)[first_rows],
        second=second.logits.argmax(axis=1)[second_rows],
        images=(len(first.ids), len(second.ids)),
        class_names=class_names,
    )


def _check_classes(first: Predictions, second: Predictions) -> None:
    num_first = first.logits.shape[1]
    num_second = second.logits.shape[1]
    if num_first != num_second:
        raise UserError(
            f"first has {num_first} classes and second {num_second}. Both must have the same classes. Type"
            " only.data=<data> to choose among runs on the same data."
        )
    if first.class_names and second.class_names and first.class_names != second.class_names:
        name, other_name = next(
            pair for pair in zip(first.class_names, second.class_names, strict=True) if pair[0] != pair[1]
        )
        raise UserError(
            f"first has a class '{name}' where second has '{other_name}'. Both must have the same classes. Type"
            " only.data=<data> to choose among runs on the same data."
        )


def _shared_rows(first: Predictions, second: Predictions, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the shared images in the first and in the second predictions: [n] int each."""
    row_in_second = {name: row for row, name in enumerate(second.ids)}
    shared = [(row, row_in_second[name]) for row, name in enumerate(first.ids) if name in row_in_second]
    if not shared:
        raise UserError(
            f"first and second share no image of {split} (such as {first.ids[0]} and {second.ids[0]}). A paired test"
            " needs the same images. Type split=test if both have that split, or train both on the same data."
        )
    first_rows, second_rows = np.asarray(shared).T
    return first_rows, second_rows
