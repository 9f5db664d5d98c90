"""What is to be said of two attempts: whether they differ, what their settings have to do with it, and on which breeds."""

from collections.abc import Sequence
from dataclasses import dataclass

from dogbreeds.data.class_names import spoken
from dogbreeds.evaluation.paired_comparison import Change, Comparison, Confusion
from dogbreeds.reports import baseline_note
from dogbreeds.tracking.records import ELSEWHERE, Record, short

# Breeds or confusions in a sentence
_NAMED = 5
# By which the same files have another fingerprint
_SPLIT = ("data.split", "data.split_seed", "data.val_fraction", "data.guide_seed")
# Of what else is recorded: names of the same, and what follows from other settings.
_FOLLOWS = ("key", "overrides", "parameters", "unfreeze.plan", "unfreeze.layers_asked")


@dataclass(frozen=True)
class Difference:
    """Two attempts and their networks' calls.

    Attributes:
        first, second: as they were recorded.
        comparison: of their calls.
        alpha: the level of significance, in (0, 1).
        breeds: how many of the most changed breeds are named.
    """

    first: Record
    second: Record
    comparison: Comparison
    alpha: float
    breeds: int

    @property
    def photos(self) -> str:
        """Which photos the two are compared on."""
        n, (first, second) = len(self.comparison.labels), self.comparison.photos
        if n == first == second:
            return f"On the {n:,} photos of {self.comparison.split}."
        return (
            f"On the {n:,} photos of {self.comparison.split} that both have; the first has {first:,} there, the second"
            f" {second:,}."
        )

    @property
    def conclusion(self) -> str:
        """Whether one is better, in a sentence."""
        pair = self.comparison.pair
        if self.first.run_id == self.second.run_id:
            return "The first and the second are the same run: there is no difference."
        if pair.p_value <= self.alpha:
            return (
                f"The second is {'better' if pair.difference > 0 else 'worse'} than the first, at the level of"
                f" {self.alpha:g}."
            )
        low, high = (100 * end for end in pair.interval)
        return (
            f"No difference is shown at the level of {self.alpha:g}. The second may be anything from {_points(low)} to"
            f" {_points(high)} (95 % interval), and these photos do not tell which."
        )

    @property
    def cautions(self) -> list[str]:
        """What to keep in mind of these numbers."""
        found = []
        if self.comparison.split == "val":
            found.append(
                "Each network's best epoch was chosen on its val: on these photos both look a little better than they"
                " are."
            )
        if self._differs("data.fingerprint") and not any(map(self._differs, _SPLIT)):
            found.append("The two had not quite the same files: photos of the same name are taken for the same.")
        if baseline_note.is_descended(self.second):
            found.append(baseline_note.said(self.second, self.comparison.split, self.comparison.photos[1]))
        if self.first.run_id != self.second.run_id:
            found.append(
                "The test is of these two networks: another seed moves an accuracy too. Compare several before a"
                " setting is preferred."
            )
        return found

    def _differs(self, name: str) -> bool:
        return self.first.params.get(name) != self.second.params.get(name)

    @property
    def about_breeds(self) -> str:
        """Which breeds differ, in a sentence or two."""
        found = self.comparison.different(self.alpha)
        of = (
            f"{len(self.comparison.changes)} breeds, after adjusting for that many tests (Benjamini and Hochberg,"
            f" {self.alpha:g})"
        )
        if found:
            return (
                f"{len(found)} of {of}, differ{'s' if len(found) == 1 else ''}:"
                f" {_listed([_net(change) for change in found])}."
            )
        sizes = sorted({change.pair.n for change in self.comparison.changes})
        each = f"{sizes[0]} to {sizes[-1]} photos" if sizes[1:] else f"{sizes[0]} photo{'s' if sizes[0] > 1 else ''}"
        needed = self.comparison.needed(self.alpha)
        return (
            f"None of {of}, differs. With {each} of each, a single breed would have to gain or lose {needed}, with none"
            f" the other way{': more than there are' if needed > sizes[-1] else ''}."
        )

    @property
    def most_changed(self) -> tuple[Change, ...]:
        """The breeds that are named: of those that changed, the first few."""
        return tuple(change for change in self.comparison.changes if change.pair.gained or change.pair.lost)[
            : self.breeds
        ]

    @property
    def confusions(self) -> list[str]:
        """What the breeds that are named are taken for now, and are not any more."""
        names = [change.name for change in self.most_changed]
        made, mended = self.comparison.made(names), self.comparison.mended(names)
        lines = [("Only the second takes", made), ("Only the first takes", mended)]
        return [f"{who} {_listed([_confusion(confusion) for confusion in found])}." for who, found in lines if found]

    @property
    def settings(self) -> list[tuple[str, str, str]]:
        """What was set differently, as names with the first's and the second's value; what decides nothing is left out."""
        params = [record.params for record in (self.first, self.second)]
        found = [
            (name, *(values.get(name, "–") for values in params))
            for name in sorted(params[0].keys() | params[1].keys())
            if _decides(name)
        ]
        different = [(name, first, second) for name, first, second in found if first != second]
        names = [name for name, _, _ in different]
        # A fingerprint tells that photos or weights are others where no setting does.
        told = [
            line
            for line in different
            if not (line[0].endswith(".fingerprint") and any(_beside(name, line[0]) for name in names))
        ]
        return told + self._circumstances()

    def _circumstances(self) -> list[tuple[str, str, str]]:
        """What no setting says: which run a fine-tune goes on from, and versions."""
        tags = [record.tags for record in (self.first, self.second)]
        names = sorted(
            name
            for name in tags[0].keys() | tags[1].keys()
            if name in ("parent", "git.commit", "python") or name.startswith("version.")
        )
        values = [
            (
                name,
                *(short(of.get(name, "–")) if name in ("parent", "git.commit") else of.get(name, "–") for of in tags),
            )
            for name in names
        ]
        return [(name, first, second) for name, first, second in values if first != second]


def _decides(name: str) -> bool:
    return name == "features.dtype" or not (name.split(".")[0] in (*ELSEWHERE, *_FOLLOWS) or name in _FOLLOWS)


def _beside(name: str, fingerprint: str) -> bool:
    """Whether a setting is of the same group as a fingerprint."""
    return name != fingerprint and name.split(".")[0] == fingerprint.split(".")[0]


def _points(points: float) -> str:
    return f"{abs(points):.1f} points {'worse' if points < 0 else 'better'}" if round(points, 1) else "no difference"


def _net(change: Change) -> str:
    return f"{spoken(change.name)} ({change.net:+d} of {change.pair.n})"


def _confusion(confusion: Confusion) -> str:
    return f"{spoken(confusion.true)} for {spoken(confusion.called)} ({confusion.photos} photos)"


def _listed(items: Sequence[str]) -> str:
    more = f", and {len(items) - _NAMED} more" if len(items) > _NAMED else ""
    return ", ".join(items[:_NAMED]) + more
