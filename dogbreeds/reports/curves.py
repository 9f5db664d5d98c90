"""Figures of learning curves and of the learning rate range test."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dogbreeds.reports.figures import style_axes, style_epoch_axis
from dogbreeds.reports.picture_text import picture_text, use_fallback_fonts

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from dogbreeds.evaluation.results import Epoch, Range

_TRAIN_COLOUR, _VAL_COLOUR, _SUGGESTION_COLOUR = "#8a8a8a", "#1f5fa8", "#b3541e"
# Of a figure of two curves, as shares of its size.
_MARGINS = {"left": 0.075, "right": 0.99, "bottom": 0.135, "top": 0.9, "wspace": 0.22}


def learning_curves(epochs: "Sequence[Epoch]", best: int, title: str) -> "Figure":
    """Draw training and validation accuracy and loss by epoch, with the validation interval and the best epoch marked.

    Those of a logistic regression are drawn over `C`, on a logarithmic axis; those of a soup over its candidates.

    Args:
        epochs: results of each epoch; at least one.
        best: number of the best epoch, from 1.
        title: heading of the figure.
    """
    from matplotlib.figure import Figure

    # Fixed margins: a layout that fits itself would draw everything twice, for each run.
    figure = Figure(figsize=(9, 3.6))
    accuracy_axes, loss_axes = figure.subplots(1, 2, gridspec_kw=_MARGINS)
    numbers = _positions(epochs)
    _draw_accuracy(accuracy_axes, epochs, numbers, best)
    loss_axes.plot(numbers, [epoch.train_loss for epoch in epochs], color=_TRAIN_COLOUR)
    loss_axes.plot(numbers, [epoch.val.loss for epoch in epochs], color=_VAL_COLOUR, marker="o", ms=3)
    loss_axes.set(ylabel="cross-entropy (nats)")
    loss_axes.set_ylim(bottom=0)
    for axes in (accuracy_axes, loss_axes):
        if epochs[0].strength is not None:
            axes.set(xscale="log", xlabel="C: weaker regularisation to the right")
        else:
            style_epoch_axis(axes)
            if epochs[0].members is not None:
                axes.set(xlabel="candidate: soups, then interpolations from the parent")
        style_axes(axes)
    figure.suptitle(picture_text(title), fontsize=11)
    return use_fallback_fonts(figure)


def _positions(epochs: "Sequence[Epoch]") -> list[float]:
    """Return where each epoch is on its axis: at its number, or at the `C` of a logistic regression."""
    return [epoch.number if epoch.strength is None else epoch.strength for epoch in epochs]


def _draw_accuracy(axes: "Axes", epochs: "Sequence[Epoch]", numbers: "Sequence[float]", best: int) -> None:
    intervals = [epoch.val.accuracy.interval for epoch in epochs]
    axes.fill_between(
        numbers,
        [100 * low for low, _ in intervals],
        [100 * high for _, high in intervals],
        color=_VAL_COLOUR,
        alpha=0.15,
        lw=0,
    )
    axes.plot(numbers, [100 * epoch.train_accuracy for epoch in epochs], color=_TRAIN_COLOUR, label="train")
    axes.plot(
        numbers,
        [100 * epoch.val.accuracy.value for epoch in epochs],
        color=_VAL_COLOUR,
        marker="o",
        ms=3,
        label="validation, 95 % interval",
    )
    best_accuracy = 100 * epochs[best - 1].val.accuracy.value
    axes.annotate(
        f"{best_accuracy:.1f} %",
        (numbers[best - 1], best_accuracy),
        xytext=(0, 7),
        textcoords="offset points",
        ha="center",
        color=_VAL_COLOUR,
        fontweight="bold",
    )
    axes.set(ylabel="accuracy (%)", ylim=(0, 105))
    axes.legend(loc="best", frameon=False)


def lr_range_curve(result: "Range", title: str) -> "Figure":
    """Draw the training loss over the learning rate, on a logarithmic axis, with the suggested rate marked.

    Args:
        result: the result of the learning rate range test.
        title: heading of the figure.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    smoothed = result.smoothed
    lrs = result.lrs[: len(smoothed)]
    axes.plot(lrs, result.losses[: len(smoothed)], color=_TRAIN_COLOUR, alpha=0.35, lw=1, label="each batch")
    axes.plot(lrs, smoothed, color=_VAL_COLOUR, label="running mean")
    axes.set(xscale="log", xlabel="learning rate", ylabel="training loss (nats)")
    axes.set_ylim(0, 1.3 * max(smoothed[: len(smoothed) // 2 + 1], default=1.0))
    if result.suggestion is not None:
        label = f"suggested: {result.suggestion:.1g}"
        axes.axvline(result.suggestion, color=_SUGGESTION_COLOUR, lw=1.2, ls="--", label=label)
    style_axes(axes)
    axes.legend(frameon=False)
    figure.suptitle(picture_text(title), fontsize=11)
    return use_fallback_fonts(figure)
