"""Attempts side by side, with the guide's claims beside what was measured."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from dogbreeds.evaluation.metrics import Proportion
from dogbreeds.reports import baseline_note
from dogbreeds.reports.claims import CLAIMS, NOT_TESTED, Tested, number_claim, verdict_claim
from dogbreeds.tracking.records import ELSEWHERE, RANKING, Record

_GUIDE = tuple(name for name in CLAIMS if not name.startswith("resnet50"))


@dataclass(frozen=True)
class Row:
    """A line of the table: an attempt on one model and data set, as often as it was run with different seeds.

    Attributes:
        attempt: its name, or the run's where it is none of the guide's.
        records: one a seed, the newest first; none where it was not run.
        histories: validation accuracy by epoch of each.
        setup: the table's model and data, as one types them.
    """

    attempt: str
    records: tuple[Record, ...]
    histories: tuple[tuple[float, ...], ...]
    setup: str = ""

    @property
    def changed(self) -> str:
        return next((record.tags["attempt.changed"] for record in self.records if "attempt.changed" in record.tags), "")

    @property
    def best(self) -> tuple[float, ...]:
        """Best validation accuracy of each seed that finished an epoch."""
        return tuple(record.metrics[RANKING] for record in self.records if RANKING in record.metrics)

    @property
    def claim(self) -> Tested | None:
        """What became of the claim on the verdict; None where the guide makes none."""
        if self.attempt not in CLAIMS:
            return None
        return verdict_claim(
            CLAIMS[self.attempt], [record.tags["verdict"] for record in self.records], self.changed, self.setup
        )

    @property
    def number(self) -> Tested | None:
        """What became of the claim on the number."""
        if self.attempt not in CLAIMS:
            return None
        return number_claim(
            CLAIMS[self.attempt], self.records[0].params if self.records else {}, self.best, self.changed
        )

    def cells(self) -> dict[str, str]:
        """Text by column."""
        claim = CLAIMS.get(self.attempt)
        said = {
            "attempt": self.attempt,
            "guide": claim.says if claim else "–",
            "claim": self.claim.status if self.claim else "–",
        }
        if not self.records:
            return dict.fromkeys(COLUMNS, "–") | said
        params = self.records[0].params
        n = int(params["data.photos.val"])
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
            "interval": self._interval(n),
            "verdict": _counted(record.tags["verdict"].replace("_", " ") for record in self.records),
        }

    def _interval(self, n: int) -> str:
        """The 95 % interval of the mean on n photos: the seeds share them, and do not make them more."""
        if not self.best:
            return "–"
        low, high = Proportion(round(n * sum(self.best) / len(self.best)), n).interval
        return f"{100 * low:.1f}–{100 * high:.1f}"

    def _result(self) -> str:
        """The best validation accuracy, and after a collapse what was left of it; with several seeds their mean and range."""
        if not self.best:
            return "–"

        def mean(values: Sequence[float]) -> str:
            return f"{100 * sum(values) / len(values):.1f}"

        fell = all(record.tags["verdict"] == "collapsed" for record in self.records)
        shown = mean(self.best) + (f" → {mean([history[-1] for history in self.histories])}" if fell else "") + " %"
        if len(self.best) > 1:
            shown += f" ({100 * min(self.best):.1f}–{100 * max(self.best):.1f}, {len(self.best)} seeds)"
        return shown


# What runs must have in common to stand in one table.
_SETUP = (
    "model.architecture",
    "model.image_size",
    "model.weights",
    "data.name",
    "data.classes",
    "data.photos.train",
    "data.photos.val",
)
COLUMNS = (
    "attempt",
    "phase",
    "pixels",
    "lr",
    "unfrozen",
    "BatchNorm",
    "result",
    "n",
    "interval",
    "verdict",
    "guide",
    "claim",
)
_HEADINGS = {"lr": "learning rate", "unfrozen": "layers unfrozen", "interval": "95 % interval", "guide": "guide says"}


@dataclass(frozen=True)
class Table:
    """The attempts on one model and one data set."""

    model: str
    data: str
    rows: tuple[Row, ...]
    # That have finished; some stand in none of the rows
    runs: int

    @property
    def title(self) -> str:
        return f"{self.model} on data {self.data}"

    def lines(self, columns: Sequence[str] = COLUMNS) -> list[list[str]]:
        """Cells by row; the headings come first."""
        cells = [row.cells() for row in self.rows]
        return [
            [_HEADINGS.get(column, column) for column in columns],
            *([row[column] for column in columns] for row in cells),
        ]

    def notes(self) -> list[str]:
        """What became of each claim, in a sentence; of the guide's numbers, once where none could be tested for the same reason; and what the
        results must be held against."""
        notes = []
        for row in self.rows:
            if row.claim is not None:
                notes.append(f"{row.attempt}: the verdict is {row.claim.status}: {row.claim.why}.")
        numbers = [(row.attempt, row.number) for row in self.rows if row.number is not None]
        tested = [
            f"{name}: the guide's number is {number.status}: {number.why}."
            for name, number in numbers
            if number.status != NOT_TESTED
        ]
        untested = [(name, number) for name, number in numbers if number.status == NOT_TESTED]
        if untested:
            name, number = next(((name, number) for name, number in untested if name == "frozen"), untested[0])
            tested.append(
                f"The guide's numbers are not tested here ({', '.join(name for name, _ in untested)}); of {name}:"
                f" {number.why}."
            )
        others = self.runs - sum(len(row.records) for row in self.rows)
        if others:
            runs = "1 other run is" if others == 1 else f"{others} other runs are"
            tested.append(
                f"{runs} not among these: older ones, and those of no attempt's name. Type python -m dogbreeds.table"
                " runs=all."
            )
        return notes + tested + baseline_note.note([record for row in self.rows for record in row.records])

    def histories(self) -> dict[str, tuple[tuple[float, ...], ...]]:
        found: dict[str, tuple[tuple[float, ...], ...]] = {}
        for row in self.rows:
            if any(row.histories):
                found[row.attempt] = found.get(row.attempt, ()) + row.histories
        return found


def not_run(found: "Sequence[Table]") -> str:
    """Which of the guide's claims stand in no table, and what to type; empty where all do."""
    absent = [name for name in CLAIMS if not any(row.attempt == name for table in found for row in table.rows)]
    command = f"python -m dogbreeds.train --multirun attempt={','.join(absent)}"
    return f"Not tested here: {', '.join(absent)}: not run. Type {command}." if absent else ""


def tables(records: Sequence[Record], history: Callable[[str], Sequence[float]], each: bool = False) -> list[Table]:
    """Puts finished attempts into tables, one a model and data set, the guide's attempts in its order.

    Args:
        records: the newest first.
        history: validation accuracy by epoch, of a run's id.
        each: whether every run has a line; else only the newest of each of the guide's attempts and seeds, seeds together.
    """
    found: dict[tuple[str, ...], list[Record]] = {}
    for record in records:
        found.setdefault(tuple(record.params.get(key, "") for key in _SETUP), []).append(record)
    return [
        Table(those[0].params["model.architecture"], _data(those[0]), _rows(those, history, each), len(those))
        for those in found.values()
    ]


def _data(record: Record) -> str:
    return (
        f"{record.params['data.name']}, {record.params['data.classes']} classes,"
        f" {int(record.params['data.photos.train']):,} photos to train on"
    )


def _as_typed(record: Record) -> str:
    """The model and data of a run, as one types them."""
    values = {group: record.tags.get(f"choice.{group}", "") for group in ("model", "data")}
    values |= {key: record.params.get(key, "null") for key in ("data.root", "model.weights")}
    return " ".join(
        f"{key}={value}" for key, value in values.items() if value not in ("", "null", "shipped", "imagenet")
    )


def _rows(records: Sequence[Record], history: Callable[[str], Sequence[float]], each: bool) -> tuple[Row, ...]:
    named: dict[str, list[Record]] = {name: [] for name in _GUIDE}
    for record in records:
        name = record.tags.get("choice.attempt") or (record.name if each else None)
        if name is not None:
            named.setdefault(name, []).append(record)
    return tuple(
        Row(name, tuple(lot), tuple(tuple(history(record.run_id)) for record in lot), _as_typed(records[0]))
        for name, those in named.items()
        for lot in ([[record] for record in those] if each and those else [_one_a_seed(those)])
    )


def _one_a_seed(records: Sequence[Record]) -> list[Record]:
    """The newest of each seed, of those that are set up as the newest of all is; what was changed comes after what it is named after."""
    records = sorted(records, key=lambda record: "attempt.changed" in record.tags)
    chosen: dict[str, Record] = {}
    for record in records:
        if _alike(record, records[0]):
            chosen.setdefault(record.params["seed"], record)
    return list(chosen.values())


def _alike(record: Record, newest: Record) -> bool:
    """Whether two runs of an attempt differ in nothing but the seed, so that they may be averaged."""
    different = {
        key for key in record.params.keys() | newest.params.keys() if record.params.get(key) != newest.params.get(key)
    }
    return all(
        key.startswith(("seed", "key", "overrides", "data.fingerprint", "data.split_seed", *ELSEWHERE))
        for key in different
    )


def _counted(names: Iterable[str]) -> str:
    counts = Counter(names)
    return ", ".join(name if len(counts) == 1 else f"{name} ({count})" for name, count in counts.items())
