"""Trained classifier, loaded from a `.keras` file alone: images in, class names and probabilities out."""

import importlib.util
import logging
import zipfile
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dogbreeds.core.console import quiet_stderr
from dogbreeds.core.errors import UserError
from dogbreeds.core.text import shorten
from dogbreeds.data import decoder
from dogbreeds.data.image import ImageLoader
from dogbreeds.models.blocks import nodes_in_order
from dogbreeds.models.custom_layers import KERAS_HUB, keep_arguments, needs_keras_hub
from dogbreeds.models.network import compile_inference, inference_batch_size
from dogbreeds.models.pooling import NAME as POOL
from dogbreeds.models.precision import FLOAT32
from dogbreeds.models.runtime import TENSORFLOW, RuntimeUnavailableError, compile_engine

if TYPE_CHECKING:
    from collections.abc import Callable

    import keras

log = logging.getLogger(__name__)

# Outputs of a saved network. Version 0.1.0 called the second `breed`, and the input `photo` in the place of `image`.
_PROBABILITIES = "probabilities"
_CLASS = "class"
_FORMER_CLASS = "breed"


@dataclass(frozen=True)
class Classifier:
    """A trained network, as `Network.full_model` builds it.

    Attributes:
        model: Keras model from `image`, [b, h, w, 3] uint8 RGB of any size, to `probabilities`, [b, classes] float32,
            and `class`, [b] class names.
        class_names: in the order of the probabilities.
        decoder: what decodes and resizes images for it, one of `data.decoder.DECODERS`: that of its training, or
            TensorFlow, which resizes as the network itself does.
        runtime: what computes its frozen part in `logits`, as in the run that trained it. Where it cannot, TensorFlow
            does, in float32.
        precision: that the frozen part is computed in.
    """

    model: "keras.Model"
    class_names: tuple[str, ...]
    decoder: str = field(default=decoder.TENSORFLOW, kw_only=True)
    runtime: str = field(default=TENSORFLOW, kw_only=True)
    precision: str = field(default=FLOAT32, kw_only=True)

    @cached_property
    def _pipeline(self) -> "tuple[keras.KerasTensor, list[keras.Model]]":
        """Resized images, and the sub-models they pass in order: frozen part, fine-tuned part (if any), head."""
        import keras

        nodes = [node for node in nodes_in_order(self.model) if isinstance(node.operation, keras.Model)]
        return nodes[0].input_tensors[0], [node.operation for node in nodes]

    @property
    def image_size(self) -> int:
        """Side length in pixels that images are resized to."""
        return int(self._pipeline[0].shape[1])

    @property
    def resize(self) -> str:
        """How images are made square: `stretch`, `pad` or `crop`."""
        (layer,) = [node.operation for node in nodes_in_order(self.model) if type(node.operation).__name__ == "Resize"]
        return "crop" if layer.crop_to_aspect_ratio else "pad" if layer.pad_to_aspect_ratio else "stretch"

    @cached_property
    def core(self) -> "keras.Model":
        """Keras model after the resize: [b, size, size, 3] float32 RGB in [0, 255] -> [b, classes] logits."""
        import keras

        (softmax,) = [node for node in nodes_in_order(self.model) if node.operation.name == _PROBABILITIES]
        return keras.Model(self._pipeline[0], softmax.input_tensors[0], name="core")

    @cached_property
    def logits(self) -> "Callable[[np.ndarray], np.ndarray]":
        """Compiled inference function of `core`: [b, size, size, 3] -> [b, classes] logits."""
        return self._logits_by_runtime() or compile_inference(self.core)

    def _logits_by_runtime(self) -> "Callable[[np.ndarray], np.ndarray] | None":
        """Compile the frozen part for the run's runtime, and the rest for TensorFlow; None if TensorFlow does all."""
        import keras
        import tensorflow as tf

        if self.runtime == TENSORFLOW or tf.config.list_physical_devices("GPU"):
            return None
        _, (frozen, *rest) = self._pipeline
        try:
            engine = compile_engine(frozen, self.runtime, self.precision)
        except RuntimeUnavailableError as error:
            log.warning("%s: TensorFlow computes the features of this network, in float32", error.reason)
            return None
        features = keras.Input(frozen.output.shape[1:])
        outputs = features
        for part in rest:
            outputs = part(outputs)
        head = compile_inference(keras.Model(features, outputs))
        return lambda images: head(engine(images))

    @cached_property
    def probabilities(self) -> "Callable[[np.ndarray], np.ndarray]":
        """Compiled inference function: [b, size, size, 3] -> [b, classes] probabilities."""
        import keras

        return compile_inference(keras.Model(self._pipeline[0], self.model.output[_PROBABILITIES]))

    @cached_property
    def decode(self) -> "Callable[[ImageLoader], np.ndarray]":
        """Thread-safe function that calls an image's loader and returns [size, size, 3] uint8."""
        return decoder.decoder_to_size(self.image_size, self.resize, self.decoder)

    def batch_size(self) -> int:
        """Return the number of images in a batch that suits this machine."""
        return inference_batch_size(self.image_size)

    @cached_property
    def maps_and_head(self) -> "tuple[keras.Model, keras.Model]":
        """The network, split at global average pooling.

        Two models: [b, size, size, 3] -> feature maps [b, h, w, c], and pooled features [b, c] -> [b, classes] logits.

        Raises:
            UserError: if the network pools no feature maps by their average.
        """
        import keras

        images, (*first_parts, last_part, head) = self._pipeline
        # With features.layers there are several, of other names.
        pool = next((layer for layer in last_part.layers if layer.name == POOL), None)
        if not isinstance(pool, keras.layers.GlobalAveragePooling2D):
            raise UserError(
                "The network does not end in feature maps [h, w, channels] pooled by their average, from which Grad-CAM"
                " would read where an image has what. Heat maps need such a network, with model.pooling=avg and"
                " features.layers=[]. Leave out explain."
            )
        inputs = keras.Input(images.shape[1:])
        outputs = inputs
        for part in first_parts:
            outputs = part(outputs)
        return keras.Model(inputs, keras.Model(last_part.input, pool.input)(outputs)), head


def load(file: Path) -> Classifier:
    """Load a saved network.

    Args:
        file: a `.keras` file. The inputs and outputs of networks that version 0.1.0 saved get their present names.

    Raises:
        UserError: the file is not a saved network, is one without class names, or has more names or fewer than outputs;
            or it needs KerasHub, which is not installed.
    """
    if importlib.util.find_spec(KERAS_HUB) is None and needs_keras_hub(file):
        raise UserError(
            f"{file} has layers of KerasHub, which is not installed. It comes with the extra hub, for Python 3.11 or"
            " later. Type pip install 'dogbreeds[hub]'."
        )
    with quiet_stderr():
        import keras
    try:
        model = keras.models.load_model(file, compile=False, safe_mode=True)
    except (OSError, ValueError, TypeError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{file} cannot be read as a saved network ({shorten(str(error), 160)}). It must be a complete"
            " .keras file that a training run saved. Type run=latest, or the path of such a file."
        ) from error
    keep_arguments(model)
    outputs = getattr(model, "output", None)
    names = set(outputs) if isinstance(outputs, dict) else set()
    lookups = [layer for layer in getattr(model, "layers", ()) if isinstance(layer, keras.layers.StringLookup)]
    if names not in ({_PROBABILITIES, _CLASS}, {_PROBABILITIES, _FORMER_CLASS}) or len(lookups) != 1:
        raise UserError(
            f"{file} is a network without class names. It must have the outputs probabilities and class, as a network"
            " saved by a training run has. Type run=latest, or the path of such a file."
        )
    class_names = tuple(str(name) for name in lookups[0].get_vocabulary())
    num_outputs = model.output[_PROBABILITIES].shape[-1]
    if num_outputs != len(class_names):
        raise UserError(
            f"{file} has {num_outputs:,} outputs and {len(class_names):,} class names. A network has one name for each"
            " output. Type run=latest, or the path of a network that a training run saved."
        )
    if _FORMER_CLASS in names:
        lookups[0].name = _CLASS
        model = _with_present_names(model)
    return Classifier(model, class_names)


def _with_present_names(model: "keras.Model") -> "keras.Model":
    """Rename the input and the outputs of a network that version 0.1.0 saved; its layers and weights are shared."""
    import keras

    image = keras.Input(model.input.shape[1:], dtype="uint8", name="image")
    # `call` applies the layers one by one, so the result is as flat as a network that is saved today.
    outputs = model.call(image)
    renamed = {_PROBABILITIES: outputs[_PROBABILITIES], _CLASS: outputs[_FORMER_CLASS]}
    return keras.Model(image, renamed, name=model.name)
