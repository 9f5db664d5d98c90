"""Image files on disk: listed, examined and read, whatever they turn out to be."""

import errno
import os
import stat
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from dogbreeds.core.errors import UserError
from dogbreeds.core.text import digest, printable
from dogbreeds.data.image import _OR_SKIP, NOT_A_FILE, OUTSIDE, SUFFIXES, Unreadable, _check_bytes, _opened, decode


def examine_below(root: Path, files: "Sequence[os.DirEntry[str]]") -> list[str | Unreadable]:
    """`examine` of files below a folder, where a link that leads out of it is `Unreadable`."""
    outside = {
        file.path: _outside(root, file.path) for file in files if file.is_symlink() and not is_within(root, file.path)
    }
    inside = [file.path for file in files if file.path not in outside]
    found = {**outside, **dict(zip(inside, examine(inside), strict=True))}
    return [found[file.path] for file in files]


def is_within(root: Path, path: str) -> bool:
    """Whether what a path leads to, links and all, lies below a folder that is no link itself."""
    return os.path.commonpath([root, os.path.realpath(path)]) == str(root)


def _outside(root: Path, path: str) -> Unreadable:
    return Unreadable(
        f"{printable(path)} is a link to {printable(os.path.realpath(path))}, out of data.root={printable(str(root))}. "
        "Photos must lie below it. Copy the photo there, or type data.on_corrupt=skip.",
        OUTSIDE,
    )


def photos_below(folder: Path) -> "list[os.DirEntry[str]]":
    """All files below a folder that are named as photos are, sorted; links to folders are not gone into.

    Raises:
        UserError: where a folder may not be listed.
    """
    found, folders = [], [str(folder)]
    while folders:
        for entry in _listed(folders.pop()):
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry.path)
            elif entry.name.lower().endswith(SUFFIXES) and not entry.name.startswith("."):
                found.append(entry)
    return sorted(found, key=lambda entry: entry.path)


def _listed(folder: str | Path) -> "list[os.DirEntry[str]]":
    try:
        with os.scandir(str(folder)) as entries:
            return list(entries)
    except OSError as error:
        raise UserError(
            f"{printable(str(folder))} cannot be listed ({error.strerror}). Folders of photos must be ones that you may"
            " read. Mend or remove it."
        ) from error


# --- on disk ------------------------------------------------------------------------------------------------------------

_KINDS = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
# The machine's, so that no photo must be skipped for it
_NOT_ITS_FAULT = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
_Stamp = tuple[int, int, int]

_EXAMINED: "dict[tuple[str, _Stamp | None], str | Unreadable]" = {}


def examine(paths: Sequence[str]) -> "list[str | Unreadable]":
    """The digest of each file's content, or what is wrong with its beginning; remembered while its size and times stay as they are."""
    keys = [(path, _stamp(path)) for path in paths]
    new = [key for key in keys if key not in _EXAMINED]
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        _EXAMINED.update(zip(new, pool.map(_examine, [path for path, _ in new]), strict=True))
    return [_EXAMINED[key] for key in keys]


def _stamp(path: str) -> _Stamp | None:
    try:
        status = os.stat(path)
    except OSError:
        # which `read` puts into words
        return None
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _examine(path: str) -> "str | Unreadable":
    try:
        encoded = read(path)
        with _opened(encoded, printable(path)):
            return digest(encoded)
    except Unreadable as error:
        return error


def decode_file(path: str, expected: str) -> np.ndarray:
    """`decode` of the file at a path.

    Args:
        path: of a file that was examined.
        expected: the digest that it had then, under which its pixels will be kept.

    Raises:
        Unreadable: as `decode`.
        UserError: where its content is another by now; no setting skips that, since what was kept would be of no known photos.
    """
    try:
        encoded = read(path)
    except Unreadable as error:
        raise _changed(path) from error
    if digest(encoded) != expected:
        raise _changed(path)
    return decode(encoded, printable(path))


def _changed(path: str) -> UserError:
    return UserError(
        f"{printable(path)} changed while it was being read. Photos must be left alone while an attempt runs. Run the"
        " same command again."
    )


def read(path: str) -> bytes:
    """A file's content: never a pipe's or a device's, which might have no end."""
    name = printable(path)
    try:
        # Before it is opened: that alone has effects on some devices
        _check_file(os.stat(path), name)
        # Not waiting, because opening a pipe waits for a writer, and looked at again, because it may have become one.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            status = os.fstat(file.fileno())
            _check_file(status, name)
            return file.read(status.st_size)
    except OSError as error:
        if error.errno in _NOT_ITS_FAULT:
            raise
        raise Unreadable(
            f"{name} cannot be opened ({error.strerror}). Photos must be files that you may read. Mend or remove"
            f" it{_OR_SKIP}",
            NOT_A_FILE,
        ) from error


def _check_file(status: os.stat_result, name: str) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "a device")
        raise Unreadable(f"{name} is {kind}. Photos must be files. Remove it{_OR_SKIP}", NOT_A_FILE)
    _check_bytes(status.st_size, name)
