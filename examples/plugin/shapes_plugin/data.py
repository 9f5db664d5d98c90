"""A data set of drawn shapes, which needs no files."""

import functools
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

import dogbreeds

CLASSES = ("circle", "cross", "square")
_SIDE = 48


@dataclass(frozen=True, kw_only=True)
class Shapes(dogbreeds.Data):
    """Bright shapes of random place, size and colour on a dark background."""

    train_per_class: int = dogbreeds.integer(at_least=2, example=40)
    val_per_class: int = dogbreeds.integer(at_least=1, example=20)

    def open(self) -> dogbreeds.Dataset:
        train, val = (
            dogbreeds.Split(source, np.arange(len(source.labels)))
            for source in (_source("train", self.train_per_class), _source("val", self.val_per_class))
        )
        return dogbreeds.Dataset("shapes", CLASSES, train, val, test=None)


def _source(name: str, per_class: int) -> dogbreeds.Source:
    labels = np.repeat(np.arange(len(CLASSES), dtype=np.int32), per_class)
    ids = tuple(f"{name}/{CLASSES[label]}/{number}" for number, label in enumerate(labels))

    def loaders() -> Iterator[Callable[[], np.ndarray]]:
        for image, label in zip(ids, labels, strict=True):
            yield functools.partial(draw, image, label)

    return dogbreeds.Source(
        name=name,
        labels=labels,
        ids=ids,
        # An id decides its image, so it can stand for the image's bytes.
        digests=ids,
        # The same fingerprint must mean the same images, because it names what the feature cache holds.
        fingerprint=hashlib.blake2b("\n".join(ids).encode(), digest_size=16).hexdigest(),
        loaders=loaders,
    )


def draw(image: str, label: int) -> np.ndarray:
    """Draw the image of an id: [48, 48, 3] uint8."""
    seed = int.from_bytes(hashlib.blake2b(image.encode(), digest_size=8).digest())
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:_SIDE, :_SIDE]
    radius = rng.uniform(8, 14)
    down, right = np.abs(rows - rng.uniform(16, 32)), np.abs(columns - rng.uniform(16, 32))
    inside = (
        down**2 + right**2 < radius**2,
        (np.minimum(down, right) < radius / 4) & (np.maximum(down, right) < radius),
        np.maximum(down, right) < radius,
    )[label]
    colour = rng.uniform(140, 255, size=3)
    background = rng.uniform(0, 60, size=(_SIDE, _SIDE, 3))
    return np.where(inside[..., None], colour, background).astype(np.uint8)
