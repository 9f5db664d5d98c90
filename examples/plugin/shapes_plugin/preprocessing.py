"""Preprocessing that removes colour."""

from dataclasses import dataclass

import dogbreeds


@dataclass(frozen=True, kw_only=True)
class Grey(dogbreeds.Preprocessing):
    """The mean of the three channels in each of them, then the pixel convention `mode`."""

    def apply(self, pixels):
        import keras

        grey = keras.ops.mean(pixels, axis=-1, keepdims=True)
        return super().apply(keras.ops.repeat(grey, 3, axis=-1))
