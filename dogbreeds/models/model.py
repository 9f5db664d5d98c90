"""Backbones, and their blocks.

A *block* is a stretch of the network between two tensors through which everything flows, so that what lies before it can be computed once
and kept, and what lies after it trained. Blocks are found in the graph; layer names only say where one ends and the next begins.
"""

import functools
import hashlib
import math
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dogbreeds.core.errors import MissingFileError, UserError
from dogbreeds.core.spec import Spec, integer, number, one_of, text
from dogbreeds.core.text import digest
from dogbreeds.models.blocks import Block, find_blocks
from dogbreeds.models.preprocessing import MODES

if TYPE_CHECKING:
    import keras

SHIPPED = Path(__file__).parent / "pretrained" / "miniature.weights.h5"

ARCHITECTURES = (
    *(f"EfficientNetB{size}" for size in range(8)),
    "EfficientNetV2B0",
    "EfficientNetV2S",
    "ResNet50",
    "MobileNetV2",
    "ConvNeXtTiny",
    "Miniature",
)

# Keras divides by the square root of the stored variance, and the official EfficientNet files store the standard deviation there: a
# second division by its square root is due. Source: keras.applications.efficientnet, tensorflow/tensorflow#49930.
_IMAGENET_STDDEV = (0.229, 0.224, 0.225)

# By which Keras says that a weight file is not the network's
UNFIT = (ValueError, KeyError, OSError, TypeError, UserWarning)


@dataclass(frozen=True)
class Backbone:
    """A pretrained network without its classifier: [b, size, size, 3] in its native pixels -> [b, h, w, channels]."""

    network: "keras.Model"
    blocks: tuple[Block, ...]
    fingerprint: str


@dataclass(frozen=True, kw_only=True)
class Model(Spec):
    """Which backbone, at which size, with which weights."""

    group = "model"
    architecture: str = one_of(*ARCHITECTURES)
    image_size: int = integer(at_least=32, example=224)
    pixels: str = one_of(*MODES)
    weights: str | None = text(example="imagenet", optional=True)

    def weights_file(self) -> Path | None:
        """The file to load; None for random weights and for those that Keras downloads.

        Raises:
            MissingFileError: where the file is not there.
        """
        if self.weights in (None, "imagenet"):
            return None
        path = SHIPPED if self.weights == "shipped" else Path(self.weights).expanduser()
        if not path.is_file():
            raise MissingFileError(
                f"model.weights={self.weights} is not a file. It must be imagenet, null for random weights, or a Keras"
                f" weight file of {self.architecture} without its top. Type model.weights=path/to/file.weights.h5."
            )
        return path

    def weights_digest(self) -> str:
        """Of the weight file's content, or the name of weights that come from none."""
        file = self.weights_file()
        return str(self.weights) if file is None else digest(file.read_bytes())

    def build(self, seed: int) -> Backbone:
        """Builds the backbone and loads its weights; in one process, the same one is built once.

        Args:
            seed: of random weights.

        Raises:
            MissingFileError: where a weight file is not there, or cannot be downloaded.
            UserError: where it does not fit.
        """
        return _build(self, seed if self.weights is None else 0)

    def construct(self, weights: str | None, top: bool = False) -> "keras.Model":
        """The bare network.

        Args:
            weights: what Keras' own builder takes, `imagenet` or None.
            top: whether ImageNet's classifier is on it: [b, 1000] logits, and Keras' own image size, since it has those weights at no other.
        """
        import keras

        return getattr(keras.applications, self.architecture)(weights=weights, **self._end(top))

    def _end(self, top: bool) -> dict[str, object]:
        """What Keras' builders are told of a network's end, and of its beginning, which they allow to be chosen without a top only."""
        if top:
            return {"include_top": True, "classifier_activation": None}
        return {"include_top": False, "input_shape": (self.image_size, self.image_size, 3)}


@dataclass(frozen=True, kw_only=True)
class MobileNetV2(Model):
    """MobileNetV2 comes in widths."""

    alpha: float = number(above=0, example=0.35)

    def construct(self, weights: str | None, top: bool = False) -> "keras.Model":
        import keras

        return keras.applications.MobileNetV2(alpha=self.alpha, weights=weights, **self._end(top))


@dataclass(frozen=True, kw_only=True)
class Miniature(Model):
    """EfficientNet at half the width and 0.6 of the depth of B0: 192 layers."""

    def construct(self, weights: str | None, top: bool = False) -> "keras.Model":
        # Keras exports its named sizes only; the general builder under them is the published architecture.
        from keras.src.applications.efficientnet import EfficientNet

        if weights == "imagenet":
            raise UserError(
                "model.weights=imagenet was asked of the miniature. It has its own shipped weights, or null for random"
                " ones. Type model.weights=shipped."
            )
        return EfficientNet(
            width_coefficient=0.5,
            depth_coefficient=0.6,
            default_size=self.image_size,
            name="miniature",
            weights=None,
            **self._end(top),
        )


@functools.lru_cache(maxsize=1)
def _build(model: Model, seed: int) -> Backbone:
    import keras

    file = model.weights_file()
    keras.utils.set_random_seed(seed)
    network = downloaded(model) if model.weights == "imagenet" else model.construct(None)
    if file is not None:
        network = _load(network, file, model)
    scales = (np.asarray(layer.get_config().get("scale", 0)) for layer in network.layers)
    return Backbone(network, find_blocks(network), f"{model.architecture}:{content([*network.get_weights(), *scales])}")


def content(arrays: Iterable[np.ndarray]) -> str:
    """A digest of arrays, such as a network's weights, in their order."""
    found = hashlib.blake2b(digest_size=16)
    for array in arrays:
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


def downloaded(model: Model, top: bool = False) -> "keras.Model":
    """A network with the ImageNet weights that Keras downloads, once, and keeps.

    Args:
        model: which one.
        top: as in `construct`.

    Raises:
        MissingFileError: where they cannot be downloaded.
    """
    import keras

    try:
        return model.construct("imagenet", top)
    except Exception as error:
        # Keras reports a failed download as a bare Exception; whatever has a type of its own is not that.
        if type(error) is not Exception:
            raise
        cache = Path(keras.config.keras_home() if hasattr(keras.config, "keras_home") else "~/.keras") / "models"
        raise MissingFileError(
            f"The ImageNet weights of {model.architecture} are not in {cache} and could not be downloaded"
            f" ({str(error)[:200]}). Without network, the file must be put there, or be named by its path. Type"
            " model.weights=path/to/file.h5, or model=miniature, which needs nothing."
        ) from error


def load_all(network: "keras.Model", file: Path) -> None:
    """Gives every layer its weights from a file; what is wrong with that is one of `UNFIT`."""
    with warnings.catch_warnings():
        # Keras only warns of layers that it leaves as they were
        warnings.simplefilter("error", UserWarning)
        network.load_weights(file)


def _load(network: "keras.Model", file: Path, model: Model) -> "keras.Model":
    import keras

    try:
        load_all(network, file)
    except UNFIT as error:
        raise UserError(
            f"{file} does not fit {model.architecture} ({' '.join(str(error).split())[:160]}). It must hold the weights"
            f" of keras.applications.{model.architecture}(include_top=False) in the same"
            f" size{f', with alpha={model.alpha:g}' if isinstance(model, MobileNetV2) else ''}. Type"
            " model.weights=imagenet, or the right"
            f" file{' or model.alpha' if isinstance(model, MobileNetV2) else ' or model'}."
        ) from error
    normalizations = [layer for layer in network.layers if isinstance(layer, keras.layers.Normalization)]
    if normalizations and np.allclose(np.ravel(normalizations[0].variance), _IMAGENET_STDDEV, atol=1e-4):
        return _with_second_rescaling(network, normalizations[0])
    return network


def _with_second_rescaling(network: "keras.Model", after: "keras.Layer") -> "keras.Model":
    """The same network, layers shared, with the division that Keras inserts for `imagenet` only."""
    import keras

    def call(layer, *args, **kwargs):
        output = layer(*args, **kwargs)
        if layer is not after:
            return output
        return keras.layers.Rescaling([1.0 / math.sqrt(stddev) for stddev in _IMAGENET_STDDEV])(output)

    return keras.models.clone_model(network, clone_function=lambda layer: layer, call_function=call)
