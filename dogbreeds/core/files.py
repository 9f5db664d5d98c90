"""Atomic output: files and folders that are written completely or not at all."""

import contextlib
import errno
import os
import re
import shutil
import sys
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TextIO

import numpy as np
import psutil

from dogbreeds.core.errors import UserError
from dogbreeds.core.text import printable

# Temporary folder within an output folder, named after the process that writes it.
_TEMPORARY = re.compile(r"\.(\d+)\.part")
# Temporary file in a folder that has one writer at a time.
_SOLE_TEMPORARY = "aside"
_FOLDER_HINT = "Type output=<folder>."
_WILDCARD = re.compile(r"[*?[]")


def format_of(output: str | None, formats: Mapping[str, str], default: str) -> str:
    """Return the format of an output file, which its suffix names.

    Args:
        output: path of the file; None for standard output.
        formats: format by suffix, such as `.csv`.
        default: format of standard output, and of a file without a suffix.

    Raises:
        UserError: if the suffix names no format.
    """
    suffix = Path(output).suffix.lower() if output is not None else ""
    if suffix and suffix not in formats:
        raise UserError(
            f"output={printable(output or '')} ends with {suffix}, which names no format here. The suffix must be"
            f" {', '.join(formats)}, unless format is given. Type format={default} too, for example."
        )
    return formats.get(suffix, default)


@contextlib.contextmanager
def output_stream(output: str | None, example: str) -> Iterator[TextIO]:
    """Open standard output, or a file that is written completely or not at all.

    Args:
        output: path of the file; None for standard output.
        example: example of such a path, for error messages.

    Raises:
        UserError: if the file cannot be written.
    """
    if output is None:
        yield sys.stdout
        return
    path = Path(os.path.realpath(Path(output).expanduser()))
    with contextlib.ExitStack() as stack:
        try:
            if path.exists() and not path.is_file():
                raise OSError(errno.EEXIST, "not a regular file")
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = stack.enter_context(atomic_write(path))
            stream = stack.enter_context(temporary.open("w", encoding="utf-8"))
        except OSError as error:
            raise UserError(
                f"{path} cannot be written ({error.strerror}). output must be a file. Type output={example}, for"
                " example."
            ) from error
        yield stream


@contextlib.contextmanager
def atomic_write(target: Path, *, sole_writer: bool = False, durable: bool = False) -> Iterator[Path]:
    """Yield a temporary path in the same folder. After the body it replaces `target`.

    If the body fails or is interrupted, `target` is unchanged.

    Args:
        target: file to write or to replace.
        sole_writer: whether a lock admits one writer to the folder. The temporary file then has a fixed name, so it
            replaces that of a process that was killed.
        durable: whether to flush the file to disk, or to the server of a network file system, before it replaces
            `target`, so that a crash of the machine leaves one of the two.
    """
    temporary = target.with_name(_SOLE_TEMPORARY if sole_writer else f".{target.name}.{os.getpid()}")
    try:
        yield temporary
        if durable:
            fsync(temporary)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def fsync(path: Path) -> None:
    """Flush a file to disk, or to the server of a network file system."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


@contextlib.contextmanager
def atomic_folder(target: Path, owned: Sequence[str]) -> Iterator[Path]:
    """Yield a temporary folder whose files replace those of an earlier command in `target` after the body.

    If the body fails or is interrupted, `target` is unchanged. Files with other names in `target` are left alone.

    Args:
        target: a new folder, an empty one, or the output of an earlier command.
        owned: names of all files that the command may write to `target`. Those that it does not write this time are
            removed. The command always writes the first, which identifies a folder as the output of an earlier command.

    Raises:
        UserError: if the folder cannot be created, or contains other files.
    """
    is_new = not target.exists()
    try:
        target.mkdir(parents=True, exist_ok=True)
        existing = [item.name for item in target.iterdir() if not _TEMPORARY.fullmatch(item.name)]
        if existing and owned[0] not in existing:
            raise UserError(
                f"{target} contains other files, such as {existing[0]}. output must be a new folder, an empty one, or"
                f" the output of an earlier command. {_FOLDER_HINT}"
            )
        _remove_abandoned(target)
        temporary = target / f".{os.getpid()}.part"
        temporary.mkdir()
    except OSError as error:
        raise UserError(
            f"{target} cannot be created ({error.strerror}). output must be a folder that you may write to."
            f" {_FOLDER_HINT}"
        ) from error
    try:
        yield temporary
        for name in owned:
            _replace(temporary / name, target / name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if is_new:
            # Fails if the folder has content by now, which is then complete.
            with contextlib.suppress(OSError):
                target.rmdir()


def read_npz(file: Path) -> dict[str, np.ndarray]:
    """Read all arrays of an .npz file, by name; their checksums are verified.

    Raises:
        ValueError: if the file is missing or damaged.
    """
    try:
        with np.load(file) as stored:
            return {name: stored[name] for name in stored.files}
    # What NumPy and zipfile raise about damaged files, RuntimeError for what seems encrypted, for example.
    except (
        OSError,
        EOFError,
        KeyError,
        MemoryError,
        OverflowError,
        RuntimeError,
        SyntaxError,
        TypeError,
        tokenize.TokenError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise ValueError(str(error) or type(error).__name__) from error


def _remove_abandoned(folder: Path) -> None:
    """Remove temporary folders of processes that were killed."""
    for item in folder.iterdir():
        if (match := _TEMPORARY.fullmatch(item.name)) and not psutil.pid_exists(int(match[1])):
            remove(item)


def _replace(item: Path, target: Path) -> None:
    """Move a file or folder to `target`, replacing what is there. If `item` does not exist, remove `target`."""
    if target.is_dir() or not item.exists():
        remove(target)
    if item.exists():
        item.replace(target)


def is_pattern(text: str) -> bool:
    """Return whether a path has wildcards."""
    return _WILDCARD.search(text) is not None


def matching_files(pattern: str) -> tuple[Path, list[Path]]:
    """Find the files and folders that match a pattern, without hidden ones and those in hidden folders.

    Args:
        pattern: path with wildcards; `**` matches folders at any depth. Links to folders are not followed.

    Returns:
        The folder before the first wildcard, and what matches, sorted.
    """
    root, parts = Path(), list(Path(pattern).parts)
    while parts and (not is_pattern(parts[0]) or os.path.lexists(root / parts[0])):
        root /= parts.pop(0)
    # Not glob.glob, which follows links to folders and may never end. Path.glob refuses ** within a name before Python
    # 3.13, so it is replaced by *, which means the same.
    relative = "/".join(part if part == "**" else re.sub(r"\*+", "*", part) for part in parts)
    found = (path for path in root.glob(relative) if not _is_hidden(path.relative_to(root)))
    return root, sorted(found)


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def remove(path: Path) -> None:
    """Remove a file, a symbolic link, or a folder with its content. Do nothing if the path does not exist."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
