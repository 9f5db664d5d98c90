"""Report of an ablation that removes each ingredient from a run, one at a time: accuracy, paired test, cost."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from dogbreeds.evaluation.ablation import interval
from dogbreeds.evaluation.metrics import PairedOutcome
from dogbreeds.evaluation.verdict import PAIRED_LEVEL
from dogbreeds.reports import tables
from dogbreeds.reports.tables import Column

_HEADINGS = ("removed", "validation (%)", "change, points (95 % interval)", "images gained and lost, p", "seconds")
_MIN_COLUMN_WIDTH = 8


@dataclass(frozen=True)
class Removal:
    """A run without one ingredient, of each seed.

    Attributes:
        factor: the override that removes it; empty for the run with all of them.
        accuracies: validation accuracy in [0, 1] of each seed.
        seconds: duration of each run.
        pairs: the run compared with that with all ingredients, on validation, of each seed; empty for that one itself.
    """

    factor: str
    accuracies: tuple[float, ...]
    seconds: tuple[float, ...]
    pairs: tuple[PairedOutcome, ...] = ()

    @property
    def pooled(self) -> PairedOutcome | None:
        """The paired outcomes of all seeds together; None without any."""
        if not self.pairs:
            return None
        gained, lost, n = (sum(getattr(pair, name) for pair in self.pairs) for name in ("gained", "lost", "n"))
        return PairedOutcome(gained, lost, n, self.pairs[0].split)


@dataclass(frozen=True)
class RemovalReport:
    """The runs without each ingredient, compared with the run with all.

    Attributes:
        whole: the run with all ingredients.
        removals: those without one.
    """

    whole: Removal
    removals: Sequence[Removal]

    def changes(self, removal: Removal) -> tuple[float, ...]:
        """Return the change of validation accuracy that removing an ingredient gives, of each seed."""
        return tuple(after - before for before, after in zip(self.whole.accuracies, removal.accuracies, strict=True))

    def as_markdown(self) -> str:
        """Render the report in Markdown."""
        return f"{tables.markdown_table(_HEADINGS, self._rows())}\n\n{self.conclusion}\n"

    def as_text(self, width: int) -> str:
        """Render the report for a terminal of a width."""
        longest = max(len(removal.factor) for removal in self.removals)
        columns = [Column(heading, min_width=_MIN_COLUMN_WIDTH) for heading in _HEADINGS[1:]]
        table = tables.text_table([Column(_HEADINGS[0], min_width=longest), *columns], self._rows(), width)
        return table + tables.paragraph(self.conclusion, width)

    @property
    def conclusion(self) -> str:
        """Which ingredients are shown to pay, and which are not."""
        paying: list[str] = []
        not_shown: list[str] = []
        for removal in self.removals:
            pair = removal.pooled
            pays = pair is not None and pair.p_value < PAIRED_LEVEL and pair.difference < 0
            (paying if pays else not_shown).append(removal.factor)
        parts = []
        if paying:
            parts.append(f"Removed by {', '.join(paying)}, an ingredient pays (p < {PAIRED_LEVEL:g}, paired).")
        if not_shown:
            parts.append(f"That what {', '.join(not_shown)} removes pays is not shown.")
        return " ".join(parts)

    def _rows(self) -> list[list[str]]:
        return [self._row(removal) for removal in (self.whole, *self.removals)]

    def _row(self, removal: Removal) -> list[str]:
        accuracies = " ".join(f"{100 * value:.1f}" for value in removal.accuracies)
        seconds = f"{statistics.mean(removal.seconds):.0f}"
        pair = removal.pooled
        if pair is None:
            return [removal.factor or "nothing", accuracies, "", "", seconds]
        paired = f"+{pair.gained} -{pair.lost} of {pair.n:,}, p = {pair.p_value:.2g}"
        return [removal.factor, accuracies, _points(self.changes(removal)), paired, seconds]


def _points(values: Sequence[float]) -> str:
    found = interval(values)
    mean = f"{100 * statistics.mean(values):+.1f}"
    return mean + (f" ({100 * found[0]:+.1f} to {100 * found[1]:+.1f})" if found else "")
