"""Layers of KerasHub that consist of layers: replaced by them, so that a network can be cut between them.

KerasHub writes a transformer's encoder, or a stage of a network, as one layer. Its `call` is traced once more, with
the layers that it calls as layers of the network. They keep their weights, and compute the same.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from dogbreeds.models.custom_layers import is_of_keras_hub, keep_arguments

if TYPE_CHECKING:
    import keras

# What tracing a layer's `call` raises where it needs more than the symbols of its inputs.
_TRACE_ERRORS = (AttributeError, IndexError, NotImplementedError, TypeError, ValueError)


def unfold(network: "keras.Model") -> "keras.Model":
    """Replace the layers of KerasHub that hold a list of layers, or BatchNorm, by those that they call.

    What an encoder layer consists of stays within it. Results that do not depend on the images, such as rotary position
    embeddings, become constants, and each tensor gets its shape.

    Args:
        network: functional model, whose layers are shared and renamed.

    Returns:
        A network of the same weights and results. Its layers can be saved one by one.
    """
    import keras

    # Layers that stay as they are: those that cannot be traced, and those whose output has its shape.
    done = set[int]()
    while _to_replace(network, done):
        trace = _Trace(_to_replace(network, done), done)
        network = keras.models.clone_model(network, clone_function=lambda layer: layer, call_function=trace.call)
    keep_arguments(network)
    return network


def _to_replace(network: "keras.Model", done: set[int]) -> set[int]:
    checks = (_is_identity, _is_container, _is_constant, _is_of_unknown_shape)
    return {id(layer) for layer in network.layers if id(layer) not in done and any(check(layer) for check in checks)}


class _Trace:
    """Calls the layers of a network, or what they call.

    Args:
        replaced: ids of the layers that are replaced.
        done: receives the ids of those that stay.
    """

    def __init__(self, replaced: set[int], done: set[int]):
        self._replaced = replaced
        self._done = done
        self._num_replaced = 0

    def call(self, layer: "keras.Layer", *args: Any, **kwargs: Any) -> Any:
        import keras

        if id(layer) not in self._replaced:
            return layer(*args, **kwargs)
        if _is_identity(layer):
            return args[0]
        _name_parts(layer)
        replacement = _REPLACEMENTS.get(type(layer).__name__)
        if replacement is not None:
            self._num_replaced += 1
            return replacement(layer, *args, f"{layer.name}_{self._num_replaced}")
        if _is_constant(layer):
            return keras.tree.map_structure(keras.ops.convert_to_numpy, layer(_zeros(args[0]), **kwargs))
        if _is_container(layer):
            for parts in ([], _parts(layer)):
                with contextlib.suppress(*_TRACE_ERRORS), _inlined(parts):
                    return layer.call(*args, **kwargs)
        self._done.add(id(layer))
        outputs = layer(*args, **kwargs)
        if not _is_of_unknown_shape(layer):
            return outputs
        shape = layer(_zeros(args[0]), **kwargs).shape[1:]
        return keras.layers.Reshape(tuple(shape), name=f"{layer.name}_shape")(outputs)


@contextlib.contextmanager
def _inlined(layers: "list[keras.Layer]") -> Iterator[None]:
    """Trace what layers call in their place, within the body: those that return more than tensors cannot be traced."""
    kinds = {type(layer) for layer in layers}
    for layer in layers:
        _name_parts(layer)
    original = {kind: vars(kind).get("__call__") for kind in kinds}
    for kind in kinds:
        kind.__call__ = kind.call
    try:
        yield
    finally:
        for kind, method in original.items():
            if method is None:
                del kind.__call__
            else:
                kind.__call__ = method


def _parts(layer: "keras.Layer") -> "list[keras.Layer]":
    """Return the layers of KerasHub that a layer holds in lists."""
    import keras

    lists = [value for name, value in vars(layer).items() if not name.startswith("_") and isinstance(value, list)]
    return [part for parts in lists for part in parts if isinstance(part, keras.Layer) and is_of_keras_hub(part)]


def _is_identity(layer: "keras.Layer") -> bool:
    """Return whether a layer does nothing. Keras cannot save one that was built with a dtype policy."""
    import keras

    return type(layer) is keras.layers.Identity


def _is_container(layer: "keras.Layer") -> bool:
    import keras

    if not is_of_keras_hub(layer):
        return False
    kinds = {type(part).__name__ for part in layer._flatten_layers()}
    return bool(_parts(layer) or kinds & {*_REPLACEMENTS, *_INLINED, keras.layers.BatchNormalization.__name__})


def _is_constant(layer: "keras.Layer") -> bool:
    """Return whether a layer has no weights, and none of its results has a row for each image."""
    import keras

    outputs = keras.tree.flatten(layer.output)
    return (
        is_of_keras_hub(layer)
        and not layer.weights
        and all(output.shape and output.shape[0] is not None for output in outputs)
    )


def _is_of_unknown_shape(layer: "keras.Layer") -> bool:
    import keras

    return is_of_keras_hub(layer) and isinstance(layer.output, keras.KerasTensor) and None in layer.output.shape[1:]


def _patch_embedding(layer: "keras.Layer", images: "keras.KerasTensor", name: str) -> "keras.KerasTensor":
    """Embed patches as Swin does. Its own layer cannot be saved: its config holds a class."""
    import keras

    tokens = keras.layers.Reshape((-1, layer.embed_dim), name=name)(layer.proj(images))
    return tokens if layer.norm is None else layer.norm(tokens)


def _siglip_embedding(layer: "keras.Layer", images: "keras.KerasTensor", name: str) -> "keras.KerasTensor":
    """Embed patches as SigLIP does. Its own layer says that there is one token more than it gives."""
    import keras

    tokens = keras.layers.Reshape((layer.num_positions, layer.hidden_dim), name=name)(layer.patch_embedding(images))
    positions = keras.ops.zeros_like(tokens[..., 0], dtype="int32") + np.arange(layer.num_positions, dtype=np.int32)
    return keras.ops.add(tokens, layer.position_embedding(positions))


def _drop_path(layer: "keras.Layer", inputs: "keras.KerasTensor", name: str) -> "keras.KerasTensor":
    """Drop a branch for an image, as DINOv2 and DINOv3 mean to: their own layer fails for a batch of unknown size."""
    import keras

    noise_shape = (None, *(1 for _ in inputs.shape[1:]))
    return keras.layers.Dropout(layer.rate, noise_shape=noise_shape, name=name)(inputs)


# By class name: what is put in the place of layers that cannot be saved or trained.
_REPLACEMENTS: dict[str, Callable[..., "keras.KerasTensor"]] = {
    "PatchEmbedding": _patch_embedding,
    "SigLIPVisionEmbedding": _siglip_embedding,
    "DINOV2DropPath": _drop_path,
    "DINOV3DropPath": _drop_path,
}
# Layers without lists or BatchNorm that are replaced all the same, for their own config cannot be saved.
_INLINED = {"SqueezeAndExcite2D"}


def _zeros(tensor: "keras.KerasTensor") -> Any:
    import keras

    return keras.ops.zeros((1, *tensor.shape[1:]), tensor.dtype)


def _name_parts(layer: "keras.Layer") -> None:
    """Put the name of a layer in front of those of the layers in it, which would not be unique otherwise."""
    for part in layer._layers:
        if not part.name.startswith(f"{layer.name}_"):
            part.name = f"{layer.name}_{part.name}"
