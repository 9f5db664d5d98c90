"""Tables of attempts: measured results compared with the guide's claims."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from dogbreeds.evaluation.metrics import Proportion
from dogbreeds.reports import baseline_note
from dogbreeds.reports.claims import CLAIMS, NOT_TESTED, ClaimCheck, check_accuracy, check_verdict, claim_status
from dogbreeds.tracking.records import NOT_IN_RUN_KEY, RANKING_METRIC, REFERENCE_METRIC, Record

# Attempts that have a row in every table. Those on ResNet50 have one where they were run.
_GUIDE_ATTEMPTS = tuple(name for name in CLAIMS if not name.startswith("resnet50"))

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
    "reference",
    "verdict",
    "guide",
    "claim",
)
_HEADINGS = {
    "lr": "learning rate",
    "unfrozen": "layers unfrozen",
    "interval": "95 % interval",
    "guide": "guide's result",
}


@dataclass(frozen=True)
class AttemptRow:
    """One row of the table: an attempt on one model and data set, with one run per seed.

    Attributes:
        attempt: name of the attempt, or of the run if it belongs to no named attempt.
        records: one run per seed, newest first; empty if the attempt was not run.
        histories: validation accuracy by epoch of each run, in [0, 1].
        setup: overrides that choose the table's model and data set.
    """

    attempt: str
    records: tuple[Record, ...]
    histories: tuple[tuple[float, ...], ...]
    setup: str = ""

    @property
    def changed(self) -> str:
        """Overrides that make the runs differ from the named attempt; empty if there are none."""
        return next((record.tags["attempt.changed"] for record in self.records if "attempt.changed" in record.tags), "")

    @property
    def best_accuracies(self) -> tuple[float, ...]:
        """Best validation accuracy, in [0, 1], of each seed that finished an epoch."""
        return tuple(record.metrics[RANKING_METRIC] for record in self.records if RANKING_METRIC in record.metrics)

    @property
    def reference_accuracy(self) -> float | None:
        """Validation accuracy of the reference probe, in [0, 1], mean over the seeds; None where none was recorded."""
        found = [value for record in self.records if (value := record.metrics.get(REFERENCE_METRIC)) is not None]
        return sum(found) / len(found) if found else None

    @property
    def verdict_check(self) -> ClaimCheck | None:
        """The check of the claimed verdict; None if the guide makes no claim."""
        if self.attempt not in CLAIMS:
            return None
        verdicts = [record.tags["verdict"] for record in self.records]
        return check_verdict(CLAIMS[self.attempt], verdicts, self.changed, self.setup)

    @property
    def accuracy_check(self) -> ClaimCheck | None:
        """The check of the claimed accuracy; None if the guide makes no claim."""
        if self.attempt not in CLAIMS:
            return None
        params = self.records[0].params if self.records else {}
        return check_accuracy(CLAIMS[self.attempt], params, self.best_accuracies, self.changed)

    @property
    def claim_status(self) -> str:
        """What of the guide's claim was reproduced; a dash if it makes none."""
        outcome, number = self.verdict_check, self.accuracy_check
        return claim_status(outcome, number) if outcome is not None and number is not None else "–"

    def cells(self) -> dict[str, str]:
        """Format the row.

        Returns:
            Text by column name, for each of `COLUMNS`.
        """
        claim = CLAIMS.get(self.attempt)
        claim_cells = {
            "attempt": self.attempt,
            "guide": claim.guide_result if claim else "–",
            "claim": self.claim_status,
        }
        if not self.records:
            return dict.fromkeys(COLUMNS, "–") | claim_cells
        params = self.records[0].params
        n = int(params["data.images.val"])
        unfrozen = params["unfreeze.layers_trained"] if params["unfreeze.layers_trained"] != "0" else "0 (frozen)"
        if params["unfreeze.layers_asked"] != params["unfreeze.layers_trained"]:
            unfrozen += f" of {params['unfreeze.layers_asked']} asked"
        return claim_cells | {
            "phase": params["phase"].lower(),
            "pixels": params["preprocessing.mode"],
            "lr": f"{float(params['optimizer.lr']):g}".replace("e-0", "e-"),
            "unfrozen": unfrozen,
            "BatchNorm": params["unfreeze.batchnorm"] if params["unfreeze"] != "Nothing" else "–",
            "result": self._result(),
            "n": f"{n:,}",
            "interval": self._interval(n),
            "reference": f"{100 * self.reference_accuracy:.1f} %" if self.reference_accuracy is not None else "–",
            "verdict": _counted(record.tags["verdict"].replace("_", " ") for record in self.records),
        }

    def _interval(self, n: int) -> str:
        """Format the 95 % interval of the mean accuracy. All seeds share the n images, so it does not narrow."""
        if not self.best_accuracies:
            return "–"
        low, high = Proportion(round(n * sum(self.best_accuracies) / len(self.best_accuracies)), n).interval
        return f"{100 * low:.1f}–{100 * high:.1f}"

    def _result(self) -> str:
        """Format the best accuracy, and the last one after a collapse; for several seeds, their mean and range."""
        best = self.best_accuracies
        if not best:
            return "–"

        def mean(values: Sequence[float]) -> str:
            return f"{100 * sum(values) / len(values):.1f}"

        collapsed = all(record.tags["verdict"] == "collapsed" for record in self.records)
        result = mean(best) + (f" → {mean([history[-1] for history in self.histories])}" if collapsed else "") + " %"
        if len(best) > 1:
            result += f" ({100 * min(best):.1f}–{100 * max(best):.1f}, {len(best)} seeds)"
        return result


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
            *self._verdict_notes(),
            *self._accuracy_notes(),
            *self._unlisted_runs_notes(),
            *baseline_note.notes(records),
        ]

    def _verdict_notes(self) -> list[str]:
        checks = [(row.attempt, row.verdict_check) for row in self.rows]
        return [
            f"{name}: the claimed verdict is {check.status}: {check.reason}."
            for name, check in checks
            if check is not None
        ]

    def _accuracy_notes(self) -> list[str]:
        """One sentence per tested accuracy, and one for all untested ones, which mostly share the reason."""
        checks = [(row.attempt, check) for row in self.rows if (check := row.accuracy_check) is not None]
        found = [
            f"{name}: the guide's accuracy is {check.status}: {check.reason}."
            for name, check in checks
            if check.status != NOT_TESTED
        ]
        untested = [(name, check) for name, check in checks if check.status == NOT_TESTED]
        if untested:
            example, check = next((pair for pair in untested if pair[0] == "frozen"), untested[0])
            names = ", ".join(name for name, _ in untested)
            found.append(f"The guide's accuracies are not tested here ({names}). For {example}: {check.reason}.")
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

    def histories(self) -> dict[str, tuple[tuple[float, ...], ...]]:
        """Collect the learning curves.

        Returns:
            Validation accuracy by epoch of each run, in [0, 1], by attempt. Attempts without an epoch are left out.
        """
        found: dict[str, tuple[tuple[float, ...], ...]] = {}
        for row in self.rows:
            if any(row.histories):
                found[row.attempt] = found.get(row.attempt, ()) + row.histories
        return found


def missing_attempts(tables: Sequence[AttemptsTable]) -> str:
    """Name the guide's attempts that are in no table, and the command that runs them; empty if all are there."""
    missing = [name for name in CLAIMS if not any(row.attempt == name for table in tables for row in table.rows)]
    command = f"python -m dogbreeds.train --multirun attempt={','.join(missing)}"
    return f"Not tested here: {', '.join(missing)}: not run. Type {command}." if missing else ""


def build_tables(
    records: Sequence[Record], history: Callable[[str], Sequence[float]], all_runs: bool = False
) -> list[AttemptsTable]:
    """Group finished runs into tables, one per model and data set, with the guide's attempts in its order.

    Args:
        records: finished runs, newest first.
        history: returns validation accuracy by epoch, in [0, 1], for a run's id.
        all_runs: give each run its own row. Otherwise a row holds the newest run of each seed of an attempt.
    """
    groups: dict[tuple[str, ...], list[Record]] = {}
    for record in records:
        groups.setdefault(tuple(record.params.get(key, "") for key in _TABLE_PARAMS), []).append(record)
    return [
        AttemptsTable(
            model=group[0].params["model.architecture"],
            data=_describe_data(group[0]),
            rows=_rows(group, history, all_runs),
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
    records: Sequence[Record], history: Callable[[str], Sequence[float]], all_runs: bool
) -> tuple[AttemptRow, ...]:
    by_name: dict[str, list[Record]] = {name: [] for name in _GUIDE_ATTEMPTS}
    for record in records:
        name = record.tags.get("choice.attempt") or (record.name if all_runs else None)
        if name is not None:
            by_name.setdefault(name, []).append(record)
    setup = _setup_overrides(records[0])
    return tuple(
        AttemptRow(
            attempt=name,
            records=tuple(group),
            histories=tuple(tuple(history(record.run_id)) for record in group),
            setup=setup,
        )
        for name, runs in by_name.items()
        for group in ([[record] for record in runs] if all_runs and runs else [_newest_by_seed(runs)])
    )


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


def _counted(names: Iterable[str]) -> str:
    counts = Counter(names)
    return ", ".join(name if len(counts) == 1 else f"{name} ({count})" for name, count in counts.items())
