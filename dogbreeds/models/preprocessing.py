"""Pixel preprocessing in front of the backbone. It is part of the saved model."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dogbreeds.core.source import plugin_digest
from dogbreeds.core.spec import AUTO, Spec, one_of

if TYPE_CHECKING:
    import keras

MODES = ("raw", "torch", "caffe", "tf", "unit")

# output = input * scale + offset, one value per channel. Channels are RGB in [0, 255]; `caffe` flips them to BGR first.
# Source: keras.applications.imagenet_utils.preprocess_input.
_SCALE = {
    "raw": (1.0, 1.0, 1.0),
    "torch": (1 / (255 * 0.229), 1 / (255 * 0.224), 1 / (255 * 0.225)),
    "caffe": (1.0, 1.0, 1.0),
    "tf": (1 / 127.5, 1 / 127.5, 1 / 127.5),
    "unit": (1 / 255, 1 / 255, 1 / 255),
}
_OFFSET = {
    "raw": (0.0, 0.0, 0.0),
    "torch": (-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225),
    "caffe": (-103.939, -116.779, -123.68),
    "tf": (-1.0, -1.0, -1.0),
    "unit": (0.0, 0.0, 0.0),
}
# The range of values after each mode, as text for messages.
VALUE_RANGES = {"raw": "0 to 255", "torch": "-2.1 to 2.6", "caffe": "-124 to 151", "tf": "-1 to 1", "unit": "0 to 1"}


@dataclass(frozen=True, kw_only=True)
class Preprocessing(Spec):
    """Pixel convention of the backbone. A subclass may change the pixels in another way first.

    Attributes:
        mode: of the result: `raw` (0 to 255), `torch` or `caffe` (normalised with ImageNet's mean), `tf` (-1 to 1), or
            `unit` (0 to 1). `auto` is replaced by one of them before anything is computed.
    """

    group = "preprocessing"
    mode: str = one_of(*MODES, AUTO)

    @property
    def fingerprint(self) -> str:
        """What decides the result, part of the key of cached features."""
        return f"{self.mode}{plugin_digest(self)}"

    def apply(self, pixels: "keras.KerasTensor") -> "keras.KerasTensor":
        """Convert pixels to this mode with built-in Keras layers, so that a saved model needs no custom code.

        Args:
            pixels: [b, h, w, 3] float32 RGB in [0, 255].

        Returns:
            [b, h, w, 3] float32 in the range of the mode; BGR for `caffe`, else RGB.
        """
        import keras

        if self.mode == "raw":
            return pixels
        if self.mode == "caffe":
            # RGB to BGR.
            pixels = keras.ops.flip(pixels, axis=-1)
        rescale = keras.layers.Rescaling(list(_SCALE[self.mode]), list(_OFFSET[self.mode]), name=f"{self.mode}_pixels")
        return rescale(pixels)
