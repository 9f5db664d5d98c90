"""Command-line arguments of this process: names of earlier versions, and options among the overrides."""

import sys
from typing import NoReturn

from hydra._internal.utils import get_args_parser

from dogbreeds.core.former_names import with_new_overrides

# The commands that --multirun runs several jobs of.
MULTIRUN_COMMANDS = ("train", "extract")


def take_former_names() -> None:
    """Replace overrides of earlier versions among the process's arguments by the present ones, and say so."""
    present = with_new_overrides(sys.argv[1:])
    for former, new in zip(sys.argv[1:], present, strict=True):
        if new != former:
            print(f"{former} is written {new} since version 0.2.0", file=sys.stderr)
    sys.argv[1:] = present


def sort_arguments(name: str) -> None:
    """Move the options before the overrides: Hydra's parser accepts no option between two overrides.

    Ends the command with a message if there is no such option, or if it has no such value.

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
    options = list(sys.argv[1:])
    for override in typed.overrides:
        options.remove(override)
    sys.argv[1:] = [*options, *typed.overrides]


def refuse_multirun(name: str) -> None:
    """End a command that has no jobs if it is asked for several: Hydra would make a folder for them, here.

    Args:
        name: name of the command.
    """
    if name in MULTIRUN_COMMANDS:
        return
    typed = get_args_parser().parse_known_args(sys.argv[1:])[0]
    modes = [override.lower() for override in typed.overrides if override.lstrip("+").startswith("hydra.mode=")]
    if typed.multirun or any(mode.endswith("=multirun") for mode in modes):
        message = (
            f"--multirun was given, and dogbreeds.{name} does not take it. {' and '.join(MULTIRUN_COMMANDS)} run a job"
            f" for each combination of values. Type python -m dogbreeds.{name} without --multirun."
        )
        sys.exit(f"error: {message}")
