"""Output of a command's result: to the terminal or into a file, in one of four formats."""

import sys
from dataclasses import dataclass
from pathlib import Path

from dogbreeds.core.console import terminal_width
from dogbreeds.core.files import format_of, output_stream
from dogbreeds.core.paths import home
from dogbreeds.core.spec import Spec, one_of, path

_EXTENSIONS = {"text": "txt", "markdown": "md", "csv": "csv", "html": "html"}


@dataclass(frozen=True, kw_only=True)
class Output(Spec):
    """Format and destination of a command's result.

    Attributes:
        format: `text`, `markdown`, `csv` or `html`; null for the one that the output's suffix names, or text.
        output: path of the file to write; None prints, and puts HTML into `multirun/`.
    """

    group = ""
    format: str = one_of("text", "markdown", "csv", "html", optional=True)
    output: str | None = path(example="result.md", optional=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.format is None:
            formats = {f".{suffix}": name for name, suffix in _EXTENSIONS.items()}
            object.__setattr__(self, "format", format_of(self.output, formats, default="text"))

    @property
    def terminal_width(self) -> int | None:
        """Width in columns of the terminal that the result goes to; None if it goes elsewhere."""
        return terminal_width(sys.stdout) if self.output is None else None

    def write_result(self, result: str, command: str) -> None:
        """Print the result, or write it into a file and print the file's path.

        Args:
            result: the rendered result.
            command: name of the command, from which file names are made.

        Raises:
            UserError: if the file cannot be written.
        """
        path = self.output or (str(home() / f"multirun/{command}.html") if self.format == "html" else None)
        with output_stream(path, f"{command}.{_EXTENSIONS[self.format]}") as stream:
            stream.write(result)
        if path is not None:
            print(Path(path).expanduser())
