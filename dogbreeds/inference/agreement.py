"""Whether formats say what the trained network says: of the same photos, at their own sizes and at odd ones."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np

from dogbreeds.core.errors import UserError
from dogbreeds.data.image import Photo
from dogbreeds.inference.export_formats import Ask

# Height and width: the resize inside each format has work to do, both ways
ODD_SIZES = ((37, 91), (91, 37), (500, 333), (333, 500))
# Photos that are alike in size are asked about together, up to so many pixels
_PIXELS_AT_ONCE = 32 * 224 * 224


@dataclass
class ParityCheck:
    """A format beside the trained network.

    Attributes:
        difference: the largest of all probabilities of all photos.
        same: photos of which the same breed comes first.
        n: photos.
    """

    difference: float = 0.0
    same: int = 0
    n: int = 0

    def within(self, allowed: float) -> bool:
        """Whether it is the same network; one that answers what is no number is not."""
        return self.difference <= allowed


def compare(
    asks: Mapping[str, Ask], trained: Ask, photos: Iterable[np.ndarray], advance: Callable[[int], None]
) -> dict[str, ParityCheck]:
    """Asks all formats, and the trained network, about photos that pass by once.

    Args:
        asks: by the format's name.
        trained: what they are measured against.
        photos: each [h, w, 3] uint8.
        advance: told the number of photos just done.
    """
    found = {name: ParityCheck() for name in asks}
    # [b, h, w, 3]
    for batch in _alike(photos):
        expected, breeds = trained(batch)
        if not np.isfinite(expected).all():
            raise UserError(
                "The network's answers are not numbers. A network must give some to be handed over. Type run=best, for"
                " example."
            )
        for name, ask in asks.items():
            said, named = ask(batch)
            agreement = found[name]
            largest = float(np.abs(said - expected).max()) if said.shape == expected.shape else np.inf
            # Not max(), which lets NaN by
            agreement.difference = float(np.maximum(agreement.difference, largest))
            agreement.same += sum(one == other for one, other in zip(named, breeds, strict=True))
            agreement.n += len(batch)
        advance(len(batch))
    return found


def _alike(photos: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Batches of consecutive photos of one size."""
    waiting: list[np.ndarray] = []
    for photo in photos:
        if waiting and (photo.shape != waiting[0].shape or (len(waiting) + 1) * photo.size > 3 * _PIXELS_AT_ONCE):
            yield np.stack(waiting)
            waiting = []
        waiting.append(photo)
    if waiting:
        yield np.stack(waiting)


def with_odd_sizes(photos: list[Photo]) -> list[Photo]:
    """The same photos, and the first of them again at sizes that fit no network."""
    return photos + [partial(_squeezed, photo, *size) for photo, size in zip(photos, ODD_SIZES, strict=False)]


def _squeezed(photo: Photo, height: int, width: int) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.fromarray(photo()).resize((width, height)))
