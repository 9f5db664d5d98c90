import numpy as np
import pytest

from dogbreeds.data import drawn_dogs
from dogbreeds.data.augment import Guide, Plain

STILL = {
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
PHOTOS = np.stack([drawn_dogs.draw("train", breed, 0) for breed in range(6)])
INDICES = np.arange(6)


def test_nothing_drawn_changes_nothing() -> None:
    assert np.array_equal(Guide(**STILL).view(PHOTOS, INDICES, 0, 0), PHOTOS.astype(np.float32))
    assert np.array_equal(Plain().view(PHOTOS, INDICES, 0, 0), PHOTOS.astype(np.float32))


def test_a_flip_mirrors_half_of_the_photos() -> None:
    view = Guide(**STILL | {"horizontal_flip": True}).view(np.repeat(PHOTOS[:1], 200, axis=0), np.arange(200), 0, 0)
    mirrored = [np.array_equal(photo, PHOTOS[0][:, ::-1]) for photo in view]
    assert all(flip or np.array_equal(photo, PHOTOS[0]) for flip, photo in zip(mirrored, view, strict=True))
    assert 75 <= sum(mirrored) <= 125


def test_a_copy_depends_on_seed_view_and_index_alone() -> None:
    augment = Guide(**GUIDE)
    view = augment.view(PHOTOS, INDICES, 1, 7)
    alone = augment.view(PHOTOS[3:4], INDICES[3:4], 1, 7)
    assert np.array_equal(alone[0], view[3])
    for other in (
        augment.view(PHOTOS, INDICES, 0, 7),
        augment.view(PHOTOS, INDICES, 1, 8),
        augment.view(PHOTOS, INDICES + 1, 1, 7),
    ):
        assert np.abs(other - view).mean() > 5


@pytest.mark.parametrize(
    ("setting", "limit"), [("rotation_degrees", 20), ("shift_fraction", 0.2), ("zoom_fraction", 0.2)]
)
def test_drawn_transforms_stay_within_their_limits_and_reach_them(setting: str, limit: float) -> None:
    augment = Guide(**STILL | {setting: limit})
    drawn = np.array([augment.draw(index, 0, 0, 64)[0] for index in range(500)])
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
    # The middle of the photo stays where it is
    if setting != "shift_fraction":
        middle = np.full(2, 31.5)
        assert np.allclose(linear @ middle + offset, middle, atol=1e-3)


def test_what_comes_from_outside_is_grey_and_light_stays_in_range() -> None:
    shifted = Guide(**STILL | {"shift_fraction": 0.9}).view(np.zeros((40, 16, 16, 3), np.uint8), np.arange(40), 0, 0)
    assert set(np.unique(shifted.round())) >= {0.0, 128.0}
    lit = Guide(**STILL | {"brightness_fraction": 0.9, "contrast_fraction": 0.9}).view(PHOTOS, INDICES, 0, 0)
    assert lit.min() >= 0
    assert lit.max() <= 255
