"""Report of an ablation: the accuracies of its runs, what each factor explains, and the conclusion."""

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dogbreeds.evaluation.ablation import Cell, Effect, cells, effects, interval, total_change
from dogbreeds.reports import tables
from dogbreeds.reports.tables import Column

# A factor suffices by itself if it explains at least this share of what all factors explain together.
_SUFFICIENT_SHARE = 0.9
_RUN_HEADINGS = ("reverted", "validation accuracy (%)", "verdicts")
_EFFECT_HEADINGS = ("reverted factor", "explains, points (95 % interval)", "alone", "after the others")
_MIN_COLUMN_WIDTH = 10


@dataclass(frozen=True)
class AblationReport:
    """An ablation and how it is shown.

    Attributes:
        factors: overrides that revert the factors.
        measured: validation accuracies in [0, 1] of each cell, one for each seed.
        verdicts: verdict names of each cell, one for each seed.
    """

    factors: Sequence[str]
    measured: Mapping[Cell, Sequence[float]]
    verdicts: Mapping[Cell, Sequence[str]]

    @property
    def effects(self) -> list[Effect]:
        """The effect of each factor."""
        return effects(self.factors, self.measured)

    def as_markdown(self) -> str:
        """Render the report in Markdown."""
        return "\n\n".join(
            [
                tables.markdown_table(_RUN_HEADINGS, self._run_rows()),
                tables.markdown_table(_EFFECT_HEADINGS, self._effect_rows()),
                f"{self._conclusion}\n",
            ]
        )

    def as_text(self, width: int) -> str:
        """Render the report for a terminal of a width."""
        longest_factor = max(map(len, self.factors))
        parts = []
        for headings, rows in ((_RUN_HEADINGS, self._run_rows()), (_EFFECT_HEADINGS, self._effect_rows())):
            columns = [Column(heading, min_width=_MIN_COLUMN_WIDTH) for heading in headings[1:]]
            parts.append(tables.text_table([Column(headings[0], min_width=longest_factor), *columns], rows, width))
        return "".join([*parts, tables.paragraph(self._conclusion, width)])

    @property
    def _conclusion(self) -> str:
        return conclusion(self.effects, total_change(self.factors, self.measured))

    def _run_rows(self) -> list[list[str]]:
        rows = []
        for cell in cells(self.factors):
            name = " ".join(factor for factor in self.factors if factor in cell) or "nothing"
            accuracies = " ".join(f"{100 * value:.1f}" for value in self.measured[cell])
            counts = Counter(self.verdicts[cell])
            verdicts = ", ".join(f"{verdict.replace('_', ' ')} ({count})" for verdict, count in sorted(counts.items()))
            rows.append([name, accuracies, verdicts])
        return rows

    def _effect_rows(self) -> list[list[str]]:
        rows = [
            [effect.factor, *map(_points_with_interval, (effect.explains, effect.alone, effect.last))]
            for effect in self.effects
        ]
        total = total_change(self.factors, self.measured)
        # One or two factors explain the total by construction; more may leave a rest.
        if len(rows) > 2:
            interaction = [
                change - sum(effect.explains[seed] for effect in self.effects) for seed, change in enumerate(total)
            ]
            rows.append(["interaction", _points_with_interval(interaction), "", ""])
        return [*rows, ["all", _points_with_interval(total), "", ""]]


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
