"""Comparison of two recorded runs: whether they differ, in which settings, and on which classes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from dogbreeds.data.class_names import display_name
from dogbreeds.evaluation.paired_comparison import Change, Comparison, Confusion
from dogbreeds.reports import baseline_note
from dogbreeds.tracking.records import FEATURES_IN_RUN_KEY, NOT_IN_RUN_KEY, Record, short

# Classes or confusions that a sentence lists.
_MAX_LISTED = 5
# Params that give the same files another fingerprint.
_SPLIT_PARAMS = (
    *("data.split", "data.split_seed", "data.val_fraction", "data.guide_seed"),
    *("data.exclude", "data.relabel"),
)
# Params that follow from other params.
_DERIVED_PARAMS = ("key", "overrides", "parameters", "unfreeze.plan", "unfreeze.layers_asked")


class SettingDifference(NamedTuple):
    """A setting with different values in the two runs; `–` stands for a missing value."""

    name: str
    first: str
    second: str


@dataclass(frozen=True)
class RunComparison:
    """Two recorded runs and the paired comparison of their predictions.

    Attributes:
        first: the run to compare with.
        second: the run that is compared with it.
        paired: comparison of their predictions, image by image.
        alpha: significance level, in (0, 1).
        max_classes: how many of the most changed classes to list.
    """

    first: Record
    second: Record
    paired: Comparison
    alpha: float
    max_classes: int

    @property
    def images_note(self) -> str:
        """Which images the runs are compared on."""
        shared = len(self.paired.labels)
        first, second = self.paired.images
        if shared == first == second:
            return f"On the {shared:,} images of {self.paired.split}."
        return f"On the {shared:,} images of {self.paired.split} in both runs (first: {first:,}, second: {second:,})."

    @property
    def conclusion(self) -> str:
        """Whether one run is significantly better, in a sentence or two."""
        first, second = f"run {short(self.first.run_id)}", f"run {short(self.second.run_id)}"
        if self.first.run_id == self.second.run_id:
            return f"first and second are the same run ({short(self.first.run_id)}): there is no difference."
        pair = self.paired.pair
        if pair.p_value <= self.alpha:
            direction = "better" if pair.difference > 0 else "worse"
            return f"Compared with {first}, {second} is {direction} at significance level {self.alpha:g}."
        low, high = (100 * end for end in pair.interval)
        return (
            f"No significant difference at level {self.alpha:g}. Compared with {first}, {second} may be anything from"
            f" {_points(low)} to {_points(high)} (95 % interval); these images cannot tell which."
        )

    @property
    def caveats(self) -> list[str]:
        """Limits of these numbers, one sentence or two each."""
        found = []
        if self.paired.split == "val":
            found.append(
                "Each network's best epoch was chosen on its val split, so these accuracies are slightly optimistic."
            )
        if self._differs("data.fingerprint") and not any(map(self._differs, _SPLIT_PARAMS)):
            found.append("The runs' files are not identical. Images of the same name are treated as the same image.")
        if baseline_note.overlaps_imagenet(self.second):
            found.append(baseline_note.describe(self.second, self.paired.split, self.paired.images[1]))
        if self.first.run_id != self.second.run_id:
            found.append(
                "The test compares these two networks only, and accuracy also varies with the seed. Compare several"
                " seeds before you prefer a setting."
            )
        return found

    def _differs(self, name: str) -> bool:
        return self.first.params.get(name) != self.second.params.get(name)

    @property
    def class_summary(self) -> str:
        """Which classes differ significantly, in a sentence or two."""
        different = self.paired.different(self.alpha)
        tested = (
            f"{len(self.paired.changes)} classes differ{'' if len(different) > 1 else 's'} significantly (p adjusted"
            f" for that many tests by Benjamini and Hochberg, level {self.alpha:g})"
        )
        if different:
            return f"{len(different)} of {tested}: {_listed([_net_change(change) for change in different])}."
        sizes = sorted({change.pair.n for change in self.paired.changes})
        size = f"{sizes[0]} to {sizes[-1]} images" if sizes[1:] else f"{sizes[0]} image{'s' if sizes[0] > 1 else ''}"
        needed = self.paired.images_needed(self.alpha)
        return (
            f"None of {tested}. With {size} per class, a single class would have to gain or lose {needed} images, with"
            f" no change the other way{': more than there are' if needed > sizes[-1] else ''}."
        )

    @property
    def most_changed(self) -> tuple[Change, ...]:
        """The first `max_classes` of the classes that changed, most changed first."""
        changed = [change for change in self.paired.changes if change.pair.gained or change.pair.lost]
        return tuple(changed[: self.max_classes])

    @property
    def confusion_notes(self) -> list[str]:
        """Repeated confusions of the most changed classes that only one of the runs makes."""
        names = [change.name for change in self.most_changed]
        made = [("second", self.paired.introduced(names)), ("first", self.paired.fixed(names))]
        return [
            f"Only the {run} confuses {_listed([_confusion(confusion) for confusion in confusions])}."
            for run, confusions in made
            if confusions
        ]

    @property
    def setting_differences(self) -> list[SettingDifference]:
        """Settings and versions that differ, without those that cannot change the result."""
        first, second = self.first.params, self.second.params
        values = [
            SettingDifference(name, first.get(name, "–"), second.get(name, "–"))
            for name in sorted(first.keys() | second.keys())
            if _decides_result(name)
        ]
        different = [value for value in values if value.first != value.second]
        names = [difference.name for difference in different]
        # A fingerprint is listed only if no setting of its group explains it.
        explained = {
            name
            for name in names
            if name.endswith(".fingerprint") and any(_same_group(other, name) for other in names if other != name)
        }
        return [difference for difference in different if difference.name not in explained] + self._tag_differences()

    def _tag_differences(self) -> list[SettingDifference]:
        """Tags that can change the result: the fine-tune's parent run, the commit and versions."""
        first, second = self.first.tags, self.second.tags
        names = sorted(
            name
            for name in first.keys() | second.keys()
            if name in ("parent", "git.commit", "python") or name.startswith("version.")
        )
        values = [
            SettingDifference(name, _tag_text(name, first.get(name, "–")), _tag_text(name, second.get(name, "–")))
            for name in names
        ]
        return [value for value in values if value.first != value.second]


def _decides_result(name: str) -> bool:
    group = name.split(".")[0]
    return name in FEATURES_IN_RUN_KEY or not (group in (*NOT_IN_RUN_KEY, *_DERIVED_PARAMS) or name in _DERIVED_PARAMS)


def _same_group(name: str, other: str) -> bool:
    return name.split(".")[0] == other.split(".")[0]


def _tag_text(name: str, value: str) -> str:
    """Tags that hold a long hash are shortened."""
    return short(value) if name in ("parent", "git.commit") else value


def _points(points: float) -> str:
    return f"{abs(points):.1f} points {'worse' if points < 0 else 'better'}" if round(points, 1) else "no difference"


def _net_change(change: Change) -> str:
    return f"{display_name(change.name)} ({change.net:+d} of {change.pair.n})"


def _confusion(confusion: Confusion) -> str:
    return f"{display_name(confusion.true)} with {display_name(confusion.predicted)} ({confusion.images} images)"


def _listed(items: Sequence[str]) -> str:
    more = f", and {len(items) - _MAX_LISTED} more" if len(items) > _MAX_LISTED else ""
    return ", ".join(items[:_MAX_LISTED]) + more
