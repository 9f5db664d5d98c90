"""Some photos of many, to check something on; they are opened when their turn has come."""

from functools import partial
from pathlib import Path

import numpy as np

from dogbreeds.core.errors import MissingFileError, UserError
from dogbreeds.core.text import printable
from dogbreeds.data.dataset import Split
from dogbreeds.data.files import photos_below, read
from dogbreeds.data.image import Photo, Unreadable, decode


def of_folder(named: str, count: int) -> list[Photo]:
    """Photos below a folder, whatever they show.

    Args:
        named: the folder, as the setting `photos_from` has it.
        count: how many, if there are as many.
    """
    place = Path(named).expanduser()
    if not place.is_dir():
        raise MissingFileError(
            f"photos_from={printable(named)} is not a folder. It must hold photos, at any depth. Type"
            " photos_from=path/to/photos."
        )
    paths = [entry.path for entry in photos_below(place)]
    if not paths:
        raise UserError(
            f"photos_from={printable(named)} holds no photos. They must be JPEG, PNG or WebP files. Type"
            " photos_from=path/to/photos."
        )
    return [partial(_decoded, paths[row]) for row in _spread(len(paths), count)]


def _decoded(path: str) -> np.ndarray:
    try:
        return decode(read(path), printable(path))
    except Unreadable as error:
        raise UserError(error.plain) from error


def of_split(split: Split, count: int, skip: bool) -> list[Photo]:
    """Photos of a split.

    Args:
        split: spread over its whole length.
        count: how many, if there are as many.
        skip: whether damaged ones, which only show when they are decoded, are left out.
    """
    rows = set(split.rows[_spread(len(split.rows), count)].tolist())
    chosen = [photo for row, photo in enumerate(split.source.read()) if row in rows]
    readable = [photo for photo in chosen if not skip or _is_readable(photo)]
    if not readable:
        raise UserError(
            "None of the photos to check on can be read. Each format is checked on some. Mend them, or type"
            " photos_from=path/to/photos."
        )
    return readable


def _is_readable(photo: Photo) -> bool:
    try:
        photo()
    except Unreadable:
        return False
    return True


def _spread(total: int, count: int) -> np.ndarray:
    return np.linspace(0, total - 1, min(count, total)).round().astype(int)
