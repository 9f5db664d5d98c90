"""Text tables: wrapped to a terminal, one row a line in files and pipes; also as Markdown.

Nothing is coloured, cropped or parsed as markup, and control characters are escaped.
"""

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from dogbreeds.core.text import visible

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

# Plain text, or Rich's text where a cell has links, styles or several lines.
Cell: TypeAlias = "str | Text"


@dataclass(frozen=True)
class Column:
    """A column of a text table.

    Attributes:
        heading: may be empty.
        numeric: whether it is right-aligned.
        min_width: where a terminal is too narrow, cells are wrapped down to this width; None for cells that are wrapped
            only if the table fits in no other way.
    """

    heading: str = ""
    numeric: bool = False
    min_width: int | None = None


def text_table(columns: Sequence[Column], rows: Iterable[Sequence[Cell]], width: int | None, gap: int = 2) -> str:
    """Lay out a table, with a rule below the headings if there are any.

    Args:
        columns: of the table.
        rows: one cell per column.
        width: of the terminal, in columns; None if the text goes elsewhere, and nothing is wrapped.
        gap: spaces between two columns.
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    lines = [[Text(visible(cell)) if isinstance(cell, str) else cell for cell in row] for row in rows]
    cells_by_column = [[line[index] for line in lines] for index in range(len(columns))]
    has_headings = any(column.heading for column in columns)
    # The box takes one space of each gap, and a space on either side.
    frame = gap * (len(columns) - 1) + 2 * has_headings
    widths = [
        max(map(_text_width, [Text(column.heading), *cells]))
        for column, cells in zip(columns, cells_by_column, strict=True)
    ]
    if width is not None:
        min_widths = [_min_width(*each) for each in zip(columns, cells_by_column, strict=True)]
        widths = _shrink(widths, min_widths, width - frame)
    table = Table(
        box=SIMPLE_HEAD if has_headings else None,
        show_header=has_headings,
        pad_edge=False,
        padding=(0, gap - has_headings, 0, 0),
    )
    for column, column_width in zip(columns, widths, strict=True):
        # Rich is given the widths: by itself it would crop columns that are not to be wrapped.
        table.add_column(
            Text(column.heading), justify="right" if column.numeric else "left", width=column_width, overflow="fold"
        )
    for line in lines:
        table.add_row(*line)
    return _rendered(table, sum(widths) + frame, is_terminal=width is not None)


def _text_width(text: "Text") -> int:
    """Width of the widest line, in terminal columns."""
    from rich.cells import cell_len

    return max(map(cell_len, text.plain.split("\n")))


def _min_width(column: Column, cells: Sequence["Text"]) -> int:
    from rich.cells import cell_len

    if column.min_width is not None:
        return column.min_width
    # Headings are wrapped between words.
    return max([*map(_text_width, cells), *map(cell_len, column.heading.split()), 1])


def _shrink(widths: Sequence[int], min_widths: Sequence[int], available: int) -> list[int]:
    """Reduce the widest columns until all fit: first down to their least widths, then as far as any character fits."""
    shrunk = list(widths)
    for floors in (min_widths, [2] * len(shrunk)):
        while sum(shrunk) > available:
            reducible = [index for index, floor in enumerate(floors) if shrunk[index] > floor]
            if not reducible:
                break
            shrunk[max(reducible, key=shrunk.__getitem__)] -= 1
    return shrunk


def paragraph(text: str, width: int | None, style: str = "", indent: int = 0) -> str:
    """Wrap a text to the terminal.

    Args:
        text: one paragraph.
        width: of the terminal, in columns; None if the text goes elsewhere, and is not wrapped.
        style: `bold` or `dim`, for terminals; empty for none.
        indent: spaces in front of each line.
    """
    from rich.padding import Padding
    from rich.text import Text

    content = Text(visible(text), style)
    padded = Padding(content, (0, 0, 0, indent))
    return _rendered(padded, width or indent + _text_width(content), is_terminal=width is not None)


def _rendered(renderable: "RenderableType", width: int, is_terminal: bool) -> str:
    """Render in a number of columns. Only a terminal gets styles and links."""
    from rich.console import Console

    with io.StringIO() as file:
        Console(file=file, width=width, force_terminal=is_terminal, no_color=True).print(renderable)
        return "".join(f"{line.rstrip()}\n" for line in file.getvalue().removesuffix("\n").split("\n"))


def linked(text: str, url: str) -> "Text":
    """Build a cell that is a hyperlink where the terminal supports it."""
    from rich.style import Style
    from rich.text import Text

    return Text(visible(text), Style(link=url))


def fitted(text: str, width: int) -> str:
    """Fit a text into a number of terminal columns, by padding it or shortening its middle.

    Some characters take two columns.
    """
    from rich.cells import cell_len, set_cell_size

    if cell_len(text) <= width:
        return set_cell_size(text, width)
    end = (width - 1) // 2
    shortened = f"{set_cell_size(text, width - 1 - end)}…{set_cell_size(text[::-1], end)[::-1]}"
    return set_cell_size(shortened, width)


def markdown_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Format a table in Markdown."""
    return "\n".join(_markdown_row(cells) for cells in (headings, ["---"] * len(headings), *rows))


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(visible(cell).replace('|', chr(92) + '|') for cell in cells)} |"
