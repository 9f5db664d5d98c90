"""`tta.view`: the views of test-time augmentation."""

import numpy as np
import pytest

from dogbreeds.data import drawn_dogs
from dogbreeds.data.decoder import PILLOW, TENSORFLOW
from dogbreeds.inference import tta

DECODERS = pytest.mark.parametrize("decoder", [PILLOW, TENSORFLOW])


@DECODERS
def test_view_gives_the_image_its_mirror_image_and_both_magnified(decoder: str) -> None:
    def view(images: np.ndarray, number: int) -> np.ndarray:
        return tta.view(images, number, decoder)

    images = np.stack([drawn_dogs.draw("test", label, 0) for label in range(3)])
    assert (view(images, 0) == images).all()
    assert (view(images, 1) == images[:, :, ::-1]).all()
    magnified = view(images, 2)
    assert magnified.shape == images.shape
    assert magnified.dtype == np.uint8
    assert (view(images, 3) == view(images[:, :, ::-1], 2)).all()
    # A magnified view is closer to the enlarged centre than the image itself is.
    centre = np.repeat(np.repeat(images[:, 16:48, 16:48], 2, axis=1), 2, axis=2).astype(float)
    assert np.abs(view(images, 10).astype(float) - centre).mean() < np.abs(images.astype(float) - centre).mean()


@DECODERS
def test_view_magnifies_more_with_each_further_pair(decoder: str) -> None:
    square = np.zeros((1, 64, 64, 3), np.uint8)
    square[:, 8:56, 8:56] = 255
    brightness = [tta.view(square, number, decoder).mean() for number in (0, 2, 4, 6)]
    assert brightness == sorted(brightness)
    assert len(set(brightness)) == 4
