"""EfficientNet-Lite 0, 1 and 2."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import dogbreeds
from efficientnet_lite.weights import load_imagenet_weights

if TYPE_CHECKING:
    import keras


class _Stage(NamedTuple):
    """Blocks of one width. The first of them has the stride."""

    repeats: int
    kernel_size: int
    strides: int
    expansion: int
    filters: int


# Source: Tan and Le 2019, table 1.
_STAGES = (
    _Stage(1, 3, 1, 1, 16),
    _Stage(2, 3, 2, 6, 24),
    _Stage(2, 5, 2, 6, 40),
    _Stage(3, 3, 2, 6, 80),
    _Stage(3, 5, 1, 6, 112),
    _Stage(4, 5, 2, 6, 192),
    _Stage(1, 3, 1, 6, 320),
)
# Multipliers of width and depth.
_SCALES = {"EfficientNetLite0": (1.0, 1.0), "EfficientNetLite1": (1.0, 1.1), "EfficientNetLite2": (1.1, 1.2)}
_STEM_FILTERS = 32
_TOP_FILTERS = 1280
# Of the last block. It rises from 0 at the first one.
_DROP_CONNECT = 0.2


@dataclass(frozen=True, kw_only=True)
class EfficientNetLite(dogbreeds.Model):
    """EfficientNet without squeeze-and-excitation, with ReLU6, and with stem and top of one width in all sizes.

    It takes raw pixels: its first layer computes (pixel - 127) / 128. Layers have the names that Keras gives to those
    of its EfficientNets.
    """

    architecture: str = dogbreeds.one_of(*_SCALES)

    def construct(self, weights: str | None, top: bool = False) -> "keras.Model":
        import keras

        images = keras.Input((self.image_size, self.image_size, 3), name="images")
        outputs = keras.layers.Rescaling(1 / 128, -127 / 128, name="stem_pixels")(images)
        outputs = _convolve(outputs, _STEM_FILTERS, "stem_", strides=2, kernel_size=3)
        outputs = _blocks(outputs, *_SCALES[self.architecture])
        outputs = _convolve(outputs, _TOP_FILTERS, "top_")
        if top:
            outputs = keras.layers.GlobalAveragePooling2D(name="avg_pool")(outputs)
            outputs = keras.layers.Dense(1000, name="predictions")(outputs)
        network = keras.Model(images, outputs, name=self.architecture.lower())
        if weights == "imagenet":
            load_imagenet_weights(network, self.architecture)
        return network


def _blocks(outputs: "keras.KerasTensor", width: float, depth: float) -> "keras.KerasTensor":
    # The depth of the first and the last stage is the same in all sizes.
    middle = _STAGES[1:-1]
    stages = [_STAGES[0], *(stage._replace(repeats=math.ceil(depth * stage.repeats)) for stage in middle), _STAGES[-1]]
    total = sum(stage.repeats for stage in stages)
    done = 0
    for number, stage in enumerate(stages, start=1):
        stage = stage._replace(filters=_round_filters(width * stage.filters))
        for repeat in range(stage.repeats):
            name = f"block{number}{chr(ord('a') + repeat)}_"
            outputs = _block(outputs, stage, name, drop_connect=_DROP_CONNECT * done / total)
            # Only the first block of a stage has its stride.
            stage = stage._replace(strides=1)
            done += 1
    return outputs


def _round_filters(filters: float, divisor: int = 8) -> int:
    """Round to a multiple of the divisor, and down by at most 10 %."""
    rounded = max(divisor, int(filters + divisor / 2) // divisor * divisor)
    return rounded if rounded >= 0.9 * filters else rounded + divisor


def _block(inputs: "keras.KerasTensor", stage: _Stage, name: str, drop_connect: float) -> "keras.KerasTensor":
    """Add a block: expand the channels, convolve each of them, project them to fewer; and a shortcut."""
    import keras

    outputs = inputs
    channels = inputs.shape[-1]
    if stage.expansion > 1:
        outputs = _convolve(outputs, channels * stage.expansion, f"{name}expand_")
    outputs = keras.layers.DepthwiseConv2D(
        stage.kernel_size, stage.strides, padding="same", use_bias=False, name=f"{name}dwconv"
    )(outputs)
    outputs = _relu6(_normalise(outputs, f"{name}bn"), f"{name}activation")
    outputs = keras.layers.Conv2D(stage.filters, 1, use_bias=False, name=f"{name}project_conv")(outputs)
    outputs = _normalise(outputs, f"{name}project_bn")
    if stage.strides > 1 or stage.filters != channels:
        return outputs
    # Drops the whole block for an image: drop-connect.
    outputs = keras.layers.Dropout(drop_connect, noise_shape=(None, 1, 1, 1), name=f"{name}drop")(outputs)
    return keras.layers.Add(name=f"{name}add")([outputs, inputs])


def _convolve(
    inputs: "keras.KerasTensor", filters: int, name: str, strides: int = 1, kernel_size: int = 1
) -> "keras.KerasTensor":
    import keras

    # TensorFlow's `same`: an odd pixel of padding is at the bottom and at the right. The weights were trained with it.
    outputs = keras.layers.Conv2D(filters, kernel_size, strides, padding="same", use_bias=False, name=f"{name}conv")(
        inputs
    )
    return _relu6(_normalise(outputs, f"{name}bn"), f"{name}activation")


def _normalise(inputs: "keras.KerasTensor", name: str) -> "keras.KerasTensor":
    import keras

    return keras.layers.BatchNormalization(momentum=0.99, epsilon=1e-3, name=name)(inputs)


def _relu6(inputs: "keras.KerasTensor", name: str) -> "keras.KerasTensor":
    import keras

    return keras.layers.ReLU(6.0, name=name)(inputs)
