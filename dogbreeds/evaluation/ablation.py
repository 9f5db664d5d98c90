"""Ablation: how much each factor of a run explains, from runs with some factors reverted to a reference run's settings.

A factor explains the mean of two changes in accuracy: that of reverting it alone, and that of reverting it last.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# Two-sided 95 % quantiles of Student's t for 1 to 9 degrees of freedom; for more, the last one is slightly too wide.
_T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)

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


def total_change(factors: Sequence[str], measured: Mapping[Cell, Sequence[float]]) -> tuple[float, ...]:
    """Compute the change in validation accuracy when all factors are reverted, of each seed."""
    return _differences(measured, Cell(), Cell(factors))


def _differences(measured: Mapping[Cell, Sequence[float]], before: Cell, after: Cell) -> tuple[float, ...]:
    """Change in accuracy between two cells, of each seed."""
    return tuple(second - first for first, second in zip(measured[before], measured[after], strict=True))


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Compute the 95 % interval of the mean by Student's t; None for a single value."""
    if len(values) < 2:
        return None
    reach = _T95[min(len(values) - 2, len(_T95) - 1)] * statistics.stdev(values) / math.sqrt(len(values))
    return statistics.mean(values) - reach, statistics.mean(values) + reach
