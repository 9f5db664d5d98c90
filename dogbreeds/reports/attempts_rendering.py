"""Rendering of attempts tables as text, Markdown, CSV and a self-contained HTML page."""

import csv
import html
import io
import re
import textwrap
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from dogbreeds.core import console
from dogbreeds.reports import curves, output
from dogbreeds.reports.attempts_table import COLUMNS, AttemptRow, AttemptsTable, missing_attempts
from dogbreeds.reports.claims import NOT_TESTED, REFUTED, REPRODUCED
from dogbreeds.reports.html import cell, link, page, svg, table
from dogbreeds.tracking.records import Record, short

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

# Returns the URL of a run's page in MLflow.
RunUrl = Callable[[Record], str]

_NARROW_COLUMNS = ("attempt", "result", "verdict", "guide", "claim")
_NUMERIC_COLUMNS = ("lr", "n", "interval")
# A terminal of this width has room for all of `COLUMNS`.
_MIN_WIDTH_ALL_COLUMNS = 150
# A terminal of this width has room for run ids.
_MIN_WIDTH_RUN_IDS = 80
# Least width of the attempt column. A run of no named attempt is named by its overrides, which are wrapped.
_MIN_ATTEMPT_WIDTH = 13
# The folders of a path in an override, which would fill the column.
_PATH_FOLDERS = re.compile(r"(?<==)\S*/(?=\S)")
# Width of a text table that is written elsewhere than to a terminal.
_FILE_WIDTH = 190
_STATUS_STYLES = {REPRODUCED: "green", REFUTED: "red", NOT_TESTED: "dim"}


def as_text(attempts: AttemptsTable, width: int | None, run_url: RunUrl) -> str:
    """Render a table as text, wrapped to the terminal. Run ids are hyperlinks where the terminal supports them.

    Args:
        attempts: the table.
        width: the terminal's width in columns; None if the text goes elsewhere.
        run_url: returns the URL of a run's page.
    """
    width_or_default = width or _FILE_WIDTH
    columns = COLUMNS if width_or_default >= _MIN_WIDTH_ALL_COLUMNS else _NARROW_COLUMNS
    grid = _text_grid(
        attempts,
        columns,
        attempt_width=max(_MIN_ATTEMPT_WIDTH, width_or_default // 6),
        run_url=run_url if width_or_default >= _MIN_WIDTH_RUN_IDS else None,
    )
    with io.StringIO() as file:
        terminal = console.make_console(file, width, _FILE_WIDTH)
        terminal.print(grid)
        for note in attempts.notes():
            terminal.print(f"  {note}", style="dim", highlight=False, markup=False)
        return file.getvalue()


def _text_grid(attempts: AttemptsTable, columns: Sequence[str], attempt_width: int, run_url: RunUrl | None) -> "Table":
    """The table in Rich's form; without `run_url`, it has no column of run ids."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    grid = Table(
        title=attempts.title,
        title_justify="left",
        title_style="bold",
        box=SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    headings, *lines = attempts.text_rows(columns)
    for heading, column in zip(headings, columns, strict=True):
        grid.add_column(
            heading,
            justify="right" if column in _NUMERIC_COLUMNS else "left",
            no_wrap=column in ("attempt", "interval", "claim"),
        )
    if run_url:
        grid.add_column("run", no_wrap=True)
    for row, line in zip(attempts.rows, lines, strict=True):
        cells = [
            Text(_wrapped(row.attempt, attempt_width)),
            *(Text(text, style=_STATUS_STYLES.get(text, "")) for text in line[1:]),
        ]
        grid.add_row(*cells, *([_linked_ids(row, run_url)] if run_url else []))
    return grid


def _wrapped(name: str, width: int) -> str:
    """Wrap a name, between words where possible."""
    lines = textwrap.wrap(_PATH_FOLDERS.sub("…/", name), width, break_long_words=False, break_on_hyphens=False)
    return "\n".join(piece for line in lines for piece in textwrap.wrap(line, width))


def _linked_ids(row: AttemptRow, run_url: RunUrl) -> "Text":
    """The short ids of a row's runs, one a line."""
    from rich.style import Style
    from rich.text import Text

    return (
        Text("\n").join(Text(short(record.run_id), Style(link=run_url(record))) for record in row.records)
        if row.records
        else Text("–")
    )


def as_markdown(attempts: AttemptsTable, run_url: RunUrl) -> str:
    """Render a table in Markdown, with linked run ids."""
    headings, *lines = attempts.text_rows()
    runs = [
        ", ".join(f"[{short(record.run_id)}]({run_url(record)})" for record in row.records) or "–"
        for row in attempts.rows
    ]
    return "\n".join(
        [
            f"**{attempts.title}**",
            "",
            output.markdown_row([*headings, "run"]),
            output.markdown_row(["---"] * (len(COLUMNS) + 1)),
            *(output.markdown_row([*line, run]) for line, run in zip(lines, runs, strict=True)),
            "",
            *(f"- {note}" for note in attempts.notes()),
            "",
        ]
    )


def as_csv(tables: Sequence[AttemptsTable], run_url: RunUrl) -> str:
    """Render the rows of all tables as CSV, with full run ids and URLs."""
    with io.StringIO() as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["model", "data", *COLUMNS, "runs", "links"])
        for attempts in tables:
            for row, line in zip(attempts.rows, attempts.text_rows()[1:], strict=True):
                runs = " ".join(record.run_id for record in row.records)
                links = " ".join(run_url(record) for record in row.records)
                writer.writerow([attempts.model, attempts.data, *line, runs, links])
        return file.getvalue()


def as_html(tables: Sequence[AttemptsTable], run_url: RunUrl) -> str:
    """Render all tables as one self-contained page, with learning curves and the outcome of each claim."""
    missing = missing_attempts(tables)
    sections = [_section(attempts, run_url) for attempts in tables]
    body = "".join([_INTRODUCTION, *sections]) + (f"<p>{html.escape(missing)}</p>" if missing else "")
    return page("attempts and claims", body)


def _section(attempts: AttemptsTable, run_url: RunUrl) -> str:
    headings, *lines = attempts.text_rows()
    rows = (_html_cells(row, line, run_url) for row, line in zip(attempts.rows, lines, strict=True))
    histories = attempts.histories()
    figure = svg(curves.accuracy_curves(histories, ""), "validation accuracy by epoch") if histories else ""
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in attempts.notes())
    return (
        f"<h2>{html.escape(attempts.title)}</h2>{table([*headings, 'run'], rows)}<figure>{figure}</figure>"
        f"<ul>{notes}</ul>"
    )


def _html_cells(row: AttemptRow, line: Sequence[str], run_url: RunUrl) -> list[str]:
    runs = "<br>".join(link(short(record.run_id), run_url(record)) for record in row.records)
    return [
        *(cell(html.escape(text), _css_class(column, text)) for column, text in zip(COLUMNS, line, strict=True)),
        cell(runs or "–", "run"),
    ]


def _css_class(column: str, text: str) -> str:
    if column == "claim":
        status = text.split()[0]
        return status if status.isalpha() else ""
    return "number" if column in _NUMERIC_COLUMNS else column


_INTRODUCTION = """<p>The measured result of each attempt, compared with the guide's. A result is the best validation
accuracy; after a collapse, the last one follows the arrow. Intervals are 95 % Wilson intervals for n images. A claim
about the verdict must hold on any model and data set; a claim about the accuracy holds for the guide's own setup only.
Run ids link to MLflow's pages, which need a running MLflow UI.</p>
"""
