"""Test-time augmentation: several views of each image are predicted, and their probabilities averaged."""

from dataclasses import dataclass

import numpy as np

from dogbreeds.core.spec import Spec, integer
from dogbreeds.data.decoder import TENSORFLOW, resize_with_pillow
from dogbreeds.data.resize import resize_images

# Additional magnification of each further pair of views.
_ZOOM_STEP = 0.1


@dataclass(frozen=True, kw_only=True)
class Tta(Spec):
    """Settings of test-time augmentation.

    Attributes:
        views: of each image: the image, its mirror image, then both at growing magnification; 1 turns it off.
    """

    group = "tta"
    views: int = integer(at_least=1, at_most=100, example=4)


def view(images: np.ndarray, number: int, decoder: str) -> np.ndarray:
    """Compute one view of images, deterministically.

    Args:
        images: [b, size, size, 3] uint8.
        number: of the view; 0 returns the images unchanged, odd numbers mirror them.
        decoder: resizes the magnified part, one of `data.decoder.DECODERS`.

    Returns:
        [b, size, size, 3] uint8.
    """
    size = images.shape[1]
    flipped = images[:, :, ::-1] if number % 2 else images
    crop = round(size / (1 + _ZOOM_STEP * (number // 2)))
    if crop == size:
        return flipped
    edge = (size - crop) // 2
    part = flipped[:, edge : edge + crop, edge : edge + crop]
    if decoder == TENSORFLOW:
        return np.asarray(resize_images(part, size, "stretch")).astype(np.uint8)
    return np.stack([resize_with_pillow(image, size, "stretch") for image in part])
