"""What all commands share: errors as messages for the user, signals, and exit codes."""

import contextlib
import difflib
import errno
import functools
import os
import re
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dogbreeds.core import process, signals
from dogbreeds.core.errors import MissingFileError, UserError
from dogbreeds.core.former_names import with_new_overrides
from dogbreeds.core.paths import home
from dogbreeds.experiments import launcher
from dogbreeds.experiments.compose import compose_config
from dogbreeds.experiments.sweep import Sweep

# Whether the user asked for tracebacks. It is read here because `main` sets the same variable.
_show_tracebacks = os.environ.get("HYDRA_FULL_ERROR") == "1"
_WRITE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)


def main(task: Callable[[], Any], name: str, resumable: bool = False) -> None:
    """Run a Hydra command.

    Errors that the user can fix end it with a message and exit code 1, other errors with a traceback. Ctrl-C and
    SIGTERM end it with the shell's exit codes, 130 and 143.

    Args:
        task: function decorated with `hydra.main`.
        name: name of the command and of its config.
        resumable: whether the same command resumes after an interruption.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # Makes Hydra raise its errors instead of printing them, so that they become messages like ours.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    sys.argv[1:] = options_first(sys.argv[1:])
    _take_former_names()
    _note_platform()
    # Hydra may change the current folder, and other processes may have another.
    os.environ["DOGBREEDS_HOME"] = str(home().absolute())
    status = "FAILED"
    process.mark_as_command()
    signals.install_handlers()
    try:
        task()
        status = "FINISHED"
        Sweep.close(status)
    except (UserError, MissingFileError, HydraException, OmegaConfBaseException) as error:
        if _show_tracebacks:
            raise
        sys.exit(f"error: {error_message(error, name)}")
    except KeyboardInterrupt as interruption:
        signals.ignore()
        status = "KILLED"
        signals.cancel_remote_jobs()
        hint = ": run the same command again to resume" if resumable else ""
        print(f"interrupted{hint}", file=sys.stderr)
        sys.exit(signals.exit_code(interruption))
    except BrokenPipeError:
        _exit_after_broken_pipe()
    # Python evaluates this after an exception was raised; by then the launchers in use have been imported.
    except launcher.lost_job_errors() as error:
        if _show_tracebacks:
            raise
        sys.exit(f"error: {launcher.lost_job_message(error)}")
    except OSError as error:
        if _show_tracebacks or error.errno not in _WRITE_ERRORS:
            raise
        sys.exit(
            f"error: {error.filename or 'A file'} cannot be written ({error.strerror}). Runs, checkpoints and the"
            " feature cache need a writable disk with free space. Make room, or move them with DOGBREEDS_HOME and"
            " DOGBREEDS_CACHE, and run the same command again."
        )
    finally:
        # The error that ended the command has been reported already.
        with signals.deferred(), contextlib.suppress(UserError, OSError):
            Sweep.close(status)


def _note_platform() -> None:
    if sys.platform != "linux":
        print(
            f"dogbreeds is tested on Linux only, and this is {sys.platform}. A single run may work; a signal does not"
            " reach parallel jobs, and interrupted runs of a machine that was restarted are not recognised.",
            file=sys.stderr,
        )


def options_first(arguments: list[str]) -> list[str]:
    """Return command-line arguments with options such as `--multirun` and their values before the overrides.

    Python 3.11's argparse takes all overrides from one place: after `data=folder --multirun` it rejects the others.
    """
    return sorted(arguments, key=lambda argument: re.match(r"~|\+*[\w./@:]+=", argument) is not None)


def _take_former_names() -> None:
    """Replace overrides of earlier versions among the process's arguments by the present ones, and say so."""
    present = with_new_overrides(sys.argv[1:])
    for former, new in zip(sys.argv[1:], present, strict=True):
        if new != former:
            print(f"{former} is written {new} since version 0.2.0", file=sys.stderr)
    sys.argv[1:] = present


def standalone(task: Callable[[DictConfig], None]) -> Callable[[DictConfig], None]:
    """Decorate the task of a command that is never a job of a sweep.

    Its errors end the process before Hydra sees them, since Hydra would add a line of its own to the message. A reader
    that closes the output early, such as `head`, is no error.
    """

    @functools.wraps(task)
    def run(config: DictConfig) -> None:
        try:
            task(config)
            sys.stdout.flush()
        except (UserError, MissingFileError) as error:
            if _show_tracebacks:
                raise
            sys.exit(f"error: {error}")
        except BrokenPipeError:
            _exit_after_broken_pipe()

    return run


def _exit_after_broken_pipe() -> NoReturn:
    # Python flushes the standard output at exit, which would fail again.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(0)


def typed_value(config: DictConfig, key: str) -> Any:
    """Return a setting as it was typed if Hydra parsed it as a float: a run's id may look like one, such as 3801e552.

    Args:
        config: config of the command.
        key: name of the setting.
    """
    typed = [
        override.split("=", 1)[1] for override in HydraConfig.get().overrides.task if override.startswith(f"{key}=")
    ]
    return typed[-1] if isinstance(config[key], float) and typed else config[key]


def error_message(error: Exception, name: str) -> str:
    """Format an error for the user: what was received, what is allowed, and what to type.

    Args:
        error: a `UserError`, a `MissingFileError`, or an error of Hydra or OmegaConf.
        name: name of the command.
    """
    if isinstance(error, (UserError, MissingFileError)):
        return str(error)
    if isinstance(error, MissingConfigException):
        return _unknown_option(error, name)
    cause = error.__cause__ if not str(error) and isinstance(error.__cause__, Exception) else error
    first_line = str(cause).splitlines()[0].rstrip(".") if str(cause) else type(cause).__name__
    if first_line.startswith("Could not override '"):
        return _unknown_key(first_line.split("'")[1], name)
    return (
        f"The command line was not understood ({first_line}). Settings are written group=option or group.key=value, a"
        f" list as 'key=[1,2]'. Type python -m dogbreeds.{name} --help for the groups and their options."
    )


def _unknown_option(error: MissingConfigException, name: str) -> str:
    group, _, option = (error.missing_cfg_file or "").rpartition("/")
    options = sorted(error.options or ())
    if not group or not options:
        return (
            f"{str(error).splitlines()[0]} There is no such config. Type python -m dogbreeds.{name} --help for the"
            " available ones."
        )
    return (
        f"{group}={option} is not an option. {group} must be one of {', '.join(options)}. Type"
        f" {group}={_nearest(option, options)}."
    )


def _unknown_key(key: str, command: str) -> str:
    """Format the message for a key that no group has, with the most similar key."""
    keys = _dotted_keys(OmegaConf.to_container(compose_config(command), resolve=False))
    nearest = _nearest(key, keys)
    siblings = [name for name in keys if name.rpartition(".")[0] == nearest.rpartition(".")[0]]
    return (
        f"{key} is not a setting. Similar settings are {', '.join(siblings)}. Type {nearest}=<value>, or +{key}=<value>"
        " to add a new one."
    )


def _nearest(name: str, names: list[str]) -> str:
    return max(names, key=lambda other: difflib.SequenceMatcher(None, name, other).ratio())


def _dotted_keys(config: Any, prefix: str = "") -> list[str]:
    """Return the dotted names of all settings of a config, without targets."""
    if not isinstance(config, dict):
        return [prefix]
    return [
        name
        for key, value in config.items()
        if key != "_target_"
        for name in _dotted_keys(value, f"{prefix}.{key}" if prefix else key)
    ]
