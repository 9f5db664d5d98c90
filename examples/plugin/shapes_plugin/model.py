"""A small backbone."""

from dataclasses import dataclass

import dogbreeds


@dataclass(frozen=True, kw_only=True)
class TinyNet(dogbreeds.Model):
    """Three blocks of a convolution, BatchNorm and ReLU. Each halves the side and doubles the channels."""

    architecture: str = dogbreeds.one_of("TinyNet")
    width: int = dogbreeds.integer(at_least=4, example=16)

    def construct(self, weights: str | None, top: bool = False):
        import keras

        if weights is not None or top:
            raise dogbreeds.UserError(
                "model=tinynet has no ImageNet weights. Its weights are random, or in a file. Type model.weights=null."
            )
        images = keras.Input((self.image_size, self.image_size, 3))
        outputs = keras.layers.Rescaling(1 / 127.5, -1.0, name="stem_pixels")(images)
        # Names with block<number> are the boundaries of the blocks that unfreeze.top counts.
        for block in (1, 2, 3):
            width = self.width * 2 ** (block - 1)
            outputs = keras.layers.Conv2D(width, 3, strides=2, padding="same", name=f"block{block}_conv")(outputs)
            outputs = keras.layers.BatchNormalization(name=f"block{block}_bn")(outputs)
            outputs = keras.layers.ReLU(name=f"block{block}_relu")(outputs)
        return keras.Model(images, outputs, name="tinynet")
