"""A trained network as it was saved: photos in, breed names and probabilities out. It needs nothing but its file."""

import zipfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dogbreeds.core.console import quiet_stderr
from dogbreeds.core.errors import UserError
from dogbreeds.models.blocks import in_order
from dogbreeds.models.network import folded, photos_at_once

if TYPE_CHECKING:
    from collections.abc import Callable

    import keras


@dataclass(frozen=True)
class Classifier:
    """A network that `Network.whole` made, read from a file.

    Attributes:
        whole: [b, h, w, 3] uint8 of any size -> `probabilities` [b, classes] and `breed` [b].
        class_names: in the order of the probabilities.
    """

    whole: "keras.Model"
    class_names: tuple[str, ...]

    @cached_property
    def _parts(self) -> "tuple[keras.KerasTensor, list[keras.Model]]":
        """The photos after they were resized, and what they then go through in turn: the frozen part, what was fine-tuned if anything, the head."""
        import keras

        nodes = [node for node in in_order(self.whole) if isinstance(node.operation, keras.Model)]
        return nodes[0].input_tensors[0], [node.operation for node in nodes]

    @property
    def size(self) -> int:
        """Pixels a side that photos are resized to."""
        return int(self._parts[0].shape[1])

    @property
    def resize(self) -> str:
        """How photos become square: `stretch`, `pad` or `crop`."""
        (how,) = [node.operation for node in in_order(self.whole) if type(node.operation).__name__ == "Resize"]
        return "crop" if how.crop_to_aspect_ratio else "pad" if how.pad_to_aspect_ratio else "stretch"

    @cached_property
    def core(self) -> "keras.Model":
        """[b, size, size, 3] float32 RGB in [0, 255] -> [b, classes] logits."""
        import keras

        return keras.Model(self._parts[0], self.whole.get_layer("probabilities").input, name="core")

    @cached_property
    def logits(self) -> "Callable[[np.ndarray], np.ndarray]":
        """`core`, compiled for inference."""
        return folded(self.core)

    @cached_property
    def resizer(self) -> "Callable[[np.ndarray], np.ndarray]":
        """From one [h, w, 3] uint8 photo to [size, size, 3] uint8, just as the network would itself; threads may share it."""
        from dogbreeds.data.resize import resizer

        return resizer(self.size, self.resize)

    def batch_size(self) -> int:
        """Photos at a time that suit this machine."""
        return photos_at_once(self.size)

    @cached_property
    def ends(self) -> "tuple[keras.Model, keras.Model]":
        """The network in two: [b, size, size, 3] -> feature maps [b, h, w, c] before they are pooled, and [b, c] -> [b, classes] logits."""
        import keras

        photos, (*before, last, head) = self._parts
        pool = last.get_layer("pool")
        outputs = keras.Input(photos.shape[1:])
        inputs = outputs
        for part in before:
            outputs = part(outputs)
        return keras.Model(inputs, keras.Model(last.input, pool.input)(outputs)), head


def load(file: Path) -> Classifier:
    """Reads a saved network.

    Raises:
        UserError: where the file is none, or a network without breed names.
    """
    with quiet_stderr():
        import keras
    try:
        whole = keras.models.load_model(file, compile=False, safe_mode=True)
    except (OSError, ValueError, TypeError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{file} cannot be read as a saved network ({' '.join(str(error).split())[:160]}). It must be a .keras file"
            " that an attempt kept, whole. Type run=latest, or the path of such a file."
        ) from error
    names = {layer.name: layer for layer in getattr(whole, "layers", ())}
    breed = names.get("breed")
    if not isinstance(breed, keras.layers.StringLookup) or "probabilities" not in names:
        raise UserError(
            f"{file} is a network without class names. It must give names and probabilities, as those do that an"
            " attempt keeps. Type run=latest, or the path of such a file."
        )
    return Classifier(whole, tuple(str(name) for name in breed.get_vocabulary()))
