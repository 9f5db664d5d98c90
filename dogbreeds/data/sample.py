"""Samples of images to check something on. Each image is opened when its loader is called."""

from functools import partial
from pathlib import Path

import numpy as np

from dogbreeds.core.errors import MissingFileError, UserError
from dogbreeds.core.text import printable
from dogbreeds.data.dataset import Split
from dogbreeds.data.files import images_below, read_file
from dogbreeds.data.image import ImageLoader, UnreadableImageError, decode


def sample_folder(folder: str, count: int) -> list[ImageLoader]:
    """Sample images below a folder, whatever their classes.

    Args:
        folder: the folder, as given in the setting `images_from`.
        count: number of images; fewer if the folder has fewer.

    Raises:
        MissingFileError: if there is no such folder.
        UserError: if it contains no images.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise MissingFileError(
            f"images_from={printable(folder)} is not a folder. It must contain images, at any depth. Type"
            " images_from=path/to/images."
        )
    paths = [entry.path for entry in images_below(root)]
    if not paths:
        raise UserError(
            f"images_from={printable(folder)} contains no images. They must be JPEG, PNG or WebP files. Type"
            " images_from=path/to/images."
        )
    return [partial(_decode_path, paths[row]) for row in _evenly_spaced(len(paths), count)]


def _decode_path(path: str) -> np.ndarray:
    try:
        return decode(read_file(path), printable(path))
    except UnreadableImageError as error:
        raise UserError(error.message_without_skip) from error


def sample_split(split: Split, count: int, skip: bool) -> dict[str, ImageLoader]:
    """Sample images of a split, evenly spaced over its rows, by name.

    Args:
        split: the images.
        count: number of images; fewer if the split has fewer.
        skip: whether to leave out unreadable ones, which are found only by decoding.

    Raises:
        UserError: if none of the images can be read.
    """
    rows = set(split.rows[_evenly_spaced(len(split.rows), count)].tolist())
    chosen = {split.source.ids[row]: loader for row, loader in enumerate(split.source.loaders()) if row in rows}
    readable = {name: loader for name, loader in chosen.items() if not skip or _is_readable(loader)}
    if not readable:
        raise UserError(
            "None of the images for the check can be read. Each format is checked on some. Repair them, or type"
            " images_from=path/to/images."
        )
    return readable


def _is_readable(loader: ImageLoader) -> bool:
    try:
        loader()
    except UnreadableImageError:
        return False
    return True


def _evenly_spaced(total: int, count: int) -> np.ndarray:
    return np.linspace(0, total - 1, min(count, total)).round().astype(int)
