"""Learning curves, as pictures."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from dogbreeds.reports.figures import literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from dogbreeds.evaluation.results import Epoch, Range

_TRAIN, _VAL = "#8a8a8a", "#1f5fa8"
# Curves that can still be told apart by name
_LEGEND = 12
# Letters of a name that a legend has room for
_NAME = 48


def compare(histories: "Mapping[str, Sequence[Sequence[float]]]", title: str) -> "Figure":
    """Validation accuracy by epoch of several attempts, in one picture.

    Args:
        histories: accuracy in [0, 1] after each epoch, of each of an attempt's seeds, by the attempt's name.
        title: said above; may be empty.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.2), layout="constrained")
    axes = figure.subplots()
    colours = colormaps["viridis"]
    for index, (name, seeds) in enumerate(histories.items()):
        colour = colours(0.85 * index / max(1, len(histories) - 1))
        best = sum(max(values, default=0) for values in seeds) / len(seeds)
        for number, values in enumerate(seeds):
            # Matplotlib leaves _ out of the legend
            label = "_" if number else f"{_shortened(name)}: best {100 * best:.1f} %"
            axes.plot(
                range(1, len(values) + 1),
                [100 * value for value in values],
                color=colour,
                marker="o",
                ms=3,
                lw=1.2,
                label=label,
            )
    axes.set(ylabel="validation accuracy (%)", ylim=(0, 105))
    _dress(axes)
    if len(histories) <= _LEGEND:
        axes.legend(loc="center right", frameon=False)
    if title:
        figure.suptitle(literal(title), fontsize=11)
    return figure


def _shortened(name: str) -> str:
    """A name that a legend has room for: runs that are named by what was typed differ at its end, mostly."""
    return name if len(name) <= _NAME else f"{name[: _NAME // 3].strip()} … {name[-2 * _NAME // 3 :].strip()}"


def _dress(axes: "Axes") -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)


def draw(epochs: "Sequence[Epoch]", best: int, title: str) -> "Figure":
    """Accuracy and loss by epoch, training beside validation, with the validation interval and the best epoch marked.

    Args:
        epochs: at least one.
        best: number of the best epoch.
        title: said above.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    accuracy, loss = figure.subplots(1, 2)
    numbers = [epoch.number for epoch in epochs]
    intervals = [epoch.val.accuracy.interval for epoch in epochs]
    accuracy.fill_between(
        numbers,
        [100 * low for low, _ in intervals],
        [100 * high for _, high in intervals],
        color=_VAL,
        alpha=0.15,
        lw=0,
    )
    accuracy.plot(numbers, [100 * epoch.train_accuracy for epoch in epochs], color=_TRAIN, label="train")
    accuracy.plot(
        numbers,
        [100 * epoch.val.accuracy.value for epoch in epochs],
        color=_VAL,
        marker="o",
        ms=3,
        label="validation, 95 % interval",
    )
    top = 100 * epochs[best - 1].val.accuracy.value
    accuracy.annotate(
        f"{top:.1f} %",
        (best, top),
        xytext=(0, 7),
        textcoords="offset points",
        ha="center",
        color=_VAL,
        fontweight="bold",
    )
    accuracy.set(ylabel="accuracy (%)", ylim=(0, 105))
    accuracy.legend(loc="best", frameon=False)
    loss.plot(numbers, [epoch.train_loss for epoch in epochs], color=_TRAIN)
    loss.plot(numbers, [epoch.val.loss for epoch in epochs], color=_VAL, marker="o", ms=3)
    loss.set(ylabel="cross-entropy (nats)")
    loss.set_ylim(bottom=0)
    for axes in (accuracy, loss):
        _dress(axes)
    figure.suptitle(literal(title), fontsize=11)
    return figure


def lr_range(found: "Range", title: str) -> "Figure":
    """The loss over the rate, on a logarithmic axis, with the suggestion marked."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    smoothed = found.smoothed
    axes.plot(
        found.lrs[: len(smoothed)], found.losses[: len(smoothed)], color=_TRAIN, alpha=0.35, lw=1, label="each batch"
    )
    axes.plot(found.lrs[: len(smoothed)], smoothed, color=_VAL, label="running mean")
    axes.set(xscale="log", xlabel="learning rate", ylabel="training loss (nats)")
    axes.set_ylim(0, 1.3 * max(smoothed[: len(smoothed) // 2 + 1], default=1.0))
    if found.suggestion is not None:
        axes.axvline(found.suggestion, color="#b3541e", lw=1.2, ls="--", label=f"suggested: {found.suggestion:.1g}")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    figure.suptitle(literal(title), fontsize=11)
    return figure
