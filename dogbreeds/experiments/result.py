"""How an attempt may end."""

from dataclasses import dataclass

from dogbreeds.evaluation.metrics import Scores
from dogbreeds.evaluation.results import ZeroShotBaseline
from dogbreeds.evaluation.verdict import Verdict
from dogbreeds.training.state import History


@dataclass(frozen=True)
class Result:
    """What an attempt measured, and the id that it is recorded under."""

    run_id: str
    outcome: History
    test: Scores | None
    untrained: ZeroShotBaseline
    verdict: Verdict
    feature_seconds: float
    seconds: float

    @property
    def objective(self) -> float:
        """The best validation accuracy, for sweepers; 0 where no epoch was finished."""
        return self.outcome.best.val.accuracy.value if self.outcome.best else 0.0


@dataclass(frozen=True)
class Skipped:
    """An attempt of a sweep that was finished before.

    Attributes:
        run_id: what it is recorded under.
        objective: its best validation accuracy, or the rate that it suggested; 0 where there is none.
    """

    run_id: str
    objective: float


@dataclass(frozen=True)
class PrunedResult:
    """An attempt that a search has pruned. Asked for by itself, it goes on from its checkpoint.

    Attributes:
        objective: its best validation accuracy so far.
    """

    objective: float
