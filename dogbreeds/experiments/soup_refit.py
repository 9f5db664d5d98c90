"""Refit of a soup: its fine-tunes train again, on training and validation images, and are averaged as they were."""

import functools
import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import numpy as np

from dogbreeds.core.text import counted
from dogbreeds.evaluation.results import Epoch
from dogbreeds.experiments import network_pool, resume
from dogbreeds.experiments.compose import from_config
from dogbreeds.experiments.network_pool import PooledNetwork
from dogbreeds.experiments.parents import load_parent
from dogbreeds.experiments.prepare import PreparedRun, build_network
from dogbreeds.experiments.recorded_runs import recorded_config
from dogbreeds.experiments.run import Run
from dogbreeds.experiments.trainer import trainer
from dogbreeds.experiments.training_inputs import TrainingInputs
from dogbreeds.models.network import Network
from dogbreeds.tracking.mlflow_backend import Mlflow
from dogbreeds.tracking.records import Record, short
from dogbreeds.training.checkpoint import Checkpoints
from dogbreeds.training.phase import Finetune, Soup
from dogbreeds.training.soup import Mixer, matching_weights, mixed_members, weights_by_layer
from dogbreeds.training.state import History, TrainingState

log = logging.getLogger(__name__)


def refit_soup(prepared: PreparedRun, phase: Soup, history: History) -> Network | None:
    """Train the fine-tunes that a soup averages again, as long as before, on training and validation images.

    Each has checkpoints of its own, from which an interrupted refit is resumed.

    Args:
        prepared: run of the soup.
        phase: its settings.
        history: its candidates.

    Returns:
        A network with their average, interpolated with the parent as in the best candidate; None if a loss was not
        finite.
    """
    tracking, best = prepared.run.tracking, history.best
    assert isinstance(tracking, Mlflow)
    assert best is not None
    chosen = [phase.members[member] for member in mixed_members(best.number - 1, history.epochs, phase)]
    images = sum(len(prepared.dataset.splits[name].rows) for name in ("train", "val"))
    log.info(
        "the network to save: %s again, on train and val (%s images)", counted(len(chosen), "fine-tune"), f"{images:,}"
    )
    trained = {}
    for number, run_id in enumerate(chosen, 1):
        record = tracking.record(run_id)
        weights = _trained_again(prepared, tracking, record, f"{number} of {len(chosen)}")
        if weights is None:
            return None
        trained[run_id] = weights
    pooled = _new_network(prepared, prepared.run)
    # A member with fewer unfrozen layers has the parent's weights in the others.
    parent = weights_by_layer(pooled.network.layers)
    members = [matching_weights(pooled.network, parent | weights, short(run_id)) for run_id, weights in trained.items()]
    rows = TrainingInputs(prepared.run, prepared.dataset, pooled.network).train_and_val(0)
    Mixer(pooled.network, phase.batch_size, rows).mix(members, best.soup_share or 1.0)
    return pooled.network


def _trained_again(
    prepared: PreparedRun, tracking: Mlflow, record: Record, which: str
) -> dict[str, list[np.ndarray]] | None:
    """Return the weights of a fine-tune that trained again, by layer; None if a loss was not finite."""
    run = _settings(prepared, tracking, record)
    epochs = int(record.metrics["best/epoch"])
    pooled = _new_network(prepared, run)
    folder = prepared.checkpoints.folder / f"refit-{record.run_id}"
    again = replace(prepared, run=run, pooled=pooled, checkpoints=Checkpoints(folder))
    inputs = TrainingInputs(run, prepared.dataset, pooled.network)

    def on_epoch(epoch: Epoch) -> None:
        log.info("fine-tune %s again, epoch %d/%d: train loss %.4f", which, epoch.number, epochs, epoch.train_loss)

    def stop(finished: Sequence[Epoch]) -> str | None:
        return "as long as before" if len(finished) >= epochs else None

    # The images that would end training are among those that it trains on.
    phase = replace(cast(Finetune, run.phase), patience_epochs=None)
    state = resume.stored_state(again) or TrainingState()
    history = trainer(again, phase, inputs)(
        train=inputs.train_and_val,
        val=inputs.rows(prepared.dataset.val),
        on_epoch=on_epoch,
        stop=stop,
        resume_from=state,
        save=functools.partial(resume.save_state, again),
        class_weights=inputs.class_weights(),
    )
    if history.diverged:
        log.warning("%s: the network that was fitted to train alone is saved", history.stop_reason)
        return None
    # Those of the last epoch. Which one is best is not known without images to validate on.
    for variable, value in zip(pooled.network.variables, state.weights, strict=True):
        variable.assign(value)
    weights = weights_by_layer(pooled.network.layers)
    network_pool.keep(pooled)
    return weights


def _settings(prepared: PreparedRun, tracking: Mlflow, record: Record) -> Run:
    """Return the settings of a fine-tune; pixels, and how features are computed, are those of the soup."""
    soup = prepared.run
    run = from_config(recorded_config(tracking, record))
    return replace(run, data=soup.data, preprocessing=soup.preprocessing, features=soup.features, tracking=tracking)


def _new_network(prepared: PreparedRun, run: Run) -> PooledNetwork:
    """Return a network with the weights of the parent."""
    assert prepared.parent is not None
    num_classes = len(prepared.dataset.class_names)
    network_pool.set_random_seed(run, num_classes)
    pooled = build_network(run, run.model.build(run.seed), num_classes)
    load_parent(run, prepared.parent.run_id, prepared.facts, pooled.network)
    return pooled
