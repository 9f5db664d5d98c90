"""Soup: the average of the weights of several fine-tunes, and its interpolations with their parent. Nothing trains."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from dogbreeds.core import console, signals
from dogbreeds.core.errors import UserError
from dogbreeds.evaluation.metrics import score
from dogbreeds.evaluation.results import Epoch
from dogbreeds.models.network import Network
from dogbreeds.training.batchnorm_statistics import estimate_anew
from dogbreeds.training.loop import Stop, predict
from dogbreeds.training.phase import Soup
from dogbreeds.training.rows import Rows
from dogbreeds.training.state import History, TrainingState

if TYPE_CHECKING:
    import keras

# The weights of a network's suffix and head, in order.
Weights = list[np.ndarray]


def weights_by_layer(layers: "Sequence[keras.Layer]") -> dict[str, list[np.ndarray]]:
    """Return the weights of layers, at any depth, by the layer's name."""
    return {layer.name: layer.get_weights() for layer in _leaves(layers) if layer.weights}


def matching_weights(network: Network, saved: Mapping[str, list[np.ndarray]], name: str) -> Weights:
    """Return the weights that suffix and head of a network have in another one.

    Args:
        network: the network.
        saved: weights of the other one, by layer.
        name: of its run, for errors.

    Raises:
        UserError: if a layer is missing there, or of another shape.
    """
    found: Weights = []
    for layer in _leaves(network.layers):
        shapes = [tuple(weight.shape) for weight in layer.weights]
        values = saved.get(layer.name, [])
        if shapes and shapes != [value.shape for value in values]:
            raise UserError(
                f"Run {name} has another layer {layer.name} than the other members. A soup averages networks of one"
                " backbone and one head. Type members=[<ids>] without it."
            )
        found += values if shapes else []
    return found


def make_soup(
    network: Network,
    phase: Soup,
    members: Sequence[Weights],
    *,
    train: Rows,
    val: Rows,
    on_epoch: Callable[[Epoch], None],
    stop: Stop = lambda epochs: None,
    resume_from: TrainingState | None = None,
    save: Callable[[TrainingState], None] = lambda state: None,
    class_weights: np.ndarray | None = None,
) -> History:
    """Measure each candidate, then give the network the weights of the best one.

    Args:
        network: with the weights of the parent; changed in place.
        phase: settings of the soup.
        members: weights of the fine-tunes, the best first.
        train: training rows, which statistics of BatchNorm are estimated from, and of which as many as there are
            validation rows are scored.
        val: validation rows.
        on_epoch, stop, resume_from, save: as of `loop.fit`.
        class_weights: not used; every candidate is a sum of what has been trained.
    """
    candidates = _Candidates(network, phase, members, train, val)
    state = resume_from or TrainingState()
    history = state.history
    while state.epoch < phase.num_candidates and not history.stop_reason:
        epoch, logits, weights = candidates.measure(state.epoch, history.epochs)
        if not math.isfinite(epoch.val.loss):
            # A candidate without a finite loss is not taken; others may be.
            logits = np.zeros_like(logits)
        with signals.deferred():
            history.epochs.append(epoch)
            is_better = history.best is None or _merit(epoch, phase) > _merit(history.best, phase)
            if is_better and math.isfinite(epoch.val.loss):
                history.best, history.best_logits, history.best_weights = epoch, logits, weights
            history.stop_reason = stop(history.epochs) or ""
            state.epoch += 1
            state.weights = weights
            save(state)
        on_epoch(epoch)
    for variable, value in zip(network.variables, history.best_weights or state.weights, strict=True):
        variable.assign(value)
    return history


def mixed_members(number: int, epochs: Sequence[Epoch], phase: Soup) -> list[int]:
    """Return the numbers of the members that a candidate averages.

    A greedy soup keeps a member if accuracy with it is not below that of the soup so far.

    Args:
        number: of the candidate, from 0.
        epochs: the candidates before it, or more.
        phase: settings of the soup.
    """
    if phase.method == "uniform":
        return list(range(len(phase.members)))
    taken: list[int] = []
    for member, epoch in enumerate(epochs[: min(number, phase.num_soups)]):
        value = epoch.val.monitored(phase.monitor)
        if not taken or value >= epochs[taken[-1]].val.monitored(phase.monitor):
            taken.append(member)
    return [*taken, number] if number < phase.num_soups else taken


class Mixer:
    """Gives a network averages of members, and interpolations with its parent.

    Args:
        network: with the weights of the parent.
        batch_size: images for which statistics of BatchNorm are computed together.
        train: rows that they are estimated from.
    """

    def __init__(self, network: Network, batch_size: int, train: Rows):
        self._network = network
        self._batch_size = max(16, batch_size)
        self._train = train
        self._parent = [weight.numpy() for weight in _weights(network)]

    def mix(self, members: Sequence[Weights], share: float) -> None:
        """Give the network the weights that lie between the parent and the mean of members: 1 for the mean."""
        for weight, mean, parent in zip(_weights(self._network), _mean(members), self._parent, strict=True):
            weight.assign(mean if share == 1 else share * mean + (1 - share) * parent)
        if len(members) > 1 or share < 1:
            self._estimate_statistics()

    def _estimate_statistics(self) -> None:
        """Estimate the statistics of the BatchNorm layers that trained: those of an average are not averages."""
        suffix, plan = self._network.suffix, self._network.plan
        if suffix is None or plan.batchnorm != "trainable":
            return
        size = self._batch_size
        starts = range(0, len(self._train), size)
        batches = (self._inputs(np.arange(start, min(start + size, len(self._train)))) for start in starts)
        with console.progress("statistics of BatchNorm", len(self._train), "images", brief=True) as advance:
            estimate_anew(suffix, batches, plan.stages[-1], advance)

    def _inputs(self, positions: np.ndarray) -> np.ndarray:
        inputs, _ = self._train[positions]
        if self._network.uses_cache:
            return inputs
        return np.asarray(self._network.train_prefix.graph(inputs.astype(np.float32), training=False))


class _Candidates:
    """Mixes members and parent, and measures what comes of it."""

    def __init__(self, network: Network, phase: Soup, members: Sequence[Weights], train: Rows, val: Rows):
        self._network = network
        self._phase = phase
        self._members = members
        self._mixer = Mixer(network, phase.batch_size, train)
        self._val = val
        chosen = np.linspace(0, len(train) - 1, min(len(train), len(val))).astype(int)
        self._scored = Rows(train.array, train.indices[chosen], train.labels[chosen], train.transform)

    def measure(self, number: int, epochs: Sequence[Epoch]) -> tuple[Epoch, np.ndarray, Weights]:
        """Return the scores of a candidate, its validation logits, and all variables of the network."""
        started = time.perf_counter()
        soups = self._phase.num_soups
        share = 1.0 if number < soups else (number - soups + 1) / self._phase.interpolations
        mixed = mixed_members(number, epochs, self._phase)
        self._mixer.mix([self._members[member] for member in mixed], share)
        logits = predict(self._network, self._val)
        trained = score(predict(self._network, self._scored), self._scored.labels)
        epoch = Epoch(
            number=number + 1,
            lr=None,
            train_loss=trained.loss,
            train_accuracy=trained.accuracy.value,
            train_top5=trained.top5.value if trained.top5 is not None else None,
            val=score(logits, self._val.labels),
            seconds=time.perf_counter() - started,
            members=len(mixed),
            soup_share=share,
        )
        return epoch, logits, [variable.numpy() for variable in self._network.variables]


def _leaves(layers: "Sequence[keras.Layer]") -> "list[keras.Layer]":
    """Return layers, with those of models in their place."""
    import keras

    return [leaf for layer in layers for leaf in (_leaves(layer.layers) if isinstance(layer, keras.Model) else [layer])]


def _weights(network: Network) -> "list[keras.Variable]":
    return [weight for layer in _leaves(network.layers) for weight in layer.weights]


def _mean(members: Sequence[Weights]) -> Weights:
    """Return the mean of each weight, in float64 until it is done."""
    return [np.mean(values, axis=0, dtype=np.float64).astype(values[0].dtype) for values in zip(*members, strict=True)]


def _merit(epoch: Epoch, phase: Soup) -> tuple[float, float]:
    """Return what the best candidate has most of. Of equally accurate ones it is that with the least loss."""
    return epoch.val.monitored(phase.monitor), -epoch.val.loss
