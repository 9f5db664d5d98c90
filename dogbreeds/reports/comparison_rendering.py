"""Rendering of a run comparison as text, Markdown, CSV and a self-contained HTML page."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from dogbreeds.core.text import csv_rows, visible
from dogbreeds.data.class_names import display_name
from dogbreeds.evaluation.metrics import Proportion
from dogbreeds.evaluation.paired_comparison import Change
from dogbreeds.reports import pages, tables
from dogbreeds.reports.figures import PAGE_INCHES, style_axes
from dogbreeds.reports.picture_text import picture_text, use_fallback_fonts
from dogbreeds.reports.run_comparison import RunComparison
from dogbreeds.reports.tables import Column
from dogbreeds.tracking.records import Record, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

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
# Least width of a column whose cells may be wrapped.
_MIN_COLUMN_WIDTH = 12
_BETTER_COLOUR, _WORSE_COLOUR, _EQUAL_COLOUR = "#1f5fa8", "#b3541e", "#8a8a8a"
_NO_SETTINGS = "No settings differ."


def as_text(comparison: RunComparison, width: int | None, run_url: RunUrl) -> str:
    """Render the comparison as text, wrapped to the terminal. Run ids are hyperlinks where the terminal supports them.

    Args:
        comparison: the two runs.
        width: the terminal's width in columns; None if the text goes elsewhere.
        run_url: returns the URL of a run's page.
    """

    def paragraph(text: str, style: str = "") -> str:
        return tables.paragraph(text, width, style)

    settings = comparison.setting_differences
    parts = [
        paragraph(comparison.images_note),
        _runs_text(comparison, width, run_url),
        "\n",
        paragraph(comparison.conclusion, "bold"),
        *(paragraph(caveat, "dim") for caveat in comparison.caveats),
        "\n",
    ]
    if settings:
        columns = [Column(heading, min_width=_MIN_COLUMN_WIDTH) for heading in _SETTING_COLUMNS]
        parts += [paragraph("Settings that differ", "bold"), tables.text_table(columns, settings, width)]
    else:
        parts.append(paragraph(_NO_SETTINGS))
    parts.append(paragraph(comparison.class_summary))
    if comparison.most_changed:
        parts += ["\n", paragraph("Most changed classes", "bold"), _classes_text(comparison.most_changed, width)]
    return "".join([*parts, *map(paragraph, comparison.confusion_notes)])


def _runs_text(comparison: RunComparison, width: int | None, run_url: RunUrl) -> str:
    from rich.text import Text

    rows: list[tuple[str, tables.Cell]] = []
    for key, record, accuracy in _runs(comparison):
        run_id = tables.linked(short(record.run_id), run_url(record))
        rows.append((key, Text.assemble("run ", run_id, f": {accuracy}\n", (visible(record.name), "dim"))))
    rows.append(("change", str(comparison.paired.pair)))
    return tables.text_table([Column(), Column(min_width=_MIN_COLUMN_WIDTH)], rows, width)


def _runs(comparison: RunComparison) -> list[tuple[str, Record, Proportion]]:
    """Each run with the command's setting that names it and its accuracy on the shared images."""
    before, after = comparison.paired.accuracies
    return [("first", comparison.first, before), ("second", comparison.second, after)]


def _classes_text(changes: Sequence[Change], width: int | None) -> str:
    has_room = width is None or width >= _MIN_WIDTH_ALL_COLUMNS
    headings = _CLASS_COLUMNS if has_room else _NARROW_CLASS_COLUMNS
    columns = [Column(headings[0], min_width=_MIN_COLUMN_WIDTH), *(Column(name, numeric=True) for name in headings[1:])]
    return tables.text_table(columns, _class_rows(changes, headings), width)


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
        tables.markdown_table(_SETTING_COLUMNS, settings) if settings else _NO_SETTINGS,
        comparison.class_summary,
    ]
    if most_changed:
        parts.append(tables.markdown_table(_CLASS_COLUMNS, _class_rows(most_changed)))
    return "\n\n".join([*parts, *comparison.confusion_notes]) + "\n"


def as_csv(comparison: RunComparison) -> str:
    """Render the changes of all classes as CSV, most changed first."""
    rows = [
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
        for change in comparison.paired.changes
    ]
    return csv_rows([_CSV_COLUMNS, *rows])


def as_html(comparison: RunComparison, run_url: RunUrl) -> str:
    """Render the comparison as one self-contained page, with a figure and all classes."""
    return pages.render(
        "comparison",
        title=f"run {short(comparison.second.run_id)} compared with run {short(comparison.first.run_id)}",
        comparison=comparison,
        runs=[
            (key, short(record.run_id), run_url(record), record.name, str(accuracy))
            for key, record, accuracy in _runs(comparison)
        ],
        changes=class_changes(comparison) if comparison.most_changed else None,
        class_headings=_CLASS_COLUMNS,
        classes=_class_rows(comparison.paired.changes),
    )


def class_changes(comparison: RunComparison) -> "Figure":
    """Draw the accuracy of the most changed classes in both runs, and a histogram of the changes of all classes.

    The histogram puts them into proportion: out of many classes, the most changed ones always look striking.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    most_changed = comparison.most_changed
    figure = Figure(figsize=(PAGE_INCHES, 1.2 + 0.28 * max(len(most_changed), 6)), layout="constrained")
    classes_axes, histogram_axes = figure.subplots(1, 2, width_ratios=(3, 2))
    _draw_most_changed(classes_axes, most_changed, comparison.paired.split)
    counts = Counter(change.net for change in comparison.paired.changes)
    histogram_axes.bar(list(counts), list(counts.values()), color=[_colour(net) for net in counts])
    histogram_axes.set(xlabel="change in correct images", ylabel="classes")
    for axis in (histogram_axes.xaxis, histogram_axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    for axes in (classes_axes, histogram_axes):
        style_axes(axes)
        axes.set_axisbelow(True)
    return use_fallback_fonts(figure)


def _draw_most_changed(axes: "Axes", changes: Sequence[Change], split: str) -> None:
    for row, change in enumerate(changes):
        before = 100 * change.before / change.pair.n
        after = 100 * change.after / change.pair.n
        colour = _colour(change.net)
        axes.plot([before, after], [row, row], color=colour, lw=2, solid_capstyle="round")
        axes.plot(before, row, "o", color="white", mec=colour, ms=6, label="first" if row == 0 else "_")
        axes.plot(after, row, "o", color=colour, ms=6, label="second" if row == 0 else "_")
    axes.set(xlim=(-3, 103), xlabel=f"correct images of {split} (%)", ylim=(len(changes) - 0.4, -0.6))
    axes.set_yticks(range(len(changes)), [picture_text(display_name(change.name)) for change in changes])
    axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)


def _colour(net: int) -> str:
    return _BETTER_COLOUR if net > 0 else _WORSE_COLOUR if net < 0 else _EQUAL_COLOUR
