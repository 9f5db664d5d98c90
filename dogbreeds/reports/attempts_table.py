"""Tables of attempts: measured results compared with the guide's claims."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from dogbreeds.core.text import duration_text
from dogbreeds.evaluation.metrics import PairedOutcome
from dogbreeds.reports import baseline_note
from dogbreeds.reports.attempt_row import COLUMNS, AttemptRow
from dogbreeds.reports.claims import NOT_TESTED, ClaimCheck
from dogbreeds.reports.published_claims import ALWAYS_LISTED, CLAIMS
from dogbreeds.reports.run_figures import ComparedRun
from dogbreeds.tracking.records import NOT_IN_RUN_KEY, Record

# Returns the outcome of two runs on the same images, the first one first; None if predictions are missing.
PairRuns = Callable[[Record, Record], PairedOutcome | None]

# Runs are in the same table if these params are equal.
_TABLE_PARAMS = (
    "model.architecture",
    "model.image_size",
    "model.weights",
    "data.name",
    "data.classes",
    "data.images.train",
    "data.images.val",
)
_HEADINGS = {
    "lr": "learning rate",
    "unfrozen": "layers unfrozen",
    "interval": "95 % interval",
    "claimed": "claimed result",
}


@dataclass(frozen=True)
class AttemptsTable:
    """The attempts on one model and one data set.

    Attributes:
        model: the architecture.
        data: the data set, its number of classes and of training images, as text.
        rows: one per attempt, or one per run.
        run_count: number of finished runs on this model and data set. Some may be in no row.
    """

    model: str
    data: str
    rows: tuple[AttemptRow, ...]
    run_count: int

    @property
    def title(self) -> str:
        """The table's heading."""
        return f"{self.model} on {self.data}"

    def text_rows(self, columns: Sequence[str] = COLUMNS) -> list[list[str]]:
        """Format the table.

        Args:
            columns: names out of `COLUMNS`.

        Returns:
            The headings, then one list of cells per row.
        """
        headings = [_HEADINGS.get(column, column) for column in columns]
        cells = [row.cells() for row in self.rows]
        return [headings, *([row[column] for column in columns] for row in cells)]

    def notes(self) -> list[str]:
        """Describe the outcome of each claim, the runs that are in no row, and the zero-shot baseline."""
        records = [record for row in self.rows for record in row.records]
        return [
            *self._outcome_notes(),
            *self._accuracy_notes(),
            *self._unlisted_runs_notes(),
            *baseline_note.notes(records),
        ]

    def _outcome_notes(self) -> list[str]:
        checks = [(row.attempt, row.outcome_check) for row in self.rows]
        return [
            f"{name}: the claimed {'difference' if CLAIMS[name].against else 'verdict'} is {check.status}:"
            f" {check.reason}."
            for name, check in checks
            if check is not None
        ]

    def _accuracy_notes(self) -> list[str]:
        """One sentence per tested accuracy, and one for a source's untested ones, which mostly share the reason."""
        checks = [
            (CLAIMS[row.attempt].setup.source, row.attempt, check)
            for row in self.rows
            if (check := row.accuracy_check) is not None and CLAIMS[row.attempt].accuracy is not None
        ]
        found = [
            f"{name}: the accuracy that {source} reports is {check.status}: {check.reason}."
            for source, name, check in checks
            if check.status != NOT_TESTED
        ]
        untested: dict[str, list[tuple[str, ClaimCheck]]] = {}
        for source, name, check in checks:
            if check.status == NOT_TESTED:
                untested.setdefault(source, []).append((name, check))
        for source, named in untested.items():
            example, check = next((pair for pair in named if pair[0] == "frozen"), named[0])
            names = ", ".join(name for name, _ in named)
            found.append(f"The accuracies of {source} are not tested here ({names}). For {example}: {check.reason}.")
        return found

    def _unlisted_runs_notes(self) -> list[str]:
        unlisted = self.run_count - sum(len(row.records) for row in self.rows)
        if not unlisted:
            return []
        runs = "1 other run is" if unlisted == 1 else f"{unlisted} other runs are"
        return [
            f"{runs} not listed: older runs, and runs of no named attempt. Type python -m dogbreeds.table runs=all to"
            " list them."
        ]

    def of_runs_only(self) -> "AttemptsTable":
        """Return the table without attempts that were not run; runs of no named attempt in the order of their start."""
        rows = [row for row in self.rows if row.records]
        unnamed = sorted((row for row in rows if row.attempt not in CLAIMS), key=lambda row: row.records[0].started)
        return replace(self, rows=(*(row for row in rows if row.attempt in CLAIMS), *unnamed))

    def compared_runs(self) -> list[ComparedRun]:
        """Return the runs of all rows as figures show them."""
        rows = Counter(row.attempt for row in self.rows)
        return [
            # Rows of the same attempt differ in their settings, which the runs' names have.
            ComparedRun.of(row.attempt if rows[row.attempt] == 1 else record.name, record, history)
            for row in self.rows
            for record, history in zip(row.records, row.histories, strict=True)
        ]

    def cost(self) -> str:
        """Say what the runs took; empty if none of them recorded it."""
        seconds = [record.metrics.get("seconds/total", 0.0) for row in self.rows for record in row.records]
        before = [record.metrics.get("seconds/features", 0.0) for row in self.rows for record in row.records]
        if not sum(seconds):
            return ""
        runs = "1 run" if len(seconds) == 1 else f"{len(seconds)} runs"
        return (
            f"Cost: {runs} in {duration_text(sum(seconds))}, of which {duration_text(sum(before))} before the first"
            f" epochs, where features are computed or read from the cache; the longest run took"
            f" {duration_text(max(seconds))}."
        )


def missing_attempts(tables: Sequence[AttemptsTable]) -> str:
    """Name the attempts that are in no table, and the command that runs the first; empty if all are there."""
    missing = [name for name in CLAIMS if not any(row.attempt == name for table in tables for row in table.rows)]
    if not missing:
        return ""
    return f"Not tested here: {', '.join(missing)}: not run. Type python -m dogbreeds.train attempt={missing[0]}."


def build_tables(
    records: Sequence[Record],
    history: Callable[[str], Sequence[float]],
    pair: PairRuns = lambda first, second: None,
    all_runs: bool = False,
) -> list[AttemptsTable]:
    """Group finished runs into tables, one per model and data set, with the guide's attempts in its order.

    Args:
        records: finished runs, newest first.
        history: returns validation accuracy by epoch, in [0, 1], for a run's id.
        pair: compares two runs image by image.
        all_runs: give each run its own row. Otherwise a row holds the newest run of each seed of an attempt.
    """
    groups: dict[tuple[str, ...], list[Record]] = {}
    for record in records:
        groups.setdefault(tuple(record.params.get(key, "") for key in _TABLE_PARAMS), []).append(record)
    return [
        AttemptsTable(
            model=group[0].params["model.architecture"],
            data=_describe_data(group[0]),
            rows=_rows(group, history, pair, all_runs),
            run_count=len(group),
        )
        for group in groups.values()
    ]


def _describe_data(record: Record) -> str:
    return (
        f"{record.params['data.name']}, {record.params['data.classes']} classes,"
        f" {int(record.params['data.images.train']):,} training images"
    )


def _setup_overrides(record: Record) -> str:
    """The overrides that choose a run's model and data set."""
    values = {group: record.tags.get(f"choice.{group}", "") for group in ("model", "data")}
    values |= {key: record.params.get(key, "null") for key in ("data.root", "model.weights")}
    return " ".join(
        f"{key}={value}" for key, value in values.items() if value not in ("", "null", "shipped", "imagenet")
    )


def _rows(
    records: Sequence[Record], history: Callable[[str], Sequence[float]], pair: PairRuns, all_runs: bool
) -> tuple[AttemptRow, ...]:
    by_name: dict[str, list[Record]] = {name: [] for name in ALWAYS_LISTED}
    for record in records:
        name = record.tags.get("choice.attempt") or (record.name if all_runs else None)
        if name is not None:
            by_name.setdefault(name, []).append(record)
    setup = _setup_overrides(records[0])
    newest = {name: _newest_by_seed(runs) for name, runs in by_name.items()}
    return tuple(
        AttemptRow(
            attempt=name,
            records=tuple(group),
            histories=tuple(tuple(history(record.run_id)) for record in group),
            setup=setup,
            pairs=_pairs(group, newest.get(CLAIMS[name].against, []), pair) if name in CLAIMS else (),
        )
        for name, runs in by_name.items()
        for group in ([[record] for record in runs] if all_runs and runs else [newest[name]])
    )


def _pairs(records: Sequence[Record], others: Sequence[Record], pair: PairRuns) -> tuple[PairedOutcome, ...]:
    """Compare runs of an attempt with those of another one that have the same seed."""
    by_seed = {record.params["seed"]: record for record in others if "attempt.changed" not in record.tags}
    found = [pair(by_seed[seed], record) for record in records if (seed := record.params["seed"]) in by_seed]
    return tuple(outcome for outcome in found if outcome is not None)


def _newest_by_seed(records: Sequence[Record]) -> list[Record]:
    """The newest run of each seed, out of the runs with the newest run's settings. Unchanged attempts come first."""
    ranked = sorted(records, key=lambda record: "attempt.changed" in record.tags)
    newest: dict[str, Record] = {}
    for record in ranked:
        if _differs_by_seed_only(record, ranked[0]):
            newest.setdefault(record.params["seed"], record)
    return list(newest.values())


def _differs_by_seed_only(record: Record, other: Record) -> bool:
    """Whether the results of two runs of an attempt may be averaged."""
    different = {
        key for key in record.params.keys() | other.params.keys() if record.params.get(key) != other.params.get(key)
    }
    return all(
        key.startswith(("seed", "key", "overrides", "data.fingerprint", "data.split_seed", *NOT_IN_RUN_KEY))
        for key in different
    )
