"""One row of a table of attempts: what was measured, and the checks of its claims."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dogbreeds.evaluation.metrics import PairedOutcome, Proportion
from dogbreeds.reports.claims import ClaimCheck, check_accuracy, check_difference, check_verdict, claim_status
from dogbreeds.reports.published_claims import CLAIMS
from dogbreeds.tracking.records import RANKING_METRIC, REFERENCE_METRIC, Record

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
    "claimed",
    "claim",
)


@dataclass(frozen=True)
class AttemptRow:
    """One row of the table: an attempt on one model and data set, with one run per seed.

    Attributes:
        attempt: name of the attempt, or of the run if it belongs to no named attempt.
        records: one run per seed, newest first; empty if the attempt was not run.
        histories: validation accuracy by epoch of each run, in [0, 1].
        setup: overrides that choose the table's model and data set.
        pairs: outcome of each seed against the attempt from which it is claimed to differ.
    """

    attempt: str
    records: tuple[Record, ...]
    histories: tuple[tuple[float, ...], ...]
    setup: str = ""
    pairs: tuple[PairedOutcome, ...] = ()

    @property
    def changed(self) -> str:
        """Overrides that make the runs differ from the named attempt; empty if there are none."""
        return next((record.tags["attempt.changed"] for record in self.records if "attempt.changed" in record.tags), "")

    @property
    def best_accuracies(self) -> tuple[float, ...]:
        """Best validation accuracy, in [0, 1], of each seed that finished an epoch."""
        return self._values(RANKING_METRIC)

    def _values(self, metric: str) -> tuple[float, ...]:
        return tuple(record.metrics[metric] for record in self.records if metric in record.metrics)

    @property
    def reference_accuracy(self) -> float | None:
        """Validation accuracy of the reference probe, in [0, 1], mean over the seeds; None where none was recorded."""
        found = [value for record in self.records if (value := record.metrics.get(REFERENCE_METRIC)) is not None]
        return sum(found) / len(found) if found else None

    @property
    def outcome_check(self) -> ClaimCheck | None:
        """The check of the claimed verdict or difference; None if nothing is claimed."""
        claim = CLAIMS.get(self.attempt)
        if claim is None:
            return None
        if claim.against:
            return check_difference(claim, bool(self.records), self.pairs, self.changed, self.setup)
        verdicts = [record.tags["verdict"] for record in self.records]
        return check_verdict(claim, verdicts, self.changed, self.setup)

    @property
    def accuracy_check(self) -> ClaimCheck | None:
        """The check of the claimed accuracy; None if nothing is claimed."""
        claim = CLAIMS.get(self.attempt)
        if claim is None:
            return None
        params = self.records[0].params if self.records else {}
        return check_accuracy(claim, params, self._values(claim.setup.metric), self.changed)

    @property
    def claim_status(self) -> str:
        """What of the claim was reproduced; a dash if nothing is claimed."""
        outcome, number = self.outcome_check, self.accuracy_check
        return claim_status(outcome, number) if outcome is not None and number is not None else "–"

    def cells(self) -> dict[str, str]:
        """Format the row.

        Returns:
            Text by column name, for each of `COLUMNS`.
        """
        claim = CLAIMS.get(self.attempt)
        claim_cells = {
            "attempt": self.attempt,
            "claimed": claim.result if claim else "–",
            "claim": self.claim_status,
        }
        if not self.records:
            return dict.fromkeys(COLUMNS, "–") | claim_cells
        params = self.records[0].params
        n = int(params["data.images.val"])
        unfrozen = params["unfreeze.layers_trained"] if params["unfreeze.layers_trained"] != "0" else "0 (frozen)"
        if params["unfreeze.layers_asked"] != params["unfreeze.layers_trained"]:
            unfrozen += f" of {params['unfreeze.layers_asked']} asked"
        # A logistic regression, which has one only in a fine-tune.
        is_logistic = params.get("head") == "Logistic" and params["phase"] == "Frozen"
        has_no_rate = is_logistic or params["phase"] == "Soup"
        return claim_cells | {
            "phase": params["phase"].lower(),
            "pixels": params["preprocessing.mode"],
            "lr": "–" if has_no_rate else f"{float(params['optimizer.lr']):g}".replace("e-0", "e-"),
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


def _counted(names: Iterable[str]) -> str:
    counts = Counter(names)
    return ", ".join(name if len(counts) == 1 else f"{name} ({count})" for name, count in counts.items())
