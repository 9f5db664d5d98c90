"""Charts of the documentation: learning curves with their verdicts, preflight distances, costs, and Grad-CAM."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from docs.picture_style import BAD, BLUE, GOOD, GREY, INK, RULE, WIDTH, add_axes, card, points

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Pixels between the lines of a footer.
_LINE_HEIGHT = 21
# Characters in a line of a verdict's reason, as wide as its panel.
_VERDICT_COLUMNS = 38
_PLAIN_COLOUR = "#8a8a8a"
_VERDICT_COLOURS = {"learned": GOOD, "better_than_frozen": GOOD}


@dataclass(frozen=True)
class JudgedCurve:
    """A run's learning curve and what the program said about it.

    Attributes:
        command: what was typed, without `python -m dogbreeds.train`.
        lr: the learning rate.
        accuracies: validation accuracy in [0, 1] after each epoch.
        images: number of validation images.
        verdict, reason, advice: as recorded with the run.
    """

    command: str
    lr: str
    accuracies: Sequence[float]
    images: int
    verdict: str
    reason: str
    advice: str


def verdict_curves(left: JudgedCurve, right: JudgedCurve, footer: Sequence[str]) -> "Figure":
    """Draw two learning curves side by side, each with its verdict in the empty part of its panel.

    Args:
        left: a curve that falls, with room above it.
        right: a curve that stays high, with room below it.
        footer: what was measured, and on what machine, one line each.
    """
    axes_top, axes_width, axes_height = 46, 288, 322
    height = axes_top + axes_height + 62 + _LINE_HEIGHT * len(footer)
    figure, canvas = card(height)
    epochs = max(len(left.accuracies), len(right.accuracies))
    for curve, x, text_top in ((left, 64, 78), (right, 394, 150)):
        canvas.text(x, 26, curve.command, color=INK, fontsize=points(15), family="DejaVu Sans Mono", va="center")
        canvas.text(x + axes_width, 26, f"lr {curve.lr}", color=GREY, fontsize=points(14), ha="right", va="center")
        axes = add_axes(figure, x, axes_top, axes_width, axes_height)
        axes.set(xlim=(0.4, epochs + 0.6), ylim=(0, 104))
        axes.set_xlabel("epoch", fontsize=points(14), color=GREY, labelpad=2)
        axes.set_xticks(range(1, epochs + 1, max(1, round(epochs / 7))))
        axes.set_yticks(range(0, 101, 20))
        _draw_curve(axes, curve)
        _write_verdict(canvas, curve, x + 20, text_top)
    label: dict[str, Any] = {"color": GREY, "fontsize": points(14), "ha": "center", "va": "center"}
    canvas.text(21, axes_top + axes_height / 2, "validation accuracy (%)", rotation=90, **label)
    for number, line in enumerate(reversed(footer)):
        _write_footer(canvas, height - _LINE_HEIGHT * number, line)
    return figure


def _draw_curve(axes: "Axes", curve: JudgedCurve) -> None:
    """Draw the curve with its 95 % interval, and mark its best and its last epoch."""
    from dogbreeds.evaluation.metrics import Proportion

    colour = _VERDICT_COLOURS.get(curve.verdict, BAD)
    numbers = np.arange(1, len(curve.accuracies) + 1)
    percent = 100 * np.array(curve.accuracies)
    low, high = np.transpose(
        [Proportion(round(accuracy * curve.images), curve.images).interval for accuracy in curve.accuracies]
    )
    axes.fill_between(numbers, 100 * low, 100 * high, color=colour, alpha=0.18, lw=0)
    axes.plot(numbers, percent, color=colour, lw=points(2.4), marker="o", ms=points(4))
    # The labels of a falling curve stand to the right of it; of another, one stands above it and one below.
    falls = percent[-1] < 0.5 * percent.max()
    best, last = int(percent.argmax()), len(percent) - 1
    for name, index, marker, offset, ha in (
        ("peak", best, "o", (0, points(17)), "center"),
        ("end", last, "s", (points(7), -points(19)), "right"),
    ):
        axes.plot(numbers[index], percent[index], marker, ms=points(9), mfc="white", mec=colour, mew=points(2.4))
        axes.annotate(
            f"{name} {percent[index]:.1f} %",
            (numbers[index], percent[index]),
            xytext=(points(12), points(1)) if falls else offset,
            textcoords="offset points",
            ha="left" if falls else ha,
            va="center",
            color=colour,
            fontsize=points(14.5),
            fontweight="bold",
        )


def _write_verdict(canvas: "Axes", curve: JudgedCurve, left: float, top: float) -> None:
    """Write the verdict's word, its reason, and its advice in another colour."""
    colour = _VERDICT_COLOURS.get(curve.verdict, BAD)
    canvas.text(left, top, curve.verdict.replace("_", " "), color=colour, fontsize=points(22), fontweight="bold")
    top += 24
    for text, ink in ((curve.reason, INK), (curve.advice, BLUE)):
        # A number and its unit stay on one line.
        for line in textwrap.wrap(text.replace(" %", "\N{NO-BREAK SPACE}%"), _VERDICT_COLUMNS):
            canvas.text(left, top, line, color=ink, fontsize=points(13.5))
            top += 18
        top += 4


def _write_footer(canvas: "Axes", height: float, text: str) -> None:
    canvas.text(WIDTH / 2, height - 20, text, color=GREY, fontsize=points(13.5), ha="center", va="center")


def preflight_bars(
    distances: Mapping[str, float], refused: Mapping[str, bool], ranges: Mapping[str, str], footer: str
) -> "Figure":
    """Draw how far each pixel convention is from BatchNorm's running statistics.

    Args:
        distances: KL divergence in nats by convention.
        refused: whether the preflight refuses the convention.
        ranges: range of pixel values by convention, as text.
        footer: what was measured, one line.
    """
    from dogbreeds.training.pixel_fit import format_distance

    height, axes_top, axes_height = 350, 52, 208
    figure, canvas = card(height)
    bold: dict[str, Any] = {"fontweight": "bold", "va": "center"}
    canvas.text(24, 30, "Which pixels does the backbone expect?", color=INK, fontsize=points(18), **bold)
    axes = add_axes(figure, 188, axes_top, 344, axes_height)
    modes = sorted(distances, key=lambda mode: distances[mode])
    for row, mode in enumerate(modes):
        colour = BAD if refused[mode] else GOOD
        axes.barh(row, distances[mode], color=colour, height=0.62)
        length = format_distance(distances[mode])
        axes.text(distances[mode] * 1.12, row, length, va="center", color=INK, fontsize=points(14.5))
        y = axes_top + axes_height * (row + 0.5) / len(modes)
        canvas.text(24, y, mode, color=INK, fontsize=points(16), **bold)
        values = ranges[mode].replace("-", "−")
        canvas.text(178, y, values, va="center", ha="right", color=GREY, fontsize=points(14))
        mark = "✗ refused" if refused[mode] else "✓ accepted"
        canvas.text(572, y, mark, color=colour, fontsize=points(16), **bold)
    axes.set(xscale="log", ylim=(len(modes) - 0.5, -0.5), xlim=(3e-4, 7))
    axes.set_yticks([])
    axes.set_xticks([0.001, 0.01, 0.1, 1], ["0.001", "0.01", "0.1", "1"])
    axes.minorticks_off()
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("KL divergence from BatchNorm's running statistics (nats)", fontsize=points(14), color=GREY)
    _write_footer(canvas, height, footer)
    return figure


@dataclass(frozen=True)
class Cost:
    """Seconds for the same work in two ways.

    Attributes:
        work: what was done.
        baseline: name of the way that this project is compared with.
        theirs: in that way.
        ours: with this project.
    """

    work: str
    baseline: str
    theirs: float
    ours: float


def cost_bars(costs: Sequence[Cost], footer: Sequence[str]) -> "Figure":
    """Draw the seconds in another way above those with this project, for each piece of work.

    Args:
        costs: at most three.
        footer: what was compared and on what machine, one line each.
    """
    each = 112
    height = 42 + each * len(costs) + _LINE_HEIGHT * len(footer)
    figure, canvas = card(height)
    longest = max(cost.theirs for cost in costs)
    for number, cost in enumerate(costs):
        top = 18 + each * number
        canvas.text(24, top + 14, cost.work, color=INK, fontsize=points(17), fontweight="bold", va="center")
        ratio = f"{cost.theirs / cost.ours:.1f} times less"
        _cost_bar(canvas, top + 31, cost.baseline, f"{cost.theirs:.1f} s", cost.theirs / longest, _PLAIN_COLOUR)
        _cost_bar(canvas, top + 64, "dogbreeds", f"{cost.ours:.1f} s: {ratio}", cost.ours / longest, BLUE)
    top = height - _LINE_HEIGHT * len(footer) - 12
    canvas.plot([24, WIDTH - 24], [top - 14] * 2, color=RULE, lw=points(1))
    for number, line in enumerate(footer):
        canvas.text(24, top + _LINE_HEIGHT * (number + 0.3), line, color=GREY, fontsize=points(13.5), va="center")
    return figure


def _cost_bar(canvas: "Axes", top: float, name: str, label: str, share: float, colour: str) -> None:
    left, longest, height = 160, 430, 25
    middle = top + height / 2
    canvas.text(left - 10, middle, name, color=INK, fontsize=points(15), ha="right", va="center")
    canvas.bar(left, height, longest * share, top, color=colour, align="edge")
    ink = INK if colour == _PLAIN_COLOUR else colour
    x = left + longest * share + 9
    canvas.text(x, middle, label, color=ink, fontsize=points(15.5), fontweight="bold", va="center")


@dataclass(frozen=True)
class Explained:
    """An image and its Grad-CAM overlay.

    Attributes:
        image: [h, w, 3] uint8.
        overlay: [h', w', 3] uint8.
        predicted: name of the predicted class.
        probability: its probability, in [0, 1].
        label: name of the true class.
    """

    image: np.ndarray
    overlay: np.ndarray
    predicted: str
    probability: float
    label: str


def overlay_pairs(pairs: Sequence[Explained], footer: str) -> "Figure":
    """Draw images beside their overlays, two pairs in a row, each with its prediction below.

    Args:
        pairs: an even number of them.
        footer: what is shown, one line.
    """
    side, gap = 154, 6
    row_height = side + 46
    height = 24 + row_height * (len(pairs) // 2) + 34
    figure, canvas = card(height)
    for number, pair in enumerate(pairs):
        left = 24 + (number % 2) * (WIDTH - 48 - 2 * side - gap)
        top = 24 + row_height * (number // 2)
        for column, image in enumerate((pair.image, pair.overlay)):
            axes = add_axes(figure, left + column * (side + gap), top, side, side)
            axes.imshow(image, interpolation="bilinear", aspect="auto")
            axes.set_axis_off()
        right = pair.predicted == pair.label
        canvas.text(
            left,
            top + side + 17,
            f"{'✓' if right else '✗'} {pair.predicted.partition('-')[2]}, {100 * pair.probability:.0f} %",
            color=GOOD if right else BAD,
            fontsize=points(14),
            fontweight="bold",
            va="center",
        )
        if not right:
            canvas.text(
                left,
                top + side + 34,
                f"is {pair.label.partition('-')[2]}",
                color=GREY,
                fontsize=points(12.5),
                va="center",
            )
    _write_footer(canvas, height, footer)
    return figure
