"""Ablation: how much each factor of a run explains, from runs with some factors reverted to a reference run's settings.

A factor explains the mean of two changes in accuracy: that of reverting it alone, and that of reverting it last.
"""

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# Two-sided 95 % quantiles of Student's t for 1 to 9 degrees of freedom; for more, the last one is slightly too wide.
_T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)

# A factor suffices by itself if it explains at least this share of what all factors explain together.
_SUFFICIENT_SHARE = 0.9

# The factors that are reverted in a run.
Cell = frozenset[str]


@dataclass(frozen=True)
class Effect:
    """What reverting a factor changes in validation accuracy.

    Attributes:
        factor: the override that reverts it.
        alone: change when only this factor is reverted, of each seed.
        last: change when this factor is reverted after all others, of each seed.
    """

    factor: str
    alone: tuple[float, ...]
    last: tuple[float, ...]

    @property
    def explains(self) -> tuple[float, ...]:
        """The mean of both changes, of each seed."""
        return tuple((first + second) / 2 for first, second in zip(self.alone, self.last, strict=True))


def cells(factors: Sequence[str]) -> list[Cell]:
    """List the cells of the ablation: nothing reverted, each factor alone, all but one, and all; each cell once."""
    everything = frozenset(factors)
    found = [
        Cell(),
        *(Cell({factor}) for factor in factors),
        *(everything - {factor} for factor in factors),
        everything,
    ]
    return list(dict.fromkeys(found))


def effects(factors: Sequence[str], measured: Mapping[Cell, Sequence[float]]) -> list[Effect]:
    """Compute the effect of each factor.

    Args:
        factors: overrides that revert the factors.
        measured: validation accuracies in [0, 1] of each cell, one for each seed, with the seeds in the same order.
    """
    everything = frozenset(factors)
    return [
        Effect(
            factor=factor,
            alone=_differences(measured, Cell(), Cell({factor})),
            last=_differences(measured, everything - {factor}, everything),
        )
        for factor in factors
    ]


def _differences(measured: Mapping[Cell, Sequence[float]], before: Cell, after: Cell) -> tuple[float, ...]:
    """Change in accuracy between two cells, of each seed."""
    return tuple(second - first for first, second in zip(measured[before], measured[after], strict=True))


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Compute the 95 % interval of the mean by Student's t; None for a single value."""
    if len(values) < 2:
        return None
    reach = _T95[min(len(values) - 2, len(_T95) - 1)] * statistics.stdev(values) / math.sqrt(len(values))
    return statistics.mean(values) - reach, statistics.mean(values) + reach


def conclusion(found: Sequence[Effect], total: Sequence[float]) -> str:
    """State in a sentence which factor caused the result.

    Args:
        found: effect of each factor.
        total: change in validation accuracy when all factors are reverted, of each seed.
    """
    if len(total) < 2:
        return (
            f"With one seed there is no interval: reverting all factors changes the accuracy by {_points(total)}"
            " points. Set why.seeds to two or more seeds."
        )
    clear = [effect for effect in found if not _includes_zero(effect.explains)]
    if not clear:
        return (
            f"No factor is significant: reverting all of them changes the accuracy by {_points_with_interval(total)}"
            " points; more why.seeds would narrow that interval."
        )
    if _includes_zero(total):
        opposed = ", ".join(f"{effect.factor} {_points_with_interval(effect.explains)}" for effect in clear)
        return (
            f"The factors counteract each other ({opposed}): reverting all of them changes the accuracy by"
            f" {_points_with_interval(total)} points."
        )
    sufficient = [
        effect.factor for effect in clear if statistics.mean(effect.alone) / statistics.mean(total) >= _SUFFICIENT_SHARE
    ]
    if len(sufficient) > 1:
        return (
            f"Reverting any one of {', '.join(sufficient)} suffices: alone it gives {100 * _SUFFICIENT_SHARE:.0f} % or"
            f" more of {_points_with_interval(total)} points."
        )
    largest = max(clear, key=lambda effect: abs(statistics.mean(effect.explains)))
    rest = statistics.mean(total) - statistics.mean(largest.explains)
    return (
        f"{largest.factor} has the largest effect: it explains {_points_with_interval(largest.explains)} points of"
        f" {_points(total)}, all other factors {100 * rest:+.1f}."
    )


def _includes_zero(values: Sequence[float]) -> bool:
    """Whether the interval of the mean includes 0; also true of a single value, which has no interval."""
    found = interval(values)
    return found is None or found[0] <= 0 <= found[1]


def _points(values: Sequence[float]) -> str:
    return f"{100 * statistics.mean(values):+.1f}"


def _points_with_interval(values: Sequence[float]) -> str:
    found = interval(values)
    return _points(values) + (f" ({100 * found[0]:+.1f} to {100 * found[1]:+.1f})" if found else "")


def report(
    factors: Sequence[str], measured: Mapping[Cell, Sequence[float]], verdicts: Mapping[Cell, Sequence[str]]
) -> str:
    """Write the report in Markdown: the accuracies of each cell, what each factor explains, and the conclusion.

    Args:
        factors: overrides that revert the factors.
        measured: validation accuracies in [0, 1] of each cell, one for each seed.
        verdicts: verdict names of each cell, one for each seed.
    """
    found = effects(factors, measured)
    total = _differences(measured, Cell(), frozenset(factors))
    lines = [
        *_cell_rows(factors, measured, verdicts),
        "",
        *_effect_rows(found, total),
        "",
        conclusion(found, total),
        "",
    ]
    return "\n".join(lines)


def _cell_rows(
    factors: Sequence[str], measured: Mapping[Cell, Sequence[float]], verdicts: Mapping[Cell, Sequence[str]]
) -> list[str]:
    rows = ["| reverted | validation accuracy (%) | verdicts |", "| --- | --- | --- |"]
    for cell in cells(factors):
        name = " ".join(factor for factor in factors if factor in cell) or "nothing"
        accuracies = " ".join(f"{100 * value:.1f}" for value in measured[cell])
        counts = ", ".join(
            f"{verdict.replace('_', ' ')} ({count})" for verdict, count in sorted(Counter(verdicts[cell]).items())
        )
        rows.append(f"| {name} | {accuracies} | {counts} |")
    return rows


def _effect_rows(found: Sequence[Effect], total: Sequence[float]) -> list[str]:
    rows = [
        "| reverted factor | explains, points (95 % interval) | alone | after the others |",
        "| --- | --- | --- | --- |",
    ]
    for effect in found:
        changes = (effect.explains, effect.alone, effect.last)
        rows.append(f"| {effect.factor} | {' | '.join(map(_points_with_interval, changes))} |")
    # One or two factors explain the total by construction; more may leave a rest.
    if len(found) > 2:
        interaction = tuple(
            change - sum(effect.explains[seed] for effect in found) for seed, change in enumerate(total)
        )
        rows.append(f"| interaction | {_points_with_interval(interaction)} | | |")
    rows.append(f"| all | {_points_with_interval(total)} | | |")
    return rows
