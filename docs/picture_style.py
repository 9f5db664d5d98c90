"""Common style of the documentation's pictures: a light card, because GitHub shows a page on white and on black."""

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from PIL.Image import Image

INK, GREY, RULE = "#1c1c1c", "#57606a", "#d0d7de"
GOOD, BAD, BLUE = "#17692f", "#a3261b", "#1f5fa8"
PALE_GREEN, PALE_BLUE = "#e9f5ec", "#eaf1f9"
# Width of every drawing in CSS pixels, which is also the width at which its text was chosen.
WIDTH = 700
_CARD = "#fdfdfc"
_CORNER = 10
# Colours of a PNG, without the transparent one.
_PALETTE_COLOURS = 255
# Text is drawn as paths, so that a picture looks the same without its fonts. Without salt and date, it would differ
# each time that it is drawn.
_SETTINGS: Any = {"svg.fonttype": "path", "svg.hashsalt": "dogbreeds", "font.family": "DejaVu Sans"}


def points(pixels: float) -> float:
    """Convert CSS pixels to points, the unit of Matplotlib's font sizes and line widths."""
    return pixels * 0.75


def card(height: int) -> "tuple[Figure, Axes]":
    """Create a figure with a light background that has rounded corners.

    Args:
        height: in pixels.

    Returns:
        The figure, and axes over all of it without ticks: x from 0 to `WIDTH`, y from `height` at the bottom to 0 at
        the top, in pixels.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import FancyBboxPatch

    figure = Figure(figsize=(WIDTH / 96, height / 96), facecolor="none")
    canvas = figure.add_axes((0, 0, 1, 1))
    canvas.set(xlim=(0, WIDTH), ylim=(height, 0))
    canvas.set_axis_off()
    canvas.add_patch(
        FancyBboxPatch(
            (1, 1),
            WIDTH - 2,
            height - 2,
            boxstyle=f"round,pad=0,rounding_size={_CORNER}",
            facecolor=_CARD,
            edgecolor=RULE,
            linewidth=points(1.2),
        )
    )
    return figure, canvas


def add_axes(figure: "Figure", left: float, top: float, width: float, height: float) -> "Axes":
    """Add axes whose place is given in pixels from the figure's top left corner, styled like the reports' figures."""
    total = figure.get_figheight() * 96
    axes = figure.add_axes((left / WIDTH, 1 - (top + height) / total, width / WIDTH, height / total))
    axes.set_facecolor("none")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(colors=GREY, labelsize=points(13.5))
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    return axes


def save_svg(figure: "Figure", path: Path, title: str) -> None:
    """Write a figure as SVG. The same figure always gives the same bytes.

    Args:
        figure: from `card`.
        path: file to write.
        title: for screen readers, and shown by browsers when the pointer rests on the picture.
    """
    from matplotlib import rc_context

    with rc_context(_SETTINGS), io.StringIO() as file:
        figure.savefig(file, format="svg", metadata={"Title": title, "Date": None, "Creator": None})
        path.write_text(file.getvalue())


def save_png(figure: "Figure", path: Path, scale: float) -> None:
    """Write a figure as PNG with a palette, which takes a third of the bytes, and without metadata.

    Args:
        figure: from `card`.
        path: file to write.
        scale: image pixels per CSS pixel.
    """
    from matplotlib import rc_context
    from PIL import Image

    with rc_context(_SETTINGS), io.BytesIO() as file:
        figure.savefig(file, format="png", dpi=96 * scale)
        file.seek(0)
        with Image.open(file) as image:
            drawn = _with_palette(image.convert("RGBA"))
    drawn.save(path, optimize=True, transparency=_PALETTE_COLOURS)


def _with_palette(image: "Image") -> "Image":
    """Convert an RGBA image to a dithered palette with one colour more for what is more than half transparent."""
    from PIL.Image import Dither

    opaque = image.convert("RGB")
    palette = opaque.quantize(_PALETTE_COLOURS, kmeans=3)
    drawn = opaque.quantize(palette=palette, dither=Dither.FLOYDSTEINBERG)
    drawn.putpalette([*(drawn.getpalette() or [])[: 3 * _PALETTE_COLOURS], 0, 0, 0])
    drawn.paste(_PALETTE_COLOURS, mask=image.getchannel("A").point(lambda alpha: 255 * (alpha < 128)))
    return drawn
