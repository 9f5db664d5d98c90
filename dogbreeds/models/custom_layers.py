"""Custom layers: those that Keras cannot load from a saved network by itself, without the code that defines them."""

import inspect
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import keras

KERAS_HUB = "keras_hub"
# Arguments of every layer, which every config has.
_BASE = ("name", "trainable", "dtype")
# Types of other arguments that a config may hold.
_PLAIN = (str, int, float, bool, tuple)


def custom_layers(model: "keras.Model") -> Iterator[str]:
    """Yield the names of a model's layers, at any depth, that are not Keras' own or hold an object that is not.

    Such an object is a function as activation, for example, or an initializer of another module. Keras loads its Lambda
    layers only in unsafe mode.
    """
    import keras

    for layer in model._flatten_layers(include_self=False):
        is_custom = type(layer).__module__.partition(".")[0] != "keras" or isinstance(layer, keras.layers.Lambda)
        # The parts of a model within the model are visited themselves.
        if is_custom or (not isinstance(layer, keras.Model) and _is_custom(keras.saving.serialize_keras_object(layer))):
            yield layer.name


def _is_custom(config: Any) -> bool:
    """Return whether a serialised object, or one within it, is registered under a name of its own."""
    if isinstance(config, dict):
        return config.get("registered_name") is not None or any(map(_is_custom, config.values()))
    return isinstance(config, (list, tuple)) and any(map(_is_custom, config))


def is_of_keras_hub(layer: "keras.Layer") -> bool:
    """Return whether a layer can be loaded only where KerasHub is installed."""
    return type(layer).__module__.partition(".")[0] == KERAS_HUB


def needs_keras_hub(file: Path) -> bool:
    """Return whether a saved network, a `.keras` file, has layers of KerasHub; false if it is no such file."""
    try:
        with zipfile.ZipFile(file) as archive:
            return f'"{KERAS_HUB}.'.encode() in archive.read("config.json")
    except (OSError, KeyError, zipfile.BadZipFile):
        return False


def copy_layer(layer: "keras.Layer") -> "keras.Layer":
    """Return a new layer with the settings of a layer, and weights of its own."""
    copy = type(layer).from_config(layer.get_config())
    keep_arguments(copy)
    return copy


def clone_at(model: "keras.Model", sides: Sequence[int | None]) -> "keras.Model":
    """Return a copy of a model, with weights of its own, for inputs of a height and a width.

    Args:
        model: with one input, [b, h, w, channels] or of another rank, which then stays as it is.
        sides: height and width; None for any.

    Raises:
        ValueError: from Keras, if a layer depends on the size.
    """
    import keras

    begin = model.input
    shape = (*sides, *begin.shape[3:]) if len(begin.shape) == 4 else begin.shape[1:]

    def clone(layer: "keras.Layer") -> "keras.Layer":
        return clone_at(layer, sides) if isinstance(layer, keras.Model) else copy_layer(layer)

    inputs = keras.Input(shape, name=begin.name, dtype=begin.dtype)
    copy = keras.models.clone_model(model, input_tensors=inputs, clone_function=clone)
    copy.set_weights(model.get_weights())
    return copy


def silence_dropout(model: "keras.Model") -> None:
    """Switch off the dropout of a model's layers at any depth, drop-path included."""
    import keras

    for layer in model._flatten_layers(include_self=False):
        if isinstance(layer, keras.layers.Dropout):
            layer.rate = 0.0
        elif is_of_keras_hub(layer) and type(layer).__name__.endswith("DropPath"):
            setattr(layer, "drop_prob" if hasattr(layer, "drop_prob") else "rate", 0.0)


def keep_arguments(layer: "keras.Layer") -> None:
    """Let the configs of layers of KerasHub hold what they were built with: of a layer, or of a model's layers.

    KerasHub saves a whole encoder, never its layers, whose configs lack arguments or hold others that they do not take.
    """
    import keras

    if isinstance(layer, keras.Model):
        for part in layer.layers:
            keep_arguments(part)
    elif is_of_keras_hub(layer):
        config = {**layer.get_config(), **_arguments(layer)}
        accepted = {*_BASE, *inspect.signature(type(layer).__init__).parameters}
        arguments = {name: value for name, value in config.items() if name in accepted}
        layer.get_config = lambda: {**arguments, "name": layer.name}


def _arguments(layer: "keras.Layer") -> dict[str, Any]:
    """Return arguments that a layer was built with, which its own config may lack."""
    if type(layer).__name__ == "SwinTransformerBlock":
        return {
            "qkv_bias": layer.attn.qkv_bias,
            "attention_dropout": layer.attn.attn_drop_rate,
            "dropout_rate": layer.attn.proj_drop_rate,
            "drop_path": getattr(layer.drop_path, "drop_prob", 0.0),
        }
    # What Keras records of a layer that is built of plain values.
    recorded = {} if layer._auto_config is None else layer._auto_config.config
    taken = [name for name in inspect.signature(type(layer).__init__).parameters if name not in _BASE]
    plain = {name: getattr(layer, name) for name in taken if isinstance(getattr(layer, name, None), _PLAIN)}
    return {**plain, **recorded}
