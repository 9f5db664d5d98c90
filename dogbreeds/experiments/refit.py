"""Refit: the network that is saved is fitted to training and validation images."""

from dataclasses import dataclass

from dogbreeds.evaluation.metrics import Scores, score
from dogbreeds.evaluation.results import Predictions
from dogbreeds.experiments.prepare import PreparedRun
from dogbreeds.experiments.soup_refit import refit_soup
from dogbreeds.experiments.training_inputs import TrainingInputs
from dogbreeds.models.network import Network
from dogbreeds.tracking.records import REFITTED_TAG
from dogbreeds.tracking.tracking import Tracker
from dogbreeds.training import logistic
from dogbreeds.training.loop import predict
from dogbreeds.training.phase import Soup
from dogbreeds.training.rows import Rows
from dogbreeds.training.state import History


@dataclass(frozen=True)
class Refit:
    """The network that is saved in the place of the one that the verdict is about.

    Attributes:
        network: the same but for weights of what trained.
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
    """Fit a logistic regression, or the fine-tunes of a soup, again to training and validation images.

    What the network predicts on the test split is recorded, since that is what the saved network must give.

    Args:
        prepared: run that was fitted.
        history: result of the fit.
        inputs: of its network.
        val: validation rows.
        tracker: of the run.

    Returns:
        The refitted network; None if the run has neither, or a setting says no.
    """
    network = _refitted(prepared, history, inputs, val)
    if network is None:
        return None
    tracker.tags({REFITTED_TAG: "train and val"})
    test = None
    if prepared.dataset.test is not None:
        tested = inputs.rows(prepared.dataset.test)
        ids = [prepared.dataset.test.source.ids[row] for row in tested.indices]
        logits = predict(network, tested)
        tracker.refitted_predictions("test", Predictions(ids, tested.labels, logits, prepared.dataset.class_names))
        test = score(logits, tested.labels)
    return Refit(network, test)


def _refitted(prepared: PreparedRun, history: History, inputs: TrainingInputs, val: Rows) -> Network | None:
    head, phase = prepared.run.logistic_head, prepared.run.phase
    if history.best is None:
        return None
    if isinstance(phase, Soup):
        return refit_soup(prepared, phase, history) if phase.refit else None
    if head is None or not head.refit:
        return None
    rows = [*inputs.train_copies(), val]
    return logistic.refitted(prepared.network, head, rows, float(history.best.strength or 0), inputs.class_weights())
