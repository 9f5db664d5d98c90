"""Two attempts beside each other as text, Markdown, CSV, and a page that needs nothing else."""

import csv
import io
from collections import Counter
from collections.abc import Callable, Sequence
from html import escape
from typing import TYPE_CHECKING

from dogbreeds.core import console
from dogbreeds.data.class_names import spoken
from dogbreeds.evaluation.paired_comparison import Change
from dogbreeds.reports import output
from dogbreeds.reports.figures import literal
from dogbreeds.reports.html import cell, link, page, svg, table
from dogbreeds.reports.run_comparison import Difference
from dogbreeds.tracking.records import Record, short

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import RenderableType
    from rich.text import Text

# Of a run's page in MLflow
Address = Callable[[Record], str]

_COLUMNS = ("breed", "n", "right", "gained", "lost", "p", "adjusted p")
# Where the terminal is narrow
_FEWER = ("breed", "n", "right", "gained", "lost", "adjusted p")
# Columns of a terminal that can show all of them
_NARROW = 80
# Columns of a text that is not shown in a terminal
_WIDE = 120
_SETTINGS = ("setting", "first", "second")
_BETTER, _WORSE, _SAME = "#1f5fa8", "#b3541e", "#8a8a8a"


def as_text(found: Difference, width: int | None, address: Address) -> str:
    """For a terminal: wrapped to its width, and each run's id leads to its page where the terminal can do that.

    Args:
        width: the terminal's columns; None for what is not shown in one.
    """
    with io.StringIO() as file:
        laid_out = console.console(file, width, _WIDE)

        def say(text: "RenderableType", style: str = "") -> None:
            laid_out.print(text, style=style, markup=False, highlight=False)

        say(found.photos)
        say(_runs(found, address))
        say("")
        say(found.conclusion, "bold")
        for caution in found.cautions:
            say(caution, "dim")
        say("")
        say(
            _grid(_SETTINGS, found.settings, "What was set differently")
            if found.settings
            else "Nothing was set differently."
        )
        say(found.about_breeds)
        if found.most_changed:
            columns = _COLUMNS if (width or _WIDE) >= _NARROW else _FEWER
            say("")
            say(
                _grid(
                    columns,
                    [[_said(change)[column] for column in columns] for change in found.most_changed],
                    "The most changed breeds",
                )
            )
        for line in found.confusions:
            say(line)
        return file.getvalue()


def _runs(found: Difference, address: Address) -> "RenderableType":
    from rich.style import Style
    from rich.table import Table as Grid
    from rich.text import Text

    grid = Grid.grid(padding=(0, 2, 0, 0))
    for (word, record), accuracy in zip(_both(found), found.comparison.accuracies, strict=True):
        run = (short(record.run_id), Style(link=address(record)))
        grid.add_row(word, Text.assemble("run ", run, f": {accuracy}", (f"\n{record.name}", "dim"), overflow="fold"))
    grid.add_row("change", str(found.comparison.pair))
    return grid


def _both(found: Difference) -> list[tuple[str, Record]]:
    return [("first", found.first), ("second", found.second)]


def _grid(headings: Sequence[str], rows: Sequence[Sequence[str]], title: str) -> "RenderableType":
    from rich.box import SIMPLE_HEAD
    from rich.table import Table as Grid

    grid = Grid(
        title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0)
    )
    for heading in headings:
        number = heading in _COLUMNS[1:]
        grid.add_column(heading, justify="right" if number else "left", no_wrap=number, overflow="fold")
    for row in rows:
        grid.add_row(*map(_text, row))
    return grid


def _text(said: str) -> "Text":
    from rich.text import Text

    return Text(said)


def _said(change: Change) -> dict[str, str]:
    """Text by column."""
    pair = change.pair
    counts = {
        "n": str(pair.n),
        "right": f"{change.before} → {change.after}",
        "gained": str(pair.gained),
        "lost": str(pair.lost),
    }
    return (
        {"breed": spoken(change.name)} | counts | {"p": f"{pair.p_value:.2g}", "adjusted p": f"{change.adjusted:.2g}"}
    )


def as_markdown(found: Difference, address: Address) -> str:
    runs = [
        f"- {word}: run [{short(record.run_id)}]({address(record)}), `{record.name}`: {accuracy}"
        for (word, record), accuracy in zip(_both(found), found.comparison.accuracies, strict=True)
    ]
    parts = [
        f"**{found.conclusion}**",
        found.photos,
        "\n".join([*runs, f"- change: {found.comparison.pair}"]),
        *found.cautions,
    ]
    parts.append(_piped(_SETTINGS, found.settings) if found.settings else "Nothing was set differently.")
    parts.append(found.about_breeds)
    if found.most_changed:
        parts.append(
            _piped(_COLUMNS, [[_said(change)[column] for column in _COLUMNS] for change in found.most_changed])
        )
    return "\n\n".join([*parts, *found.confusions]) + "\n"


def _piped(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(map(output.piped, (headings, ["---"] * len(headings), *rows)))


def as_csv(found: Difference) -> str:
    """Every breed, the most changed first."""
    with io.StringIO() as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(
            [
                "first",
                "second",
                "split",
                "breed",
                "n",
                "first_right",
                "second_right",
                "gained",
                "lost",
                "p",
                "adjusted_p",
            ]
        )
        for change in found.comparison.changes:
            pair, runs = change.pair, (found.first.run_id, found.second.run_id)
            counts = pair.n, change.before, change.after, pair.gained, pair.lost
            writer.writerow(
                [
                    *runs,
                    found.comparison.split,
                    spoken(change.name),
                    *counts,
                    f"{pair.p_value:.6g}",
                    f"{change.adjusted:.6g}",
                ]
            )
        return file.getvalue()


def as_html(found: Difference, address: Address) -> str:
    """One page that needs nothing else: what is to be said, a picture, and every breed."""
    runs = (
        [
            cell(word),
            cell(link(short(record.run_id), address(record)), "run"),
            cell(escape(record.name), "attempt"),
            cell(escape(str(accuracy)), "result"),
        ]
        for (word, record), accuracy in zip(_both(found), found.comparison.accuracies, strict=True)
    )
    kinds = ("", *["number"] * (len(_COLUMNS) - 1))
    breeds = (
        [cell(escape(_said(change)[column]), kind) for column, kind in zip(_COLUMNS, kinds, strict=True)]
        for change in found.comparison.changes
    )
    settings = ([cell(escape(text)) for text in row] for row in found.settings)
    parts = [
        f"<p><b>{escape(found.conclusion)}</b></p>",
        _paragraph(found.photos),
        table(("", "run", "attempt", "accuracy"), runs),
        _paragraph(f"{found.comparison.pair}."),
        *map(_paragraph, found.cautions),
        "<h2>What was set differently</h2>",
        table(_SETTINGS, settings) if found.settings else _paragraph("Nothing."),
        "<h2>Breeds</h2>",
        _paragraph(found.about_breeds),
        f"<figure>{svg(draw(found), 'how many photos of each breed are right')}</figure>" if found.most_changed else "",
        *map(_paragraph, found.confusions),
        table(_COLUMNS, breeds),
    ]
    return page(f"run {short(found.first.run_id)} beside run {short(found.second.run_id)}", "".join(parts))


def _paragraph(said: str) -> str:
    return f"<p>{escape(said)}</p>"


def draw(found: Difference) -> "Figure":
    """The most changed breeds, before and after, beside how many breeds changed by how much: the most changed of many always look striking."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    named = found.most_changed
    figure = Figure(figsize=(9, 1.2 + 0.28 * max(len(named), 6)), layout="constrained")
    breeds, all_of_them = figure.subplots(1, 2, width_ratios=(3, 2))
    for row, change in enumerate(named):
        before, after = 100 * change.before / change.pair.n, 100 * change.after / change.pair.n
        colour = _colour(change.net)
        breeds.plot([before, after], [row, row], color=colour, lw=2, solid_capstyle="round")
        breeds.plot(before, row, "o", color="white", mec=colour, ms=6, label="first" if row == 0 else "_")
        breeds.plot(after, row, "o", color=colour, ms=6, label="second" if row == 0 else "_")
    breeds.set(
        xlim=(-3, 103), xlabel=f"photos of {found.comparison.split} that are right (%)", ylim=(len(named) - 0.4, -0.6)
    )
    breeds.set_yticks(range(len(named)), [literal(spoken(change.name)) for change in named])
    breeds.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    counts = Counter(change.net for change in found.comparison.changes)
    all_of_them.bar(list(counts), list(counts.values()), color=[_colour(net) for net in counts])
    all_of_them.set(xlabel="photos more that are right", ylabel="breeds")
    for axis in (all_of_them.xaxis, all_of_them.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    for axes in (breeds, all_of_them):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        axes.set_axisbelow(True)
    return figure


def _colour(net: int) -> str:
    return _BETTER if net > 0 else _WORSE if net < 0 else _SAME
