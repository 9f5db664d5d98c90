"""Rendering of a run comparison as text, Markdown, CSV and a self-contained HTML page."""

import csv
import io
from collections import Counter
from collections.abc import Callable, Sequence
from html import escape
from typing import TYPE_CHECKING

from dogbreeds.core import console
from dogbreeds.data.class_names import display_name
from dogbreeds.evaluation.metrics import Proportion
from dogbreeds.evaluation.paired_comparison import Change
from dogbreeds.reports import output
from dogbreeds.reports.figures import escape_mathtext
from dogbreeds.reports.html import cell, link, page, svg, table
from dogbreeds.reports.run_comparison import RunComparison
from dogbreeds.tracking.records import Record, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.console import RenderableType
    from rich.table import Table

# Returns the URL of a run's page in MLflow.
RunUrl = Callable[[Record], str]

_CLASS_COLUMNS = ("class", "n", "correct", "gained", "lost", "p", "adjusted p")
_NARROW_CLASS_COLUMNS = ("class", "n", "correct", "gained", "lost", "adjusted p")
_SETTING_COLUMNS = ("setting", "first", "second")
_CSV_COLUMNS = (
    "first",
    "second",
    "split",
    "class",
    "n",
    "first_right",
    "second_right",
    "gained",
    "lost",
    "p",
    "adjusted_p",
)
# A terminal of this width has room for all of `_CLASS_COLUMNS`.
_MIN_WIDTH_ALL_COLUMNS = 80
# Width of a text that is written elsewhere than to a terminal.
_FILE_WIDTH = 120
_BETTER_COLOUR, _WORSE_COLOUR, _EQUAL_COLOUR = "#1f5fa8", "#b3541e", "#8a8a8a"
_SETTINGS_TITLE, _NO_SETTINGS = "Settings that differ", "No settings differ."


def as_text(comparison: RunComparison, width: int | None, run_url: RunUrl) -> str:
    """Render the comparison as text, wrapped to the terminal. Run ids are hyperlinks where the terminal supports them.

    Args:
        comparison: the two runs.
        width: the terminal's width in columns; None if the text goes elsewhere.
        run_url: returns the URL of a run's page.
    """
    settings = comparison.setting_differences
    most_changed = comparison.most_changed
    with io.StringIO() as file:
        terminal = console.make_console(file, width, _FILE_WIDTH)

        def add(text: "RenderableType", style: str = "") -> None:
            terminal.print(text, style=style, markup=False, highlight=False)

        add(comparison.images_note)
        add(_runs_grid(comparison, run_url))
        add("")
        add(comparison.conclusion, "bold")
        for caveat in comparison.caveats:
            add(caveat, "dim")
        add("")
        add(_text_grid(_SETTING_COLUMNS, settings, _SETTINGS_TITLE) if settings else _NO_SETTINGS)
        add(comparison.class_summary)
        if most_changed:
            columns = _CLASS_COLUMNS if (width or _FILE_WIDTH) >= _MIN_WIDTH_ALL_COLUMNS else _NARROW_CLASS_COLUMNS
            add("")
            add(_text_grid(columns, _class_rows(most_changed, columns), "Most changed classes"))
        for note in comparison.confusion_notes:
            add(note)
        return file.getvalue()


def _runs_grid(comparison: RunComparison, run_url: RunUrl) -> "Table":
    from rich.style import Style
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2, 0, 0))
    for key, record, accuracy in _runs(comparison):
        run_id = (short(record.run_id), Style(link=run_url(record)))
        name = (f"\n{record.name}", "dim")
        grid.add_row(key, Text.assemble("run ", run_id, f": {accuracy}", name, overflow="fold"))
    grid.add_row("change", str(comparison.paired.pair))
    return grid


def _runs(comparison: RunComparison) -> list[tuple[str, Record, Proportion]]:
    """Each run with the command's setting that names it and its accuracy on the shared images."""
    before, after = comparison.paired.accuracies
    return [("first", comparison.first, before), ("second", comparison.second, after)]


def _text_grid(headings: Sequence[str], rows: Sequence[Sequence[str]], title: str) -> "Table":
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    grid = Table(
        title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0)
    )
    for heading in headings:
        numeric = heading in _CLASS_COLUMNS[1:]
        grid.add_column(heading, justify="right" if numeric else "left", no_wrap=numeric, overflow="fold")
    for row in rows:
        grid.add_row(*map(Text, row))
    return grid


def _class_rows(changes: Sequence[Change], columns: Sequence[str] = _CLASS_COLUMNS) -> list[list[str]]:
    return [[_class_cells(change)[column] for column in columns] for change in changes]


def _class_cells(change: Change) -> dict[str, str]:
    """Text by column name."""
    return {
        "class": display_name(change.name),
        "n": str(change.pair.n),
        "correct": f"{change.before} → {change.after}",
        "gained": str(change.pair.gained),
        "lost": str(change.pair.lost),
        "p": f"{change.pair.p_value:.2g}",
        "adjusted p": f"{change.adjusted_p:.2g}",
    }


def as_markdown(comparison: RunComparison, run_url: RunUrl) -> str:
    """Render the comparison in Markdown, with linked run ids."""
    settings = comparison.setting_differences
    most_changed = comparison.most_changed
    runs = [
        f"- {key}: run [{short(record.run_id)}]({run_url(record)}), `{record.name}`: {accuracy}"
        for key, record, accuracy in _runs(comparison)
    ]
    parts = [
        f"**{comparison.conclusion}**",
        comparison.images_note,
        "\n".join([*runs, f"- change: {comparison.paired.pair}"]),
        *comparison.caveats,
        _markdown_table(_SETTING_COLUMNS, settings) if settings else _NO_SETTINGS,
        comparison.class_summary,
    ]
    if most_changed:
        parts.append(_markdown_table(_CLASS_COLUMNS, _class_rows(most_changed)))
    return "\n\n".join([*parts, *comparison.confusion_notes]) + "\n"


def _markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(map(output.markdown_row, (headings, ["---"] * len(headings), *rows)))


def as_csv(comparison: RunComparison) -> str:
    """Render the changes of all classes as CSV, most changed first."""
    with io.StringIO() as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(_CSV_COLUMNS)
        for change in comparison.paired.changes:
            writer.writerow(
                [
                    comparison.first.run_id,
                    comparison.second.run_id,
                    comparison.paired.split,
                    display_name(change.name),
                    change.pair.n,
                    change.before,
                    change.after,
                    change.pair.gained,
                    change.pair.lost,
                    f"{change.pair.p_value:.6g}",
                    f"{change.adjusted_p:.6g}",
                ]
            )
        return file.getvalue()


def as_html(comparison: RunComparison, run_url: RunUrl) -> str:
    """Render the comparison as one self-contained page, with a figure and all classes."""
    runs = (
        [
            cell(key),
            cell(link(short(record.run_id), run_url(record)), "run"),
            cell(escape(record.name), "attempt"),
            cell(escape(str(accuracy)), "result"),
        ]
        for key, record, accuracy in _runs(comparison)
    )
    parts = [
        f"<p><b>{escape(comparison.conclusion)}</b></p>",
        _paragraph(comparison.images_note),
        table(("", "run", "attempt", "accuracy"), runs),
        _paragraph(f"{comparison.paired.pair}."),
        *map(_paragraph, comparison.caveats),
        f"<h2>{_SETTINGS_TITLE}</h2>",
        _settings_html(comparison),
        "<h2>Classes</h2>",
        _paragraph(comparison.class_summary),
        _figure_html(comparison),
        *map(_paragraph, comparison.confusion_notes),
        _classes_html(comparison),
    ]
    title = f"run {short(comparison.second.run_id)} compared with run {short(comparison.first.run_id)}"
    return page(title, "".join(parts))


def _settings_html(comparison: RunComparison) -> str:
    differences = comparison.setting_differences
    if not differences:
        return _paragraph(_NO_SETTINGS)
    return table(_SETTING_COLUMNS, ([cell(escape(text)) for text in row] for row in differences))


def _figure_html(comparison: RunComparison) -> str:
    if not comparison.most_changed:
        return ""
    return f"<figure>{svg(class_changes(comparison), 'correct images of each class before and after')}</figure>"


def _classes_html(comparison: RunComparison) -> str:
    css_classes = ("", *["number"] * (len(_CLASS_COLUMNS) - 1))
    rows = (
        [cell(escape(text), css_class) for text, css_class in zip(row, css_classes, strict=True)]
        for row in _class_rows(comparison.paired.changes)
    )
    return table(_CLASS_COLUMNS, rows)


def _paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>"


def class_changes(comparison: RunComparison) -> "Figure":
    """Draw the accuracy of the most changed classes in both runs, and a histogram of the changes of all classes.

    The histogram puts them into proportion: out of many classes, the most changed ones always look striking.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    most_changed = comparison.most_changed
    figure = Figure(figsize=(9, 1.2 + 0.28 * max(len(most_changed), 6)), layout="constrained")
    classes_axes, histogram_axes = figure.subplots(1, 2, width_ratios=(3, 2))
    _draw_most_changed(classes_axes, most_changed, comparison.paired.split)
    counts = Counter(change.net for change in comparison.paired.changes)
    histogram_axes.bar(list(counts), list(counts.values()), color=[_colour(net) for net in counts])
    histogram_axes.set(xlabel="change in correct images", ylabel="classes")
    for axis in (histogram_axes.xaxis, histogram_axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    for axes in (classes_axes, histogram_axes):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        axes.set_axisbelow(True)
    return figure


def _draw_most_changed(axes: "Axes", changes: Sequence[Change], split: str) -> None:
    for row, change in enumerate(changes):
        before = 100 * change.before / change.pair.n
        after = 100 * change.after / change.pair.n
        colour = _colour(change.net)
        axes.plot([before, after], [row, row], color=colour, lw=2, solid_capstyle="round")
        axes.plot(before, row, "o", color="white", mec=colour, ms=6, label="first" if row == 0 else "_")
        axes.plot(after, row, "o", color=colour, ms=6, label="second" if row == 0 else "_")
    axes.set(xlim=(-3, 103), xlabel=f"correct images of {split} (%)", ylim=(len(changes) - 0.4, -0.6))
    axes.set_yticks(range(len(changes)), [escape_mathtext(display_name(change.name)) for change in changes])
    axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)


def _colour(net: int) -> str:
    return _BETTER_COLOUR if net > 0 else _WORSE_COLOUR if net < 0 else _EQUAL_COLOUR
