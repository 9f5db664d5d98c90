"""Rendering of attempts tables as text, Markdown, CSV and a self-contained HTML page."""

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from dogbreeds.core.text import csv_rows, duration_text
from dogbreeds.reports import pages, reference_note, run_figures, tables
from dogbreeds.reports.attempt_row import COLUMNS, AttemptRow
from dogbreeds.reports.attempts_table import AttemptsTable, missing_attempts
from dogbreeds.reports.tables import Column
from dogbreeds.tracking.records import Record, short

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Returns the URL of a run's page in MLflow.
RunUrl = Callable[[Record], str]

_NARROW_COLUMNS = ("attempt", "result", "verdict", "claimed", "claim")
_NUMERIC_COLUMNS = ("lr", "n", "interval", "reference")
# Least widths of the columns whose cells may be wrapped. A run of no named attempt is named by its overrides, and a
# result may be `35.4 → 5.0 %`.
_MIN_WIDTHS = {"attempt": 13, "unfrozen": 10, "result": 12, "verdict": 10, "claimed": 8}
# A terminal has a note in place of this column, or names of runs would wrap.
_WIDE_COLUMNS = tuple(name for name in COLUMNS if name != "reference")
# A terminal of this width has room for these columns.
_MIN_WIDTH_WIDE_COLUMNS = 150
# A terminal of this width has room for run ids. A narrower one has less for results, too.
_MIN_WIDTH_RUN_IDS = 80
_NARROW_MIN_WIDTHS = _MIN_WIDTHS | {"result": 8}
# The folders of a path in an override, which would fill the column.
_PATH_FOLDERS = re.compile(r"(?<==)\S*/(?=\S)")


def as_text(attempts: AttemptsTable, width: int | None, run_url: RunUrl) -> str:
    """Render a table as text, wrapped to the terminal. Run ids are hyperlinks where the terminal supports them.

    Args:
        attempts: the table.
        width: the terminal's width in columns; None if the text goes elsewhere.
        run_url: returns the URL of a run's page.
    """
    wide_enough = width is None or width >= _MIN_WIDTH_WIDE_COLUMNS
    names = (COLUMNS if width is None else _WIDE_COLUMNS) if wide_enough else _NARROW_COLUMNS
    has_run_ids = width is None or width >= _MIN_WIDTH_RUN_IDS
    min_widths = _MIN_WIDTHS if has_run_ids else _NARROW_MIN_WIDTHS
    headings, *lines = attempts.text_rows(names)
    columns = [
        Column(heading, numeric=name in _NUMERIC_COLUMNS, min_width=min_widths.get(name))
        for heading, name in zip(headings, names, strict=True)
    ]
    rows: list[list[tables.Cell]] = [list(line) for line in lines]
    if width is not None:
        for row in rows:
            row[0] = _PATH_FOLDERS.sub("…/", str(row[0]))
    if has_run_ids:
        columns.append(Column("run"))
        for row, attempt in zip(rows, attempts.rows, strict=True):
            row.append(_linked_ids(attempt, run_url))
    texts = [*attempts.notes(), *(reference_note.notes(attempts.rows) if "reference" not in names else [])]
    notes = [tables.paragraph(note, width, "dim", indent=2) for note in texts]
    return "".join([tables.paragraph(attempts.title, width, "bold"), tables.text_table(columns, rows, width), *notes])


def _linked_ids(row: AttemptRow, run_url: RunUrl) -> tables.Cell:
    from rich.text import Text

    links = [tables.linked(short(record.run_id), run_url(record)) for record in row.records]
    return Text("\n").join(links) if links else "–"


def as_markdown(attempts: AttemptsTable, run_url: RunUrl) -> str:
    """Render a table in Markdown, with linked run ids."""
    headings, *lines = attempts.text_rows()
    runs = [
        ", ".join(f"[{short(record.run_id)}]({run_url(record)})" for record in row.records) or "–"
        for row in attempts.rows
    ]
    rows = [[*line, run] for line, run in zip(lines, runs, strict=True)]
    return "\n".join(
        [
            f"**{attempts.title}**",
            "",
            tables.markdown_table([*headings, "run"], rows),
            "",
            *(f"- {note}" for note in attempts.notes()),
            "",
        ]
    )


def as_csv(attempts_tables: Sequence[AttemptsTable], run_url: RunUrl) -> str:
    """Render the rows of all tables as CSV, with full run ids and URLs."""
    rows = []
    for attempts in attempts_tables:
        for row, line in zip(attempts.rows, attempts.text_rows()[1:], strict=True):
            runs = " ".join(record.run_id for record in row.records)
            links = " ".join(run_url(record) for record in row.records)
            rows.append([attempts.model, attempts.data, *line, runs, links])
    return csv_rows([["model", "data", *COLUMNS, "runs", "links"], *rows])


def as_html(
    attempts_tables: Sequence[AttemptsTable],
    run_url: RunUrl,
    title: str = "attempts and claims",
    runs_only: bool = False,
) -> str:
    """Render all tables as one self-contained page, with figures that compare the runs and the outcome of each claim.

    Args:
        attempts_tables: the tables.
        run_url: returns the URL of a run's page.
        title: heading of the page.
        runs_only: whether attempts that were not run are left out.
    """
    tables_shown = [table.of_runs_only() for table in attempts_tables] if runs_only else attempts_tables
    return pages.render(
        "attempts",
        title=title,
        columns=COLUMNS,
        numeric=[COLUMNS.index(name) for name in _NUMERIC_COLUMNS],
        sections=[_page_section(table, run_url) for table in tables_shown],
        missing="" if runs_only else missing_attempts(attempts_tables),
    )


class _PageRow(NamedTuple):
    """A row of the page's table.

    Attributes:
        texts: one for each of `COLUMNS`.
        runs: id, short id and URL of each run.
        time: what the runs took.
    """

    texts: list[str]
    runs: list[tuple[str, str, str]]
    time: str


class _PageSection(NamedTuple):
    """A table of the page, with figures of its runs if any has finished an epoch, and their descriptions."""

    title: str
    headings: list[str]
    rows: list[_PageRow]
    curves: "Figure | None"
    halves: "list[tuple[Figure, str]]"
    description: str
    cost: str
    notes: list[str]


def _page_section(attempts: AttemptsTable, run_url: RunUrl) -> _PageSection:
    headings, *lines = attempts.text_rows()
    runs = [run for run in attempts.compared_runs() if run.accuracies]
    halves = [
        (run_figures.accuracy_over_lr(runs), "best validation accuracy over the learning rate"),
        (run_figures.accuracy_over_layers(runs), "best validation accuracy over the number of layers trained"),
    ]
    return _PageSection(
        title=attempts.title,
        headings=headings,
        rows=[
            _PageRow(
                line, [(record.run_id, short(record.run_id), run_url(record)) for record in row.records], _time(row)
            )
            for row, line in zip(attempts.rows, lines, strict=True)
        ],
        curves=run_figures.accuracy_curves(runs) if runs else None,
        halves=[(figure, alt) for figure, alt in halves if figure is not None],
        description=run_figures.describe(runs),
        cost=attempts.cost(),
        notes=attempts.notes(),
    )


def _time(row: AttemptRow) -> str:
    seconds = sum(record.metrics.get("seconds/total", 0.0) for record in row.records)
    return duration_text(seconds) if seconds else "–"
