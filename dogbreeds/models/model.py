"""Backbones: architecture, pretrained weights, and blocks.

A *block* is a part of the network between two tensors through which all data flows. The layers before such a tensor
can be run once and their output cached, while the layers after it are trained. Blocks are found in the graph; layer
names only decide which of these tensors are block boundaries.
"""

import difflib
import functools
import hashlib
import math
import re
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dogbreeds.core.errors import MissingFileError, UserError
from dogbreeds.core.source import is_foreign, plugin_digest
from dogbreeds.core.spec import AUTO, Spec, integer, mapping, number, one_of, path, regular_expression, text
from dogbreeds.core.text import digest, digest_once, received, shorten
from dogbreeds.models.blocks import Block, find_blocks
from dogbreeds.models.pooling import POOLINGS
from dogbreeds.models.preprocessing import MODES

if TYPE_CHECKING:
    import keras

SHIPPED_WEIGHTS = Path(__file__).parent / "pretrained" / "miniature.weights.h5"

# Keras divides by the square root of the stored variance, but the official EfficientNet files store the standard
# deviation there, so a second division by its square root is needed.
# Source: keras.applications.efficientnet, tensorflow/tensorflow#49930.
_IMAGENET_STDDEV = (0.229, 0.224, 0.225)

# Width multipliers of MobileNetV2 for which Keras has ImageNet weights.
_IMAGENET_ALPHAS = (0.35, 0.5, 0.75, 1.0, 1.3, 1.4)
# What Keras raises, or warns of, when a weight file does not match the network.
WEIGHT_FILE_ERRORS = (ValueError, KeyError, OSError, TypeError, UserWarning)


@dataclass(frozen=True)
class Backbone:
    """A pretrained network without its classifier.

    Attributes:
        network: [b, size, size, 3] float32 in the pixel convention of pretraining -> [b, h, w, channels].
        blocks: in order of computation.
        fingerprint: architecture and a digest of the weights.
        pooling: how its output is pooled, as in `pool`.
    """

    network: "keras.Model"
    blocks: tuple[Block, ...]
    fingerprint: str
    pooling: str = "avg"


@dataclass(frozen=True, kw_only=True)
class Model(Spec):
    """Backbone architecture, input size and weights.

    A subclass for another architecture declares `architecture` again, with its own name, and overrides `construct`.

    Attributes:
        architecture: name of a builder in `keras.applications`.
        image_size: pixels a side.
        pixels: preprocessing mode that the weights were pretrained with; `auto` if the preflight is to find out.
        weights: `imagenet`, `shipped`, the path of a weight file, or None for random weights.
        arguments: further arguments of the builder, by name.
        blocks: where the network can be cut, as `names` of `find_blocks`.
        pooling: how the output is pooled, as in `pool`.
    """

    group = "model"
    implied = {"arguments": (), "blocks": None, "pooling": "avg"}
    architecture: str = text(example="EfficientNetB0")
    image_size: int = integer(at_least=32, at_most=4096, example=224)
    pixels: str = one_of(*MODES, AUTO)
    weights: str | None = path(example="imagenet", optional=True)
    arguments: tuple[tuple[str, Any], ...] = mapping(example="{alpha:0.75}")
    blocks: str | None = regular_expression(example="graph")
    pooling: str = one_of(*POOLINGS, default="avg")

    def weights_file(self) -> Path | None:
        """Return the weight file to load, or None for random weights and for weights that Keras downloads.

        Raises:
            MissingFileError: if the file does not exist.
        """
        if self.weights in (None, "imagenet"):
            return None
        path = SHIPPED_WEIGHTS if self.weights == "shipped" else Path(self.weights).expanduser()
        if not path.is_file():
            raise MissingFileError(
                f"model.weights={self.weights} is not a file. It must be imagenet, null for random weights, or a Keras"
                f" weight file of {self.architecture} without its top. Type model.weights=path/to/file.weights.h5."
            )
        return path

    def weights_digest(self) -> str:
        """Return a digest of the weight file's content, or the value of `weights` if there is no file."""
        file = self.weights_file()
        return str(self.weights) if file is None else digest_once(file)

    def content_identity(self) -> str:
        """Return what tells apart networks of the same weights and settings; an empty text if there are none."""
        return ""

    def build(self, seed: int) -> Backbone:
        """Build the backbone and load its weights. The most recent backbone is reused within a process.

        Args:
            seed: for random weights.

        Raises:
            MissingFileError: if a weight file does not exist, or cannot be downloaded.
            UserError: if the weight file does not match the architecture.
        """
        return _build(self, seed if self.weights is None else 0)

    def construct(self, weights: str | None, top: bool = False) -> "keras.Model":
        """Build the network, a functional model, with the architecture's Keras builder.

        Args:
            weights: `imagenet` or None, as the Keras builder takes it.
            top: whether to include the ImageNet classifier, [b, 1000] logits. The image size is then the architecture's
                default, the only one for which Keras has these weights.
        """
        builder = keras_builder(self.architecture)
        arguments = self._builder_arguments(top)
        try:
            return builder(weights=weights, **self._own_arguments(), **arguments)
        # Unknown or repeated arguments, and values that the builder does not take.
        except (TypeError, ValueError) as error:
            least = re.search(r"must be at least (\d+)x", str(error))
            if least is not None:
                raise UserError(
                    f"model.image_size was {self.image_size}. {self.architecture} takes images of {least[1]} pixels a"
                    f" side or more. Type model.image_size={least[1]}, or leave it out."
                ) from error
            if not self.arguments:
                raise
            raise UserError(
                f"model.arguments was {dict(self.arguments)} ({shorten(str(error), 160)}). It must be arguments of"
                f" keras.applications.{self.architecture} that no other setting gives. Type model.arguments=null, for"
                " example."
            ) from error

    def _own_arguments(self) -> dict[str, object]:
        """Return the arguments that only some builders have."""
        return dict(self.arguments)

    def _builder_arguments(self, top: bool) -> dict[str, object]:
        """Return the Keras builder's arguments for top and input shape, which can be chosen only without a top."""
        if top:
            return {"include_top": True, "classifier_activation": None}
        return {"include_top": False, "input_shape": (self.image_size, self.image_size, 3)}


def keras_builder(architecture: str) -> "Callable[..., keras.Model]":
    """Return the builder of a network in `keras.applications`.

    Raises:
        UserError: if there is none of that name.
    """
    import keras

    names = [name for name in dir(keras.applications) if name[0].isupper()]
    if architecture not in names:
        near = difflib.get_close_matches(architecture, names, 3, cutoff=0.4) or names[:3]
        raise UserError(
            f"model.architecture was {received(architecture)}. It must be the name of a network in keras.applications,"
            f" such as {', '.join(near)}. Type model.architecture={near[0]}, or model=<option>."
        )
    return getattr(keras.applications, architecture)


@dataclass(frozen=True, kw_only=True)
class MobileNetV2(Model):
    """MobileNetV2, which has a width multiplier.

    Attributes:
        alpha: width multiplier.
    """

    alpha: float = number(above=0, at_most=10, example=0.35)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.weights == "imagenet" and self.alpha not in _IMAGENET_ALPHAS:
            raise UserError(
                f"model.alpha={self.alpha:g} was given with model.weights=imagenet. There are ImageNet weights for"
                f" {', '.join(f'{alpha:g}' for alpha in _IMAGENET_ALPHAS)}. Type model.alpha=0.35, or"
                " model.weights=<file>."
            )

    def _own_arguments(self) -> dict[str, object]:
        return {**dict(self.arguments), "alpha": self.alpha}


@dataclass(frozen=True, kw_only=True)
class Miniature(Model):
    """EfficientNet with half the width and 0.6 of the depth of B0: 192 layers."""

    architecture: str = one_of("Miniature")

    def construct(self, weights: str | None, top: bool = False) -> "keras.Model":
        # Keras exports the named sizes only. The general builder that they call is the published architecture.
        from keras.src.applications.efficientnet import EfficientNet

        if weights == "imagenet":
            raise UserError(
                "model.weights=imagenet does not exist for model=miniature. Its weights are shipped with the package,"
                " or random (null). Type model.weights=shipped."
            )
        return EfficientNet(
            width_coefficient=0.5,
            depth_coefficient=0.6,
            default_size=self.image_size,
            name="miniature",
            weights=None,
            **self._own_arguments(),
            **self._builder_arguments(top),
        )


@functools.lru_cache(maxsize=1)
def _build(model: Model, seed: int) -> Backbone:
    import keras

    file = model.weights_file()
    keras.utils.set_random_seed(seed)
    network = imagenet_network(model) if model.weights == "imagenet" else model.construct(None)
    if file is not None:
        network = _load(network, file, model)
    scales = (np.asarray(layer.get_config().get("scale", 0)) for layer in network.layers)
    weights = arrays_digest([*network.get_weights(), *scales])
    # A cut is named by its number.
    special = {name: value for name in Model.implied if (value := getattr(model, name)) != Model.implied[name]}
    content = model.content_identity()
    own = f":{digest((repr(special) + content).encode())}" if special or content else ""
    fingerprint = f"{model.architecture}:{weights}{own}{plugin_digest(model, 'weights')}"
    return Backbone(network, find_blocks(network, model.blocks), fingerprint, model.pooling)


def arrays_digest(arrays: Iterable[np.ndarray]) -> str:
    """Return a digest of the content of arrays, such as a network's weights, in their order."""
    state = hashlib.blake2b(digest_size=16)
    for array in arrays:
        state.update(np.ascontiguousarray(array).tobytes())
    return state.hexdigest()


def imagenet_network(model: Model, top: bool = False) -> "keras.Model":
    """Build a network with ImageNet weights, which Keras downloads once and caches on disk.

    Args:
        model: architecture and image size.
        top: as in `Model.construct`.

    Raises:
        MissingFileError: if the weights cannot be downloaded.
    """
    import keras

    try:
        return model.construct("imagenet", top)
    except Exception as error:
        # Keras reports a failed download as a bare Exception. A subclass means another problem.
        if type(error) is not Exception:
            raise
        cache = Path(keras.config.keras_home() if hasattr(keras.config, "keras_home") else "~/.keras") / "models"
        raise MissingFileError(
            f"The ImageNet weights of {model.architecture} are not in {cache} and could not be downloaded"
            f" ({shorten(str(error), 200)}). Without a network connection, put the file there or give its path. Type"
            " model.weights=path/to/file.h5, or model=miniature, which needs no download."
        ) from error


def network_name(model: Model, top: bool) -> str:
    """Return what to call the network that a weight file must fit, for errors."""
    if is_foreign(type(model)):
        return model.architecture
    return f"keras.applications.{model.architecture}(include_top={top})"


def load_all_weights(network: "keras.Model", file: Path) -> None:
    """Load the weights of every layer from a file.

    Raises:
        One of `WEIGHT_FILE_ERRORS`: if the file does not match the network, or lacks the weights of a layer.
    """
    with warnings.catch_warnings():
        # Keras only warns about layers that it skips.
        warnings.simplefilter("error", UserWarning)
        network.load_weights(file)


def _load(network: "keras.Model", file: Path, model: Model) -> "keras.Model":
    import keras

    try:
        load_all_weights(network, file)
    except WEIGHT_FILE_ERRORS as error:
        with_alpha = f", with alpha={model.alpha:g}" if isinstance(model, MobileNetV2) else ""
        to_change = "model.alpha" if isinstance(model, MobileNetV2) else "model"
        raise UserError(
            f"{file} does not fit {model.architecture} ({shorten(str(error), 160)}). It must hold the weights of"
            f" {network_name(model, top=False)} in the same size{with_alpha}. Type"
            f" model.weights=imagenet, or give the right file or {to_change}."
        ) from error
    normalisations = [layer for layer in network.layers if isinstance(layer, keras.layers.Normalization)]
    if normalisations and np.allclose(np.ravel(normalisations[0].variance), _IMAGENET_STDDEV, atol=1e-4):
        return _with_second_rescaling(network, normalisations[0])
    return network


def _with_second_rescaling(network: "keras.Model", after: "keras.Layer") -> "keras.Model":
    """Return the network, sharing its layers, with the rescaling that Keras adds only for `weights="imagenet"`."""
    import keras

    def call(layer, *args, **kwargs):
        output = layer(*args, **kwargs)
        if layer is not after:
            return output
        return keras.layers.Rescaling([1.0 / math.sqrt(stddev) for stddev in _IMAGENET_STDDEV])(output)

    return keras.models.clone_model(network, clone_function=lambda layer: layer, call_function=call)
