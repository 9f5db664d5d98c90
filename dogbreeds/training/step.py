"""Training steps: loss, gradient and update of a network's trainable weights, compiled; several of them in one call."""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dogbreeds.core.source import is_foreign
from dogbreeds.evaluation.metrics import TOP
from dogbreeds.models.network import Network
from dogbreeds.models.precision import FLOAT32, computes_in
from dogbreeds.training.loss_scale import LossScale
from dogbreeds.training.optimizer import Optimizer

if TYPE_CHECKING:
    import keras
    import tensorflow as tf

# Compiled steps that a network keeps for later runs.
_MAX_KEPT = 2


class StepMetrics(NamedTuple):
    """Metrics of one batch, measured before the weights are updated.

    Attributes:
        loss: mean cross-entropy in nats.
        correct: number of images whose highest logit is that of their label.
        top5_correct: number of images whose label is among the five highest logits.
        grad_sum: sum over all elements of the gradient; not finite if any of them is not. It is 0 where only the scale
            of a float16 loss was too large, so that the step was skipped.
    """

    loss: float
    correct: float
    top5_correct: float
    grad_sum: float

    @property
    def is_finite(self) -> bool:
        """Whether loss and gradient are finite. No step follows one that is not."""
        return math.isfinite(self.loss) and math.isfinite(self.grad_sum)


class Step:
    """Weight updates, compiled once for each set of trainable layers.

    Args:
        network: the network to train.
        optimizer: built once for each depth if `layer_decay` is not 1, else once.
        class_weights: [classes] float32, weight of each class in the loss; None for 1.
        precision: in which the layers compute, as `models.precision` names it. Weights, logits and loss are float32.
        label_smoothing: share of each label that is spread evenly over all classes.
        ema_decay: share of the weights' moving average that each step keeps; None for no average.
    """

    def __init__(
        self,
        network: Network,
        optimizer: Optimizer,
        class_weights: np.ndarray | None = None,
        precision: str = FLOAT32,
        label_smoothing: float = 0.0,
        ema_decay: float | None = None,
    ):
        self._network = network
        self._label_smoothing = label_smoothing
        self._ema_decay = ema_decay
        self._class_weights = class_weights
        self._precision = precision
        self._decay = optimizer.layer_decay
        self._clipnorm = optimizer.clipnorm
        self._optimizers: dict[int, keras.Optimizer] = {}
        with network.replicas.scope():
            for depth, variables in self._groups(network.plan.stages[-1]).items():
                self._optimizers[depth] = self._build_optimizer(optimizer, variables)
            self._loss_scale = LossScale() if precision == "mixed_float16" else None
        # Most are zeros, of which one is enough.
        values = [variable.numpy() for variable in self.variables]
        self._initial = [value if value.any() else np.zeros((), value.dtype) for value in values]
        self._compiled: dict[Hashable, Callable[..., tf.Tensor]] = {}

    @classmethod
    def of(
        cls,
        network: Network,
        optimizer: Optimizer,
        class_weights: np.ndarray | None = None,
        precision: str = FLOAT32,
        label_smoothing: float = 0.0,
        ema_decay: float | None = None,
    ) -> "Step":
        """Return the steps of a network, with optimizers as new as those of a new `Step`.

        What was compiled for an earlier run of the network is reused if only the learning rate differs.
        """
        if is_foreign(type(optimizer)):
            return cls(network, optimizer, class_weights, precision, label_smoothing, ema_decay)
        weights = None if class_weights is None else class_weights.tobytes()
        key = (type(optimizer), replace(optimizer, lr=1.0), weights, precision, label_smoothing, ema_decay)
        kept: dict[Hashable, Step] = network.steps
        step = kept.pop(key, None)
        if step is None:
            step = cls(network, optimizer, class_weights, precision, label_smoothing, ema_decay)
        else:
            for variable, value in zip(step.variables, step._initial, strict=True):
                variable.assign(np.broadcast_to(value, variable.shape))
        kept[key] = step
        while len(kept) > _MAX_KEPT:
            del kept[next(iter(kept))]
        return step

    def __call__(self, layers: frozenset[str], lr: float, inputs: np.ndarray, labels: np.ndarray) -> StepMetrics:
        """Train on one batch.

        Args:
            layers: names of the suffix's layers that train.
            lr: learning rate of the head; a layer at depth d gets `lr * layer_decay**d`.
            inputs: [b, *input shape].
            labels: [b] int32.
        """
        return self.take(layers, [lr], inputs[None], labels[None])[0]

    def take(
        self, layers: frozenset[str], lrs: Sequence[float], inputs: np.ndarray, labels: np.ndarray
    ) -> list[StepMetrics]:
        """Train on several batches in one call, which gives the same bits as a call for each.

        Args:
            layers: names of the suffix's layers that train.
            lrs: learning rate of the head in each of n steps.
            inputs: [n, b, *input shape].
            labels: [n, b] int32, or of mixed batches [n, b, 3] float32, as of `MixedBatch.targets`.

        Returns:
            The metrics of each step; of fewer than n if they are not finite in the last of these.
        """
        key = (layers, inputs.dtype, labels.ndim)
        if key not in self._compiled:
            self._compiled[key] = self._compile(layers, inputs, labels)
        rates = np.array([[lr * self._decay**depth for depth in self._optimizers] for lr in lrs], np.float32)
        feed = self._network.replicas.feed
        measured = self._compiled[key](rates, feed(inputs), feed(labels)).numpy().tolist()
        return [StepMetrics(*values) for values in measured]

    @property
    def variables(self) -> "list[keras.Variable]":
        """Variables of the optimizers, such as momenta, and the state of the loss scale."""
        scale = self._loss_scale.variables if self._loss_scale is not None else []
        return [*(variable for optimizer in self._optimizers.values() for variable in optimizer.variables), *scale]

    @property
    def has_average(self) -> bool:
        """Whether there is a moving average of the weights."""
        return self._ema_decay is not None

    def average_weights(self) -> None:
        """Give the weights that train the values of their moving average."""
        for depth, variables in self._groups(self._network.plan.stages[-1]).items():
            self._optimizers[depth].finalize_variable_values(variables)

    def _build_optimizer(self, optimizer: Optimizer, variables: "list[keras.Variable]") -> "keras.Optimizer":
        built = optimizer.build()
        excluded = optimizer.without_decay(variables)
        if excluded:
            built.exclude_from_weight_decay(var_list=excluded)
        if self._ema_decay is not None:
            built.use_ema, built.ema_momentum, built.ema_overwrite_frequency = True, self._ema_decay, None
        built.build(variables)
        return built

    def _losses(self, logits: "tf.Tensor", targets: "tf.Tensor") -> "tf.Tensor":
        """Return the loss of each image, [b], of labels or of mixed targets."""
        import tensorflow as tf

        def of_labels(labels):
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
            if self._label_smoothing:
                even = -tf.reduce_mean(tf.nn.log_softmax(logits), axis=-1)
                losses = (1 - self._label_smoothing) * losses + self._label_smoothing * even
            return losses if self._class_weights is None else losses * tf.gather(self._class_weights, labels)

        if targets.dtype == tf.int32:
            return of_labels(targets)
        own, partner, share = tf.unstack(targets, axis=-1)
        return share * of_labels(tf.cast(own, tf.int32)) + (1 - share) * of_labels(tf.cast(partner, tf.int32))

    def _groups(self, layers: frozenset[str]) -> "dict[int, list[keras.Variable]]":
        """Group the trainable variables by depth; without `layer_decay` they are one group."""
        groups = self._network.trainable_by_depth(layers)
        return groups if self._decay != 1 else {0: [variable for group in groups.values() for variable in group]}

    def _compile(self, layers: frozenset[str], inputs: np.ndarray, labels: np.ndarray) -> "Callable[..., tf.Tensor]":
        """Compile steps for any number of batches of any size; they return their metrics as [n, 4] float32."""
        import tensorflow as tf

        update = self._network.replicas.batch_update(self._update(layers), self._network.layers)
        optimizers = list(self._optimizers.values())

        def take_one(index, measured, rates, inputs, labels):
            for optimizer, rate in zip(optimizers, tf.unstack(rates[index], len(optimizers)), strict=True):
                optimizer.learning_rate.assign(rate)
            with computes_in(self._precision, self._network.layers):
                metrics = update(inputs[index], labels[index])
            is_finite = tf.math.is_finite(metrics[0]) & tf.math.is_finite(metrics[-1])
            return index + 1, is_finite, measured.write(index, metrics)

        def take_all(rates, inputs, labels):
            count = tf.shape(labels)[0]
            taken, _, measured = tf.while_loop(
                lambda index, is_finite, _: (index < count) & is_finite,
                lambda index, _, measured: take_one(index, measured, rates, inputs, labels),
                (0, True, tf.TensorArray(tf.float32, count, element_shape=[len(StepMetrics._fields)])),
                parallel_iterations=1,
            )
            return measured.gather(tf.range(taken))

        # Of any batch size, so that the last, smaller batch of an epoch needs no trace of its own.
        signature = [
            tf.TensorSpec([None, len(optimizers)], tf.float32),
            tf.TensorSpec([None, None, *inputs.shape[2:]], inputs.dtype),
            tf.TensorSpec([None, None, *labels.shape[2:]], labels.dtype),
        ]
        return tf.function(take_all, input_signature=signature, autograph=False)

    def _update(self, layers: frozenset[str]) -> "Callable[..., tf.Tensor]":
        """Return the update on one batch, whose result holds the fields of `StepMetrics` as [4] float32."""
        import tensorflow as tf

        groups = self._groups(layers)
        watched = [variable.value for group in groups.values() for variable in group]
        replicas = self._network.replicas
        scale = self._loss_scale

        def apply(gradient):
            gradients = iter(gradient)
            for depth, variables in groups.items():
                self._optimizers[depth].apply([next(gradients) for _ in variables], variables)

        def update(inputs, targets, mean, add):
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(watched)
                logits = self._network.forward(tf.cast(inputs, tf.float32), training=True)
                loss = mean(self._losses(logits, targets))
                minimised = loss if scale is None else scale.scaled(loss)
            # Some weights have no part in the loss, such as the mask token of DINOv2.
            gradient = tape.gradient(minimised, watched, unconnected_gradients=tf.UnconnectedGradients.ZERO)
            if scale is not None:
                gradient = scale.unscaled(gradient)
            # One sum, because testing every element with `is_finite` took a tenth of a step.
            grad_sum = tf.add_n([tf.reduce_sum(part) for part in gradient])
            if self._clipnorm is not None:
                # The optimizers add up the shares of several devices, and would clip each share.
                whole = [tf.clip_by_norm(part, self._clipnorm) for part in replicas.total(gradient)]
                gradient = [part / len(replicas.devices) for part in whole]
            if scale is None:
                apply(gradient)
            else:
                (total,) = replicas.total([grad_sum])
                is_finite = tf.math.is_finite(total)
                replicas.apply_if(is_finite, apply, gradient)
                is_skipped = scale.update(is_finite) & ~is_finite
                grad_sum = tf.where(is_skipped, 0.0, grad_sum)
            labels = targets if targets.dtype == tf.int32 else tf.cast(targets[:, 0], tf.int32)
            correct = add(tf.cast(tf.equal(tf.argmax(logits, axis=1, output_type=labels.dtype), labels), tf.float32))
            top5_correct = add(tf.cast(tf.math.in_top_k(labels, logits, TOP), tf.float32))
            return tf.stack([loss, correct, top5_correct, grad_sum])

        return update
