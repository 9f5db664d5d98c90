"""Command-line arguments of this process: names of earlier versions, and options among the overrides."""

import sys
from typing import NoReturn

from hydra._internal.utils import get_args_parser

from dogbreeds.core.former_names import with_new_overrides

# The commands that --multirun sweeps, and one that refuses it with its own advice.
_SWEPT = ("train", "extract", "why")


def take_former_names() -> None:
    """Replace overrides of earlier versions among the process's arguments by the present ones, and say so."""
    present = with_new_overrides(sys.argv[1:])
    for former, new in zip(sys.argv[1:], present, strict=True):
        if new != former:
            print(f"{former} is written {new} since version 0.2.0", file=sys.stderr)
    sys.argv[1:] = present


def sort_arguments(name: str) -> None:
    """Move the options before the overrides: Hydra's parser accepts no option between two overrides.

    Ends the command with a message if there is no such option, if it has no such value, or if it is --multirun for a
    command that is never swept: Hydra would create `multirun/` in the current folder.

    Args:
        name: name of the command.
    """

    def refuse(message: str) -> NoReturn:
        sys.exit(
            f"error: The command line was not understood ({message}). Options are --help, --multirun, --cfg job and"
            " --config-dir <folder>, and settings are written group=option or group.key=value. Type python -m"
            f" dogbreeds.{name} --help for the settings."
        )

    parser = get_args_parser()
    parser.error = refuse  # type: ignore[method-assign]
    typed, unknown = parser.parse_known_intermixed_args(sys.argv[1:])
    if unknown:
        refuse(f"unrecognized arguments: {' '.join(unknown)}")
    if typed.multirun and name not in _SWEPT:
        message = (
            f"--multirun was given, and {name} is always a single job. Only train and extract can be swept. Leave"
            " --multirun out."
        )
        sys.exit(f"error: {message}")
    options = list(sys.argv[1:])
    for override in typed.overrides:
        options.remove(override)
    sys.argv[1:] = [*options, *typed.overrides]
