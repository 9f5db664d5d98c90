"""Where a network trains: on one device, or on several of one machine, each with a part of every batch and the same weights.

Several devices give the numbers of one, but for rounding: losses are means over the whole batch, BatchNorm sees the whole batch, and dropout
draws for the whole batch, of which each device takes its rows.
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

# The mean, or the sum, over a batch of which the tensor has all rows, or a part
Over = Callable[["tf.Tensor"], "tf.Tensor"]
# Inputs, labels, mean, sum -> what adds up over the parts of a batch
Update = Callable[["tf.Tensor", "tf.Tensor", Over, Over], "tf.Tensor"]

_HOST = "CPU:0"


class OneDevice:
    """All of a batch on TensorFlow's own choice of device.

    Attributes:
        devices: their names; None leaves the choice to TensorFlow.
        said: what a checkpoint notes of it; None for one device.
    """

    devices: tuple[str | None, ...] = (None,)
    said: str | None = None

    def scope(self) -> AbstractContextManager[Any]:
        """Within it variables are made that are to train."""
        return contextlib.nullcontext()

    def step(self, update: Update, layers: "Sequence[keras.Layer]") -> "Callable[[np.ndarray, np.ndarray], tf.Tensor]":
        """Compiles an update of the weights.

        Args:
            update: [b, *input shape], [b] int32, and functions that take the mean and the sum over the batch -> what it measured.
            layers: those that the update calls.
        """
        import tensorflow as tf

        return tf.function(
            lambda inputs, labels: update(inputs, labels, tf.reduce_mean, tf.reduce_sum), reduce_retracing=True
        )

    def mapped(self, function: "Callable[[tf.Tensor], tf.Tensor]") -> "Callable[[np.ndarray], tf.Tensor]":
        """Compiles a function that treats each row by itself."""
        import tensorflow as tf

        return tf.function(function, reduce_retracing=True)


class Replicas(OneDevice):
    """A batch's rows in as many parts as there are devices, in their order.

    A batch of fewer rows than devices goes to each of them whole, and counts by as much less: not all kernels can do with no rows.

    Args:
        devices: their names.
    """

    def __init__(self, devices: Sequence[str]):
        import tensorflow as tf

        self.devices = tuple(devices)
        self.said = f"mirrored over {len(devices)}"
        # Named: the collective ops of MirroredStrategy's default break when a process has two of it, such as jobs of a sweep
        # (tensorflow/tensorflow#62790).
        sums = tf.distribute.NcclAllReduce() if devices[0].startswith("GPU") else tf.distribute.ReductionToOneDevice()
        with quiet_stderr():
            self._mirrored = tf.distribute.MirroredStrategy(list(devices), cross_device_ops=sums)
        log.info("each batch is split over %s", " and ".join(devices))

    def scope(self) -> AbstractContextManager[Any]:
        return self._mirrored.scope()

    def step(self, update: Update, layers: "Sequence[keras.Layer]") -> "Callable[[np.ndarray, np.ndarray], tf.Tensor]":
        import tensorflow as tf

        @tf.function(reduce_retracing=True)
        def run(inputs, labels):
            total = tf.shape(labels)[0]
            share = tf.where(total < len(self.devices), 1 / len(self.devices), 1.0)

            def add(values):
                return share * tf.reduce_sum(values)

            def mean(values):
                return add(values) / tf.cast(total, values.dtype)

            def part():
                # Only the part travels
                with tf.device(_HOST):
                    rows, theirs = self._part(inputs), self._part(labels)
                return update(rows, theirs, mean, add)

            with _as_on_one(layers, functools.partial(_dropped, total=total, part=self._part)):
                measured = self._mirrored.run(part)
            return self._mirrored.reduce(tf.distribute.ReduceOp.SUM, measured, axis=None)

        return lambda inputs, labels: run(_on_host(inputs), _on_host(labels))

    def mapped(self, function: "Callable[[tf.Tensor], tf.Tensor]") -> "Callable[[np.ndarray], tf.Tensor]":
        import tensorflow as tf

        @tf.function(reduce_retracing=True)
        def run(inputs):
            def part():
                with tf.device(_HOST):
                    rows = self._part(inputs)
                return function(rows)

            return tf.concat(self._mirrored.experimental_local_results(self._mirrored.run(part)), axis=0)[
                : tf.shape(inputs)[0]
            ]

        return lambda inputs: run(_on_host(inputs))

    def _part(self, batch: "tf.Tensor") -> "tf.Tensor":
        """The rows of a whole batch that are this replica's: one at least."""
        import tensorflow as tf

        number, count = tf.distribute.get_replica_context().replica_id_in_sync_group, len(self.devices)
        rows = tf.shape(batch)[0]
        few = rows < count
        return batch[tf.where(few, 0, rows * number // count) : tf.where(few, rows, rows * (number + 1) // count)]


def _on_host(batch: "np.ndarray") -> "tf.Tensor":
    import tensorflow as tf

    with tf.device(_HOST):
        return tf.constant(batch)


@contextlib.contextmanager
def _as_on_one(layers: "Sequence[keras.Layer]", dropped: "Callable[..., tf.Tensor]") -> Iterator[None]:
    """While an update is traced, layers that look beyond a row do as they would with the whole batch; afterwards they are Keras' own again, and
    are saved as such."""
    import keras

    normalisations = [layer for layer in layers if isinstance(layer, keras.layers.BatchNormalization)]
    dropouts = [layer for layer in layers if isinstance(layer, keras.layers.Dropout)]
    for layer in normalisations:
        layer.synchronized = True
    for layer in dropouts:
        layer.call = functools.partial(dropped, layer)
    try:
        yield
    finally:
        for layer in normalisations:
            layer.synchronized = False
        for layer in dropouts:
            del layer.call


def _dropped(
    layer: "keras.layers.Dropout",
    inputs: "tf.Tensor",
    training: bool = False,
    *,
    total: "tf.Tensor",
    part: "Callable[[tf.Tensor], tf.Tensor]",
) -> "tf.Tensor":
    """A replica's rows, dropped as one device would drop them: all replicas draw the same for the whole batch, and take their rows of it."""
    import keras
    import tensorflow as tf

    if not training or not layer.rate:
        return inputs
    # None: drawn for each
    sizes = layer.noise_shape or (None,) * len(inputs.shape)
    everything = tf.ones(
        [total, *(known if size is None else size for size, known in zip(sizes[1:], inputs.shape[1:], strict=True))]
    )
    return inputs * part(keras.random.dropout(everything, layer.rate, seed=layer.seed_generator))
