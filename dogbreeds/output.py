"""Where what a command has to say goes: to the terminal, or into a file."""

import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

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
        if self.output is not None or not sys.stdout.isatty():
            return None
        return os.get_terminal_size(sys.stdout.fileno()).columns or None

    def deliver(self, shown: str, name: str) -> None:
        """Prints a result, or writes it and prints where it lies; a page that was given no place goes into `multirun/`.

        Args:
            shown: the result, whole.
            name: the command's.

        Raises:
            Refused: where the file cannot be written.
        """
        place = self.output or (str(home() / f"multirun/{name}.html") if self.format == "html" else None)
        if place is None:
            _print(shown)
            return
        path = Path(place).expanduser()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(shown, encoding="utf-8")
        except OSError as error:
            raise Refused(
                f"{path} cannot be written ({error.strerror}). output must be a file. Type output={name}.{_ENDINGS[self.format]}, for example."
            ) from error
        print(path)


def _print(shown: str) -> None:
    """To the standard output, whose reader may leave early, as `head` does."""
    try:
        print(shown, end="", flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python would still write at its end


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
