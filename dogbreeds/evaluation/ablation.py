"""How much each of an attempt's knobs explains, from runs with some of them put back to what a reference attempt has.

A knob explains the mean of what it changes when it is put back alone and when it is put back last.
"""

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# Student's t, two-sided 95 %, for 1 to 9 degrees of freedom; beyond that the last is a little too wide.
_T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)

# Of what all knobs change together: one that gives it alone is enough by itself
_ENOUGH = 0.9

# The settings that are put back
Cell = frozenset[str]


@dataclass(frozen=True)
class Effect:
    """What putting a knob back changes in validation accuracy, of each seed: alone, after all the others, and the mean of both."""

    knob: str
    alone: tuple[float, ...]
    last: tuple[float, ...]

    @property
    def explains(self) -> tuple[float, ...]:
        return tuple((first + second) / 2 for first, second in zip(self.alone, self.last, strict=True))


def cells(knobs: Sequence[str]) -> list[Cell]:
    """Nothing put back, each knob alone, all but one, and all."""
    everything = frozenset(knobs)
    found = [Cell(), *(Cell({knob}) for knob in knobs), *(everything - {knob} for knob in knobs), everything]
    return list(dict.fromkeys(found))


def effects(knobs: Sequence[str], measured: Mapping[Cell, Sequence[float]]) -> list[Effect]:
    """What each knob explains.

    Args:
        knobs: settings that were put back.
        measured: validation accuracy of each seed, in the same order in every cell.
    """
    everything = frozenset(knobs)
    return [
        Effect(
            knob, _differences(measured, Cell(), Cell({knob})), _differences(measured, everything - {knob}, everything)
        )
        for knob in knobs
    ]


def _differences(measured: Mapping[Cell, Sequence[float]], before: Cell, after: Cell) -> tuple[float, ...]:
    return tuple(second - first for first, second in zip(measured[before], measured[after], strict=True))


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """The mean's 95 % interval by Student's t; None for a single value."""
    if len(values) < 2:
        return None
    reach = _T95[min(len(values) - 2, len(_T95) - 1)] * statistics.stdev(values) / math.sqrt(len(values))
    return statistics.mean(values) - reach, statistics.mean(values) + reach


def conclusion(found: Sequence[Effect], total: Sequence[float]) -> str:
    """Which knob did it, in a sentence."""
    if len(total) < 2:
        return (
            f"With one seed there is no interval: the knobs together change {_points(total)} points. Give why.seeds two"
            " or more."
        )
    clear = [effect for effect in found if not _straddles(effect.explains)]
    if not clear:
        return (
            f"No knob stands out from noise: putting all of them back changes {_said(total)} points; more why.seeds"
            " would narrow that."
        )
    if _straddles(total):
        those = ", ".join(f"{effect.knob} {_said(effect.explains)}" for effect in clear)
        return f"The knobs pull against each other ({those}): putting all of them back changes {_said(total)} points."
    enough = [effect.knob for effect in clear if statistics.mean(effect.alone) / statistics.mean(total) >= _ENOUGH]
    if len(enough) > 1:
        return (
            f"Putting back any one of {', '.join(enough)} is enough: by itself it gives {100 * _ENOUGH:.0f} % or more"
            f" of {_said(total)} points."
        )
    most = max(clear, key=lambda effect: abs(statistics.mean(effect.explains)))
    rest = statistics.mean(total) - statistics.mean(most.explains)
    return (
        f"{most.knob} did most: it explains {_said(most.explains)} points of {_points(total)}, all else"
        f" {100 * rest:+.1f}."
    )


def _straddles(values: Sequence[float]) -> bool:
    found = interval(values)
    return found is None or found[0] <= 0 <= found[1]


def _points(values: Sequence[float]) -> str:
    return f"{100 * statistics.mean(values):+.1f}"


def _said(values: Sequence[float]) -> str:
    found = interval(values)
    return _points(values) + (f" ({100 * found[0]:+.1f} to {100 * found[1]:+.1f})" if found else "")


def report(
    knobs: Sequence[str], measured: Mapping[Cell, Sequence[float]], verdicts: Mapping[Cell, Sequence[str]]
) -> str:
    """The accuracies of each cell, what each knob explains, and the conclusion, as Markdown."""
    lines = ["| put back | validation accuracy (%) | verdicts |", "| --- | --- | --- |"]
    for cell in cells(knobs):
        name = " ".join(knob for knob in knobs if knob in cell) or "nothing"
        words = ", ".join(
            f"{word.replace('_', ' ')} ({count})" for word, count in sorted(Counter(verdicts[cell]).items())
        )
        lines.append(f"| {name} | {' '.join(f'{100 * value:.1f}' for value in measured[cell])} | {words} |")
    lines += [
        "",
        "| knob put back | explains, points (95 % interval) | alone | after the others |",
        "| --- | --- | --- | --- |",
    ]
    found = effects(knobs, measured)
    lines += [
        f"| {effect.knob} | {_said(effect.explains)} | {_said(effect.alone)} | {_said(effect.last)} |"
        for effect in found
    ]
    total = _differences(measured, Cell(), frozenset(knobs))
    left = tuple(whole - sum(effect.explains[seed] for effect in found) for seed, whole in enumerate(total))
    if len(knobs) > 2:
        lines.append(f"| together, beyond that | {_said(left)} | | |")
    lines.append(f"| all | {_said(total)} | | |")
    return "\n".join([*lines, "", conclusion(found, total), ""])
