"""Refit of a logistic regression: the network that is saved is fitted to training and validation images."""

from dataclasses import dataclass

from dogbreeds.evaluation.metrics import Scores, score
from dogbreeds.evaluation.results import Predictions
from dogbreeds.experiments.prepare import PreparedRun
from dogbreeds.experiments.training_inputs import TrainingInputs
from dogbreeds.models.network import Network
from dogbreeds.tracking.records import REFITTED_TAG
from dogbreeds.tracking.tracking import Tracker
from dogbreeds.training import logistic
from dogbreeds.training.loop import predict
from dogbreeds.training.rows import Rows
from dogbreeds.training.state import History


@dataclass(frozen=True)
class Refit:
    """The network that is saved in the place of the one that the verdict is about.

    Attributes:
        network: the same but for the head's weights.
        test: its scores on the test split; None without one.
    """

    network: Network
    test: Scores | None

    def metrics(self) -> dict[str, float]:
        """Return the scores by metric name."""
        if self.test is None:
            return {}
        return {"refitted/test_accuracy": self.test.accuracy.value, "refitted/test_loss": self.test.loss}


def refit(prepared: PreparedRun, history: History, inputs: TrainingInputs, val: Rows, tracker: Tracker) -> Refit | None:
    """Fit the head of a logistic regression again, at the chosen `C`, to training and validation images.

    What it predicts on the test split is recorded, since that is what the saved network must give.

    Args:
        prepared: run that was fitted.
        history: result of the fit.
        inputs: of its network.
        val: validation rows.
        tracker: of the run.

    Returns:
        The refitted network; None if the run has another head, or a setting says no.
    """
    head = prepared.run.logistic_head
    if head is None or not head.refit or history.best is None:
        return None
    rows = [*inputs.train_copies(), val]
    strength = float(history.best.strength or 0)
    network = logistic.refitted(prepared.network, head, rows, strength, inputs.class_weights())
    tracker.tags({REFITTED_TAG: "train and val"})
    test = None
    if prepared.dataset.test is not None:
        tested = inputs.rows(prepared.dataset.test)
        ids = [prepared.dataset.test.source.ids[row] for row in tested.indices]
        logits = predict(network, tested)
        tracker.refitted_predictions("test", Predictions(ids, tested.labels, logits, prepared.dataset.class_names))
        test = score(logits, tested.labels)
    return Refit(network, test)
