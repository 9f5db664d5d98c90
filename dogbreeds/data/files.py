"""Untrusted image files on disk: finding, examining and reading them."""

import errno
import os
import stat
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from dogbreeds.core.errors import UserError
from dogbreeds.core.text import digest, printable
from dogbreeds.data.image import (
    NOT_A_FILE,
    OR_SKIP,
    OUTSIDE_ROOT,
    SUFFIXES,
    EncodedImage,
    UnreadableImageError,
    check_bytes,
    open_image,
)

# --- finding ----------------------------------------------------------


def images_below(folder: Path) -> "list[os.DirEntry[str]]":
    """Return all files below a folder that have the suffix of an image, sorted by path.

    Hidden files are left out, and symbolic links to folders are not followed.

    Raises:
        UserError: if a folder cannot be listed.
    """
    found: list[os.DirEntry[str]] = []
    folders = [str(folder)]
    while folders:
        for entry in list_folder(folders.pop()):
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry.path)
            elif entry.name.lower().endswith(SUFFIXES) and not entry.name.startswith("."):
                found.append(entry)
    return sorted(found, key=lambda entry: entry.path)


def list_folder(folder: str | Path) -> "list[os.DirEntry[str]]":
    """Return the entries of a folder, unsorted.

    Raises:
        UserError: if it cannot be listed.
    """
    try:
        with os.scandir(str(folder)) as entries:
            return list(entries)
    except OSError as error:
        raise UserError(
            f"{printable(str(folder))} cannot be listed ({error.strerror}). Image folders must be readable. Repair or"
            " remove it."
        ) from error


def is_within(root: Path, path: str) -> bool:
    """Return whether a path, with all symbolic links resolved, is below `root`, which must be resolved itself."""
    return os.path.commonpath([root, os.path.realpath(path)]) == str(root)


# --- examining --------------------------------------------------------

_Stamp = tuple[int, int, int]

_EXAMINED: "dict[tuple[str, _Stamp | None], str | UnreadableImageError]" = {}


def examine_below(root: Path, paths: Sequence[str]) -> list[str | UnreadableImageError]:
    """Call `examine` on files. A path or symbolic link that leads out of a folder gives an error.

    Args:
        root: the folder, resolved.
        paths: of the files.
    """
    is_inside = {folder: is_within(root, folder) for folder in {os.path.dirname(path) for path in paths}}
    results: dict[str, str | UnreadableImageError] = {
        path: _outside_root(root, path)
        for path in paths
        if not is_inside[os.path.dirname(path)] or (os.path.islink(path) and not is_within(root, path))
    }
    inside = [path for path in paths if path not in results]
    results |= dict(zip(inside, examine(inside), strict=True))
    return [results[path] for path in paths]


def _outside_root(root: Path, path: str) -> UnreadableImageError:
    leads = "is a link" if os.path.islink(path) else "leads"
    return UnreadableImageError(
        f"{printable(path)} {leads} to {printable(os.path.realpath(path))}, outside"
        f" data.root={printable(str(root))}. Images must be inside data.root. Copy the image there{OR_SKIP}",
        OUTSIDE_ROOT,
    )


def examine(paths: Sequence[str]) -> "list[str | UnreadableImageError]":
    """Return the digest of each file's content, or the error that reading its header gives.

    Results are cached in memory for as long as a file's size and times stay the same.
    """
    keys = [(path, _stamp(path)) for path in paths]
    new = [key for key in keys if key not in _EXAMINED]
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        _EXAMINED.update(zip(new, pool.map(_examine, [path for path, _ in new]), strict=True))
    return [_EXAMINED[key] for key in keys]


def _stamp(path: str) -> _Stamp | None:
    """Return size, modification time and change time, or None if the file cannot be found: `read_file` reports that."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _examine(path: str) -> "str | UnreadableImageError":
    try:
        encoded = read_file(path)
        with open_image(encoded, printable(path)):
            return digest(encoded)
    except UnreadableImageError as error:
        return error


# --- reading ----------------------------------------------------------

_KINDS = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
# The machine lacks resources: no image is skipped for that.
_RESOURCE_ERRORS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


def examined_image(path: str, expected: str) -> EncodedImage:
    """Return the loader of an image file that was examined before.

    It raises `UserError` if the content has changed. `data.on_corrupt=skip` does not skip that, because the cache would
    hold pixels under the digest of another image.

    Args:
        path: path of the file.
        expected: digest that `examine` returned, under which the pixels will be cached.
    """
    return EncodedImage(partial(_read_examined, path, expected), printable(path))


def _read_examined(path: str, expected: str) -> bytes:
    try:
        encoded = read_file(path)
    except UnreadableImageError as error:
        raise _changed(path) from error
    if digest(encoded) != expected:
        raise _changed(path)
    return encoded


def _changed(path: str) -> UserError:
    return UserError(
        f"{printable(path)} changed while it was being read. Images must not change during a run. Run the same command"
        " again."
    )


def read_file(path: str) -> bytes:
    """Return a regular file's content. Pipes and devices, which may be endless, are refused.

    Raises:
        UnreadableImageError: if it is no regular file, is too large, or cannot be opened.
    """
    name = printable(path)
    try:
        # Checked before opening, because opening some devices has side effects.
        _check_file(os.stat(path), name)
        # Opened without blocking, because opening a pipe waits for a writer; checked again, because the file may have
        # been replaced by one.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            status = os.fstat(file.fileno())
            _check_file(status, name)
            return file.read(status.st_size)
    except OSError as error:
        if error.errno in _RESOURCE_ERRORS:
            raise
        raise UnreadableImageError(
            f"{name} cannot be opened ({error.strerror}). Images must be readable files. Repair or remove it{OR_SKIP}",
            NOT_A_FILE,
        ) from error


def _check_file(status: os.stat_result, name: str) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "a device")
        raise UnreadableImageError(f"{name} is {kind}. Images must be regular files. Remove it{OR_SKIP}", NOT_A_FILE)
    check_bytes(status.st_size, name)
