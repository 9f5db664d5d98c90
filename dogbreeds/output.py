"""Where what a command has to say goes: to the terminal, or into a file."""

import contextlib
import errno
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from dogbreeds.spec import Refused, Spec, home, one_of, text

_ENDINGS = {"text": "txt", "markdown": "md", "csv": "csv", "html": "html"}


@dataclass(frozen=True, kw_only=True)
class Output(Spec):
    """How a command's result is shown."""

    group = ""
    format: str = one_of("text", "markdown", "csv", "html")
    output: str | None = text(example="result.md", optional=True)

    @property
    def width(self) -> int | None:
        """Columns of the terminal that the result is shown in; None where it goes elsewhere."""
        return columns(sys.stdout) if self.output is None else None

    def deliver(self, shown: str, name: str) -> None:
        """Prints a result, or writes it and prints where it lies; a page that was given no place goes into `multirun/`.

        Args:
            shown: the result, whole.
            name: the command's.

        Raises:
            Refused: where the file cannot be written.
        """
        place = self.output or (str(home() / f"multirun/{name}.html") if self.format == "html" else None)
        with sink(place, f"{name}.{_ENDINGS[self.format]}") as stream:
            stream.write(shown)
        if place is not None:
            print(Path(place).expanduser())


def columns(stream: TextIO) -> int | None:
    """Columns of the terminal that a stream is shown in; None where it goes elsewhere."""
    return os.get_terminal_size(stream.fileno()).columns or None if stream.isatty() else None


@contextlib.contextmanager
def sink(place: str | None, example: str) -> Iterator[TextIO]:
    """Where a result is written to: the standard output, whose reader may leave early, as `head` does; or a file, whole or not at all.

    Args:
        place: the file; None for the standard output.
        example: of a file, for errors.

    Raises:
        Refused: where there can be no such file.
    """
    if place is None:
        try:
            yield sys.stdout
            sys.stdout.flush()
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python would still write at its end
            sys.exit(0)
        return
    path = Path(os.path.realpath(Path(place).expanduser()))
    with contextlib.ExitStack() as opened:
        try:
            if path.exists() and not path.is_file():
                raise OSError(errno.EEXIST, "it is no file")
            path.parent.mkdir(parents=True, exist_ok=True)
            stream = opened.enter_context(opened.enter_context(aside(path)).open("w", encoding="utf-8"))
        except OSError as error:
            raise Refused(f"{path} cannot be written ({error.strerror}). output must be a file. Type output={example}, for example.") from error
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
def folder(place: Path) -> Iterator[Path]:
    """A folder to write into, beside its place; once the body is done, each file and folder in it takes the place of the one of its name.

    Whatever cuts the body off, the place stays as it was. Other files that lie there are left alone.

    Raises:
        Refused: where there can be no such folder.
    """
    try:
        place.mkdir(parents=True, exist_ok=True)
        written = Path(tempfile.mkdtemp(prefix=".", suffix=".part", dir=place))
    except OSError as error:
        raise Refused(f"{place} cannot be made ({error.strerror}). output must be a folder that you may write to. Type output=<folder>.") from error
    try:
        yield written
        for item in sorted(written.iterdir()):
            target = place / item.name
            if target.is_dir() and not target.is_symlink():
                shutil.rmtree(target)
            item.replace(target)
    finally:
        shutil.rmtree(written, ignore_errors=True)
