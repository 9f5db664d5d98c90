"""Data set of synthetic dogs. It needs no download, and its images are the same on every machine."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from dogbreeds.core.errors import UserError
from dogbreeds.core.spec import integer
from dogbreeds.core.text import digest
from dogbreeds.data.dataset import Data, Dataset, Source, Split
from dogbreeds.data.image import ImageLoader


@dataclass(frozen=True, kw_only=True)
class Miniature(Data):
    """Synthetic dogs, drawn by `dogbreeds.data.drawn_dogs`.

    Attributes:
        classes: number of classes.
        train_per_class: training images of each class.
        val_per_class: validation images of each class.
        test_per_class: test images of each class.
    """

    classes: int = integer(at_least=2, example=120)
    train_per_class: int = integer(at_least=1, at_most=10_000, example=20)
    val_per_class: int = integer(at_least=1, at_most=10_000, example=10)
    test_per_class: int = integer(at_least=1, at_most=10_000, example=10)

    def __post_init__(self) -> None:
        from dogbreeds.data.drawn_dogs import NUM_BREEDS

        super().__post_init__()
        if self.classes > NUM_BREEDS:
            raise UserError(
                f"data.classes was {self.classes}. There are {NUM_BREEDS} drawn breeds. Type data.classes={NUM_BREEDS},"
                " for example."
            )

    def open(self) -> Dataset:
        from dogbreeds.data import drawn_dogs

        images_per_class = {"train": self.train_per_class, "val": self.val_per_class, "test": self.test_per_class}
        sources = (self._source(name, count) for name, count in images_per_class.items())
        train, val, test = (Split(source, np.arange(len(source.labels))) for source in sources)
        class_names = tuple(drawn_dogs.breed_name(label) for label in range(self.classes))
        return Dataset("miniature", class_names, train, val, test)

    def _source(self, name: str, images_per_class: int) -> Source:
        from dogbreeds.data import drawn_dogs

        def loaders() -> Iterator[ImageLoader]:
            for label in range(self.classes):
                for number in range(images_per_class):
                    yield functools.partial(drawn_dogs.draw, name, label, number)

        ids = tuple(
            f"{name}/{drawn_dogs.breed_name(label)}/{number}"
            for label in range(self.classes)
            for number in range(images_per_class)
        )
        described = f"miniature:{drawn_dogs.VERSION}:{name}:{self.classes}:{images_per_class}"
        return Source(
            name=name,
            labels=np.repeat(np.arange(self.classes, dtype=np.int32), images_per_class),
            ids=ids,
            # An id determines its image, and different ids give different images.
            digests=ids,
            fingerprint=digest(described.encode()),
            loaders=loaders,
        )
