import numpy as np

from dogbreeds.data import drawn_dogs
from dogbreeds.inference.tta import view


def photos() -> np.ndarray:
    return np.stack([drawn_dogs.draw("test", breed, 0) for breed in range(3)])


def test_views_are_the_photo_its_mirror_and_both_from_closer() -> None:
    shown = photos()
    assert (view(shown, 0) == shown).all()
    assert (view(shown, 1) == shown[:, :, ::-1]).all()
    closer = view(shown, 2)
    assert closer.shape == shown.shape
    assert closer.dtype == np.uint8
    assert (view(shown, 3) == view(shown[:, :, ::-1], 2)).all()
    # What is closer shows the middle: it is nearer to the middle, enlarged, than to the whole.
    middle = np.repeat(np.repeat(shown[:, 16:48, 16:48], 2, axis=1), 2, axis=2).astype(float)
    assert np.abs(view(shown, 10).astype(float) - middle).mean() < np.abs(shown.astype(float) - middle).mean()


def test_each_further_pair_of_views_is_closer() -> None:
    edge = np.zeros((1, 64, 64, 3), np.uint8)
    edge[:, 8:56, 8:56] = 255
    seen = [view(edge, number).mean() for number in (0, 2, 4, 6)]
    assert seen == sorted(seen)
    assert len(set(seen)) == 4
