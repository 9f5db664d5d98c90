"""Data sets: which photos there are, what they show, and which of them train, validate and test.

A *source* is a fixed set of photos in a fixed order; a *split* is rows of a source. What the frozen backbone says of a source
is kept once, however the splits are then drawn, so that another seed costs no second pass over the photos.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from dogbreeds.core.errors import UserError
from dogbreeds.core.spec import Spec, number, one_of
from dogbreeds.core.text import digest
from dogbreeds.data.image import Photo


@dataclass(frozen=True)
class Source:
    """A fixed set of photos in a fixed order.

    Attributes:
        name: which part of the data set it is.
        labels: [n] int32, each below the number of classes.
        ids: a name for each photo, such as its path below the root; printable, and no path that leads anywhere else.
        digests: of each photo's bytes: equal ones are the same photo.
        fingerprint: of names, labels and contents; equal fingerprints are the same photos.
        read: goes over the photos in order; decoding happens when an item is called, so that it can happen in parallel.
    """

    name: str
    labels: np.ndarray
    ids: tuple[str, ...]
    digests: tuple[str, ...]
    fingerprint: str
    read: Callable[[], Iterator[Photo]]


@dataclass(frozen=True)
class Split:
    """Rows of a source, ascending."""

    source: Source
    rows: np.ndarray

    @property
    def labels(self) -> np.ndarray:
        return self.source.labels[self.rows]

    def without(self, rows: frozenset[int]) -> "Split":
        """The same split, less these rows of its source."""
        return Split(self.source, self.rows[~np.isin(self.rows, list(rows))]) if rows else self


@dataclass(frozen=True)
class Dataset:
    """An opened data set: `train` and `val`, and `test` where there is one."""

    name: str
    class_names: tuple[str, ...]
    train: Split
    val: Split
    test: Split | None
    notes: tuple[str, ...] = ()

    @property
    def splits(self) -> dict[str, Split]:
        found = {"train": self.train, "val": self.val, "test": self.test}
        return {name: split for name, split in found.items() if split is not None}

    @property
    def fingerprint(self) -> str:
        """Of the photos and of which split each is in."""
        parts = [
            f"{name}:{split.source.fingerprint}:{digest(split.rows.tobytes())}" for name, split in self.splits.items()
        ]
        return digest("\n".join([*self.class_names, *parts]).encode())


def stratified_split(labels: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Splits rows in two, class by class, the same way for the same seed.

    Args:
        labels: [n] class of each row.
        fraction: of each class to hold out, above 0 and below 1; at least one row is held out of each class and one stays.
        seed: 0 or more.

    Returns:
        The rows that stay and those held out, both ascending.

    Raises:
        UserError: where a class has a single row.
    """
    held: list[np.ndarray] = []
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        if len(rows) < 2:
            raise UserError(
                f"Class number {label} has one photo, and validation has to be held out of it. Every class needs two"
                " photos or more, or a val folder of its own. Add photos, or make root/val/<class>/."
            )
        count = min(max(1, round(fraction * len(rows))), len(rows) - 1)
        order = np.random.Generator(np.random.Philox(key=[seed, int(label)])).permutation(len(rows))
        held.append(rows[order[:count]])
    out = np.sort(np.concatenate(held))
    return np.setdiff1d(np.arange(len(labels)), out), out


@dataclass(frozen=True, kw_only=True)
class Data(Spec):
    """What every data set needs to know."""

    group = "data"
    resize: str = one_of("stretch", "pad", "crop")
    on_corrupt: str = one_of("stop", "skip")
    max_corrupt_fraction: float = number(at_least=0, at_most=1, example=0.01)

    def open(self) -> Dataset:
        """Finds the photos and draws the splits; decodes nothing.

        Raises:
            Missing: where the data is not there.
            UserError: where it cannot be trained on.
        """
        raise NotImplementedError

    def check_skipped(self, skipped: int, total: int, source: str) -> None:
        """Raises `UserError` where more photos were skipped than `max_corrupt_fraction` allows."""
        if skipped > self.max_corrupt_fraction * total:
            raise UserError(
                f"{skipped:,} of {total:,} photos of {source} cannot be read. "
                f"data.max_corrupt_fraction allows {self.max_corrupt_fraction:g} of them. "
                f"Mend the files, or type data.max_corrupt_fraction={min(1.0, round(1.2 * skipped / total, 3)):g}."
            )
