"""The network of a run: frozen prefix, trainable suffix and head; and the full model, as it is saved."""

import os
from collections.abc import Callable, Generator, Hashable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from dogbreeds.models.custom_layers import custom_layers
from dogbreeds.models.precision import FLOAT32
from dogbreeds.models.replicas import OneDevice
from dogbreeds.models.runtime import TENSORFLOW, Engine, compile_engine, freeze

if TYPE_CHECKING:
    import keras
    import tensorflow as tf

    from dogbreeds.models.unfreeze import Plan

ONE_DEVICE = OneDevice()


def inference_batch_size(image_size: int) -> int:
    """Choose a batch size for inference that fills the CPU cores or the GPU within bounded memory.

    Args:
        image_size: pixels a side.

    Returns:
        Images per batch and device, from 4 to 256.
    """
    import tensorflow as tf

    at_224 = 256 if tf.config.list_physical_devices("GPU") else 16 * min(8, os.cpu_count() or 1)
    return int(np.clip(at_224 * (224 / image_size) ** 2, 4, 256))


def compile_inference(graph: "keras.Model", device: str | None = None) -> Callable[[np.ndarray], np.ndarray]:
    """Compile a model for inference with its weights folded into the graph as constants, which is faster on a CPU.

    Args:
        graph: model with one input and one output.
        device: where it runs; None leaves the choice to TensorFlow.

    Returns:
        A function from a batch of images to the model's output in inference mode.
    """
    import tensorflow as tf

    constant = freeze(graph)

    def run(images: np.ndarray) -> np.ndarray:
        with tf.device(device):
            return constant(tf.cast(images, tf.float32))[0].numpy()

    return run


@dataclass(frozen=True)
class Prefix:
    """The frozen part of the network: preprocessing, the backbone up to the cut, and pooling if no block is trained.

    Attributes:
        graph: [b, size, size, 3] float32 in [0, 255] -> [b, *shape] float32.
        fingerprint: identity of its computation: weights, preprocessing mode and cut.
        devices: where it runs, as in `OneDevice`, if TensorFlow computes it.
        runtime: what computes it: `tensorflow`, `openvino` or `onnxruntime`.
        precision: that it is computed in: `float32` or `bfloat16`.
    """

    graph: "keras.Model"
    fingerprint: str
    devices: tuple[str | None, ...] = ONE_DEVICE.devices
    runtime: str = TENSORFLOW
    precision: str = FLOAT32

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the output for one image."""
        return tuple(self.graph.output.shape[1:])

    def batch_size(self) -> int:
        """Choose the number of images per batch, for all devices together."""
        return len(self.devices) * inference_batch_size(self.graph.input.shape[1])

    @cached_property
    def compiled(self) -> Callable[[np.ndarray], np.ndarray]:
        """A function from a batch of images to the prefix's output. Each device computes a part of the batch.

        Raises:
            RuntimeUnavailableError: the runtime cannot compute it on this machine.
        """
        if self.runtime != TENSORFLOW:
            return compile_engine(self.graph, self.runtime, self.precision)
        runs = [compile_inference(self.graph, device) for device in self.devices]
        if len(runs) == 1:
            return runs[0]
        pool = ThreadPoolExecutor(len(runs), thread_name_prefix="device")

        def run(images: np.ndarray) -> np.ndarray:
            parts = [part for part in np.array_split(images, len(runs)) if len(part)]
            return np.concatenate(list(pool.map(lambda infer, part: infer(part), runs, parts)))

        return run

    def stream(self, batches: Iterable[np.ndarray]) -> Generator[np.ndarray, None, None]:
        """Yield the outputs of batches of images, in order. A runtime may take a few batches ahead.

        Raises:
            RuntimeUnavailableError: the runtime cannot compute it on this machine.
            UserError: the runtime's first outputs are not those of Keras.
        """
        run = self.compiled
        yield from run.stream(batches) if isinstance(run, Engine) else map(run, batches)


@dataclass(frozen=True)
class Network:
    """The network of a run, as prefix, suffix and head.

    Attributes:
        prefix: frozen part, whose output is cached. If the whole backbone trains, it is only the preprocessing, and
            there are no cached features.
        suffix: part of the backbone above the cut, with its own copy of the weights; None if only the head trains.
        head: [b, features] -> [b, classes] logits.
        plan: which layers of the suffix train, and how.
        replicas: the devices that hold suffix and head.
        depths: numbers of the blocks whose outputs are the head's features, as of `find_depths`; none for the output of
            the last one as it is.
        resized_prefix: `prefix` for images of another size, on which the network trains; None if it is the same.
    """

    prefix: Prefix
    suffix: "keras.Model | None"
    head: "keras.Sequential"
    plan: "Plan"
    replicas: OneDevice = ONE_DEVICE
    depths: tuple[int, ...] = ()
    resized_prefix: Prefix | None = None

    @property
    def train_prefix(self) -> Prefix:
        """`prefix` for the size of augmented images."""
        return self.resized_prefix or self.prefix

    def with_runtime(self, runtime: str, precision: str) -> "Network":
        """Return the network, sharing all its parts, with a frozen part that a runtime computes in a precision."""
        if (self.prefix.runtime, self.prefix.precision) == (runtime, precision):
            return self
        resized = self.resized_prefix and replace(self.resized_prefix, runtime=runtime, precision=precision)
        prefix = replace(self.prefix, runtime=runtime, precision=precision)
        return replace(self, prefix=prefix, resized_prefix=resized)

    @property
    def uses_cache(self) -> bool:
        """Whether the network's inputs are cached features. If not, they are images."""
        return self.plan.cut > 0

    def forward(self, inputs, training: bool):
        """Compute logits.

        Args:
            inputs: cached features [b, *prefix.shape] if `uses_cache`, else images [b, size, size, 3] in [0, 255].
            training: enables dropout (in the backbone only with `drop_connect`). The backbone's BatchNorm uses running
                statistics unless `batchnorm=trainable`.

        Returns:
            [b, classes] logits.
        """
        if not self.uses_cache:
            is_resized = inputs.shape[1] != self.prefix.graph.input.shape[1]
            graph = self.train_prefix.graph if is_resized else self.prefix.graph
            inputs = graph(inputs, training=False)
        if self.suffix is not None:
            has_training_mode = self.plan.drop_connect or self.plan.batchnorm == "trainable"
            inputs = self.suffix(inputs, training=training and has_training_mode)
        return self.head(inputs, training=training)

    @cached_property
    def infer(self) -> "Callable[[np.ndarray], tf.Tensor]":
        """`forward` in inference mode, compiled."""
        import tensorflow as tf

        return self.replicas.compile_rowwise(lambda inputs: self.forward(tf.cast(inputs, tf.float32), training=False))

    @cached_property
    def steps(self) -> dict[Hashable, Any]:
        """Compiled training steps, by what they depend on: see `training.step`."""
        return {}

    @property
    def layers(self) -> "list[keras.Layer]":
        """The layers of suffix and head."""
        return [*(self.suffix.layers if self.suffix is not None else []), *self.head.layers]

    @property
    def variables(self) -> "list[keras.Variable]":
        """The weights and statistics of suffix and head: all that training may change."""
        return [*(self.suffix.variables if self.suffix is not None else []), *self.head.variables]

    def trainable_by_depth(self, layers: frozenset[str]) -> "dict[int, list[keras.Variable]]":
        """Group the variables to train by their depth below the network's output.

        Args:
            layers: names of the suffix's layers that train. The head always trains.

        Returns:
            Variables by depth: 0 is the head, 1 the top block, and so on.
        """
        groups: dict[int, list[keras.Variable]] = {0: list(self.head.trainable_variables)}
        for layer in self.suffix.layers if self.suffix is not None else []:
            if layer.name in layers:
                groups.setdefault(self.plan.depth[layer.name], []).extend(self._variables_to_train(layer))
        return groups

    def _variables_to_train(self, layer: "keras.Layer") -> "list[keras.Variable]":
        import keras

        if isinstance(layer, keras.layers.BatchNormalization):
            return [layer.gamma, layer.beta] if self.plan.batchnorm != "frozen" else []
        return list(layer.trainable_variables)

    @property
    def num_unfrozen_batchnorms(self) -> int:
        """Number of BatchNorm layers among the backbone layers that train."""
        import keras

        layers = self.suffix.layers if self.suffix is not None else []
        return sum(
            isinstance(layer, keras.layers.BatchNormalization) and layer.name in self.plan.stages[-1]
            for layer in layers
        )

    def custom_layers(self) -> list[str]:
        """Return the names of the layers that Keras cannot load from a saved network by itself."""
        parts = [part for part in (self.prefix.graph, self.suffix, self.head) if part is not None]
        return [name for part in parts for name in custom_layers(part)]

    def parameter_counts(self) -> dict[str, int]:
        """Count the parameters: `total`, `trainable` in the last stage, and those of the `backbone`."""
        parts = {"prefix": self.prefix.graph, "suffix": self.suffix, "head": self.head}
        counts = {name: part.count_params() if part is not None else 0 for name, part in parts.items()}
        trainable = sum(
            int(np.prod(variable.shape))
            for group in self.trainable_by_depth(self.plan.stages[-1]).values()
            for variable in group
        )
        return {"total": sum(counts.values()), "trainable": trainable, "backbone": counts["prefix"] + counts["suffix"]}

    def full_model(self, class_names: tuple[str, ...], resize: str) -> "keras.Model":
        """Build a single Keras model of built-in layers, from images of any size to class names and probabilities.

        Args:
            class_names: in the order of the logits.
            resize: how images become square, as in `resize_images`.

        Returns:
            A model with the input `image`, [b, h, w, 3] uint8 RGB. Its outputs are a dict of `probabilities`,
            [b, classes] float32, and `class`, the name of the most probable class, [b] strings.
        """
        import keras

        from dogbreeds.data.resize import resize_images

        images = keras.Input((None, None, 3), dtype="uint8", name="image")
        outputs = self.prefix.graph(resize_images(images, self.prefix.graph.input.shape[1], resize))
        for part in (self.suffix, self.head) if self.suffix is not None else (self.head,):
            outputs = part(outputs)
        probabilities = keras.layers.Softmax(name="probabilities")(outputs)
        to_name = keras.layers.StringLookup(vocabulary=list(class_names), num_oov_indices=0, invert=True, name="class")
        top_class = to_name(keras.ops.argmax(probabilities, axis=-1))
        return keras.Model(images, {"probabilities": probabilities, "class": top_class}, name="dogbreeds")
