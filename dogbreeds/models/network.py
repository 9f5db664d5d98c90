"""The network of an attempt in three parts, prefix, suffix and head, and the whole of it as it is saved."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from dogbreeds.models.replicas import OneDevice

if TYPE_CHECKING:
    import keras
    import tensorflow as tf

    from dogbreeds.models.model import Backbone
    from dogbreeds.models.preprocessing import Preprocessing
    from dogbreeds.models.unfreeze import Plan

ONE_DEVICE = OneDevice()


def photos_at_once(size: int) -> int:
    """Enough photos of `size` pixels a side to fill the cores, or the GPU, few enough that memory stays in bounds."""
    import tensorflow as tf

    at_224 = 256 if tf.config.list_physical_devices("GPU") else 16 * min(8, os.cpu_count() or 1)
    return int(np.clip(at_224 * (224 / size) ** 2, 4, 256))


def folded(graph: "keras.Model", device: str | None = None) -> Callable[[np.ndarray], np.ndarray]:
    """A function from a batch of photos to a graph's output in inference mode, its weights folded in as constants: faster on a CPU.

    Args:
        graph: of one input and one output.
        device: where it runs; None leaves that to TensorFlow.
    """
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    signature = tf.TensorSpec(graph.input.shape, tf.float32)
    concrete = tf.function(lambda photos: graph(photos, training=False)).get_concrete_function(signature)
    constant = convert_variables_to_constants_v2(concrete)

    def run(photos: np.ndarray) -> np.ndarray:
        with tf.device(device):
            return constant(tf.cast(photos, tf.float32))[0].numpy()

    return run


@dataclass(frozen=True)
class Prefix:
    """The frozen part: photos at the backbone's size -> what leaves the cut, pooled where nothing of the backbone trains.

    Attributes:
        graph: [b, size, size, 3] float32 in [0, 255] -> [b, *shape] float32.
        fingerprint: of what it computes: weights, cut and pixels.
        devices: where it runs, as in `OneDevice`.
    """

    graph: "keras.Model"
    fingerprint: str
    devices: tuple[str | None, ...] = ONE_DEVICE.devices

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.graph.output.shape[1:])

    def batch_size(self) -> int:
        """Photos at a time that suit this machine."""
        return len(self.devices) * photos_at_once(self.graph.input.shape[1])

    @cached_property
    def compiled(self) -> Callable[[np.ndarray], np.ndarray]:
        """A function from a batch of photos to their outputs; each device has a part of the batch."""
        runs = [folded(self.graph, device) for device in self.devices]
        if len(runs) == 1:
            return runs[0]
        pool = ThreadPoolExecutor(len(runs), thread_name_prefix="device")

        def run(photos: np.ndarray) -> np.ndarray:
            parts = [part for part in np.array_split(photos, len(runs)) if len(part)]
            return np.concatenate(list(pool.map(lambda infer, part: infer(part), runs, parts)))

        return run


@dataclass(frozen=True)
class Network:
    """The parts of an attempt's network.

    Attributes:
        prefix: frozen, its output kept; where everything trains it is the pixels' convention alone, and nothing is kept.
        suffix: what lies between the cut and the head, with weights of its own; None where only the head trains.
        head: [b, features] -> [b, classes] logits.
        plan: what of the suffix trains, and how.
        replicas: where suffix and head are.
    """

    prefix: Prefix
    suffix: "keras.Model | None"
    head: "keras.Sequential"
    plan: "Plan"
    replicas: OneDevice = ONE_DEVICE

    @property
    def keeps(self) -> bool:
        """Whether there is something to keep: else the network is shown photos."""
        return self.plan.cut > 0

    def forward(self, inputs, training: bool):
        """What the prefix says, or photos where nothing is kept -> [b, classes] logits.

        Frozen BatchNorm and silent dropout stay so in training, whatever Keras would do.
        """
        if not self.keeps:
            inputs = self.prefix.graph(inputs, training=False)
        if self.suffix is not None:
            wakes = self.plan.drop_connect or self.plan.batchnorm == "trainable"
            inputs = self.suffix(inputs, training=training and wakes)
        return self.head(inputs, training=training)

    @cached_property
    def infer(self) -> "Callable[[np.ndarray], tf.Tensor]":
        """`forward` in inference mode, compiled."""
        import tensorflow as tf

        return self.replicas.mapped(lambda inputs: self.forward(tf.cast(inputs, tf.float32), training=False))

    @property
    def layers(self) -> "list[keras.Layer]":
        """Those of suffix and head."""
        return [*(self.suffix.layers if self.suffix is not None else []), *self.head.layers]

    def trainable(self, layers: frozenset[str]) -> "dict[int, list[keras.Variable]]":
        """The variables that train where these layers of the suffix do: 0 is the head's depth, 1 the top block's, and so on."""
        found: dict[int, list[keras.Variable]] = {0: list(self.head.trainable_variables)}
        for layer in self.suffix.layers if self.suffix is not None else []:
            if layer.name in layers:
                found.setdefault(self.plan.depth[layer.name], []).extend(self._trained(layer))
        return found

    @property
    def learned(self) -> "list[keras.Variable]":
        """All that an attempt may change: the weights and statistics of suffix and head."""
        return [*(self.suffix.variables if self.suffix is not None else []), *self.head.variables]

    def _trained(self, layer: "keras.Layer") -> "list[keras.Variable]":
        import keras

        if isinstance(layer, keras.layers.BatchNormalization):
            return [layer.gamma, layer.beta] if self.plan.batchnorm != "frozen" else []
        return list(layer.trainable_variables)

    @property
    def batchnorms(self) -> int:
        """How many BatchNorm layers there are among the backbone's layers that train."""
        import keras

        layers = self.suffix.layers if self.suffix is not None else []
        return sum(
            isinstance(layer, keras.layers.BatchNormalization) and layer.name in self.plan.stages[-1]
            for layer in layers
        )

    def parameters(self) -> dict[str, int]:
        """Numbers of parameters: `total`, `trainable` in the end, and of the `backbone`."""
        parts = {"prefix": self.prefix.graph, "suffix": self.suffix, "head": self.head}
        counts = {name: part.count_params() if part is not None else 0 for name, part in parts.items()}
        trained = sum(
            int(np.prod(variable.shape))
            for group in self.trainable(self.plan.stages[-1]).values()
            for variable in group
        )
        return {"total": sum(counts.values()), "trainable": trained, "backbone": counts["prefix"] + counts["suffix"]}

    def whole(self, class_names: tuple[str, ...], resize: str) -> "keras.Model":
        """The network as one Keras model of built-in layers, from photos to names.

        Args:
            class_names: breeds, in the order of the scores.
            resize: how photos become square, as in `resized`.

        Returns:
            A model from [b, h, w, 3] uint8 RGB of any size to `probabilities`, [b, classes] float32, and `breed`, [b] text.
        """
        import keras

        from dogbreeds.data.resize import resized

        photos = keras.Input((None, None, 3), dtype="uint8", name="photo")
        outputs = self.prefix.graph(resized(photos, self.prefix.graph.input.shape[1], resize))
        for part in (self.suffix, self.head) if self.suffix is not None else (self.head,):
            outputs = part(outputs)
        probabilities = keras.layers.Softmax(name="probabilities")(outputs)
        names = keras.layers.StringLookup(vocabulary=list(class_names), num_oov_indices=0, invert=True, name="breed")
        breed = names(keras.ops.argmax(probabilities, axis=-1))
        return keras.Model(photos, {"probabilities": probabilities, "breed": breed}, name="dogbreeds")


def assemble(
    backbone: "Backbone",
    preprocessing: "Preprocessing",
    plan: "Plan",
    head: "Callable[[int], keras.Sequential]",
    replicas: OneDevice = ONE_DEVICE,
) -> Network:
    """Cuts a backbone as planned and puts a head on it.

    Args:
        backbone: left as it is; the suffix gets copies of its weights.
        preprocessing: what the pixels go through first.
        plan: where to cut.
        head: builds the head for a number of features.
        replicas: where they are to train.
    """
    prefix = _prefix(backbone, preprocessing, plan.cut, replicas.devices)
    with replicas.scope():
        suffix = _suffix(backbone, plan) if plan.cut < len(backbone.blocks) else None
        features = (suffix or prefix.graph).output.shape[-1]
        return Network(prefix, suffix, head(features), plan, replicas)


def _prefix(backbone: "Backbone", preprocessing: "Preprocessing", cut: int, devices: tuple[str | None, ...]) -> Prefix:
    import keras

    pixels = keras.Input(backbone.network.input.shape[1:], name="pixels")
    outputs = preprocessing.apply(pixels)
    if cut == 0:
        outputs = keras.layers.Identity(name="photos")(outputs)
    else:
        outputs = keras.Model(backbone.network.input, backbone.blocks[cut - 1].output, name="prefix")(outputs)
    if cut == len(backbone.blocks):
        outputs = keras.layers.GlobalAveragePooling2D(name="pool")(outputs)
    return Prefix(
        keras.Model(pixels, outputs, name="frozen"), f"{backbone.fingerprint}:{preprocessing.mode}:{cut}", devices
    )


def _suffix(backbone: "Backbone", plan: "Plan") -> "keras.Model":
    import keras

    begin = backbone.blocks[plan.cut - 1].output if plan.cut else backbone.network.input
    pooled = keras.layers.GlobalAveragePooling2D(name="pool")(backbone.network.output)
    original = keras.Model(begin, pooled, name="suffix")
    copy = keras.models.clone_model(original)
    copy.set_weights(original.get_weights())
    for layer in copy.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            # Else Keras uses the stored statistics
            layer.trainable = plan.batchnorm == "trainable" and layer.name in plan.stages[-1]
        if isinstance(layer, keras.layers.Dropout) and not plan.drop_connect:
            layer.rate = 0.0
    return copy
