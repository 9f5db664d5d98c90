"""Pictures of what a network gets wrong, and of how sure it is."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from dogbreeds.evaluation.calibration import BINS, Bin
from dogbreeds.evaluation.results import Mistake

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_RIGHT, _WRONG, _GREY = "#17692f", "#a3261b", "#8a8a8a"
# Breeds whose names can still be read along the sides of a matrix
_NAMED = 150
# Photos in a row of the contact sheet
_ACROSS = 6
# Letters in a line below a photo
_LINE = 22


def literal(text: str) -> str:
    """A text that Matplotlib shows as it is: it would read what stands between two $ as a formula."""
    return text.replace("$", r"\$")


def contact_sheet(mistakes: Sequence[Mistake]) -> "Figure":
    """Photos with what they are and what they were called, in rows; at least one."""
    import textwrap

    from matplotlib.figure import Figure

    rows = math.ceil(len(mistakes) / _ACROSS)
    figure = Figure(figsize=(2.1 * _ACROSS, 2.85 * rows), layout="constrained")
    places = np.ravel(figure.subplots(rows, _ACROSS, squeeze=False))
    for axes, mistake in zip(places, mistakes, strict=False):
        axes.imshow(mistake.photo)
        called = textwrap.fill(f"{literal(mistake.called)} {100 * mistake.probability:.0f}\N{NO-BREAK SPACE}%", _LINE)
        axes.set_title(called, fontsize=8, color=_WRONG, loc="left", pad=3)
        axes.text(
            0,
            -0.03,
            textwrap.fill(f"is {literal(mistake.breed)}", _LINE),
            fontsize=8,
            color=_RIGHT,
            va="top",
            transform=axes.transAxes,
        )
    for axes in places:
        axes.set_axis_off()
    return figure


def confusion(matrix: np.ndarray, names: Sequence[str]) -> "Figure":
    """The confusion matrix, breeds that are taken for each other next to each other.

    Args:
        matrix: [classes, classes] counts; a row is a breed, a column what its photos were called.
        names: of the classes, as people say them.
    """
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    # Also those that only some photo was called
    there = np.flatnonzero(matrix.sum(axis=1) + matrix.sum(axis=0))
    order = there[_alike(matrix[np.ix_(there, there)])]
    shares = matrix[np.ix_(order, order)] / np.maximum(1, matrix[order].sum(axis=1, keepdims=True))
    side = 3 + 0.105 * min(len(order), _NAMED)
    figure = Figure(figsize=(side + 0.8, side), layout="constrained")
    axes = figure.subplots()
    shown = axes.imshow(
        np.ma.masked_equal(100 * shares, 0), cmap="viridis_r", norm=PowerNorm(0.5, 0, 100), interpolation="none"
    )
    if len(order) <= _NAMED:
        said = [literal(names[index]) for index in order]
        size = 5.5 if len(order) > 40 else 8
        axes.set_xticks(range(len(order)), said, rotation=90, fontsize=size)
        axes.set_yticks(range(len(order)), said, fontsize=size)
    axes.set(xlabel="was called", ylabel="is")
    axes.tick_params(length=0, pad=2)
    axes.spines[:].set_visible(False)
    axes.grid(color="#eeeeee", lw=0.3)
    axes.set_axisbelow(True)
    bar = figure.colorbar(shown, ax=axes, shrink=0.5, aspect=30, pad=0.01)
    bar.set_label("% of the breed's photos")
    bar.outline.set_visible(False)
    return figure


def _alike(matrix: np.ndarray) -> np.ndarray:
    """An order in which breeds that are often taken for each other are near each other."""
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import squareform

    if len(matrix) < 3:
        return np.arange(len(matrix))
    shares = matrix / np.maximum(1, matrix.sum(axis=1, keepdims=True))
    distance = 1 / (0.01 + shares + shares.T)
    np.fill_diagonal(distance, 0)
    return leaves_list(linkage(squareform(distance, checks=False), "average", optimal_ordering=True))


def reliability(before: Sequence[Bin], after: Sequence[Bin], temperature: float) -> "Figure":
    """Accuracy over confidence, as the network is and with its logits divided by a temperature; below, how many photos there are."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.2), layout="constrained")
    (left, right), counts = figure.subplots(2, 2, sharex=True, sharey="row", gridspec_kw={"height_ratios": [4, 1]})
    for axes, below, bins, title in (
        (left, counts[0], before, "as trained"),
        (right, counts[1], after, f"temperature {temperature:.2f}"),
    ):
        _reliability(axes, bins)
        axes.set_title(title, fontsize=10, loc="left")
        below.bar([bin.confidence for bin in bins], [bin.n for bin in bins], width=0.6 / BINS, color=_GREY)
        below.set(xlim=(0, 1), xlabel="confidence")
        below.spines[["top", "right"]].set_visible(False)
    left.set_ylabel("accuracy")
    counts[0].set_ylabel("photos")
    return figure


def _reliability(axes: "Axes", bins: Sequence[Bin]) -> None:
    from dogbreeds.evaluation.metrics import Proportion

    axes.plot([0, 1], [0, 1], color=_GREY, lw=1, ls="--")
    for bin in bins:
        axes.plot(
            [bin.confidence, bin.confidence],
            [bin.confidence, bin.accuracy],
            color=_WRONG,
            lw=3,
            alpha=0.35,
            solid_capstyle="butt",
        )
        axes.plot([bin.confidence] * 2, Proportion(round(bin.accuracy * bin.n), bin.n).interval, color="#1f5fa8", lw=1)
    axes.plot([bin.confidence for bin in bins], [bin.accuracy for bin in bins], color="#1f5fa8", marker="o", ms=4, lw=0)
    axes.set(xlim=(0, 1), ylim=(-0.02, 1.02))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
