"""Sources and splits made of labelled image files, however the labels were given."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dogbreeds.core.text import digest, printable
from dogbreeds.data.dataset import Data, Dataset, Source, Split, stratified_split
from dogbreeds.data.files import examine, examine_below, examined_image
from dogbreeds.data.image import ImageLoader, UnreadableImageError


@dataclass(frozen=True)
class LabelledFile:
    """An image file and its class.

    Attributes:
        path: of the file.
        label: index of its class.
    """

    path: str
    label: int


def readable_source(
    data: Data, root: Path, name: str, files: Sequence[LabelledFile], may_be_outside: bool = False
) -> tuple[Source, str]:
    """Open a source of image files: examine each one, and leave out those that cannot be read if `data` allows it.

    Args:
        data: whether unreadable images stop the run or are skipped.
        root: resolved folder. An image's id is its path below it.
        name: of the source.
        files: in the order of the source.
        may_be_outside: whether a path may lead out of `root`. Such an image's id is its whole path.

    Returns:
        The source, and a sentence about skipped images, empty if there are none.

    Raises:
        UnreadableImageError: if an image cannot be read and `data.on_corrupt` is `stop`.
        UserError: if more are skipped than `data.max_corrupt_fraction` allows.
    """
    paths = [file.path for file in files]
    results = examine(paths) if may_be_outside else examine_below(root, paths)
    errors = [result for result in results if isinstance(result, UnreadableImageError)]
    if errors and data.on_corrupt == "stop":
        raise errors[0]
    data.check_skipped(len(errors), len(files), name)
    readable = [(file, content) for file, content in zip(files, results, strict=True) if isinstance(content, str)]
    source = labelled_source(
        name,
        np.asarray([file.label for file, _ in readable], dtype=np.int32),
        [image_id(root, file.path) for file, _ in readable],
        [content for _, content in readable],
        [examined_image(file.path, content) for file, content in readable],
    )
    return source, _skipped_note(name, len(files), errors)


def labelled_source(
    name: str, labels: np.ndarray, ids: Sequence[str], digests: Sequence[str], loaders: Sequence[ImageLoader]
) -> Source:
    """Make a source of images that are known one by one; its fingerprint covers labels, ids and digests.

    Args:
        name: of the source.
        labels: [n] int32 class of each image.
        ids, digests, loaders: [n] of each image, as in `Source`.
    """
    described = [f"{label} {image} {content}" for label, image, content in zip(labels, ids, digests, strict=True)]
    return Source(
        name=name,
        labels=labels,
        ids=tuple(ids),
        digests=tuple(digests),
        fingerprint=digest("\n".join(described).encode()),
        loaders=lambda: iter(loaders),
    )


def image_id(root: Path, path: str) -> str:
    """Return the printable name of an image: its path below the root, or its whole path without the leading slash."""
    return printable(path.removeprefix(os.path.join(root, "")).lstrip(os.sep))


def assemble_dataset(
    name: str,
    class_names: tuple[str, ...],
    sources: dict[str, Source],
    val_fraction: float,
    split_seed: int,
    notes: Sequence[str] = (),
) -> Dataset:
    """Make a data set of the sources `train` and, if they exist, `val` and `test`.

    Args:
        name: of the data set.
        class_names: in the order of the labels.
        sources: by split. Without `val`, validation images are held out of `train`.
        val_fraction: fraction of each class to hold out.
        split_seed: seed of that split.
        notes: sentences about skipped images; empty ones are left out.

    Raises:
        UserError: if a class has too few images to hold one out.
    """
    train = whole(sources["train"])
    if "val" in sources:
        val = whole(sources["val"])
    else:
        train_rows, val_rows = stratified_split(sources["train"].labels, val_fraction, split_seed, class_names)
        train, val = Split(sources["train"], train_rows), Split(sources["train"], val_rows)
    test = whole(sources["test"]) if "test" in sources else None
    return Dataset(name, class_names, train, val, test, tuple(note for note in notes if note))


def whole(source: Source) -> Split:
    """Return the split of all rows of a source."""
    return Split(source, np.arange(len(source.labels)))


def _skipped_note(name: str, total: int, errors: list[UnreadableImageError]) -> str:
    if not errors:
        return ""
    first = errors[0].args[0].split(". ")[0]
    return f"{len(errors)} of {total:,} images of {name} skipped: {first}"
