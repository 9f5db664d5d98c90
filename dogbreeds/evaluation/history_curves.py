"""Learning curves of a training outside this package: found by their names, in order, and in shares of 1."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np

from dogbreeds.core.errors import UserError
from dogbreeds.core.text import printable, received, shorten

# Curves that a verdict uses.
ROLES = ("epoch", "accuracy", "loss", "val_accuracy", "val_loss", "lr")
_ACCURACIES = ("accuracy", "val_accuracy")
_LOSSES = ("loss", "val_loss")
_VALIDATION = re.compile(r"(val|valid|validation|eval)_(?=.)")
_TRAINING = re.compile(r"(train|training)_(?=.)")
# All words that the name of an accuracy may have; others, such as top5 or balanced, say that it is another number.
_ACCURACY = re.compile(r"(?:(?:sparse|categorical|binary|multiclass|mean)_)*acc(?:uracy)?(?:_epoch)?")
_LOSS = re.compile(r"loss(?:_epoch)?")
# What stands for a missing value; CSVLogger writes NA.
_MISSING = ("", "na", "n/a", "none", "null")
# A training whose losses are all at least this share of the natural logarithm of the number of classes guesses.
_GUESSING = 0.9
# With so many classes a guess is right in at most 1 % of the images.
_MANY_CLASSES = 100
# Keras computes accuracies in float32.
_FLOAT32_ERROR = 1e-7
# Sizes of validation sets that are recognised by their accuracies, the likely ones first.
_SIZES = ((1, 10_000), (10_001, 100_000))


@dataclass(frozen=True)
class Curves:
    """Learning curves by their roles. Each has a value for each epoch; None where it was not recorded.

    Attributes:
        values: by role, of `ROLES`; a role without a curve is missing. Accuracies are in [0, 1].
        precision: half a unit of the last digit of the accuracies.
    """

    values: Mapping[str, Sequence[float | None]]
    precision: float = _FLOAT32_ERROR

    @classmethod
    def of(
        cls, history: Mapping[str, Sequence[Any]], names: Mapping[str, str] | None = None, classes: int | None = None
    ) -> "Curves":
        """Find the curves of a history.

        Rows are sorted by their epochs, and those that a resumed training repeated replace the earlier ones.

        Args:
            history: value of each epoch, by name.
            names: name of the curve of a role, for names that are not recognised.
            classes: number of classes, to tell per cent from shares; None if unknown.

        Raises:
            UserError: a curve is ambiguous, of another length, or holds something else than numbers.
        """
        chosen = _choose(history, names or {})
        lengths = {name: len(history[name]) for name in chosen.values()}
        if len(set(lengths.values())) > 1:
            raise UserError(
                f"The curves have the lengths {lengths}. Each needs one value for each epoch, as in"
                " model.fit(..., validation_data=...).history. Train with validation_freq=1, or leave the other curves"
                " out."
            )
        columns = {role: [_number(name, value) for value in history[name]] for role, name in chosen.items()}
        return cls(*_in_shares(_in_order(columns), classes))

    def __contains__(self, role: str) -> bool:
        return role in self.values

    @property
    def epochs(self) -> int:
        """Number of epochs."""
        return max(map(len, self.values.values()), default=0)

    def recorded(self, role: str) -> list[float]:
        """Return the values of a role that were recorded; empty without such a curve."""
        return [value for value in self.values.get(role, ()) if value is not None]

    def first_divergence(self) -> tuple[int, str, float] | None:
        """Return epoch, counted from 1, name and value of the first loss that is not finite; None without one."""
        for index in range(self.epochs):
            for role in _LOSSES:
                value = self.values[role][index] if role in self else None
                if value is not None and not math.isfinite(value):
                    return index + 1, "training loss" if role == "loss" else "validation loss", value
        return None

    def fewest_images(self) -> int | None:
        """Return the smallest validation set that can have these accuracies; None if it is none of up to 100,000.

        Each accuracy is a whole number of images out of all, so with six digits and some epochs this is the set's size.
        """
        for smallest, largest in _SIZES:
            sizes = np.arange(smallest, largest + 1)
            for accuracy in {*self.recorded("val_accuracy")}:
                correct = accuracy * sizes
                sizes = sizes[np.abs(correct - np.round(correct)) <= self.precision * sizes]
            if len(sizes):
                return int(sizes[0])
        return None


def _choose(history: Mapping[str, Sequence[Any]], names: Mapping[str, str]) -> dict[str, str]:
    """Return the name of the curve of each role that has one."""
    for role, name in names.items():
        if role not in ROLES:
            raise UserError(
                f"names.{role} is not a curve that a verdict uses. They are {', '.join(ROLES)}. Type"
                f" names.val_accuracy={printable(name)}, for example."
            )
        if name not in history:
            raise UserError(
                f"names.{role}={printable(name)} is not among the curves. They are {_listed(history)}. Type"
                f" names.{role}=<one of them>."
            )
    chosen = dict(names)
    for role in ROLES:
        candidates = [name for name in history if _role(name)[0] == role]
        if role == "val_accuracy" and len(candidates) > 1 and "accuracy" in chosen:
            stem = _role(chosen["accuracy"])[1]
            candidates = [name for name in candidates if _role(name)[1] == stem] or candidates
        if role in names or not candidates:
            continue
        if len(candidates) > 1 and role in _ACCURACIES:
            kind = "training" if role == "accuracy" else "validation"
            raise UserError(
                f"The curves are {_listed(history)}, of which {len(candidates)} are a {kind} accuracy. There must be"
                f" one. Compile the model with metrics=['accuracy'], or type names.{role}={printable(candidates[0])}."
            )
        chosen[role] = candidates[0]
    if not {*_LOSSES, "val_accuracy"} & chosen.keys():
        raise UserError(
            f"The curves are {_listed(history) or 'empty'}, of which none is a loss or a validation accuracy. A verdict"
            " needs loss, or val_accuracy. Type names.loss=<the name of that curve>, for example."
        )
    return chosen


def _listed(history: Mapping[str, Sequence[Any]]) -> str:
    return shorten(", ".join(map(printable, map(str, history))), 200)


def _role(name: str) -> tuple[str, str]:
    """Return the role that a curve's name says, empty without one, and the name without words for a split."""
    words = re.sub(r"[^a-z0-9]+", "_", str(name).lower()).strip("_")
    prefix = "val_" if _VALIDATION.match(words) else ""
    stem = _VALIDATION.sub("", words, count=1) if prefix else _TRAINING.sub("", words, count=1)
    if _LOSS.fullmatch(stem):
        return f"{prefix}loss", stem
    if _ACCURACY.fullmatch(stem):
        return f"{prefix}accuracy", stem
    if stem in ("lr", "learning_rate") and not prefix:
        return "lr", stem
    return ("epoch" if words == "epoch" else ""), stem


def _number(name: str, value: Any) -> float | None:
    """Return a value as a number; None for what stands for a missing one."""
    if value is None or (isinstance(value, str) and value.strip().lower() in _MISSING):
        return None
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(
            f"{printable(str(name))} was {received(value)} in an epoch. A curve has a number for each epoch, or NA"
            " where it was not recorded. Correct that value, or leave the curve out."
        ) from error


def _in_order(columns: dict[str, list[float | None]]) -> dict[str, list[float | None]]:
    """Return the curves with one row for each epoch, in order, without the curve of the epochs' numbers.

    A training that was resumed in an epoch, or started over, repeats epochs: what came before from that epoch on is
    left out. Neighbouring rows of one epoch are joined, as of a logger that writes training and validation apart.
    """
    numbers = columns.pop("epoch", ())
    rows = [
        (number, {role: columns[role][row] for role in columns})
        for row, number in enumerate(numbers)
        if _is_finite(number)
    ]
    if not rows:
        return columns
    if len({number for number, _ in rows}) == len(rows):
        rows.sort(key=lambda row: row[0])
    kept: list[tuple[float, dict[str, float | None]]] = []
    for number, values in rows:
        while kept and kept[-1][0] > number:
            kept.pop()
        if kept and kept[-1][0] == number:
            kept[-1][1].update((role, value) for role, value in values.items() if value is not None)
        else:
            kept.append((number, values))
    return {role: [values[role] for _, values in kept] for role in columns}


def _in_shares(
    columns: Mapping[str, Sequence[float | None]], classes: int | None
) -> tuple[dict[str, Sequence[float | None]], float]:
    """Convert accuracies to shares of 1, if they are in per cent; also return half a unit of their last digit."""
    shares = dict(columns)
    found = [value for role in _ACCURACIES for value in columns.get(role, ()) if _is_finite(value)]
    for value in found:
        if not 0 <= value <= 100:
            raise UserError(
                f"An accuracy was {value:g}. Accuracies are shares from 0 to 1, or per cent from 0 to 100. Name the"
                " curve of the validation accuracy: type names.val_accuracy=<its name>."
            )
    losses = [value for role in _LOSSES for value in columns.get(role, ()) if _is_finite(value)]
    scale = 100 if _are_per_cent(found, losses, classes) else 1
    for role in _ACCURACIES:
        if role in columns:
            shares[role] = [value / scale if _is_finite(value) else None for value in columns[role]]
    digits = max((_decimals(value) for value in columns.get("val_accuracy", ()) if _is_finite(value)), default=0)
    return shares, max(0.5 * 10.0**-digits / scale, _FLOAT32_ERROR)


def _are_per_cent(accuracies: Sequence[float], losses: Sequence[float], classes: int | None) -> bool:
    """Whether accuracies are in per cent: one is above 1, or all may be shares, and losses say that it guesses."""
    best = max(accuracies, default=0.0)
    is_guessing = (
        classes is not None and classes >= _MANY_CLASSES and min(losses, default=0.0) >= _GUESSING * math.log(classes)
    )
    return best > 1 or (is_guessing and best >= 0.5)


def _is_finite(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)


def _decimals(value: float) -> int:
    """Return the number of digits after the point, as Python writes the number."""
    mantissa, _, exponent = repr(value).partition("e")
    return len(mantissa.partition(".")[2].rstrip("0")) - int(exponent or 0)


def curves_of_points(
    points: Mapping[str, Iterable[tuple[int, float]]], names: Mapping[str, str]
) -> dict[str, list[float | None]]:
    """Turn metrics that were logged at steps of their own into a history: a value for each epoch, by role.

    An epoch ends where the validation accuracy was logged, or else a loss. The value of another metric is its mean over
    the steps since the epoch before.

    Args:
        points: step and value of each point, by metric.
        names: metric of a role, as for `Curves.of`.
    """
    by_step = {name: dict(sorted(values)) for name, values in points.items()}
    chosen = _choose({name: list(values) for name, values in by_step.items()}, names)
    ends = sorted(by_step[next(chosen[role] for role in ("val_accuracy", *reversed(_LOSSES)) if role in chosen)])
    starts = [-math.inf, *ends]
    return {
        role: [
            _mean([value for step, value in by_step[name].items() if start < step <= end])
            for start, end in zip(starts, ends, strict=False)
        ]
        for role, name in chosen.items()
        if role != "epoch"
    }


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
