import numpy as np
import pytest

from dogbreeds.data import drawn_dogs
from dogbreeds.data.augment import Flip, Guide, Plain

NO_CHANGE = {
    "copies": 2,
    "rotation_degrees": 0,
    "horizontal_flip": False,
    "shear_radians": 0,
    "shift_fraction": 0,
    "zoom_fraction": 0,
    "brightness_fraction": 0,
    "contrast_fraction": 0,
}
GUIDE = {
    "copies": 2,
    "rotation_degrees": 20,
    "horizontal_flip": True,
    "shear_radians": 0.15,
    "shift_fraction": 0.2,
    "zoom_fraction": 0.2,
    "brightness_fraction": 0.2,
    "contrast_fraction": 0.2,
}
IMAGES = np.stack([drawn_dogs.draw("train", label, 0) for label in range(6)])
INDICES = np.arange(6)


def test_augment_with_zero_limits_leaves_images_unchanged() -> None:
    assert np.array_equal(Guide(**NO_CHANGE).apply(IMAGES, INDICES, 0, 0), IMAGES.astype(np.float32))
    assert np.array_equal(Plain().apply(IMAGES, INDICES, 0, 0), IMAGES.astype(np.float32))


def test_flip_has_the_images_and_their_mirror_images() -> None:
    flip = Flip()
    copies = [flip.apply(IMAGES, INDICES, copy, seed) for copy in range(flip.num_copies()) for seed in (0, 1)]
    for found, expected in zip(copies, [IMAGES, IMAGES, IMAGES[:, :, ::-1], IMAGES[:, :, ::-1]], strict=True):
        assert np.array_equal(found, expected.astype(np.float32))
    # The features of the images are those of a run without augmentation.
    assert [flip.is_plain(copy) for copy in (0, 1)] == [True, False]
    assert not Guide(**NO_CHANGE).is_plain(0)


def test_augment_flips_half_of_the_images() -> None:
    flipped = Guide(**NO_CHANGE | {"horizontal_flip": True}).apply(
        np.repeat(IMAGES[:1], 200, axis=0), np.arange(200), 0, 0
    )
    is_mirrored = [np.array_equal(image, IMAGES[0][:, ::-1]) for image in flipped]
    assert all(
        mirrored or np.array_equal(image, IMAGES[0]) for mirrored, image in zip(is_mirrored, flipped, strict=True)
    )
    assert 75 <= sum(is_mirrored) <= 125


def test_augmented_copy_depends_only_on_seed_copy_and_index() -> None:
    augment = Guide(**GUIDE)
    batch = augment.apply(IMAGES, INDICES, 1, 7)
    alone = augment.apply(IMAGES[3:4], INDICES[3:4], 1, 7)
    assert np.array_equal(alone[0], batch[3])
    for other in (
        augment.apply(IMAGES, INDICES, 0, 7),
        augment.apply(IMAGES, INDICES, 1, 8),
        augment.apply(IMAGES, INDICES + 1, 1, 7),
    ):
        assert np.abs(other - batch).mean() > 5


@pytest.mark.parametrize(
    ("setting", "limit"), [("rotation_degrees", 20), ("shift_fraction", 0.2), ("zoom_fraction", 0.2)]
)
def test_drawn_transforms_cover_the_range_up_to_their_limit(setting: str, limit: float) -> None:
    augment = Guide(**NO_CHANGE | {setting: limit})
    drawn = np.array([augment.draw_parameters(index, 0, 0, 64).transform for index in range(500)])
    linear, offset = drawn[:, [0, 1, 3, 4]].reshape(-1, 2, 2), drawn[:, [2, 5]]
    if setting == "rotation_degrees":
        measured = np.rad2deg(np.arctan2(linear[:, 1, 0], linear[:, 0, 0]))
    elif setting == "zoom_fraction":
        measured = linear[:, [0, 1], [0, 1]].ravel() - 1
    else:
        measured = offset.ravel() / 64
    assert np.abs(measured).max() <= limit * 1.0001
    assert measured.max() > 0.95 * limit
    assert measured.min() < -0.95 * limit
    # Only a shift moves the centre of the image.
    if setting != "shift_fraction":
        centre = np.full(2, 31.5)
        assert np.allclose(linear @ centre + offset, centre, atol=1e-3)


def test_augment_fills_with_grey_and_keeps_pixels_in_range() -> None:
    shifted = Guide(**NO_CHANGE | {"shift_fraction": 0.9}).apply(
        np.zeros((40, 16, 16, 3), np.uint8), np.arange(40), 0, 0
    )
    assert set(np.unique(shifted.round())) >= {0.0, 128.0}
    lit = Guide(**NO_CHANGE | {"brightness_fraction": 0.9, "contrast_fraction": 0.9}).apply(IMAGES, INDICES, 0, 0)
    assert lit.min() >= 0
    assert lit.max() <= 255
