"""Figures that compare runs: their learning curves, and accuracy over the learning rate and over the layers trained."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dogbreeds.evaluation.metrics import Proportion
from dogbreeds.reports.figures import PAGE_INCHES, style_axes, style_epoch_axis
from dogbreeds.reports.picture_text import picture_text, use_fallback_fonts
from dogbreeds.tracking.records import RANKING_METRIC, REFERENCE_METRIC, Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Colour and marker of each verdict. Markers differ too, for readers who do not tell the colours apart.
_STYLES = {
    "learned": ("#17692f", "o"),
    "better_than_frozen": ("#1f5fa8", "^"),
    "no_better_than_frozen": ("#6f5aa8", "D"),
    "worse_than_frozen": ("#b3541e", "v"),
    "underperforming": ("#a8780b", "s"),
    "overfitting": ("#b0277f", "p"),
    "collapsed": ("#a3261b", "X"),
    "diverged": ("#5e1610", "*"),
    "never_learned": ("#333333", "x"),
}
_OTHER_STYLE = ("#7a7a7a", "P")
_REFERENCE_COLOUR = "#555555"
_LINE_STYLES = ("-", "--", ":", "-.")
# With more curves, the legend names verdicts in the place of runs.
_MAX_NAMED_CURVES = 12
# Longest name, in characters, that the legend has room for.
_MAX_NAME_LENGTH = 48
# Width in inches of each of two figures in a row. A phone shows one at its full size.
_HALF_PAGE_INCHES = 3.5


@dataclass(frozen=True)
class ComparedRun:
    """A run as the figures show it.

    Attributes:
        name: of the run, or of its attempt.
        verdict: name of its verdict.
        accuracies: validation accuracy after each epoch, in [0, 1].
        best: best validation accuracy; None without a completed epoch.
        last: the accuracy at the end, in [0, 1], where it is much below the best, as after a collapse; else None.
        lr: learning rate; None where none was recorded.
        layers: number of the backbone's layers that were trained; None likewise.
        reference: validation accuracy of the reference probe, in [0, 1]; None without one.
    """

    name: str
    verdict: str
    accuracies: tuple[float, ...]
    best: Proportion | None
    last: float | None
    lr: float | None
    layers: float | None
    reference: float | None

    @classmethod
    def of(cls, name: str, record: Record, accuracies: Sequence[float]) -> "ComparedRun":
        """Return a recorded run.

        Args:
            name: how the figures name it.
            record: the run, which has a verdict.
            accuracies: as the attribute.
        """
        best = record.metrics.get(RANKING_METRIC)
        n = int(record.params["data.images.val"])
        verdict = record.tags["verdict"]
        return cls(
            name=name,
            verdict=verdict,
            accuracies=tuple(accuracies),
            best=Proportion(round(best * n), n) if best is not None else None,
            last=accuracies[-1] if verdict in ("collapsed", "diverged") and accuracies else None,
            lr=_number(record.params.get("optimizer.lr")),
            layers=_number(record.params.get("unfreeze.layers_trained")),
            reference=record.metrics.get(REFERENCE_METRIC),
        )

    @property
    def summary(self) -> str:
        """The run in a few words, for descriptions of figures."""
        best = f"best {100 * self.best.value:.1f} %" if self.best else "no epoch"
        fall = f", {100 * self.last:.1f} % at the end" if self.last is not None else ""
        return f"{self.name}: {best}{fall}, {self.verdict.replace('_', ' ')}"


def accuracy_curves(runs: Sequence[ComparedRun], title: str = "") -> "Figure":
    """Draw the validation accuracy of runs by epoch, coloured by verdict.

    Args:
        runs: at least one.
        title: heading of the figure.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(PAGE_INCHES, 4), layout="constrained")
    _draw_curves(figure.subplots(), runs)
    return _finished(figure, title)


def accuracy_over_lr(runs: Sequence[ComparedRun]) -> "Figure | None":
    """Draw the best accuracy of runs over the learning rate, with 95 % intervals; None with one rate only."""
    return _accuracy_over(runs, "lr")


def accuracy_over_layers(runs: Sequence[ComparedRun]) -> "Figure | None":
    """Draw the best accuracy of runs over the number of layers trained, as above."""
    return _accuracy_over(runs, "layers")


def overview(runs: Sequence[ComparedRun], title: str) -> "Figure":
    """Draw all of these in a row, for a picture of a sweep."""
    from matplotlib.figure import Figure

    over = [name for name in ("lr", "layers") if _differ(runs, name)]
    figure = Figure(figsize=(PAGE_INCHES * (1 + 0.7 * len(over)), 4.2), layout="constrained")
    first, *others = figure.subplots(1, 1 + len(over), squeeze=False, width_ratios=[1, *([0.7] * len(over))])[0]
    _draw_curves(first, runs)
    for axes, name in zip(others, over, strict=True):
        _draw_over(axes, runs, name)
    return _finished(figure, title)


def describe(runs: Sequence[ComparedRun]) -> str:
    """Describe runs in words, for readers who do not see the figure."""
    named = "; ".join(run.summary for run in runs[:_MAX_NAMED_CURVES])
    more = len(runs) - _MAX_NAMED_CURVES
    return f"{named}; and {more} more" if more > 0 else named


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _accuracy_over(runs: Sequence[ComparedRun], name: str) -> "Figure | None":
    from matplotlib.figure import Figure

    if not _differ(runs, name):
        return None
    figure = Figure(figsize=(_HALF_PAGE_INCHES, 3.3), layout="constrained")
    _draw_over(figure.subplots(), runs, name)
    return _finished(figure)


def _differ(runs: Sequence[ComparedRun], name: str) -> bool:
    return len({getattr(run, name) for run in runs if run.best and getattr(run, name) is not None}) > 1


def _draw_curves(axes: "Axes", runs: Sequence[ComparedRun]) -> None:
    is_named = len(runs) <= _MAX_NAMED_CURVES
    drawn: Counter[str] = Counter()
    named: set[str] = set()
    totals = Counter(run.verdict for run in runs)
    for run in sorted(runs, key=lambda run: run.best.value if run.best else 0.0, reverse=True):
        colour, marker = _STYLES.get(run.verdict, _OTHER_STYLE)
        # Matplotlib leaves labels that begin with _ out of the legend.
        if is_named:
            label = "_" if run.name in named else _curve_label(run.name, runs)
        else:
            label = "_" if drawn[run.verdict] else f"{_words(run.verdict)} ({totals[run.verdict]})"
        named.add(run.name)
        axes.plot(
            range(1, len(run.accuracies) + 1),
            [100 * accuracy for accuracy in run.accuracies],
            color=colour,
            marker=marker,
            ms=4,
            lw=1.3,
            ls=_LINE_STYLES[drawn[run.verdict] % len(_LINE_STYLES)],
            alpha=1 if is_named else 0.6,
            label=label,
        )
        drawn[run.verdict] += 1
    _draw_reference(axes, runs)
    axes.set(ylabel="validation accuracy (%)", ylim=(-3, 105))
    style_epoch_axis(axes)


def _curve_label(name: str, runs: Sequence[ComparedRun]) -> str:
    """Return the legend's text of the runs of one name, which differ in their seed."""
    bests = [run.best.value for run in runs if run.name == name and run.best]
    return f"{picture_text(_shortened(name))}: best {100 * sum(bests) / len(bests):.1f} %" if bests else "_"


def _draw_over(axes: "Axes", runs: Sequence[ComparedRun], name: str) -> None:
    """Draw a point with its interval for each run, and a fall to the last accuracy after a collapse."""
    labelled: set[str] = set()
    for run in runs:
        x = getattr(run, name)
        if x is None or run.best is None:
            continue
        colour, marker = _STYLES.get(run.verdict, _OTHER_STYLE)
        low, high = run.best.interval
        best = run.best.value
        axes.errorbar(
            x,
            100 * best,
            yerr=[[100 * max(0.0, best - low)], [100 * max(0.0, high - best)]],
            color=colour,
            marker=marker,
            ms=6,
            lw=1.2,
            capsize=3,
            ls="none",
            label="_" if run.verdict in labelled else _words(run.verdict),
        )
        labelled.add(run.verdict)
        if run.last is not None:
            arrow = {"arrowstyle": "-|>", "color": colour, "lw": 1.2, "ls": "--"}
            axes.annotate("", (x, 100 * run.last), xytext=(x, 100 * best), arrowprops=arrow)
    _draw_reference(axes, runs)
    if name == "lr":
        axes.set(xscale="log", xlabel="learning rate")
    else:
        axes.set(xlabel="layers trained")
    axes.margins(x=0.12)
    axes.set(ylabel="best validation accuracy (%)", ylim=(-3, 105))


def _draw_reference(axes: "Axes", runs: Sequence[ComparedRun]) -> None:
    """Draw the highest accuracy of the reference probe: wrong pixels lower that of a run, not what is possible."""
    reference = max((run.reference for run in runs if run.reference is not None), default=None)
    if reference is not None:
        label = f"reference {100 * reference:.1f} %"
        axes.axhline(100 * reference, color=_REFERENCE_COLOUR, lw=1, ls=(0, (1, 2)), label=label)


def _finished(figure: "Figure", title: str = "") -> "Figure":
    for axes in figure.axes:
        style_axes(axes)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(loc="best", frameon=False, fontsize=9)
    if title:
        figure.suptitle(picture_text(_shortened(title, 110)), fontsize=11)
    return use_fallback_fonts(figure)


def _words(verdict: str) -> str:
    return picture_text(verdict.replace("_", " "))


def _shortened(name: str, length: int = _MAX_NAME_LENGTH) -> str:
    """Shorten a name in its middle: runs that are named by their overrides mostly differ at the end."""
    if len(name) <= length:
        return name
    return f"{name[: length // 3].strip()} … {name[-2 * length // 3 :].strip()}"
