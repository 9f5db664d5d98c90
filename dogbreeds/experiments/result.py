"""The ways in which an attempt can end."""

from dataclasses import dataclass, field
from pathlib import Path

from dogbreeds.evaluation.metrics import Scores
from dogbreeds.evaluation.results import Epoch, Predictions, Range, ReferenceResult, ZeroShotBaseline
from dogbreeds.evaluation.verdict import Verdict
from dogbreeds.training.state import History


@dataclass(frozen=True)
class Result:
    """A finished attempt, as `fit` returns it.

    Examples:
        >>> result.verdict.name, result.best.number, result.best.val.accuracy.n, result.test.accuracy.n
        ('learned', 2, 120, 120)
        >>> low, high = result.best.val.accuracy.interval
        >>> list(result.history.frame().columns[:3])
        ['train/loss', 'train/accuracy', 'train/top5_accuracy']

    Attributes:
        run_id: MLflow run that it is recorded as; empty with tracking=none.
        folder: folder that it is saved in with tracking=none; else None.
        history: epochs, and the best epoch's weights and predictions.
        predictions: of the best epoch's weights on `val` and, if there is one, `test`; empty without a best epoch.
        test: scores on the test split with the best epoch's weights; None without a test split or a best epoch.
        baseline: zero-training baseline.
        verdict: what happened, with its reason and advice.
        feature_seconds: seconds from the start to the first training step.
        seconds: seconds from the start to the end.
        refitted_test: scores of the network that is saved, where that was fitted again to training and validation
            images, on the test split; else None.
        reference: what the reference probe reaches on the features, or why there is none.
    """

    run_id: str
    folder: Path | None
    history: History
    predictions: dict[str, Predictions]
    test: Scores | None
    baseline: ZeroShotBaseline
    verdict: Verdict
    feature_seconds: float
    seconds: float
    reference: ReferenceResult = field(default_factory=lambda: ReferenceResult("not measured"))
    refitted_test: Scores | None = None

    @property
    def best(self) -> Epoch | None:
        """The epoch with the highest validation accuracy; None if no epoch was completed."""
        return self.history.best

    @property
    def objective(self) -> float:
        """Best validation accuracy in [0, 1], which sweepers maximise; 0 if no epoch was completed."""
        return self.history.best.val.accuracy.value if self.history.best else 0.0


@dataclass(frozen=True)
class Skipped:
    """An attempt that was skipped because another run has finished it: before a sweep, or during a wait for its lock.

    Attributes:
        run_id: MLflow run of that result.
        objective: best validation accuracy of that run, or the learning rate that it suggested; 0 if it has neither.
    """

    run_id: str
    objective: float


@dataclass(frozen=True)
class PrunedResult:
    """An attempt that a search has pruned. Run by itself, the attempt resumes from its checkpoint.

    Attributes:
        objective: best validation accuracy so far, in [0, 1].
    """

    objective: float


# How an attempt can end.
Ending = Result | Range | Skipped | PrunedResult
