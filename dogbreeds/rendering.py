"""Tables of attempts as text, Markdown, CSV, and a page that needs nothing else."""

import csv
import html
import io
import os
from collections.abc import Mapping, Sequence

from dogbreeds import curves
from dogbreeds.claims import NOT_TESTED, REFUTED, REPRODUCED
from dogbreeds.comparison import COLUMNS, Table, not_run

_FEWER = ("attempt", "result", "verdict", "guide", "claim")  # where the terminal is narrow
_NUMBERS = ("lr", "n", "interval")
_NARROW = 130  # columns of a terminal that can show all of them
_WIDE = 190  # columns of a text table that is not shown in a terminal
_COLOURS = {REPRODUCED: "green", REFUTED: "red", NOT_TESTED: "dim"}


def as_text(table: Table, width: int | None) -> str:
    """For a terminal: columns are wrapped to its width."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table as Grid
    from rich.text import Text

    columns = COLUMNS if (width or _WIDE) >= _NARROW else _FEWER
    headings, *lines = table.lines(columns)
    grid = Grid(title=table.title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for heading, column in zip(headings, columns, strict=True):
        grid.add_column(heading, justify="right" if column in _NUMBERS else "left", no_wrap=column in ("attempt", "claim"))
    for line in lines:
        grid.add_row(*(Text(cell, style=_COLOURS.get(cell, "")) for cell in line))
    with io.StringIO() as file:
        console = Console(file=file, width=width or _WIDE, force_terminal=width is not None, no_color="NO_COLOR" in os.environ or width is None)
        console.print(grid)
        for note in table.notes():
            console.print(f"  {note}", style="dim", highlight=False, markup=False)
        return file.getvalue()


def as_markdown(table: Table) -> str:
    headings, *lines = table.lines()
    piped = [f"**{table.title}**", "", _piped(headings), _piped(["---"] * len(COLUMNS)), *map(_piped, lines), ""]
    return "\n".join([*piped, *(f"- {note}" for note in table.notes()), ""])


def _piped(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def as_csv(found: Sequence[Table]) -> str:
    with io.StringIO() as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["model", "data", *COLUMNS, "runs"])
        for table in found:
            for row, line in zip(table.rows, table.lines()[1:], strict=True):
                writer.writerow([table.model, table.data, *line, " ".join(record.run_id for record in row.records)])
        return file.getvalue()


def as_html(found: Sequence[Table]) -> str:
    """One page that needs nothing else: tables, learning curves, what became of each claim."""
    parts = []
    for table in found:
        headings, *lines = table.lines()
        head = "".join(f"<th>{html.escape(heading)}</th>" for heading in headings)
        body = "".join(f"<tr>{''.join(_cell(column, cell) for column, cell in zip(COLUMNS, line, strict=True))}</tr>" for line in lines)
        notes = "".join(f"<li>{html.escape(note)}</li>" for note in table.notes())
        picture = _svg(table.histories()) if table.histories() else ""
        parts.append(
            f"<h2>{html.escape(table.title)}</h2><div class=wide><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
            f"<figure>{picture}</figure><ul>{notes}</ul>"
        )
    absent = not_run(found)
    return _PAGE.replace("<!--tables-->", "".join(parts) + (f"<p>{html.escape(absent)}</p>" if absent else ""))


def _cell(column: str, cell: str) -> str:
    kind = cell.split()[0] if column == "claim" else "number" if column in _NUMBERS else column
    return f"<td{f' class={kind}' if kind.isalpha() else ''}>{html.escape(cell)}</td>"


def _svg(histories: Mapping[str, Sequence[Sequence[float]]]) -> str:
    from matplotlib import rc_context

    with io.StringIO() as file, rc_context({"svg.fonttype": "none", "svg.hashsalt": "dogbreeds", "font.family": "sans-serif"}):
        curves.compare(histories, "").savefig(file, format="svg", metadata={"Date": None})
        return file.getvalue()[file.getvalue().index("<svg") :]


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>dogbreeds: attempts and claims</title>
<style>
body { font: 14px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 78rem; padding: 0 1rem; color: #1c1c1c; background: #fff }
h1 { font-size: 1.4rem } h2 { font-size: 1.1rem; margin-top: 2rem }
.wide { overflow-x: auto } table { border-collapse: collapse; width: 100% }
th, td { text-align: left; padding: .4rem .6rem; border-bottom: 1px solid #ddd; vertical-align: top } th { font-weight: 600 }
td.attempt, td.result, td.number { white-space: nowrap } td.number { text-align: right; font-variant-numeric: tabular-nums }
td.reproduced { color: #17692f; font-weight: 600 } td.refuted { color: #a3261b; font-weight: 600 } td.not { color: #666 }
figure { margin: 1rem 0 } svg { max-width: 100%; height: auto } li { margin: .2rem 0 } p { max-width: 60rem }
</style></head><body>
<h1>Attempts, and what the guide says of them</h1>
<p>Results are the best validation accuracy; after a collapse, what was left at the end. Intervals are 95 % Wilson intervals for n photos.
A claim on the verdict must hold on any model and photos; a claim on a number is of the guide's own setup.</p>
<!--tables-->
</body></html>
"""
