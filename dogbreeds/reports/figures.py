"""Figures of an evaluation: contact sheet of mistakes, confusion matrix, reliability diagram."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from dogbreeds.evaluation.calibration import BINS, Bin
from dogbreeds.evaluation.results import Mistake
from dogbreeds.reports.picture_text import picture_text, use_fallback_fonts

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_CORRECT_COLOUR, _WRONG_COLOUR = "#17692f", "#a3261b"
_POINT_COLOUR, _GREY = "#1f5fa8", "#8a8a8a"
# Width in inches of figures that are as wide as a page: at 700 pixels, text of 10 points is 13 pixels high.
PAGE_INCHES = 7.2
# With more classes, the confusion matrix has no names along its sides.
_MAX_NAMED_CLASSES = 150
# Text size of those names, and inches from one to the next. The page shows this figure at its full size.
_NAME_POINTS, _NAME_INCHES = 9, 0.145
# Images in a row of the contact sheet.
_IMAGES_PER_ROW = 4
# Characters in a line below an image of the contact sheet.
_CAPTION_WIDTH = 22


def style_axes(axes: "Axes") -> None:
    """Leave out the frame's upper and right side, and draw a light grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)


def style_epoch_axis(axes: "Axes") -> None:
    """Label the axis of epochs, which are whole numbers."""
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def contact_sheet(mistakes: Sequence[Mistake]) -> "Figure":
    """Draw misclassified images in rows, each with its predicted class above and its true class below.

    Args:
        mistakes: at least one.
    """
    import textwrap

    from matplotlib.figure import Figure

    rows = math.ceil(len(mistakes) / _IMAGES_PER_ROW)
    figure = Figure(figsize=(PAGE_INCHES, 2.6 * rows), layout="constrained")
    grid = np.ravel(figure.subplots(rows, _IMAGES_PER_ROW, squeeze=False))
    for axes, mistake in zip(grid, mistakes, strict=False):
        axes.imshow(mistake.image)
        predicted = f"{picture_text(mistake.predicted)} {100 * mistake.probability:.0f}\N{NO-BREAK SPACE}%"
        axes.set_title(textwrap.fill(predicted, _CAPTION_WIDTH), fontsize=9.5, color=_WRONG_COLOUR, loc="left", pad=3)
        axes.text(
            0,
            -0.03,
            textwrap.fill(f"is {picture_text(mistake.label)}", _CAPTION_WIDTH),
            fontsize=9.5,
            color=_CORRECT_COLOUR,
            va="top",
            transform=axes.transAxes,
        )
    for axes in grid:
        axes.set_axis_off()
    return use_fallback_fonts(figure)


def confusion_matrix(matrix: np.ndarray, names: Sequence[str]) -> "Figure":
    """Draw the confusion matrix, ordered so that classes that are often confused are near each other.

    Args:
        matrix: [classes, classes] counts of images; rows are true classes, columns predicted ones.
        names: display names of the classes.
    """
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    # Classes without images have a row too if they were predicted.
    present = np.flatnonzero(matrix.sum(axis=1) + matrix.sum(axis=0))
    order = present[_similarity_order(matrix[np.ix_(present, present)])]
    shares = matrix[np.ix_(order, order)] / np.maximum(1, matrix[order].sum(axis=1, keepdims=True))
    is_named = len(order) <= _MAX_NAMED_CLASSES
    side = 3.5 + _NAME_INCHES * len(order) if is_named else PAGE_INCHES
    figure = Figure(figsize=(side + 0.8, side), layout="constrained")
    axes = figure.subplots()
    heatmap = axes.imshow(
        np.ma.masked_equal(100 * shares, 0), cmap="viridis_r", norm=PowerNorm(0.5, 0, 100), interpolation="none"
    )
    if is_named:
        labels = [picture_text(names[index]) for index in order]
        axes.set_xticks(range(len(order)), labels, rotation=90, fontsize=_NAME_POINTS)
        axes.set_yticks(range(len(order)), labels, fontsize=_NAME_POINTS)
    axes.set(xlabel="predicted class", ylabel="true class")
    axes.tick_params(length=0, pad=2)
    axes.spines[:].set_visible(False)
    axes.grid(color="#eeeeee", lw=0.3)
    axes.set_axisbelow(True)
    bar = figure.colorbar(heatmap, ax=axes, shrink=0.5, aspect=30, pad=0.01)
    bar.set_label("% of the class's images")
    bar.outline.set_visible(False)
    return use_fallback_fonts(figure)


def _similarity_order(matrix: np.ndarray) -> np.ndarray:
    """[classes] indices, by hierarchical clustering of classes that are often confused."""
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import squareform

    if len(matrix) < 3:
        return np.arange(len(matrix))
    shares = matrix / np.maximum(1, matrix.sum(axis=1, keepdims=True))
    distance = 1 / (0.01 + shares + shares.T)
    np.fill_diagonal(distance, 0)
    return leaves_list(linkage(squareform(distance, checks=False), "average", optimal_ordering=True))


def reliability_diagram(before: Sequence[Bin], after: Sequence[Bin], temperature: float) -> "Figure":
    """Draw accuracy over confidence before and after temperature scaling, above a histogram of confidence.

    Args:
        before: bins of the unscaled probabilities.
        after: bins of the scaled probabilities.
        temperature: what the logits were divided by.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(PAGE_INCHES, 3.9), layout="constrained")
    (left, right), histograms = figure.subplots(2, 2, sharex=True, sharey="row", gridspec_kw={"height_ratios": [4, 1]})
    for axes, histogram, bins, title in (
        (left, histograms[0], before, "as trained"),
        (right, histograms[1], after, f"temperature {temperature:.2f}"),
    ):
        _draw_reliability(axes, bins)
        axes.set_title(title, fontsize=10, loc="left")
        histogram.bar([bin.confidence for bin in bins], [bin.n for bin in bins], width=0.6 / BINS, color=_GREY)
        histogram.set(xlim=(0, 1), xlabel="confidence")
        histogram.spines[["top", "right"]].set_visible(False)
    left.set_ylabel("accuracy")
    histograms[0].set_ylabel("images")
    return figure


def _draw_reliability(axes: "Axes", bins: Sequence[Bin]) -> None:
    from dogbreeds.evaluation.metrics import Proportion

    axes.plot([0, 1], [0, 1], color=_GREY, lw=1, ls="--")
    for bin in bins:
        axes.plot(
            [bin.confidence, bin.confidence],
            [bin.confidence, bin.accuracy],
            color=_WRONG_COLOUR,
            lw=3,
            alpha=0.35,
            solid_capstyle="butt",
        )
        interval = Proportion(round(bin.accuracy * bin.n), bin.n).interval
        axes.plot([bin.confidence] * 2, interval, color=_POINT_COLOUR, lw=1)
    axes.plot(
        [bin.confidence for bin in bins], [bin.accuracy for bin in bins], color=_POINT_COLOUR, marker="o", ms=4, lw=0
    )
    axes.set(xlim=(0, 1), ylim=(-0.02, 1.02))
    style_axes(axes)
