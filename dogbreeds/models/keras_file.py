"""Backbones from a Keras file of the user's own."""

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dogbreeds.core.errors import MissingFileError, UserError
from dogbreeds.core.spec import path
from dogbreeds.core.text import digest_once, shorten
from dogbreeds.models.model import Model

if TYPE_CHECKING:
    import keras

_FIX = "Type model.path=<file>, of a functional Keras model without its classifier."


@dataclass(frozen=True, kw_only=True)
class KerasFile(Model):
    """A functional Keras model with one image input, as `model.save` writes it, without its classifier.

    Its output is feature maps [h, w, channels], tokens [tokens, channels], or a vector. `architecture` is a name for
    tables, and `weights` stays null, since the file has them.

    Attributes:
        path: a `.keras` file. It is loaded without executing code from it.
    """

    path: str = path(example="my_backbone.keras")

    def weights_digest(self) -> str:
        return digest_once(self._file())

    def content_identity(self) -> str:
        return self.weights_digest()

    def construct(self, weights: str | None, top: bool = False) -> "keras.Model":
        name = f"model.path={self.path}"
        check_no_other_weights(weights, top, name)
        return resized(checked(_load(self._file()), name), self.image_size, name)

    def _file(self) -> Path:
        file = Path(self.path).expanduser()
        if not file.is_file():
            raise MissingFileError(
                f"model.path={self.path} is not a file. It must be a .keras file, as model.save writes it."
                " Type model.path=<file>."
            )
        return file


def _load(file: Path) -> "keras.Model":
    import keras

    try:
        return keras.models.load_model(file, compile=False, safe_mode=True)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, zipfile.BadZipFile) as error:
        text = str(error)
        if "unsafe" in text or "safe_mode" in text or "lambda" in text.lower():
            raise UserError(
                f"model.path={file} would execute code that it contains (a Lambda layer). Only files of layers without"
                " code are loaded. Replace the Lambda layers by Keras' own, and save it again."
            ) from error
        raise UserError(
            f"model.path={file} cannot be read as a Keras model ({shorten(text, 160)}). It must be a complete .keras"
            f" file of Keras' own layers. {_FIX}"
        ) from error


def check_no_other_weights(weights: str | None, top: bool, name: str) -> None:
    """Raise `UserError` if a backbone that brings its weights is asked for others, or for a classifier.

    Args:
        weights, top: as of `Model.construct`.
        name: the setting that names the backbone.
    """
    if weights is not None or top:
        raise UserError(
            f"model.weights={weights} was given with {name}. That has the weights already, and no ImageNet classifier."
            " Type model.weights=null baseline=none."
        )


def checked(network: object, name: str) -> "keras.Model":
    """Return a functional model with one image input and one output.

    Args:
        network: the model.
        name: what to call it in errors: the setting that names it.

    Raises:
        UserError: if it is none.
    """
    import keras

    inputs, outputs = (list(getattr(network, kind, None) or ()) for kind in ("inputs", "outputs"))
    if not isinstance(network, keras.Model) or not inputs:
        raise UserError(f"{name} has no graph of layers. It must be a functional or sequential model. {_FIX}")
    if len(inputs) != 1 or len(outputs) != 1:
        raise UserError(f"{name} has {len(inputs)} inputs and {len(outputs)} outputs. It must have one of each. {_FIX}")
    if len(inputs[0].shape) != 4 or inputs[0].shape[3] != 3:
        shape = ", ".join(map(str, inputs[0].shape[1:]))
        raise UserError(f"The input of {name} is [{shape}]. It must be RGB images, [height, width, 3]. {_FIX}")
    if len(outputs[0].shape) not in (2, 3, 4) or outputs[0].shape[-1] is None:
        shape = ", ".join(map(str, outputs[0].shape[1:]))
        raise UserError(
            f"The output of {name} is [{shape}]. It must be feature maps [h, w, channels], tokens"
            f" [tokens, channels], or a vector. {_FIX}"
        )
    return keras.Model(inputs[0], outputs[0], name="backbone")


def resized(network: "keras.Model", size: int, name: str) -> "keras.Model":
    """Return the network for square images of a size, with the same weights.

    Args:
        network: from `checked`.
        size: pixels a side.
        name: as in `checked`.

    Raises:
        UserError: if it takes another size only.
    """
    import keras

    height, width = network.input.shape[1:3]
    if (height, width) == (size, size):
        return network
    if height is not None and width is not None:
        fix = f"Type model.image_size={height}" if height == width else "Save it for square images"
        raise UserError(
            f"model.image_size was {size}, and {name} takes {height} x {width} pixels. They must be the"
            f" same, and square. {fix}."
        )
    return keras.models.clone_model(network, keras.Input((size, size, 3)), clone_function=lambda layer: layer)
