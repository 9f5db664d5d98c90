"""Two networks on the same photos: whether they differ, and on which breeds."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from dogbreeds.core.errors import UserError
from dogbreeds.evaluation.metrics import PairedOutcome, Proportion
from dogbreeds.evaluation.results import Predictions

# Photos of one breed that are called the same other one: a single one says little
_REPEATED = 2


@dataclass(frozen=True)
class Change:
    """What became of a breed's photos.

    Attributes:
        name: its class name.
        before, after: how many the first and the second network got right.
        pair: what changed on them.
        adjusted: the p of `pair`, adjusted for how many breeds were looked at.
    """

    name: str
    before: int
    after: int
    pair: PairedOutcome
    adjusted: float

    @property
    def net(self) -> int:
        """How many photos more are right; below zero, fewer."""
        return self.pair.gained - self.pair.lost


@dataclass(frozen=True)
class Confusion:
    """Photos of a breed that one of the networks calls another breed, and the other network gets right."""

    true: str
    called: str
    photos: int


@dataclass(frozen=True)
class Comparison:
    """Two networks' calls of the photos that both have seen in a split.

    Attributes:
        split: its name.
        labels: [n] int.
        first, second: [n] int, what each network called the photos.
        photos: how many each has in the split; n of them are shared.
        class_names: in the order of the labels.
    """

    split: str
    labels: np.ndarray
    first: np.ndarray
    second: np.ndarray
    photos: tuple[int, int]
    class_names: tuple[str, ...]

    @property
    def accuracies(self) -> tuple[Proportion, Proportion]:
        """Of the first and of the second, on the photos that they share."""
        n = len(self.labels)
        return Proportion(int((self.first == self.labels).sum()), n), Proportion(
            int((self.second == self.labels).sum()), n
        )

    @property
    def pair(self) -> PairedOutcome:
        return self._pair(np.ones(len(self.labels), bool))

    def _pair(self, these: np.ndarray) -> PairedOutcome:
        return PairedOutcome.of((self.first == self.labels)[these], (self.second == self.labels)[these], self.split)

    @cached_property
    def changes(self) -> tuple[Change, ...]:
        """Every breed that there are photos of, the most changed first; of those that changed alike, the less probable first."""
        present = [label for label in range(len(self.class_names)) if (self.labels == label).any()]
        pairs = [self._pair(self.labels == label) for label in present]
        found = []
        for label, pair, adjusted in zip(present, pairs, adjust([pair.p_value for pair in pairs]), strict=True):
            these = self.labels == label
            before, after = int((self.first[these] == label).sum()), int((self.second[these] == label).sum())
            found.append(Change(self.class_names[label], before, after, pair, adjusted))
        return tuple(sorted(found, key=lambda change: (-abs(change.net), change.pair.p_value, change.name)))

    def different(self, alpha: float) -> list[Change]:
        """The breeds that differ, after the adjustment."""
        return [change for change in self.changes if change.adjusted <= alpha]

    def needed(self, alpha: float) -> int:
        """Photos that one breed must gain or lose, with none the other way, to differ by itself after the adjustment."""
        return 1 + int(np.ceil(np.log2(len(self.changes) / alpha)))

    def made(self, names: Sequence[str]) -> list[Confusion]:
        """What the second alone confuses of these breeds, more than once, the most frequent first."""
        return self._confusions(names, right=self.first, wrong=self.second)

    def mended(self, names: Sequence[str]) -> list[Confusion]:
        """What the first alone confuses of these breeds, likewise."""
        return self._confusions(names, right=self.second, wrong=self.first)

    def _confusions(self, names: Sequence[str], right: np.ndarray, wrong: np.ndarray) -> list[Confusion]:
        changed = (right == self.labels) & (wrong != self.labels)
        counts = Counter(zip(self.labels[changed].tolist(), wrong[changed].tolist(), strict=True))
        found = [
            Confusion(self.class_names[true], self.class_names[called], photos)
            for (true, called), photos in counts.items()
        ]
        frequent = [confusion for confusion in found if confusion.true in names and confusion.photos >= _REPEATED]
        return sorted(frequent, key=lambda confusion: (-confusion.photos, confusion.true, confusion.called))


def adjust(values: Sequence[float]) -> list[float]:
    """Each p adjusted for the number of tests: of the tests whose adjusted p is at most a level, that share at most is expected to be false.

    Args:
        values: p of each test, in [0, 1].

    Source: Benjamini and Hochberg 1995.
    """
    p = np.asarray(values, float)
    # The largest first
    order = np.argsort(p)[::-1]
    ranks = np.arange(len(p), 0, -1)
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum.accumulate(np.minimum(1.0, p[order] * len(p) / ranks))
    return adjusted.tolist()


def compare(first: Predictions, second: Predictions, split: str) -> Comparison:
    """Puts two networks side by side on the photos that both have in a split, which are told by their names.

    Raises:
        UserError: where they have none in common, or mean something else by their labels.
    """
    classes = first.logits.shape[1], second.logits.shape[1]
    if classes[0] != classes[1]:
        raise UserError(
            f"first has {classes[0]} breeds and second {classes[1]}. Both must know the same. Type only.data=<data> to"
            " choose among such."
        )
    if first.class_names and second.class_names and first.class_names != second.class_names:
        one, other_one = next(
            pair for pair in zip(first.class_names, second.class_names, strict=True) if pair[0] != pair[1]
        )
        raise UserError(
            f"first has a breed '{one}' where second has '{other_one}'. Both must know the same. Type only.data=<data>"
            " to choose among such."
        )
    place = {name: row for row, name in enumerate(second.ids)}
    shared = [(row, place[name]) for row, name in enumerate(first.ids) if name in place]
    if not shared:
        raise UserError(
            f"first and second share no photo of {split} (such as {first.ids[0]} and {second.ids[0]}). A paired test"
            " needs the same photos. Type split=test where both have one, or train both on the same data."
        )
    ours, theirs = np.asarray(shared).T
    other = first.labels[ours] != second.labels[theirs]
    if other.any():
        raise UserError(
            f"{first.ids[ours[other.argmax()]]} is of another breed in first than in second. A photo of the same name"
            " must be the same photo. Train both on the same data."
        )
    names = first.class_names or second.class_names or tuple(f"class {label}" for label in range(classes[0]))
    calls = first.logits.argmax(axis=1)[ours], second.logits.argmax(axis=1)[theirs]
    return Comparison(split, first.labels[ours], *calls, (len(first.ids), len(second.ids)), names)
