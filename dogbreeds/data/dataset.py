"""Data sets: labelled images, and their splits into training, validation and test data.

A *source* is a fixed set of images in a fixed order; a *split* is a selection of a source's rows. Features are cached
for each source as a whole, so another split of it, such as one with another seed, needs no second pass over the images.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dogbreeds.core.errors import UserError
from dogbreeds.core.former_names import IMPLIED_PARAMS
from dogbreeds.core.spec import AUTO, Spec, number, one_of, path
from dogbreeds.core.text import digest, printable
from dogbreeds.data.decoder import PILLOW
from dogbreeds.data.image import ImageLoader


@dataclass(frozen=True)
class Source:
    """A fixed set of images in a fixed order.

    Attributes:
        name: the part of the data set, such as `train`.
        labels: [n] int32 class indices.
        ids: [n] name of each image, such as its path below the root; printable, and never a path that leads out of it.
        digests: [n] digest of each image's bytes; equal digests mean the same image.
        fingerprint: digest of all ids, contents and labels, as they were before `data.relabel`; equal fingerprints mean
            the same images.
        loaders: iterates over the images in order. Each is decoded when its loader is called, so that several threads
            can decode at once.
    """

    name: str
    labels: np.ndarray
    ids: tuple[str, ...]
    digests: tuple[str, ...]
    fingerprint: str
    loaders: Callable[[], Iterator[ImageLoader]]


@dataclass(frozen=True)
class Split:
    """Selection of a source's rows.

    Attributes:
        source: the images.
        rows: [n] ascending row indices into the source.
    """

    source: Source
    rows: np.ndarray

    @property
    def labels(self) -> np.ndarray:
        """[n] int32 class indices of the rows."""
        return self.source.labels[self.rows]

    def without(self, rows: frozenset[int]) -> "Split":
        """Return the split without these rows of its source."""
        return Split(self.source, self.rows[~np.isin(self.rows, list(rows))]) if rows else self


@dataclass(frozen=True)
class Dataset:
    """An opened data set.

    Attributes:
        name: name for logs and records.
        class_names: name of each class, in the order of the labels.
        train: training data.
        val: validation data.
        test: test data; None if the data set has none.
        notes: sentences about skipped images, and about corrections.
        num_excluded: images that `data.exclude` left out of the splits.
        num_relabelled: images of the splits that have another label by `data.relabel`.
    """

    name: str
    class_names: tuple[str, ...]
    train: Split
    val: Split
    test: Split | None
    notes: tuple[str, ...] = ()
    num_excluded: int = 0
    num_relabelled: int = 0

    @classmethod
    def from_arrays(
        cls,
        train: tuple[Any, Any],
        val: tuple[Any, Any] | None = None,
        test: tuple[Any, Any] | None = None,
        *,
        class_names: Sequence[str] | None = None,
        name: str = "arrays",
        val_fraction: float = 0.2,
        split_seed: int = 0,
    ) -> "Dataset":
        """Build a data set from images in memory, for `fit`. It does not copy them.

        Examples:
            >>> images = np.random.default_rng(0).integers(0, 256, (20, 48, 64, 3), dtype=np.uint8)
            >>> dataset = db.Dataset.from_arrays(train=(images, ["cat", "dog"] * 10), name="noise")
            >>> {name: len(split.rows) for name, split in dataset.splits.items()}
            {'train': 16, 'val': 4}

        Args:
            train: images and labels. Images are [n, h, w, 3] uint8 RGB in [0, 255], or a list of [h, w, 3] of any
                sizes; labels are [n] class numbers from 0, or class names.
            val: images and labels for validation; None holds out a part of `train`.
            test: images and labels to test on.
            class_names: in the order of the class numbers; None takes the sorted names among the training labels, or
                `class 0`, `class 1`, and so on.
            name: name for logs and records.
            val_fraction: fraction of each class to hold out without `val`.
            split_seed: seed of that split.

        Raises:
            UserError: an image or a label is not of that form.
        """
        from dogbreeds.data.provided import arrays_dataset

        return arrays_dataset(
            {"train": train, "val": val, "test": test},
            class_names=class_names,
            name=name,
            val_fraction=val_fraction,
            split_seed=split_seed,
        )

    @classmethod
    def from_files(
        cls,
        train: tuple[Sequence[str | Path], Any],
        val: tuple[Sequence[str | Path], Any] | None = None,
        test: tuple[Sequence[str | Path], Any] | None = None,
        *,
        class_names: Sequence[str] | None = None,
        name: str = "files",
        val_fraction: float = 0.2,
        split_seed: int = 0,
    ) -> "Dataset":
        """Build a data set from image files, for `fit`. They are decoded when they are needed, once.

        Examples:
            >>> paths = sorted(pathlib.Path("photos").glob("*/*.jpg"))
            >>> dataset = db.Dataset.from_files(train=(paths, [path.parent.name for path in paths]))
            >>> len(dataset.class_names)
            3

        Args:
            train: paths of JPEG, PNG or WebP files, and labels as in `from_arrays`.
            val, test, class_names, name, val_fraction, split_seed: as in `from_arrays`.

        Raises:
            UserError: a file cannot be read, or a label is not of that form.
        """
        from dogbreeds.data.provided import files_dataset

        return files_dataset(
            {"train": train, "val": val, "test": test},
            class_names=class_names,
            name=name,
            val_fraction=val_fraction,
            split_seed=split_seed,
        )

    @property
    def splits(self) -> dict[str, Split]:
        """The splits that exist, by name."""
        splits = {"train": self.train, "val": self.val, "test": self.test}
        return {name: split for name, split in splits.items() if split is not None}

    @property
    def fingerprint(self) -> str:
        """Digest of the class names, the images, their labels, and the split that each image is in."""
        parts = [
            f"{name}:{split.source.fingerprint}:{digest(split.rows.tobytes())}" for name, split in self.splits.items()
        ]
        if self.num_relabelled:
            parts += [f"{name} labels:{digest(split.labels.tobytes())}" for name, split in self.splits.items()]
        return digest("\n".join([*self.class_names, *parts]).encode())


def stratified_split(
    labels: np.ndarray, fraction: float, seed: int, class_names: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Split rows in two within each class. The same seed gives the same split.

    Args:
        labels: [n] class index of each row.
        fraction: fraction of each class to hold out, above 0 and below 1. Both parts get a row of each class or more.
        seed: 0 or more.
        class_names: names of the classes, for the error.

    Returns:
        The remaining rows and the held-out rows, both ascending.

    Raises:
        UserError: if a class has only one row.
    """
    held_out: list[np.ndarray] = []
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        if len(rows) < 2:
            raise UserError(
                f"The class {printable(class_names[label])} has one image, so none can be held out for validation."
                " Every class needs two images or more, or its own folder in val. Add images, or create"
                " root/val/<class>/."
            )
        count = min(max(1, round(fraction * len(rows))), len(rows) - 1)
        order = np.random.Generator(np.random.Philox(key=[seed, int(label)])).permutation(len(rows))
        held_out.append(rows[order[:count]])
    held_out_rows = np.sort(np.concatenate(held_out))
    return np.setdiff1d(np.arange(len(labels)), held_out_rows), held_out_rows


@dataclass(frozen=True, kw_only=True)
class Data(Spec):
    """Base of all data sets.

    Attributes:
        resize: how images become square, see `resize_images`.
        decoder: what decodes and resizes images, see `decoder`; `auto` chooses, see `decoder_choice`.
        on_corrupt: whether an unreadable image stops the run or is skipped.
        max_corrupt_fraction: largest fraction of a source's images that may be skipped.
        exclude: table of images to leave out, such as an audit's; null for none. See `corrections`.
        relabel: table of images and their right classes, such as an audit's; null for none.
    """

    group = "data"
    implied = {"decoder": IMPLIED_PARAMS["data.decoder"], "exclude": None, "relabel": None}
    resize: str = one_of("stretch", "pad", "crop")
    decoder: str = one_of("auto", "pillow", "pillow_scaled", "tensorflow")
    on_corrupt: str = one_of("stop", "skip")
    max_corrupt_fraction: float = number(at_least=0, at_most=1, example=0.01)
    exclude: str | None = path(example="audit.csv", optional=True, default=None)
    relabel: str | None = path(example="audit.csv", optional=True, default=None)

    def open(self) -> Dataset:
        """Find the images and draw the splits. Decodes no pixels, and takes no account of `exclude` and `relabel`.

        Raises:
            MissingFileError: if the data does not exist.
            UserError: if it cannot be trained on.
        """
        raise NotImplementedError

    @property
    def chosen_decoder(self) -> str:
        """One of `DECODERS`; of `auto` where nothing was cached or recorded, Pillow."""
        return PILLOW if self.decoder == AUTO else self.decoder

    def check_skipped(self, skipped: int, total: int, source: str) -> None:
        """Check the number of skipped images of a source.

        Raises:
            UserError: if more are skipped than `max_corrupt_fraction` allows.
        """
        if skipped > self.max_corrupt_fraction * total:
            raise UserError(
                f"{skipped:,} of {total:,} images of {source} cannot be read. "
                f"data.max_corrupt_fraction allows {self.max_corrupt_fraction:g} of them. "
                f"Repair the files, or type data.max_corrupt_fraction={min(1.0, round(1.2 * skipped / total, 3)):g}."
            )


@dataclass(frozen=True, kw_only=True)
class Provided(Data):
    """A data set that a Python caller gave to `fit`. A run records its fingerprint, not where its images are."""

    def open(self) -> Dataset:
        raise UserError(
            "The images of this run were given in Python, as a Dataset. A run does not record such images, so they must"
            " be given again. Type classifier.evaluate(dataset) in Python, or name a folder of images:"
            " images=path/to/images, images_from=path/to/images for export."
        )
