"""One training step: loss, gradient and update of a network's trainable weights, compiled."""

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dogbreeds.evaluation.metrics import TOP
from dogbreeds.models.network import Network
from dogbreeds.training.optimizer import Optimizer

if TYPE_CHECKING:
    import keras
    import tensorflow as tf


class StepMetrics(NamedTuple):
    """Metrics of one batch, measured before the weights are updated.

    Attributes:
        loss: mean cross-entropy in nats.
        correct: number of images whose highest logit is that of their label.
        top5_correct: number of images whose label is among the five highest logits.
        grad_sum: sum over all elements of the gradient; not finite if any of them is not.
    """

    loss: float
    correct: float
    top5_correct: float
    grad_sum: float


class Step:
    """One weight update, compiled once for each set of trainable layers.

    Args:
        network: the network to train.
        optimizer: built once for each depth if `layer_decay` is not 1, else once.
        class_weights: [classes] float32, weight of each class in the loss; None for 1.
    """

    def __init__(self, network: Network, optimizer: Optimizer, class_weights: np.ndarray | None = None):
        self._network = network
        self._class_weights = class_weights
        self._decay = optimizer.layer_decay
        self._optimizers: dict[int, keras.Optimizer] = {}
        with network.replicas.scope():
            for depth, variables in self._groups(network.plan.stages[-1]).items():
                self._optimizers[depth] = optimizer.build()
                self._optimizers[depth].build(variables)
        self._compiled: dict[frozenset[str], Callable[..., tf.Tensor]] = {}
        self._lr = -1.0

    def __call__(self, layers: frozenset[str], lr: float, inputs: np.ndarray, labels: np.ndarray) -> StepMetrics:
        """Train on one batch.

        Args:
            layers: names of the suffix's layers that train.
            lr: learning rate of the head; a layer at depth d gets `lr * layer_decay**d`.
            inputs: [b, *input shape].
            labels: [b] int32.
        """
        if lr != self._lr:
            for depth, optimizer in self._optimizers.items():
                optimizer.learning_rate.assign(lr * self._decay**depth)
            self._lr = lr
        if layers not in self._compiled:
            self._compiled[layers] = self._compile(layers)
        return StepMetrics(*self._compiled[layers](inputs, labels).numpy().tolist())

    @property
    def variables(self) -> "list[keras.Variable]":
        """Variables of the optimizers, such as momenta."""
        return [variable for optimizer in self._optimizers.values() for variable in optimizer.variables]

    def _groups(self, layers: frozenset[str]) -> "dict[int, list[keras.Variable]]":
        """Group the trainable variables by depth; without `layer_decay` they are one group."""
        groups = self._network.trainable_by_depth(layers)
        return groups if self._decay != 1 else {0: [variable for group in groups.values() for variable in group]}

    def _compile(self, layers: frozenset[str]) -> "Callable[..., tf.Tensor]":
        """Compile the step; it returns the fields of `StepMetrics` as a [4] float32 tensor."""
        import tensorflow as tf

        groups = self._groups(layers)
        watched = [variable.value for group in groups.values() for variable in group]

        def update(inputs, labels, mean, add):
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(watched)
                logits = self._network.forward(tf.cast(inputs, tf.float32), training=True)
                losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
                if self._class_weights is not None:
                    losses *= tf.gather(self._class_weights, labels)
                loss = mean(losses)
            gradient = tape.gradient(loss, watched)
            # One sum, because testing every element with `is_finite` took a tenth of a step.
            grad_sum = tf.add_n([tf.reduce_sum(part) for part in gradient])
            gradients = iter(gradient)
            for depth, variables in groups.items():
                self._optimizers[depth].apply([next(gradients) for _ in variables], variables)
            correct = add(tf.cast(tf.equal(tf.argmax(logits, axis=1, output_type=labels.dtype), labels), tf.float32))
            top5_correct = add(tf.cast(tf.math.in_top_k(labels, logits, TOP), tf.float32))
            return tf.stack([loss, correct, top5_correct, grad_sum])

        return self._network.replicas.compile_step(update, self._network.layers)
