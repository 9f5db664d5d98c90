"""Where what a command has to say goes: to the terminal, or into a file."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dogbreeds.core.console import columns
from dogbreeds.core.files import sink
from dogbreeds.core.paths import home
from dogbreeds.core.spec import Spec, one_of, text

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


def piped(cells: Sequence[str]) -> str:
    """A row of a table in Markdown."""
    return f"| {' | '.join(text.replace('|', chr(92) + '|') for text in cells)} |"
