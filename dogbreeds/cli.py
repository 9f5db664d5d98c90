"""What all commands share: errors as messages for the user, signals, and exit codes."""

import contextlib
import difflib
import errno
import functools
import io
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException, SearchPathException
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dogbreeds.core import process, signals
from dogbreeds.core.console import fitted
from dogbreeds.core.errors import MissingFileError, UserError
from dogbreeds.core.paths import home
from dogbreeds.core.text import most_similar
from dogbreeds.experiments import launcher
from dogbreeds.experiments.arguments import MULTIRUN_COMMANDS, refuse_multirun, sort_arguments, take_former_names
from dogbreeds.experiments.compose import compose_config, config_source, missing_config_folder
from dogbreeds.experiments.run import GROUPS
from dogbreeds.experiments.sweep import Sweep

# Whether the user asked for tracebacks. It is read here because `main` sets the same variable.
_show_tracebacks = os.environ.get("HYDRA_FULL_ERROR") == "1"
# Columns of a help text.
_HELP_WIDTH = 80
# How Hydra's error about a value with a comma begins.
_AMBIGUOUS = "Ambiguous value for argument"
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
    sort_arguments(name)
    take_former_names()
    refuse_multirun(name)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # Makes Hydra raise its errors instead of printing them, so that they become messages like ours.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    # Whole numbers of any length are parsed: the checks of settings refuse those that are too large.
    sys.set_int_max_str_digits(0)
    _note_platform()
    # Hydra may change the current folder, and other processes may have another.
    os.environ["DOGBREEDS_HOME"] = str(home().absolute())
    status = "FAILED"
    process.mark_as_command()
    signals.install_handlers()
    try:
        with _help_fitted():
            _run(task)
        status = "FINISHED"
        Sweep.close(status)
    except (UserError, MissingFileError, HydraException, OmegaConfBaseException) as error:
        if _show_tracebacks:
            raise
        sys.exit(f"error: {error_message(error, name, *_typed())}")
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


@contextlib.contextmanager
def _help_fitted() -> Iterator[None]:
    """Break the lines of a help text that are longer than 80 columns: Hydra lists the options of a group in one."""
    if not {"--help", "-h"} & set(sys.argv):
        yield
        return
    text = io.StringIO()
    try:
        with contextlib.redirect_stdout(text):
            yield
    finally:
        print(fitted(text.getvalue(), _HELP_WIDTH), end="")


class _JobError(BaseException):
    """Carries the error of a job past Hydra, which would print a line of its own before the message."""

    def __init__(self, error: Exception):
        super().__init__()
        self.error = error


def job(task: Callable[[DictConfig], Any]) -> Callable[[DictConfig], Any]:
    """Decorate the task of a command that may be swept: `main` reports the error of a single run.

    In a sweep Hydra gets it, continues with the other jobs, and says which job it was.
    """

    @functools.wraps(task)
    def run(config: DictConfig) -> Any:
        try:
            return task(config)
        except Exception as error:
            if HydraConfig.get().mode == RunMode.MULTIRUN:
                raise
            raise _JobError(error) from error

    return run


def _run(task: Callable[[], Any]) -> None:
    """Run a Hydra task; an error that a job carries is raised as what it was."""
    carried = None
    try:
        task()
    except _JobError as job_error:
        carried = job_error.error
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raised_in = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
        if not raised_in[-1].startswith("hydra._internal."):
            raise
        # Hydra's answer to some overrides without a name or a value, such as =1.
        raise HydraException(str(error)) from error
    if carried is not None:
        raise carried


def _note_platform() -> None:
    if sys.platform != "linux":
        print(
            f"dogbreeds is tested on Linux only, and this is {sys.platform}. A single run may work; a signal does not"
            " reach parallel jobs, and interrupted runs of a machine that was restarted are not recognised.",
            file=sys.stderr,
        )


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

    A list is a plain one.

    Args:
        config: config of the command.
        key: name of the setting.
    """
    typed = [
        override.split("=", 1)[1] for override in HydraConfig.get().overrides.task if override.startswith(f"{key}=")
    ]
    value = config[key]
    if isinstance(value, ListConfig):
        return OmegaConf.to_container(value, resolve=True)
    return typed[-1] if isinstance(value, float) and typed else value


def _typed() -> tuple[list[str], list[str]]:
    """Return the overrides that were typed, and the folder of `--config-dir`, if it exists, as a source of configs."""
    typed, _ = get_args_parser().parse_known_args(sys.argv[1:])
    folders = [typed.config_dir] if typed.config_dir and os.path.isdir(typed.config_dir) else []
    return typed.overrides, [config_source(folder) for folder in folders]


def error_message(error: Exception, name: str, overrides: Sequence[str] = (), sources: Sequence[str] = ()) -> str:
    """Format an error for the user: what was received, what is allowed, and what to type.

    Args:
        error: a `UserError`, a `MissingFileError`, or an error of Hydra or OmegaConf.
        name: name of the command.
        overrides: that were typed.
        sources: where its configs were found, besides `conf/`.
    """
    if isinstance(error, (UserError, MissingFileError)):
        return str(error)
    if isinstance(error, MissingConfigException):
        return _unknown_option(error, name)
    cause = error.__cause__ if not str(error) and isinstance(error.__cause__, Exception) else error
    first_line = str(cause).splitlines()[0].rstrip(".") if str(cause) else type(cause).__name__
    if first_line.startswith("Could not override '"):
        return _unknown_key(first_line.split("'")[1], name, overrides, sources)
    if isinstance(error, SearchPathException):
        return missing_config_folder(first_line.split("'")[1])
    if first_line.startswith(_AMBIGUOUS):
        return _several_values(first_line.removeprefix(_AMBIGUOUS).strip(" '"), name)
    return (
        f"The command line was not understood ({first_line}). Settings are written group=option or group.key=value, a"
        f" list as 'key=[1,2]'. Type python -m dogbreeds.{name} --help for the groups and their options."
    )


@contextlib.contextmanager
def overrides_explained(command: str, overrides: Sequence[str], sources: Sequence[str] = ()) -> Iterator[None]:
    """Turn the errors that Hydra raises in the body into `UserError`, with what to type, for a Python caller.

    Args:
        command: command that the overrides are of.
        overrides: of the command.
        sources: where to find configs besides `conf/`.
    """
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(error_message(error, command, overrides, sources)) from error


def compose_command(name: str, overrides: Sequence[str], sources: Sequence[str] = ()) -> DictConfig:
    """Compose the config of a command."""
    with overrides_explained(name, overrides, sources):
        return compose_config(name, overrides, sources=sources)


def _unknown_option(error: MissingConfigException, name: str) -> str:
    group, _, option = (error.missing_cfg_file or "").rpartition("/")
    options = sorted(error.options or ())
    if not group or not options:
        return (
            f"{str(error).splitlines()[0]} There is no such config. Type python -m dogbreeds.{name} --help for the"
            " available ones."
        )
    similar = difflib.get_close_matches(option, options, n=1)
    default = compose_config(name, with_hydra=True).hydra.runtime.choices.get(group)
    fix = [*similar, *(known for known in options if known == default), options[0]][0]
    return f"{group}={option} is not an option. {group} must be one of {', '.join(options)}. Type {group}={fix}."


def _unknown_key(key: str, command: str, overrides: Sequence[str], sources: Sequence[str]) -> str:
    """Format the message for a key that is neither a group nor a setting of the chosen options, with the most similar.

    Args:
        key: as it was typed.
        command: name of the command.
        overrides: of the command.
        sources: where to find configs besides `conf/`.
    """
    chosen = [item for item in overrides if item.split("=")[0] in (*GROUPS, "attempt") and "," not in item]
    try:
        composed = compose_config(command, chosen, with_hydra=True, sources=sources)
    except HydraException:
        # Another override is wrong too.
        composed = compose_config(command, with_hydra=True, sources=sources)
    config: Any = OmegaConf.to_container(composed, resolve=False)
    groups = [
        group
        for group in config.pop("hydra")["runtime"]["choices"]
        if key.startswith("hydra") or not group.startswith("hydra")
    ]
    keys = _dotted_keys(config)
    nearest = most_similar(key, [*groups, *keys])
    if nearest in groups:
        return (
            f"{key} is neither a group nor a setting. The groups are"
            f" {', '.join(group for group in groups if not group.startswith('hydra'))}. Type {nearest}=<option>; python"
            f" -m dogbreeds.{command} --help lists the options."
        )
    siblings = [name for name in keys if name.rpartition(".")[0] == nearest.rpartition(".")[0]]
    return (
        f"{key} is not a setting. Similar settings are {', '.join(siblings)}. Type {nearest}=<value>, or +{key}=<value>"
        " to add a new one."
    )


def _several_values(override: str, command: str) -> str:
    """Format the message for a value with a comma, which only a sweep, a list or quotes may have."""
    key, _, values = override.partition("=")
    is_list = OmegaConf.is_list(OmegaConf.select(compose_config(command), key)) or command not in MULTIRUN_COMMANDS
    typed = f"'{key}=[{values}]'" if is_list else f"--multirun {override}"
    return (
        f"{override} was given without --multirun. A comma separates the values of a sweep, unless they are a list or"
        f" in quotes. Type {typed}."
    )


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
