"""Diagram of a run: what is computed once and cached, and what trains in every epoch."""

from itertools import pairwise
from typing import TYPE_CHECKING, Any

from docs.picture_style import BAD, BLUE, GOOD, GREY, INK, PALE_BLUE, PALE_GREEN, WIDTH, card, points

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BOX_WIDTH, _BOX_HEIGHT = 190, 70
_COLUMNS = (34, 255, 476)
_LANE_HEIGHT = 124
_FROZEN_LANE, _CUT, _CACHE, _TRAINED_LANE = 18, 166, 218, 270
# Boxes of a lane: name, and a note below it.
_FROZEN = (
    ("images", "JPEG, PNG, WebP"),
    ("preprocessing", "checked by the preflight"),
    ("frozen blocks", "pretrained weights"),
)
_TRAINED = (
    ("trainable blocks", "none with phase=frozen"),
    ("head", "class probabilities"),
    ("verdict", "learned, collapsed, …"),
)


def pipeline() -> "Figure":
    """Draw the stages of a run in two lanes, above and below the cut, with the feature cache between them."""
    figure, canvas = card(_TRAINED_LANE + _LANE_HEIGHT + 18)
    top_row, bottom_row = _FROZEN_LANE + 40, _TRAINED_LANE + 14
    _lane(canvas, _FROZEN_LANE, PALE_BLUE)
    _lane(canvas, _TRAINED_LANE, PALE_GREEN)
    label: dict[str, Any] = {"fontsize": points(15), "va": "center"}
    canvas.text(_COLUMNS[0], _FROZEN_LANE + 21, "once: for all runs with the same frozen blocks", color=BLUE, **label)
    text = "each run: no image passes the frozen blocks again"
    canvas.text(_COLUMNS[0], _TRAINED_LANE + _LANE_HEIGHT - 20, text, color=GOOD, **label)
    canvas.plot([18, WIDTH - 18], [_CUT] * 2, color=BAD, lw=points(1.6), ls=(0, (5, 4)))
    canvas.text(_COLUMNS[0], _CUT + 17, "cut at a block boundary", color=BAD, **label)
    for row, boxes, colour in ((top_row, _FROZEN, BLUE), (bottom_row, _TRAINED, GOOD)):
        for left, (name, note) in zip(_COLUMNS, boxes, strict=True):
            _box(canvas, left, row, name, note, colour)
        for left, right in pairwise(_COLUMNS):
            _arrow(canvas, [(left + _BOX_WIDTH, row + _BOX_HEIGHT / 2), (right, row + _BOX_HEIGHT / 2)])
    first, middle, last = (left + _BOX_WIDTH / 2 for left in _COLUMNS)
    _arrow(canvas, [(last, top_row + _BOX_HEIGHT), (last, _CACHE), (middle + _BOX_WIDTH / 2, _CACHE)])
    _arrow(canvas, [(middle - _BOX_WIDTH / 2, _CACHE), (first, _CACHE), (first, bottom_row)])
    _cylinder(canvas, middle, _CACHE, "feature cache")
    return figure


def _lane(canvas: "Axes", top: float, colour: str) -> None:
    from matplotlib.patches import FancyBboxPatch

    style = "round,pad=0,rounding_size=8"
    lane = FancyBboxPatch((18, top), WIDTH - 36, _LANE_HEIGHT, boxstyle=style, facecolor=colour, edgecolor="none")
    canvas.add_patch(lane)


def _box(canvas: "Axes", left: float, top: float, name: str, note: str, edge: str) -> None:
    from matplotlib.patches import FancyBboxPatch

    canvas.add_patch(
        FancyBboxPatch(
            (left, top),
            _BOX_WIDTH,
            _BOX_HEIGHT,
            boxstyle="round,pad=0,rounding_size=6",
            facecolor="white",
            edgecolor=edge,
            linewidth=points(1.6),
        )
    )
    label: dict[str, Any] = {"ha": "center", "va": "center"}
    middle = left + _BOX_WIDTH / 2
    canvas.text(middle, top + 25, name, color=INK, fontsize=points(18), fontweight="bold", **label)
    canvas.text(middle, top + 49, note, color=GREY, fontsize=points(14), **label)


def _cylinder(canvas: "Axes", x: float, y: float, name: str) -> None:
    """Draw the usual sign of storage around a point."""
    from matplotlib.patches import Ellipse, Rectangle

    depth = 14
    left, right, top, bottom = x - _BOX_WIDTH / 2, x + _BOX_WIDTH / 2, y - 20, y + 22
    edge: dict[str, Any] = {"facecolor": "white", "edgecolor": INK, "linewidth": points(1.6)}
    canvas.add_patch(Ellipse((x, bottom), _BOX_WIDTH, depth, **edge))
    canvas.add_patch(Rectangle((left, top), _BOX_WIDTH, bottom - top, facecolor="white", edgecolor="none"))
    for side in (left, right):
        canvas.plot([side, side], [top, bottom], color=INK, lw=points(1.6))
    canvas.add_patch(Ellipse((x, top), _BOX_WIDTH, depth, **edge))
    style: dict[str, Any] = {"fontsize": points(18), "fontweight": "bold", "ha": "center", "va": "center"}
    canvas.text(x, y + 9, name, color=INK, **style)


def _arrow(canvas: "Axes", corners: list[tuple[float, float]]) -> None:
    """Draw an arrow along straight lines between corners."""
    from matplotlib.patches import FancyArrowPatch
    from matplotlib.path import Path

    canvas.add_patch(
        FancyArrowPatch(
            path=Path(corners),
            arrowstyle="-|>,head_length=5,head_width=3",
            color=INK,
            linewidth=points(1.8),
            shrinkA=0,
            shrinkB=0,
            joinstyle="miter",
        )
    )
