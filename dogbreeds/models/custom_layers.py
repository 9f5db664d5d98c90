"""Custom layers: those that Keras cannot load from a saved network by itself, without the code that defines them."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import keras


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
