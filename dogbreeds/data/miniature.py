"""Drawn dogs as a dataset: it needs nothing, and is the same everywhere."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from dogbreeds.core.errors import UserError
from dogbreeds.core.spec import integer
from dogbreeds.core.text import digest
from dogbreeds.data.dataset import Data, Dataset, Source, Split
from dogbreeds.data.image import Photo


@dataclass(frozen=True, kw_only=True)
class Miniature(Data):
    """Drawn dogs (`dogbreeds.miniature`): needs nothing, and draws the same photos everywhere."""

    breeds: int = integer(at_least=2, example=120)
    train_per_breed: int = integer(at_least=1, example=20)
    val_per_breed: int = integer(at_least=1, example=10)
    test_per_breed: int = integer(at_least=1, example=10)

    def __post_init__(self) -> None:
        from dogbreeds.data.drawn_dogs import BREEDS

        super().__post_init__()
        if self.breeds > BREEDS:
            raise UserError(
                f"data.breeds was {self.breeds}. There are {BREEDS} drawn breeds. Type data.breeds={BREEDS}, for"
                " example."
            )

    def _source(self, name: str, each: int) -> Source:
        from dogbreeds.data import drawn_dogs

        def read() -> Iterator[Photo]:
            for breed in range(self.breeds):
                for photo in range(each):
                    yield functools.partial(drawn_dogs.draw, name, breed, photo)

        labels = np.repeat(np.arange(self.breeds, dtype=np.int32), each)
        ids = tuple(
            f"{name}/{drawn_dogs.breed_name(breed)}/{photo}" for breed in range(self.breeds) for photo in range(each)
        )
        # What is drawn follows from its name alone, and no two names give the same.
        return Source(
            name, labels, ids, ids, digest(f"miniature:{drawn_dogs.VERSION}:{name}:{self.breeds}:{each}".encode()), read
        )

    def open(self) -> Dataset:
        from dogbreeds.data import drawn_dogs

        counts = {"train": self.train_per_breed, "val": self.val_per_breed, "test": self.test_per_breed}
        train, val, test = (
            Split(source, np.arange(len(source.labels)))
            for source in (self._source(name, each) for name, each in counts.items())
        )
        return Dataset(
            "miniature", tuple(drawn_dogs.breed_name(breed) for breed in range(self.breeds)), train, val, test
        )
