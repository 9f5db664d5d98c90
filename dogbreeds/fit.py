"""The training loop.

Keras' own `fit` is not used: it overrides the inference mode of a frozen part (keras-team/keras#20285), its shuffling cannot be resumed,
and it does not say at which step a loss stopped being a number. Here the order of each epoch follows from (seed, epoch) alone.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from dogbreeds.metrics import Scores, score
from dogbreeds.network import Network
from dogbreeds.optimizer import Optimizer
from dogbreeds.phase import Training
from dogbreeds.schedule import Schedule

if TYPE_CHECKING:
    import keras
    import tensorflow as tf

_ORDER = 0x0DE7  # keeps the draws of the order apart from others with the same seed
_EVALUATION_BYTES = 64 << 20  # of features at a time


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


@dataclass(frozen=True)
class Epoch:
    """What one epoch measured. `number` counts from 1; `lr` is that of its last step; training figures are means over its steps."""

    number: int
    lr: float
    train_loss: float
    train_accuracy: float
    train_top5: float
    val: Scores
    seconds: float

    def metrics(self) -> dict[str, float]:
        return {
            "train/loss": self.train_loss,
            "train/accuracy": self.train_accuracy,
            "train/top5_accuracy": self.train_top5,
            "val/loss": self.val.loss,
            "val/accuracy": self.val.accuracy.value,
            "val/top5_accuracy": self.val.top5.value,
            "lr": self.lr,
        }


@dataclass
class Outcome:
    """What training gave: its epochs, why it ended, and the best epoch's weights and predictions."""

    epochs: list[Epoch] = field(default_factory=list)
    ended: str = ""
    best: Epoch | None = None
    best_weights: list[np.ndarray] = field(default_factory=list)
    best_logits: np.ndarray | None = None
    diverged: bool = False


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
            [3]: mean cross-entropy before the update, photos right, photos right among the first five.
        """
        if lr != self._lr:
            for depth, optimizer in self._optimizers.items():
                optimizer.learning_rate.assign(lr * self._decay**depth)
            self._lr = lr
        if layers not in self._compiled:
            self._compiled[layers] = self._compile(layers)
        return self._compiled[layers](inputs, labels).numpy()

    def _groups(self, layers: frozenset[str]) -> "dict[int, list[keras.Variable]]":
        groups = self._network.trainable(layers)
        return groups if self._decay != 1 else {0: [variable for group in groups.values() for variable in group]}

    def _compile(self, layers: frozenset[str]) -> "Callable[..., tf.Tensor]":
        import tensorflow as tf

        groups = self._groups(layers)
        watched = [variable.value for group in groups.values() for variable in group]

        @tf.function(reduce_retracing=True)
        def run(inputs, labels):
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(watched)
                logits = self._network.forward(tf.cast(inputs, tf.float32), training=True)
                loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
            gradients = iter(tape.gradient(loss, watched))
            for depth, variables in groups.items():
                self._optimizers[depth].apply([next(gradients) for _ in variables], variables)
            right = tf.reduce_sum(tf.cast(tf.equal(tf.argmax(logits, axis=1, output_type=labels.dtype), labels), tf.float32))
            among_five = tf.reduce_sum(tf.cast(tf.math.in_top_k(labels, logits, 5), tf.float32))
            return tf.stack([loss, right, among_five])

        return run


def fit(
    network: Network,
    train: Callable[[int], Rows],
    val: Rows,
    phase: Training,
    optimizer: Optimizer,
    schedule: Schedule,
    seed: int,
    on_epoch: Callable[[Epoch], str | None],
) -> Outcome:
    """Trains a network's suffix and head, and leaves it with the weights of its best epoch.

    Args:
        network: what trains.
        train: the training rows of an epoch, counted from 0.
        val: validation rows; the best epoch is the first with the highest accuracy on them.
        phase: epochs, batch size and patience.
        optimizer: its learning rate is the schedule's peak.
        schedule: the learning rate of each step.
        seed: of the order.
        on_epoch: called after each epoch; a text that it returns says why training ends there.
    """
    step = Step(network, optimizer)
    outcome = Outcome()
    for index in range(phase.epochs):
        started = time.perf_counter()
        data = train(index)
        shuffled = order(seed, index, len(data))
        steps = math.ceil(len(data) / phase.batch_size)
        losses = [epoch.val.loss for epoch in outcome.epochs]
        sums = np.zeros(3)
        for number in range(steps):
            inputs, labels = data[shuffled[number * phase.batch_size : (number + 1) * phase.batch_size]]
            lr = schedule.lr(optimizer.lr, index + number / steps, phase.epochs, losses)
            measured = step(network.plan.at(index), lr, inputs, labels)
            if not math.isfinite(measured[0]):
                outcome.ended = f"the loss was {measured[0]} at step {index * steps + number + 1} (epoch {index + 1}), lr {lr:g}"
                outcome.diverged = True
                break
            sums += measured * [len(labels), 1, 1]
        if outcome.diverged:
            break
        logits = predict(network, val)
        loss, accuracy, top5 = (sums / len(data)).tolist()
        epoch = Epoch(index + 1, lr, loss, accuracy, top5, score(logits, val.labels), time.perf_counter() - started)
        outcome.epochs.append(epoch)
        if not math.isfinite(epoch.val.loss):
            outcome.ended = f"the validation loss was {epoch.val.loss} after step {(index + 1) * steps} (epoch {index + 1}), lr {lr:g}"
            outcome.diverged = True
        elif outcome.best is None or epoch.val.accuracy.correct > outcome.best.val.accuracy.correct:
            outcome.best, outcome.best_logits = epoch, logits
            outcome.best_weights = [variable.numpy() for variable in network.learned]
        wish = on_epoch(epoch)
        if outcome.diverged or outcome.best is None:
            break
        if phase.patience_epochs is not None and epoch.number - outcome.best.number >= phase.patience_epochs:
            wish = wish or f"no better validation accuracy for {phase.patience_epochs} epochs"
        if wish:
            outcome.ended = wish
            break
    for variable, value in zip(network.learned, outcome.best_weights, strict=False):
        variable.assign(value)
    return outcome
