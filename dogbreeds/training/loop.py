"""The training loop.

Keras' own `fit` is not used: it overrides the inference mode of a frozen part (keras-team/keras#20285), its shuffling cannot be resumed,
and it does not say at which step a loss stopped being a number. Here the order of each epoch follows from (seed, epoch) alone.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dogbreeds.core import signals
from dogbreeds.evaluation.metrics import score
from dogbreeds.evaluation.results import Epoch
from dogbreeds.models.network import Network
from dogbreeds.training.optimizer import Optimizer
from dogbreeds.training.phase import Training
from dogbreeds.training.schedule import Schedule
from dogbreeds.training.state import History, TrainingState

if TYPE_CHECKING:
    import keras
    import tensorflow as tf

# Keeps the draws of the order apart from others with the same seed
_ORDER = 0x0DE7
# Of features at a time
_EVALUATION_BYTES = 64 << 20


@dataclass(frozen=True)
class Rows:
    """Rows of an array, and their labels.

    Attributes:
        array: kept features, or photos.
        rows: [n] which of them.
        labels: [n] int32.
        shown: what becomes of a batch of them, given their rows, such as augmentation; None where they are shown as they are.
    """

    array: np.ndarray
    rows: np.ndarray
    labels: np.ndarray
    shown: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rows = self.rows[positions]
        return self.array[rows] if self.shown is None else self.shown(self.array[rows], rows), self.labels[positions]


def order(seed: int, epoch: int, n: int) -> np.ndarray:
    """The order of n photos in an epoch, counted from 0."""
    return np.random.Generator(np.random.Philox(key=[seed, epoch], counter=[0, 0, 0, _ORDER])).permutation(n)


def predict(network: Network, data: Rows) -> np.ndarray:
    """[n, classes] float32 logits, in inference mode."""
    batch = int(np.clip(_EVALUATION_BYTES // max(1, data.array[:1].nbytes), 16, 2048))
    spans = [np.arange(start, min(start + batch, len(data))) for start in range(0, len(data), batch)]
    return np.concatenate([network.infer(data[span][0]).numpy() for span in spans])


class Step:
    """One update of the weights, compiled once for each set of layers that train.

    Args:
        network: what trains.
        optimizer: built once for each depth, where the learning rate shrinks with depth, and else once.
    """

    def __init__(self, network: Network, optimizer: Optimizer):
        self._network, self._decay = network, optimizer.layer_decay
        self._optimizers: dict[int, keras.Optimizer] = {}
        with network.replicas.scope():
            for depth, variables in self._groups(network.plan.stages[-1]).items():
                self._optimizers[depth] = optimizer.build()
                self._optimizers[depth].build(variables)
        self._compiled: dict[frozenset[str], Callable[..., tf.Tensor]] = {}
        self._lr = -1.0

    def __call__(self, layers: frozenset[str], lr: float, inputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Trains on one batch.

        Args:
            layers: names of the suffix's layers that train.
            lr: the head's learning rate.
            inputs: [b, *input shape].
            labels: [b] int32.

        Returns:
            [4]: mean cross-entropy before the update, photos right, photos right among the first five, and the sum of the gradient's numbers.
        """
        if lr != self._lr:
            for depth, optimizer in self._optimizers.items():
                optimizer.learning_rate.assign(lr * self._decay**depth)
            self._lr = lr
        if layers not in self._compiled:
            self._compiled[layers] = self._compile(layers)
        return self._compiled[layers](inputs, labels).numpy()

    @property
    def variables(self) -> "list[keras.Variable]":
        """The optimizers' own, such as momenta."""
        return [variable for optimizer in self._optimizers.values() for variable in optimizer.variables]

    def _groups(self, layers: frozenset[str]) -> "dict[int, list[keras.Variable]]":
        groups = self._network.trainable(layers)
        return groups if self._decay != 1 else {0: [variable for group in groups.values() for variable in group]}

    def _compile(self, layers: frozenset[str]) -> "Callable[..., tf.Tensor]":
        import tensorflow as tf

        groups = self._groups(layers)
        watched = [variable.value for group in groups.values() for variable in group]

        def update(inputs, labels, mean, add):
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(watched)
                logits = self._network.forward(tf.cast(inputs, tf.float32), training=True)
                loss = mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
            gradient = tape.gradient(loss, watched)
            # Asking each number whether it is finite took a tenth of a step
            checked = tf.add_n([tf.reduce_sum(part) for part in gradient])
            gradients = iter(gradient)
            for depth, variables in groups.items():
                self._optimizers[depth].apply([next(gradients) for _ in variables], variables)
            right = add(tf.cast(tf.equal(tf.argmax(logits, axis=1, output_type=labels.dtype), labels), tf.float32))
            among_five = add(tf.cast(tf.math.in_top_k(labels, logits, 5), tf.float32))
            return tf.stack([loss, right, among_five, checked])

        return self._network.replicas.step(update, self._network.layers)


def fit(
    network: Network,
    train: Callable[[int], Rows],
    val: Rows,
    phase: Training,
    optimizer: Optimizer,
    schedule: Schedule,
    seed: int,
    on_epoch: Callable[[Epoch], None],
    stop: Callable[[Sequence[Epoch]], str | None] = lambda epochs: None,
    before: TrainingState | None = None,
    save: Callable[[TrainingState], None] = lambda progress: None,
    save_steps: int | None = None,
) -> History:
    """Trains a network's suffix and head, and leaves it with the weights of its best epoch.

    Args:
        network: what trains.
        train: the training rows of an epoch, counted from 0.
        val: validation rows; the best epoch is the first with the highest accuracy on them.
        phase: epochs, batch size and patience.
        optimizer: its learning rate is the schedule's peak.
        schedule: the learning rate of each step.
        seed: of the order.
        on_epoch: called after each epoch.
        stop: a text that it gives for the epochs so far says why training ends there.
        before: where an earlier process came to; training goes on from there, to the same weights, bit for bit.
        save: called after each epoch, each `save_steps` steps, and before an interruption is let through; not once a number is not finite.
        save_steps: None for after each epoch only.
    """
    step = Step(network, optimizer)
    progress = before or TrainingState()
    outcome = progress.outcome
    _assign(network.learned, progress.weights)
    _assign(step.variables, progress.optimizers)

    def keep() -> None:
        with signals.deferred():
            progress.weights = [variable.numpy() for variable in network.learned]
            progress.optimizers = [variable.numpy() for variable in step.variables]
            save(progress)

    try:
        while progress.epoch < phase.epochs and not outcome.ended:
            started = time.perf_counter() - progress.seconds
            data, index, val_losses = (
                train(progress.epoch),
                progress.epoch,
                [epoch.val.loss for epoch in outcome.epochs],
            )
            shuffled = order(seed, index, len(data))
            steps = math.ceil(len(data) / phase.batch_size)
            for number in range(progress.step, steps):
                inputs, labels = data[shuffled[number * phase.batch_size : (number + 1) * phase.batch_size]]
                lr = schedule.lr(optimizer.lr, index + number / steps, phase.epochs, val_losses)
                with signals.deferred():
                    measured = step(network.plan.at(index), lr, inputs, labels)
                    fault = _fault(measured)
                    if fault:
                        outcome.ended, outcome.diverged = (
                            f"{fault} at step {index * steps + number + 1} (epoch {index + 1}), lr {lr:g}",
                            True,
                        )
                        break
                    progress.sums = progress.sums + measured[:3] * [len(labels), 1, 1]
                    progress.step, progress.seconds = number + 1, time.perf_counter() - started
                if save_steps and (index * steps + number + 1) % save_steps == 0:
                    keep()
            if outcome.diverged:
                break
            logits = predict(network, val)
            lr = schedule.lr(optimizer.lr, index + (steps - 1) / steps, phase.epochs, val_losses)
            loss, accuracy, top5 = (progress.sums / len(data)).tolist()
            epoch = Epoch(index + 1, lr, loss, accuracy, top5, score(logits, val.labels), time.perf_counter() - started)
            with signals.deferred():
                outcome.epochs.append(epoch)
                if not math.isfinite(epoch.val.loss):
                    outcome.ended = (
                        f"the validation loss was {epoch.val.loss} after step {(index + 1) * steps} (epoch"
                        f" {index + 1}), lr {lr:g}"
                    )
                    outcome.diverged = True
                elif outcome.best is None or epoch.val.accuracy.correct > outcome.best.val.accuracy.correct:
                    outcome.best, outcome.best_logits = epoch, logits
                    outcome.best_weights = [variable.numpy() for variable in network.learned]
                outcome.ended = outcome.ended or _reason(outcome, phase, stop)
                progress.epoch, progress.step, progress.sums, progress.seconds = index + 1, 0, np.zeros(3), 0.0
            if not outcome.diverged:
                keep()
            on_epoch(epoch)
    except KeyboardInterrupt:
        if not outcome.diverged:
            keep()
        raise
    _assign(network.learned, outcome.best_weights)
    return outcome


def _assign(variables: "list[keras.Variable]", values: list[np.ndarray]) -> None:
    if values:
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)


def _fault(measured: np.ndarray) -> str:
    """What of a step is not a number; nothing where all is well."""
    if not math.isfinite(measured[0]):
        return f"the loss was {measured[0]}"
    return "" if math.isfinite(measured[3]) else "the gradient was not finite"


def _reason(outcome: History, phase: Training, stop: Callable[[Sequence[Epoch]], str | None]) -> str:
    """Why training ends after an epoch; nothing where it goes on."""
    waited = len(outcome.epochs) - outcome.best.number if outcome.best else 0
    impatient = phase.patience_epochs is not None and waited >= phase.patience_epochs
    # Patience first: what ends anyway is not for a search to prune.
    return (
        f"no better validation accuracy for {phase.patience_epochs} epochs" if impatient else stop(outcome.epochs) or ""
    )
