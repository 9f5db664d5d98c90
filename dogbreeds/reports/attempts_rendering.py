"""Tables of attempts as text, Markdown, CSV, and a page that needs nothing else."""

import csv
import html
import io
import re
import textwrap
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from dogbreeds.core import console
from dogbreeds.reports import curves, output
from dogbreeds.reports.attempts_table import COLUMNS, Row, Table, not_run
from dogbreeds.reports.claims import NOT_TESTED, REFUTED, REPRODUCED
from dogbreeds.reports.html import cell, link, page, svg
from dogbreeds.reports.html import table as grid
from dogbreeds.tracking.records import Record, short

if TYPE_CHECKING:
    from rich.text import Text

# Of a run's page in MLflow
Address = Callable[[Record], str]

# Where the terminal is narrow
_FEWER = ("attempt", "result", "verdict", "guide", "claim")
_NUMBERS = ("lr", "n", "interval")
# Columns of a terminal that can show all of them
_NARROW = 150
# Columns of a terminal that can show the runs' ids too
_WITH_RUNS = 80
# Letters of an attempt's name that have room on a line: a run that is none of the guide's is named by all that was
# typed
_NAME = 13
# Folders of what was typed, which a terminal has no room for
_WHERE = re.compile(r"(?<==)\S*/(?=\S)")
# Columns of a text table that is not shown in a terminal
_WIDE = 190
_COLOURS = {REPRODUCED: "green", REFUTED: "red", NOT_TESTED: "dim"}


def as_text(table: Table, width: int | None, address: Address) -> str:
    """For a terminal: columns are wrapped to its width, and each run's id leads to its page where the terminal can do that.

    Args:
        width: the terminal's columns; None for what is not shown in one.
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table as Grid
    from rich.text import Text

    columns = COLUMNS if (width or _WIDE) >= _NARROW else _FEWER
    with_runs = (width or _WIDE) >= _WITH_RUNS
    headings, *lines = table.lines(columns)
    shown = Grid(
        title=table.title,
        title_justify="left",
        title_style="bold",
        box=SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    for heading, column in zip(headings, columns, strict=True):
        shown.add_column(
            heading,
            justify="right" if column in _NUMBERS else "left",
            no_wrap=column in ("attempt", "interval", "claim"),
        )
    if with_runs:
        shown.add_column("run", no_wrap=True)
    for row, line in zip(table.rows, lines, strict=True):
        cells = [
            Text(_broken(row.attempt, max(_NAME, (width or _WIDE) // 6))),
            *(Text(text, style=_COLOURS.get(text, "")) for text in line[1:]),
        ]
        shown.add_row(*cells, *([_linked(row, address)] if with_runs else []))
    with io.StringIO() as file:
        laid_out = console.console(file, width, _WIDE)
        laid_out.print(shown)
        for note in table.notes():
            laid_out.print(f"  {note}", style="dim", highlight=False, markup=False)
        return file.getvalue()


def _broken(name: str, room: int) -> str:
    """A name in lines, between words where it can be."""
    lines = textwrap.wrap(_WHERE.sub("…/", name), room, break_long_words=False, break_on_hyphens=False)
    return "\n".join(piece for line in lines for piece in textwrap.wrap(line, room))


def _linked(row: Row, address: Address) -> "Text":
    """The ids of a row's runs, one below the other."""
    from rich.style import Style
    from rich.text import Text

    return (
        Text("\n").join(Text(short(record.run_id), Style(link=address(record))) for record in row.records)
        if row.records
        else Text("–")
    )


def as_markdown(table: Table, address: Address) -> str:
    headings, *lines = table.lines()
    runs = [
        ", ".join(f"[{short(record.run_id)}]({address(record)})" for record in row.records) or "–" for row in table.rows
    ]
    body = [output.piped([*line, run]) for line, run in zip(lines, runs, strict=True)]
    piped = [
        f"**{table.title}**",
        "",
        output.piped([*headings, "run"]),
        output.piped(["---"] * (len(COLUMNS) + 1)),
        *body,
        "",
    ]
    return "\n".join([*piped, *(f"- {note}" for note in table.notes()), ""])


def as_csv(found: Sequence[Table], address: Address) -> str:
    with io.StringIO() as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["model", "data", *COLUMNS, "runs", "links"])
        for table in found:
            for row, line in zip(table.rows, table.lines()[1:], strict=True):
                runs, links = (
                    [each(record) for record in row.records] for each in (lambda record: record.run_id, address)
                )
                writer.writerow([table.model, table.data, *line, " ".join(runs), " ".join(links)])
        return file.getvalue()


def as_html(found: Sequence[Table], address: Address) -> str:
    """One page that needs nothing else: tables, learning curves, what became of each claim."""
    parts = [_INTRODUCTION]
    for table in found:
        headings, *lines = table.lines()
        rows = (_cells(row, line, address) for row, line in zip(table.rows, lines, strict=True))
        notes = "".join(f"<li>{html.escape(note)}</li>" for note in table.notes())
        picture = (
            svg(curves.compare(table.histories(), ""), "validation accuracy by epoch") if table.histories() else ""
        )
        parts.append(
            f"<h2>{html.escape(table.title)}</h2>{grid([*headings, 'run'], rows)}<figure>{picture}</figure><ul>{notes}</ul>"
        )
    absent = not_run(found)
    return page("attempts and claims", "".join(parts) + (f"<p>{html.escape(absent)}</p>" if absent else ""))


def _cells(row: Row, line: Sequence[str], address: Address) -> list[str]:
    runs = "<br>".join(link(short(record.run_id), address(record)) for record in row.records)
    return [
        *(cell(html.escape(text), _kind(column, text)) for column, text in zip(COLUMNS, line, strict=True)),
        cell(runs or "–", "run"),
    ]


def _kind(column: str, text: str) -> str:
    """A cell's class, by which the page shows it."""
    kind = text.split()[0] if column == "claim" else "number" if column in _NUMBERS else column
    return kind if kind.isalpha() else ""


_INTRODUCTION = """<p>What the guide says of its attempts, beside what was measured. Results are the best validation accuracy; after a collapse,
what was left at the end. Intervals are 95 % Wilson intervals for n photos. A claim on the verdict must hold on any model and photos; a claim on a
number is of the guide's own setup. A run's id leads to its page in MLflow, where that is being shown.</p>
"""
