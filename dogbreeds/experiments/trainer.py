"""What fits the network of a run: the training loop, a logistic regression, or the average of fine-tunes."""

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path

from dogbreeds.core.errors import UserError
from dogbreeds.experiments.prepare import PreparedRun
from dogbreeds.experiments.training_inputs import TrainingInputs
from dogbreeds.tracking.mlflow_backend import Mlflow
from dogbreeds.tracking.records import short
from dogbreeds.training.logistic import fit_logistic
from dogbreeds.training.loop import fit
from dogbreeds.training.phase import Soup, Training
from dogbreeds.training.soup import Weights, make_soup, matching_weights, weights_by_layer
from dogbreeds.training.state import History


def trainer(prepared: PreparedRun, phase: Training, inputs: TrainingInputs) -> Callable[..., History]:
    """Return the function that fits a run's network, which takes what all of them take: see `loop.fit`.

    Args:
        prepared: the run.
        phase: of the run.
        inputs: of its network.

    Raises:
        UserError: a member of a soup has no saved network, or one that does not fit.
    """
    run = prepared.run
    if isinstance(phase, Soup):
        return functools.partial(make_soup, prepared.network, phase, _members(prepared, phase), train=inputs.train(0))
    head = run.logistic_head
    if head is not None:
        return functools.partial(
            fit_logistic, prepared.network, head, train=inputs.train_copies(), monitor=phase.monitor
        )
    return functools.partial(
        fit,
        prepared.network,
        train=inputs.train,
        phase=phase,
        optimizer=run.optimizer,
        schedule=run.schedule,
        seed=run.seed,
        save_steps=run.checkpoint_steps,
        steps_per_execution=run.steps_per_execution,
        precision=run.precision,
        label_smoothing=run.loss.label_smoothing,
        ema_decay=run.ema.decay,
        mix=run.mix,
    )


def _members(prepared: PreparedRun, phase: Soup) -> list[Weights]:
    """Return the weights of the members of a soup, from their saved networks."""
    from dogbreeds.inference.classifier import load

    tracking = prepared.run.tracking
    if not isinstance(tracking, Mlflow):
        raise UserError(
            "phase=soup was given with tracking=none. A soup averages networks that MLflow has. Type tracking=mlflow."
        )
    found = []
    for run_id in phase.members:
        with tempfile.TemporaryDirectory() as folder:
            saved = weights_by_layer([load(tracking.download_network(run_id, Path(folder))).model])
        found.append(matching_weights(prepared.network, saved, short(run_id)))
    return found
