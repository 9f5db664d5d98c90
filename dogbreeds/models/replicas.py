"""Devices that a network trains on: one device, or several of one machine that split each batch.

Several devices compute what one device computes, up to rounding: losses are means over the whole batch, BatchNorm
normalises over the whole batch, and each dropout mask is drawn for the whole batch, of which a device uses its rows.
"""

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from dogbreeds.core.console import quiet_stderr

if TYPE_CHECKING:
    import keras
    import numpy as np
    import tensorflow as tf

log = logging.getLogger(__name__)

# The mean or the sum over a whole batch, from a tensor that holds all of its rows or one device's share of them.
BatchReduction = Callable[["tf.Tensor"], "tf.Tensor"]
# (inputs, labels, batch mean, batch sum) -> measurements that add up over the shares of a batch.
Update = Callable[["tf.Tensor", "tf.Tensor", BatchReduction, BatchReduction], "tf.Tensor"]

_HOST = "CPU:0"


class OneDevice:
    """Computes whole batches on the device that TensorFlow chooses.

    Attributes:
        devices: their names; None leaves the choice to TensorFlow.
        description: stored in checkpoints, so that only the same strategy resumes from them; None for one device.
    """

    devices: tuple[str | None, ...] = (None,)
    description: str | None = None

    def scope(self) -> AbstractContextManager[Any]:
        """Return a context in which variables to train must be created."""
        return contextlib.nullcontext()

    def batch_update(
        self, update: Update, layers: "Sequence[keras.Layer]"
    ) -> "Callable[[tf.Tensor, tf.Tensor], tf.Tensor]":
        """Return an update of the weights by a whole batch, to be called within a compiled function.

        Args:
            update: takes inputs [b, *input shape], labels [b] int32, and functions for the mean and the sum over the
                whole batch. Returns its measurements.
            layers: those that the update calls.

        Returns:
            A function from inputs and labels of a whole batch to its measurements.
        """
        import tensorflow as tf

        return lambda inputs, labels: update(inputs, labels, tf.reduce_mean, tf.reduce_sum)

    def feed(self, batches: "np.ndarray") -> "np.ndarray | tf.Tensor":
        """Return batches as a compiled function takes them."""
        return batches

    def total(self, shares: "list[tf.Tensor]") -> "list[tf.Tensor]":
        """Add up each of several tensors over the devices, within an update."""
        return shares

    def apply_if(
        self, condition: "tf.Tensor", apply: "Callable[[list[tf.Tensor]], None]", gradient: "list[tf.Tensor]"
    ) -> None:
        """Apply a gradient if a condition holds, which must be the same on all devices, within an update."""
        import tensorflow as tf

        def run() -> tf.Tensor:
            apply(gradient)
            return tf.constant(True)

        tf.cond(condition, run, lambda: tf.constant(False))

    def compile_rowwise(self, function: "Callable[[tf.Tensor], tf.Tensor]") -> "Callable[[np.ndarray], tf.Tensor]":
        """Compile a function that computes each row of a batch independently, for batches of any size."""
        return _compiled_for_any_batch_size(function)


class Replicas(OneDevice):
    """Splits the rows of each batch over several devices, in order. Each device holds a copy of the weights.

    If a batch has fewer rows than there are devices, each device computes the whole batch, with a weight of one over
    the number of devices, because some kernels fail on empty inputs.

    Args:
        devices: their names, all of one kind.
    """

    def __init__(self, devices: Sequence[str]):
        import tensorflow as tf

        self.devices = tuple(devices)
        self.description = f"mirrored over {len(devices)}"
        # Set explicitly, because the collective ops that MirroredStrategy uses by default break if a process creates
        # two of it, as jobs of a sweep do (tensorflow/tensorflow#62790).
        sums = tf.distribute.NcclAllReduce() if devices[0].startswith("GPU") else tf.distribute.ReductionToOneDevice()
        with quiet_stderr():
            self._mirrored = tf.distribute.MirroredStrategy(list(devices), cross_device_ops=sums)
        log.info("each batch is split over %s", " and ".join(devices))

    def scope(self) -> AbstractContextManager[Any]:
        return self._mirrored.scope()

    def batch_update(
        self, update: Update, layers: "Sequence[keras.Layer]"
    ) -> "Callable[[tf.Tensor, tf.Tensor], tf.Tensor]":
        import tensorflow as tf

        def run(inputs, labels):
            batch_size = tf.shape(labels)[0]
            weight = tf.where(batch_size < len(self.devices), 1 / len(self.devices), 1.0)

            def batch_sum(values):
                return weight * tf.reduce_sum(values)

            def batch_mean(values):
                return batch_sum(values) / tf.cast(batch_size, values.dtype)

            def update_share():
                # Split on the host, so that only its own share is copied to each device.
                with tf.device(_HOST):
                    own_inputs, own_labels = self._share(inputs), self._share(labels)
                return update(own_inputs, own_labels, batch_mean, batch_sum)

            with _whole_batch_layers(layers, functools.partial(_dropout, batch_size=batch_size, share=self._share)):
                measured = self._mirrored.run(update_share)
            return self._mirrored.reduce(tf.distribute.ReduceOp.SUM, measured, axis=None)

        return run

    def feed(self, batches: "np.ndarray") -> "tf.Tensor":
        import tensorflow as tf

        with tf.device(_HOST):
            return tf.constant(batches)

    def total(self, shares: "list[tf.Tensor]") -> "list[tf.Tensor]":
        import tensorflow as tf

        return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, shares)

    def apply_if(
        self, condition: "tf.Tensor", apply: "Callable[[list[tf.Tensor]], None]", gradient: "list[tf.Tensor]"
    ) -> None:
        import tensorflow as tf

        def across_devices(strategy, conditions, gradients):
            def run() -> tf.Tensor:
                strategy.extended.call_for_each_replica(apply, args=(gradients,))
                return tf.constant(True)

            # An optimizer meets the other devices, which TensorFlow allows within a condition of all devices only.
            tf.cond(strategy.experimental_local_results(conditions)[0], run, lambda: tf.constant(False))

        tf.distribute.get_replica_context().merge_call(across_devices, args=(condition, gradient))

    def compile_rowwise(self, function: "Callable[[tf.Tensor], tf.Tensor]") -> "Callable[[np.ndarray], tf.Tensor]":
        import tensorflow as tf

        def run(inputs):
            def compute_share():
                with tf.device(_HOST):
                    rows = self._share(inputs)
                return function(rows)

            shares = self._mirrored.experimental_local_results(self._mirrored.run(compute_share))
            # A batch of fewer rows than devices comes back once from each device.
            return tf.concat(shares, axis=0)[: tf.shape(inputs)[0]]

        compiled = _compiled_for_any_batch_size(run)
        return lambda inputs: compiled(self.feed(inputs))

    def _share(self, batch: "tf.Tensor") -> "tf.Tensor":
        """Select this replica's rows of a whole batch: at least one."""
        import tensorflow as tf

        replica, count = tf.distribute.get_replica_context().replica_id_in_sync_group, len(self.devices)
        rows = tf.shape(batch)[0]
        few = rows < count
        return batch[tf.where(few, 0, rows * replica // count) : tf.where(few, rows, rows * (replica + 1) // count)]


def _compiled_for_any_batch_size(function: "Callable[[tf.Tensor], tf.Tensor]") -> "Callable[..., tf.Tensor]":
    """Compile a function of a batch once for each shape and type of its rows, rather than for each number of them."""
    import tensorflow as tf

    compiled: dict[tuple[Any, ...], Callable[..., tf.Tensor]] = {}

    def run(batch):
        key = (*batch.shape[1:], batch.dtype)
        if key not in compiled:
            signature = [tf.TensorSpec([None, *batch.shape[1:]], batch.dtype)]
            compiled[key] = tf.function(function, input_signature=signature)
        return compiled[key](batch)

    return run


@contextlib.contextmanager
def _whole_batch_layers(layers: "Sequence[keras.Layer]", dropout: "Callable[..., tf.Tensor]") -> Iterator[None]:
    """Trace BatchNorm and dropout layers as if each replica had the whole batch.

    Afterwards the layers are restored, so that they are saved as plain Keras layers.
    """
    import keras

    parts = [part for layer in layers for part in layer._flatten_layers()]
    batchnorms = [layer for layer in parts if isinstance(layer, keras.layers.BatchNormalization)]
    dropouts = [layer for layer in parts if isinstance(layer, keras.layers.Dropout)]
    for layer in batchnorms:
        layer.synchronized = True
    for layer in dropouts:
        layer.call = functools.partial(dropout, layer)
    try:
        yield
    finally:
        for layer in batchnorms:
            layer.synchronized = False
        for layer in dropouts:
            del layer.call


def _dropout(
    layer: "keras.layers.Dropout",
    inputs: "tf.Tensor",
    training: bool = False,
    *,
    batch_size: "tf.Tensor",
    share: "Callable[[tf.Tensor], tf.Tensor]",
) -> "tf.Tensor":
    """Apply dropout to a replica's rows: every replica draws the mask of the whole batch and uses its rows of it."""
    import keras
    import tensorflow as tf

    if not training or not layer.rate:
        return inputs
    # None means an own mask value for each element along that axis.
    sizes = layer.noise_shape or (None,) * len(inputs.shape)
    mask_shape = [known if size is None else size for size, known in zip(sizes[1:], inputs.shape[1:], strict=True)]
    ones = tf.ones([batch_size, *mask_shape], inputs.dtype)
    return inputs * share(keras.random.dropout(ones, layer.rate, seed=layer.seed_generator))
