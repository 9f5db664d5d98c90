"""Backbones from KerasHub: `model=hub model.preset=…`."""

import contextlib
import difflib
import importlib.util
import inspect
import logging
import socket
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dogbreeds.core.console import quiet_stderr
from dogbreeds.core.errors import MissingFileError, UserError
from dogbreeds.core.spec import one_of, path
from dogbreeds.core.text import digest, digest_once, shorten
from dogbreeds.models.custom_layers import KERAS_HUB
from dogbreeds.models.keras_file import check_no_other_weights, checked, resized
from dogbreeds.models.model import Model
from dogbreeds.models.unfold import unfold

if TYPE_CHECKING:
    import keras

log = logging.getLogger(__name__)

_FIX = "Type model.preset=vit_base_patch16_224_imagenet, for example."
# The files of a preset's folder that decide what its backbone computes.
_FILES = ("config.json", "image_converter.json", "*.weights.h5", "*.weights.json", "*.safetensors")
# Seconds until a host counts as unreachable.
_TIMEOUT = 3.0
# What a preset that is damaged, or not one, makes KerasHub and Keras raise.
_LOAD_ERRORS = (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, ImportError)


@dataclass(frozen=True, kw_only=True)
class Hub(Model):
    """A KerasHub image backbone: a preset's name, an address such as `hf://user/name`, or a local folder.

    Layers that hold other layers, such as a transformer's encoder, are unfolded, so that the network can be cut between
    its encoder layers. `architecture` is a name for tables, and `weights` stays null, since the preset has them.

    Attributes:
        preset: where the network is.
        converter: `preset` makes the preset's own image converter the first layer of the network, which then takes
            `raw` pixels; `none` leaves it out, and the network takes `pixels`.
    """

    preset: str = path(example="vit_base_patch16_224_imagenet")
    converter: str = one_of("preset", "none")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.converter == "preset" and self.pixels != "raw":
            raise UserError(
                f"model.pixels={self.pixels} was given, and the preset's image converter takes raw pixels. They must be"
                f" raw, unless the converter is left out. Type model.converter=none model.pixels={self.pixels}."
            )

    def weights_digest(self) -> str:
        """Return a digest of a local preset's files, or its name."""
        folder = Path(self.preset).expanduser()
        if "://" in self.preset or not folder.is_dir():
            return self.preset
        files = sorted({file for pattern in _FILES for file in folder.glob(pattern)})
        return digest("".join(f"{file.name}:{digest_once(file)};" for file in files).encode())

    def content_identity(self) -> str:
        return f"{self.converter}:{self.weights_digest()}"

    def construct(self, weights: str | None, top: bool = False) -> "keras.Model":
        name = f"model.preset={self.preset}"
        check_no_other_weights(weights, top, name)
        if importlib.util.find_spec(KERAS_HUB) is None:
            raise UserError(
                "model=hub was given, and KerasHub is not installed. It comes with the extra hub, for Python 3.11 or"
                " later. Type pip install 'dogbreeds[hub]'."
            )
        # KerasHub's import alone takes seconds, and a download, whose progress is not shown, minutes.
        log.info("loading the preset %s with KerasHub", self.preset)
        with quiet_stderr(), _user_errors(self.preset), _offline_if_unreachable(self.preset):
            network = checked(_image_network(_load(self._source(), self.image_size)), name)
            scale, offset = _conversion(self._source()) if self.converter == "preset" else (None, None)
        network = unfold(resized(network, self.image_size, name))
        return network if scale is offset is None else _converting(network, scale, offset)

    def _source(self) -> str:
        """Return the preset as KerasHub takes it."""
        return self.preset if "://" in self.preset else str(Path(self.preset).expanduser())


def _load(preset: str, size: int) -> "keras.Model":
    """Load a backbone, for square images of a size where it can be chosen."""
    import keras_hub
    from keras_hub.src.utils.preset_utils import get_preset_loader

    kind = get_preset_loader(preset).check_backbone_class()
    has_size = "image_shape" in inspect.signature(kind.__init__).parameters
    return keras_hub.models.Backbone.from_preset(preset, **({"image_shape": (size, size, 3)} if has_size else {}))


def _image_network(backbone: "keras.Model") -> "keras.Model":
    """Return the network of a backbone that takes images, and of several feature maps that it gives the smallest."""
    import keras

    network = getattr(backbone, "vision_encoder", backbone)
    images = [tensor for tensor in network.inputs if len(tensor.shape) == 4]
    if len(network.inputs) > 1 or not images:
        # What is wrong with it is said where it is checked.
        return keras.Model(network.inputs, network.outputs)
    return keras.Model(images[0], min(network.outputs, key=_positions))


def _positions(tensor: "keras.KerasTensor") -> int:
    positions = 1
    for size in tensor.shape[1:-1]:
        positions *= size or 1
    return positions


def _conversion(preset: str) -> tuple[Any, Any]:
    """Return scale and offset, numbers, lists of three, or None, of a preset's image converter."""
    from keras_hub.layers import ImageConverter

    try:
        converter = ImageConverter.from_preset(preset)
    except FileNotFoundError as error:
        raise UserError(
            f"model.preset={preset} has no image converter, which would say how it takes pixels. With"
            " model.converter=none the preflight finds that out, or model.pixels says it. Type model.converter=none"
            " model.pixels=auto."
        ) from error
    if (
        type(converter)._call_python is not ImageConverter._call_python
        or type(converter).call is not ImageConverter.call
    ):
        raise UserError(
            f"The image converter of model.preset={preset}, {type(converter).__name__}, does more than to scale pixels."
            " That cannot be a layer of the network. Type another preset, or model.converter=none model.pixels=auto."
        )
    return converter.scale, converter.offset


def _converting(network: "keras.Model", scale: Any, offset: Any) -> "keras.Model":
    """Return the network, sharing its layers, for raw pixels."""
    import keras

    images = keras.Input(network.input.shape[1:], name="images")
    pixels = keras.layers.Rescaling(
        1.0 if scale is None else scale, 0.0 if offset is None else offset, name="preset_pixels"
    )(images)
    # `call` applies the layers one by one, so that they stay layers of the result.
    return keras.Model(images, network.call(pixels), name="backbone")


@contextlib.contextmanager
def _user_errors(preset: str) -> Iterator[None]:
    """Turn what KerasHub raises into sentences.

    Raises:
        MissingFileError: there is no such preset, or it cannot be downloaded.
        UserError: it is there and cannot be loaded.
    """
    try:
        yield
    except (UserError, MissingFileError):
        raise
    except _LOAD_ERRORS as error:
        text = str(error)
        is_local = Path(preset).expanduser().is_dir()
        # Failed downloads are kinds of OSError. What could not be looked for is said to be missing, too.
        if not is_local and (isinstance(error, OSError) or "has no config.json" in text):
            raise MissingFileError(
                f"model.preset={preset} is not on this machine and could not be downloaded ({_summary(error)}). Without"
                " a network connection, a folder that save_to_preset wrote is needed. Type model.preset=path/to/folder."
            ) from error
        if "Unknown preset identifier" in text or "has no config.json" in text or text.startswith("Unexpected"):
            raise MissingFileError(
                f"model.preset={preset} is neither a preset of KerasHub nor a folder with one. It must be a name"
                f"{_like(preset)}, an address such as hf://user/name, or a folder that save_to_preset wrote. {_FIX}"
            ) from error
        raise UserError(
            f"model.preset={preset} cannot be loaded as an image backbone ({_summary(error)}). It must be complete, of"
            f" a KerasHub backbone that takes images of model.image_size. {_FIX}"
        ) from error


def _summary(error: Exception) -> str:
    return shorten(" ".join(str(error).split()), 120)


def _like(preset: str) -> str:
    """Return the names of presets that are most like a name, as part of a sentence."""
    import keras_hub

    names = difflib.get_close_matches(preset, keras_hub.models.Backbone.presets, 3, cutoff=0.5)
    return f" such as {', '.join(names)}" if names else ""


@contextlib.contextmanager
def _offline_if_unreachable(preset: str) -> Iterator[None]:
    """Let huggingface_hub use only its cache within the body, if its host is unreachable.

    It would try for half a minute.
    """
    if not preset.startswith("hf://"):
        yield
        return
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not _is_reachable(constants.ENDPOINT)
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _is_reachable(address: str) -> bool:
    """Return whether a host answers; true behind a proxy, which alone can tell."""
    url = urllib.parse.urlsplit(address)
    if urllib.request.getproxies():
        return True
    try:
        socket.create_connection((url.hostname or "", url.port or 443), _TIMEOUT).close()
    except OSError:
        return False
    return True
