"""Pooling of a backbone's output to one vector for each image."""

from typing import TYPE_CHECKING

from dogbreeds.core.errors import UserError

if TYPE_CHECKING:
    import keras

# Keras' words; `cls` takes the class token, which comes first.
POOLINGS = ("avg", "max", "cls")
NAME = "pool"


def pool(output: "keras.KerasTensor", pooling: str, name: str = NAME) -> "keras.KerasTensor":
    """Pool with built-in Keras layers, of which the last has a name.

    Args:
        output: feature maps [b, h, w, channels], tokens [b, tokens, channels], or vectors [b, channels], which stay as
            they are.
        pooling: one of `POOLINGS`.
        name: of the last layer.

    Returns:
        [b, channels].

    Raises:
        UserError: if the output has another rank, or no token is there to take.
    """
    import keras

    rank = len(output.shape)
    if rank == 2:
        return keras.layers.Identity(name=name)(output)
    if rank not in (3, 4) or (pooling == "cls" and rank != 3):
        shape = f"[{', '.join(map(str, output.shape[1:]))}]"
        raise UserError(
            f"model.pooling={pooling} was given, and the backbone's output for an image is {shape}. avg and max pool"
            " feature maps [h, w, channels] and tokens [tokens, channels]; cls takes the first of the tokens. Type"
            " model.pooling=avg, or a backbone with such an output."
        )
    if pooling == "cls":
        first = keras.layers.Cropping1D((0, output.shape[1] - 1), name="class_token")(output)
        return keras.layers.Reshape((output.shape[2],), name=name)(first)
    layers = {
        ("avg", 4): keras.layers.GlobalAveragePooling2D,
        ("max", 4): keras.layers.GlobalMaxPooling2D,
        ("avg", 3): keras.layers.GlobalAveragePooling1D,
        ("max", 3): keras.layers.GlobalMaxPooling1D,
    }
    return layers[pooling, rank](name=name)(output)
