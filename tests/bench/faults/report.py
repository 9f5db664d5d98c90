"""Judge the recorded runs anew, with the present verdict, and compare what it says with the truth.

A run is judged from what a user's run would know. Its distance from the truth is measured on images that it does not
see: see `truth`.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from dogbreeds.evaluation.metrics import Proportion, Reference
from dogbreeds.evaluation.results import Epoch, scores_from_dict
from dogbreeds.evaluation.verdict import Setting, Verdict, judge
from tests.bench.faults.pixels import BATCHNORM, PROBE, Pair
from tests.bench.faults.truth import from_hex, paired_error

# Verdicts that call a run a failure. Overfitting is none: its best epoch may be as good as any.
FAULTS = ("collapsed", "never_learned", "diverged", "underperforming")
# From near the truth to far from it.
BANDS = (
    "within 3 points",
    "3 to 10 points below",
    "over 10 points below, within noise",
    "over 10 points below",
    "under 60 % of the truth",
    "nothing to learn",
)
# Distances from the truth in accuracy; a larger one counts if it is also this many standard errors.
_NEAR, _FAR, _ERRORS, _SHARE = 0.03, 0.1, 4.0, 0.6
# What the issue asks of the report: runs, backbones, and shares of wrong verdicts at most.
_RUNS, _BACKBONES, _FALSE_FAULTS, _UNDECIDED = 300, 3, 0.01, 0.05


@dataclasses.dataclass(frozen=True)
class Case:
    """A recorded run, judged.

    Attributes:
        line: what `collect` wrote down.
    """

    line: dict[str, Any]

    @cached_property
    def verdict(self) -> Verdict:
        """What the present verdict says."""
        return judge([_epoch(values) for values in self.line["epochs"]], setting(self.line))

    @cached_property
    def run(self) -> np.ndarray:
        """[n] bool, whether the run is right on each image of the truth. Without a finished epoch it never is."""
        digits = self.line["right"].get("truth")
        return from_hex(digits, self._n) if digits else np.zeros(self._n, bool)

    @cached_property
    def truth(self) -> np.ndarray:
        """[n] bool, whether the tuned logistic regression is."""
        return from_hex(self.line["truth"]["right"], self._n)

    @property
    def _n(self) -> int:
        return self.line["n"]["truth"]

    @property
    def below(self) -> float:
        """How far the run's accuracy is below the truth, in [-1, 1]."""
        return float(self.truth.mean() - self.run.mean())

    @property
    def last_below(self) -> float:
        """How far the accuracy of its last epoch is below the truth. After a loss that is not finite there is none."""
        last = "" if self.line["diverged"] else self.line["last"]
        return float(self.truth.mean() - (from_hex(last, self._n).mean() if last else 0.0))

    @property
    def is_far(self) -> bool:
        """Whether the run is more than 10 points and four standard errors below the truth."""
        return self.below > max(_FAR, _ERRORS * paired_error(self.truth, self.run))

    @property
    def can_be_seen(self) -> bool:
        """Whether the run would be four standard errors below on as many images as its verdict is decided by."""
        n = self.line["n"]["test" if "test" in self.line["probe"] else "val"]
        error = paired_error(self.truth, self.run) * np.sqrt(self._n / n)
        return self.below > max(_FAR, _ERRORS * error)

    @property
    def is_controlled(self) -> bool:
        """Whether labels are random or pixels wrong, so that a verdict that finds a fault is right."""
        return self.line["draw"]["noise"] == 1 or self.line["draw"]["pixels"] != "native"

    @property
    def band(self) -> str:
        """The item of `BANDS` that the run is in."""
        chance = 1 / self.line["draw"]["classes"]
        error = np.sqrt(chance * (1 - chance) / self._n)
        if self.line["draw"]["noise"] == 1 or self.truth.mean() - chance < _ERRORS * error:
            return "nothing to learn"
        if self.run.mean() < _SHARE * self.truth.mean():
            return "under 60 % of the truth"
        if self.below > _FAR:
            return "over 10 points below" if self.is_far else "over 10 points below, within noise"
        return "3 to 10 points below" if self.below > _NEAR else "within 3 points"

    def __str__(self) -> str:
        draw, n = self.line["draw"], self.line["n"]
        curve = " ".join(f"{100 * epoch['val']['accuracy']['correct'] / n['val']:.1f}" for epoch in self.line["epochs"])
        return (
            f"{self.line['backbone']}, seed {self.line['seed']}, run {self.line['run']}: {100 * self.run.mean():.1f} %,"
            f" truth {100 * self.truth.mean():.1f} % (n = {self._n:,}), validation {curve or '–'} (n = {n['val']:,});"
            f" {draw['classes']} classes, {draw['train_per_class']} images of each, noise {draw['noise']:g},"
            f" pixels {draw['pixels']}; {' '.join(self.line['overrides'])}; {self.verdict}"
        )


def setting(line: dict[str, Any]) -> Setting:
    """Return what the verdict of a recorded run may know, apart from its curves."""
    return Setting(
        classes=line["draw"]["classes"],
        lr=line["settings"]["optimizer.lr"],
        native=line["native"],
        diverged=line["stop_reason"] if line["diverged"] else "",
        settings=line["settings"],
        reference=_reference(line, "test" if "test" in line["probe"] else "val"),
        training=_reference(line, "left_out"),
        n_train=line["n"]["train"],
    )


def _reference(line: dict[str, Any], split: str) -> Reference | None:
    """Compare the run with the probe: a run is judged on test if there is such a split, else on validation."""
    if split not in line["right"]:
        return None
    n = line["n"][split]
    return Reference.of(from_hex(line["probe"][split], n), from_hex(line["right"][split], n), split)


# Settings on which advice depends.
_ADVICE = (
    *("augment", "head", "head.dropout", "model.pixels", "optimizer", "optimizer.lr", "phase.epochs"),
    *("preprocessing.mode", "unfreeze"),
)


def saved_curves(line: dict[str, Any]) -> dict[str, Any]:
    """Return what a test of the verdict needs of a recorded run: its curves, as Keras names them, and its setting."""
    found = setting(line)
    epochs = [_epoch(values) for values in line["epochs"]]
    return {
        "case": line["case"],
        "backbone": line["backbone"],
        "classes": found.classes,
        "n_train": found.n_train,
        "n_val": line["n"]["val"],
        "diverged": found.diverged,
        "settings": {name: value for name, value in line["settings"].items() if name in _ADVICE},
        "history": {
            "loss": [round(epoch.train_loss, 4) for epoch in epochs],
            "accuracy": [round(epoch.train_accuracy, 4) for epoch in epochs],
            "val_loss": [round(epoch.val.loss, 4) for epoch in epochs],
            "val_accuracy": [round(epoch.val.accuracy.value, 5) for epoch in epochs],
        },
        "reference": dataclasses.asdict(found.reference) if found.reference is not None else None,
    }


def _epoch(values: dict[str, Any]) -> Epoch:
    return Epoch(**{**values, "val": scores_from_dict(values["val"])})


# --- tables -------------------------------------------------------------------


def report(lines: Sequence[dict[str, Any]], pairs: Sequence[Pair] = ()) -> str:
    """Format the confusion matrices, the conditions, the controlled changes, the preflights, and what went wrong.

    Args:
        lines: of the random search, and of the cases with a name.
        pairs: preflights.
    """
    named = [Case(line) for line in lines if line["case"]]
    cases = [Case(line) for line in lines if not line["case"]]
    names = list(dict.fromkeys(case.line["backbone"] for case in cases))
    said = [f"{len(cases)} runs on {len(names)} backbones: {', '.join(names)}", ""]
    said += ["## Conditions", "", *conditions(cases), ""]
    for name in names if len(names) > 1 else []:
        said += [f"## {name}", "", *matrix([case for case in cases if case.line["backbone"] == name]), ""]
    said += ["## All backbones", "", *matrix(cases), ""]
    said += ["## Controlled changes", "", *controlled(cases), ""]
    said += ["## Preflight", "", *preflights(pairs), ""] if pairs else []
    if named:
        said += ["## Cases with a name", "", *(f"- {case.line['case']}: {case}" for case in named), ""]
    said += ["## Misjudged", "", *(f"- {case}" for case in misjudged(cases))]
    return "\n".join(said)


def conditions(cases: Sequence[Case]) -> list[str]:
    """Return the four conditions that the verdicts must meet, each with its counts."""
    names = {case.line["backbone"] for case in cases}
    far_short = [case for case in cases if case.band == "under 60 % of the truth"]
    near = [case for case in cases if case.band == "within 3 points" and not case.is_controlled]
    late = [case for case in near if case.verdict.name in FAULTS and case.last_below > _FAR]
    far = [case for case in cases if case.is_far and case.band != "nothing to learn"]
    seen = [case for case in far if case.can_be_seen]
    learned, faults, undecided = (
        sum(case.verdict.name == "learned" for case in far_short),
        sum(case.verdict.name in FAULTS for case in near) - len(late),
        sum(case.verdict.name == "undecided" for case in far),
    )
    overfitting = sum(case.verdict.name == "overfitting" for case in near)
    return [
        _condition(
            len(cases) >= _RUNS and len(names) >= _BACKBONES,
            f"{len(cases)} runs on {len(names)} backbones; {_RUNS} on {_BACKBONES} are asked for",
        ),
        _condition(
            not learned,
            f"under 60 % of the truth and called learned: {_fraction(learned, len(far_short))}; none may be",
        ),
        _condition(
            faults <= _FALSE_FAULTS * len(near),
            f"within 3 points of the truth and called a fault: {_fraction(faults, len(near))}; at most 1 % may be."
            f" Counted apart: {len(late)} whose last epoch is over 10 points below, and {overfitting} called"
            " overfitting",
        ),
        _condition(
            undecided <= _UNDECIDED * len(far),
            "over 10 points and four standard errors below, and called undecided:"
            f" {_fraction(undecided, len(far))}; at most 5 % may be. Counted apart: of those that are so far below"
            " on as many images as their verdicts are decided by,"
            f" {_fraction(sum(case.verdict.name == 'undecided' for case in seen), len(seen))}",
        ),
    ]


def _condition(holds: bool, text: str) -> str:
    return f"- {'holds' if holds else 'FAILS'}: {text}"


def matrix(cases: Sequence[Case]) -> list[str]:
    """Return a table of verdicts by distance from the truth; each cell is a count, its share and interval."""
    verdicts = [name for name, _ in Counter(case.verdict.name for case in cases).most_common()]
    return _table(["distance"], verdicts, [(band, [case for case in cases if case.band == band]) for band in BANDS])


def controlled(cases: Sequence[Case]) -> list[str]:
    """Return a table of verdicts by controlled change."""

    def noise(low: float, high: float) -> Callable[[Case], bool]:
        return lambda case: low < case.line["draw"]["noise"] <= high and case.line["draw"]["pixels"] == "native"

    changes: dict[str, Callable[[Case], bool]] = {
        "random labels": noise(0.99, 1),
        "10 to 50 % of the labels permuted": noise(0, 0.99),
        "wrong pixels": lambda case: case.line["draw"]["pixels"] != "native",
    }
    verdicts = [name for name, _ in Counter(case.verdict.name for case in cases).most_common()]
    return _table(
        ["change"], verdicts, [(name, [case for case in cases if has(case)]) for name, has in changes.items()]
    )


def _table(first: list[str], verdicts: Sequence[str], rows: Sequence[tuple[str, list[Case]]]) -> list[str]:
    heads = [*first, "n", *(name.replace("_", " ") for name in verdicts)]
    lines = [f"| {' | '.join(heads)} |", f"| {' | '.join('---' for _ in heads)} |"]
    for name, cases in rows:
        counts = Counter(case.verdict.name for case in cases)
        cells = [_cell(counts[verdict], len(cases)) for verdict in verdicts]
        lines.append(f"| {name} | {len(cases)} | {' | '.join(cells)} |")
    return lines


def _cell(count: int, n: int) -> str:
    if not n:
        return "–"
    low, high = Proportion(count, n).interval
    return f"{count} ({100 * low:.0f}–{100 * high:.0f} %)"


def _fraction(count: int, n: int) -> str:
    if not n:
        return "0 of 0"
    low, high = Proportion(count, n).interval
    return f"{count} of {n} ({100 * count / n:.1f} %, 95 % interval {100 * low:.1f}–{100 * high:.1f})"


def preflights(pairs: Sequence[Pair]) -> list[str]:
    """Return how often the preflight is right, by pairs of backbone and convention, and the pairs where it is wrong."""
    lines = []
    for check, prefix in ((BATCHNORM, ""), (PROBE, "without BatchNorm, ")):
        found = [pair for pair in pairs if pair.check == check]
        if not found:
            continue
        wrong, native = [pair for pair in found if not pair.is_native], [pair for pair in found if pair.is_native]
        lines += [
            f"- {prefix}wrong pixels refused: {_fraction(sum(pair.is_right for pair in wrong), len(wrong))}",
            f"- {prefix}right pixels accepted: {_fraction(sum(pair.is_right for pair in native), len(native))}",
            # Without BatchNorm, wrong pixels that are not refused are those that it cannot tell.
            *(
                f"- {prefix}misjudged: {pair}"
                if check == BATCHNORM
                else f"- {prefix}{pair.backbone} with {pair.mode}: refused on {sum(pair.mismatches)} of"
                f" {len(pair.mismatches)} samples"
                for pair in found
                if not pair.is_right
            ),
        ]
    return lines


def misjudged(cases: Sequence[Case]) -> list[Case]:
    """Return the runs whose verdict counts against a condition, and those with random labels that have `learned`."""

    def is_wrong(case: Case) -> bool:
        name = case.verdict.name
        if case.band == "nothing to learn":
            return name == "learned"
        if case.band == "within 3 points":
            return name in FAULTS and not case.is_controlled
        return (case.band == "under 60 % of the truth" and name == "learned") or (case.is_far and name == "undecided")

    return [case for case in cases if is_wrong(case)]
