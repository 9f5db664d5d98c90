"""The command `python -m dogbreeds.table`: the guide's table, from what MLflow has, with the claims beside what was measured."""

import contextlib
import csv
import html
import io
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import hydra
from omegaconf import DictConfig

from dogbreeds import command, curves
from dogbreeds.claims import CLAIMS, NOT_TESTED, Tested, number_claim, verdict_claim
from dogbreeds.metrics import Proportion
from dogbreeds.run import part
from dogbreeds.spec import Refused, Spec, home, one_of, text
from dogbreeds.tracking import RANKING, Mlflow, Record

_GUIDE = tuple(name for name in CLAIMS if not name.startswith("resnet50"))
_WIDE = 170  # columns of a text table that is not shown in a terminal


@dataclass(frozen=True, kw_only=True)
class Wanted(Spec):
    """How the table is shown."""

    group = ""
    runs: str = one_of("newest", "all")
    format: str = one_of("text", "markdown", "csv", "html")
    output: str | None = text(example="table.md", optional=True)


@dataclass(frozen=True, kw_only=True)
class Only(Spec):
    """Which runs are in it."""

    group = "only"
    model: str | None = text(example="effnetb0", optional=True)
    data: str | None = text(example="stanford_dogs", optional=True)

    def holds(self, record: Record) -> bool:
        """Whether a run is wanted; a model and data go by the name of their option or by their own."""
        model = {record.params["model.architecture"].lower(), record.tags.get("choice.model", "")}
        data = {record.params["data.name"].lower(), record.tags.get("choice.data", "")}
        return (self.model is None or self.model.lower() in model) and (self.data is None or self.data.lower() in data)

    def __str__(self) -> str:
        return " ".join(f"only.{name}={value}" for name, value in (("model", self.model), ("data", self.data)) if value)


@dataclass(frozen=True)
class Row:
    """A line of the table: an attempt on one model and data set, as often as it was run with different seeds.

    Attributes:
        attempt: its name, or the run's where it is none of the guide's.
        records: one a seed, the newest first; none where it was not run.
        histories: validation accuracy by epoch of each.
    """

    attempt: str
    records: tuple[Record, ...]
    histories: tuple[tuple[float, ...], ...]

    @property
    def changed(self) -> str:
        return next((record.tags["attempt.changed"] for record in self.records if "attempt.changed" in record.tags), "")

    @property
    def best(self) -> tuple[float, ...]:
        return tuple(record.metrics.get(RANKING, 0.0) for record in self.records)

    @property
    def claim(self) -> Tested | None:
        """What became of the claim on the verdict; None where the guide makes none."""
        if self.attempt not in CLAIMS:
            return None
        return verdict_claim(CLAIMS[self.attempt], [record.tags["verdict"] for record in self.records], self.changed)

    @property
    def number(self) -> Tested | None:
        """What became of the claim on the number."""
        if self.attempt not in CLAIMS:
            return None
        return number_claim(CLAIMS[self.attempt], self.records[0].params if self.records else {}, self.best, self.changed)

    def cells(self) -> dict[str, str]:
        """Text by column."""
        claim = CLAIMS.get(self.attempt)
        said = {"attempt": self.attempt, "guide": claim.says if claim else "–", "claim": self.claim.status if self.claim else "–"}
        if not self.records:
            return dict.fromkeys(COLUMNS, "–") | said
        params = self.records[0].params
        n = int(params["data.photos.val"])
        mean = sum(self.best) / len(self.best)
        low, high = Proportion(round(mean * n), n).interval
        unfrozen = params["unfreeze.layers_trained"] if params["unfreeze.layers_trained"] != "0" else "0 (frozen)"
        if params["unfreeze.layers_asked"] != params["unfreeze.layers_trained"]:
            unfrozen += f" of {params['unfreeze.layers_asked']} asked"
        return said | {
            "phase": params["phase"].lower(),
            "pixels": params["preprocessing.mode"],
            "lr": f"{float(params['optimizer.lr']):g}".replace("e-0", "e-"),
            "unfrozen": unfrozen,
            "BatchNorm": params["unfreeze.batchnorm"] if params["unfreeze"] != "Nothing" else "–",
            "result": self._result(),
            "n": f"{n:,}",
            "interval": f"{100 * low:.1f}–{100 * high:.1f}",
            "verdict": _counted(record.tags["verdict"].replace("_", " ") for record in self.records),
        }

    def _result(self) -> str:
        """The best validation accuracy, and after a collapse what was left of it; with several seeds their mean and range."""

        def mean(values: Sequence[float]) -> str:
            return f"{100 * sum(values) / len(values):.1f}"

        fell = all(record.tags["verdict"] == "collapsed" for record in self.records)
        shown = mean(self.best) + (f" → {mean([history[-1] for history in self.histories])}" if fell else "") + " %"
        if len(self.best) > 1:
            shown += f" ({100 * min(self.best):.1f}–{100 * max(self.best):.1f}, {len(self.best)} seeds)"
        return shown


COLUMNS = ("attempt", "phase", "pixels", "lr", "unfrozen", "BatchNorm", "result", "n", "interval", "verdict", "guide", "claim")
_FEWER = ("attempt", "result", "verdict", "guide", "claim")  # where the terminal is narrow
_NUMBERS = ("lr", "n", "interval")
_NARROW = 130  # columns of a terminal that can show all of them
_HEADINGS = {"lr": "learning rate", "unfrozen": "layers unfrozen", "interval": "95 % interval", "guide": "guide says"}


@dataclass(frozen=True)
class Table:
    """The attempts on one model and one data set."""

    model: str
    data: str
    rows: tuple[Row, ...]

    @property
    def title(self) -> str:
        return f"{self.model} on data {self.data}"

    def lines(self, columns: Sequence[str] = COLUMNS) -> list[list[str]]:
        """Cells by row; the headings come first."""
        return [[_HEADINGS.get(column, column) for column in columns], *([row.cells()[column] for column in columns] for row in self.rows)]

    def notes(self) -> list[str]:
        """What became of each claim, in a sentence; of the guide's numbers, once where none could be tested for the same reason."""
        notes = []
        for row in self.rows:
            if row.claim is not None:
                notes.append(f"{row.attempt}: the verdict is {row.claim.status}: {row.claim.why}.")
        numbers = [(row.attempt, row.number) for row in self.rows if row.number is not None]
        tested = [f"{name}: the guide's number is {number.status}: {number.why}." for name, number in numbers if number.status != NOT_TESTED]
        untested = [(name, number) for name, number in numbers if number.status == NOT_TESTED]
        if untested:
            name, number = next(((name, number) for name, number in untested if name == "frozen"), untested[0])
            tested.append(f"The guide's numbers are not tested here ({', '.join(name for name, _ in untested)}); of {name}: {number.why}.")
        return notes + tested

    def histories(self) -> dict[str, tuple[tuple[float, ...], ...]]:
        return {row.attempt: row.histories for row in self.rows if row.histories}


def tables(records: Sequence[Record], history: Callable[[str], Sequence[float]], each: bool = False) -> list[Table]:
    """Puts finished attempts into tables, one a model and data set, the guide's attempts in its order.

    Args:
        records: the newest first.
        history: validation accuracy by epoch, of a run's id.
        each: whether every run has a line; else only the newest of each of the guide's attempts and seeds, seeds together.
    """
    found: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        found.setdefault((record.params["model.architecture"], record.params["data.name"]), []).append(record)
    return [Table(model, data, _rows(those, history, each)) for (model, data), those in found.items()]


def _rows(records: Sequence[Record], history: Callable[[str], Sequence[float]], each: bool) -> tuple[Row, ...]:
    groups: dict[str, list[list[Record]]] = {name: [] for name in _GUIDE}
    for record in records:
        name = record.tags.get("choice.attempt", "")
        if each:
            groups.setdefault(name or record.name, []).append([record])
        elif name:
            groups.setdefault(name, [[]])
            groups[name] = groups[name] or [[]]
            seeds = [other.params["seed"] for other in groups[name][0]]
            if record.params["seed"] not in seeds and (not groups[name][0] or _alike(record, groups[name][0][0])):
                groups[name][0].append(record)
    return tuple(
        Row(name, tuple(lot), tuple(tuple(history(record.run_id)) for record in lot)) for name, lots in groups.items() for lot in lots or [[]]
    )


def _alike(record: Record, newest: Record) -> bool:
    """Whether two runs of an attempt differ in nothing but the seed, so that they may be averaged."""
    different = {key for key in record.params.keys() | newest.params.keys() if record.params.get(key) != newest.params.get(key)}
    own = ("seed", "split_seed", "key", "overrides", "data.fingerprint", "data.split_seed", "tracking.", "features.", "preflight")
    return all(key.startswith(own) for key in different)


def _counted(names: Iterable[str]) -> str:
    counts: dict[str, int] = {}
    for name in names:
        counts[name] = counts.get(name, 0) + 1
    return ", ".join(name if len(counts) == 1 else f"{name} ({count})" for name, count in counts.items())


# --- showing it -------------------------------------------------------------------------------------------------------


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


_COLOURS = {"reproduced": "green", "refuted": "red", NOT_TESTED: "dim"}


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
    return _PAGE.replace("<!--tables-->", "".join(parts))


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


# --- the command ------------------------------------------------------------------------------------------------------


@hydra.main(version_base="1.3", config_path=str(home() / "conf"), config_name="table")
def task(config: DictConfig) -> None:
    """Prints or writes the table."""
    wanted, only = Wanted(**{name: config[name] for name in ("runs", "format", "output")}), Only(**config["only"])
    tracking = part(config, "tracking")
    if not isinstance(tracking, Mlflow):
        raise Refused("tracking=none has no attempts to show. The table is made from what MLflow keeps. Type tracking=mlflow.")
    records = [record for record in tracking.records() if only.holds(record)]
    if not records:
        raise Refused(
            f"Experiment '{tracking.experiment}' has no finished attempt{f' with {only}' if str(only) else ''}. The table needs one at least. "
            "Type make table, or python -m dogbreeds.train attempt=frozen."
        )
    found = tables(records, lambda run_id: tracking.history(run_id, "val/accuracy"), each=wanted.runs == "all")
    _show(found, wanted)


def _show(found: Sequence[Table], wanted: Wanted) -> None:
    if wanted.format == "html":
        shown = as_html(found)
    elif wanted.format == "csv":
        shown = as_csv(found)
    elif wanted.format == "markdown":
        shown = "\n".join(map(as_markdown, found))
    else:
        terminal = sys.stdout.isatty() and wanted.output is None
        shown = "\n".join(as_text(table, os.get_terminal_size().columns if terminal else None) for table in found)
    output = wanted.output or (str(home() / "multirun/table.html") if wanted.format == "html" else None)
    if output is None:
        with contextlib.suppress(BrokenPipeError):
            print(shown, end="")
        return
    path = Path(output).expanduser()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(shown, encoding="utf-8")
    except OSError as error:
        raise Refused(f"{path} cannot be written ({error.strerror}). output must be a file. Type output=table.{wanted.format}.") from error
    print(path)


if __name__ == "__main__":
    command.main(task, "table")
