"""Test-time augmentation: a photo is looked at several times, each time a little differently, and the answers are averaged."""

from dataclasses import dataclass

import numpy as np

from dogbreeds.core.spec import Spec, integer

# How much closer each further pair of views is
_ZOOM = 0.1


@dataclass(frozen=True, kw_only=True)
class Tta(Spec):
    """How many views: the photo, its mirror image, then both from ever closer. 1 is the photo alone."""

    group = "tta"
    views: int = integer(at_least=1, example=4)


def view(photos: np.ndarray, number: int) -> np.ndarray:
    """One view of photos, the same each time.

    Args:
        photos: [b, size, size, 3] uint8.
        number: 0 is the photos themselves, odd ones are mirrored.

    Returns:
        [b, size, size, 3] uint8.
    """
    size = photos.shape[1]
    shown = photos[:, :, ::-1] if number % 2 else photos
    inner = round(size / (1 + _ZOOM * (number // 2)))
    if inner == size:
        return shown
    from dogbreeds.data.resize import resized

    edge = (size - inner) // 2
    return np.asarray(resized(shown[:, edge : edge + inner, edge : edge + inner], size, "stretch")).astype(np.uint8)
