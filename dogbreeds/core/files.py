"""Files and folders that are written whole or not at all."""

import contextlib
import errno
import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

import psutil

from dogbreeds.core.errors import UserError


@contextlib.contextmanager
def sink(place: str | None, example: str) -> Iterator[TextIO]:
    """Where a result is written to: the standard output, or a file, whole or not at all.

    Args:
        place: the file; None for the standard output.
        example: of a file, for errors.

    Raises:
        UserError: where there can be no such file.
    """
    if place is None:
        yield sys.stdout
        return
    path = Path(os.path.realpath(Path(place).expanduser()))
    with contextlib.ExitStack() as opened:
        try:
            if path.exists() and not path.is_file():
                raise OSError(errno.EEXIST, "it is no file")
            path.parent.mkdir(parents=True, exist_ok=True)
            stream = opened.enter_context(opened.enter_context(aside(path)).open("w", encoding="utf-8"))
        except OSError as error:
            raise UserError(
                f"{path} cannot be written ({error.strerror}). output must be a file. Type output={example}, for"
                " example."
            ) from error
        yield stream


@contextlib.contextmanager
def aside(place: Path) -> Iterator[Path]:
    """A file to write, beside its place, which it takes once the body is done; if that fails, the place stays as it was."""
    written = place.with_name(f".{place.name}.{os.getpid()}")
    try:
        yield written
        written.replace(place)
    finally:
        written.unlink(missing_ok=True)


@contextlib.contextmanager
def folder(place: Path, own: Sequence[str]) -> Iterator[Path]:
    """A folder to write into, beside its place; once the body is done, what it wrote takes the place of what an earlier command had there.

    Whatever cuts the body off, the place stays as it was. Files of other names that lie there are left alone.

    Args:
        place: a new folder, an empty one, or one of an earlier command.
        own: names of all that a command may write there. Those that it does not write go, and the first, which it always writes, tells that a
            folder is one of its own.

    Raises:
        UserError: where there can be no such folder, or where it holds other things.
    """
    new = not place.exists()
    try:
        place.mkdir(parents=True, exist_ok=True)
        there = [item.name for item in place.iterdir() if not _PART.fullmatch(item.name)]
        if there and own[0] not in there:
            raise UserError(
                f"{place} holds other things, such as {there[0]}. output must be a new folder, an empty one, or an"
                f" earlier result. {_TYPE}"
            )
        for item in place.iterdir():
            # By a process that was killed
            if (left := _PART.fullmatch(item.name)) and not psutil.pid_exists(int(left[1])):
                remove(item)
        written = place / f".{os.getpid()}.part"
        written.mkdir()
    except OSError as error:
        raise UserError(
            f"{place} cannot be made ({error.strerror}). output must be a folder that you may write to. {_TYPE}"
        ) from error
    try:
        yield written
        for name in own:
            _move(written / name, place / name)
    finally:
        shutil.rmtree(written, ignore_errors=True)
        if new:
            # It is not empty
            with contextlib.suppress(OSError):
                place.rmdir()


_PART = re.compile(r"\.(\d+)\.part")
_TYPE = "Type output=<folder>."


def _move(item: Path, target: Path) -> None:
    """Puts a file or folder in the place of another, or of none; where it is not there, the other goes."""
    if target.is_dir() or not item.exists():
        remove(target)
    if item.exists():
        item.replace(target)


def remove(place: Path) -> None:
    """Removes a file, a link, or a folder with all that is in it; nothing where nothing is."""
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place)
    else:
        place.unlink(missing_ok=True)
