"""What all commands share: errors in sentences, and exit codes."""

import contextlib
import difflib
import errno
import functools
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dogbreeds.core import signals
from dogbreeds.core.errors import MissingFileError, UserError
from dogbreeds.core.paths import home
from dogbreeds.experiments import launcher
from dogbreeds.experiments.compose import composed
from dogbreeds.experiments.sweep import Sweep

# By the user, before `main` sets it
_traced = os.environ.get("HYDRA_FULL_ERROR") == "1"
_NO_WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)

OmegaConf.register_new_resolver("home", lambda: str(home()), replace=True)


def main(task: Callable[[], Any], name: str, goes_on: bool = False) -> None:
    """Runs a Hydra command; what the user can put right ends in three sentences and exit code 1, anything else in a traceback.

    Ctrl-C and SIGTERM end it with the shell's codes, 130 and 143.

    Args:
        task: a function that `hydra.main` decorates.
        name: the command's, which is its config's too.
        goes_on: whether the same command, after it was interrupted, takes up what was done.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # Hydra then raises instead of printing, so that the sentences can be ours
    os.environ["HYDRA_FULL_ERROR"] = "1"
    status = "FAILED"
    signals.handle()
    try:
        task()
        status = "FINISHED"
        Sweep.close(status)
    except (UserError, MissingFileError, HydraException, OmegaConfBaseException) as error:
        if _traced:
            raise
        sys.exit(f"error: {sentences(error, name)}")
    except KeyboardInterrupt as stop:
        signals.ignore()
        status = "KILLED"
        signals.end_elsewhere()
        print("interrupted: the same command goes on from here" if goes_on else "interrupted", file=sys.stderr)
        sys.exit(signals.exit_code(stop))
    except BrokenPipeError:
        _end_unread()
    except launcher.lost() as error:
        # evaluated when something was raised: by then it is known which launchers are in use
        if _traced:
            raise
        sys.exit(f"error: {launcher.said(error)}")
    except OSError as error:
        if _traced or error.errno not in _NO_WRITING:
            raise
        sys.exit(
            f"error: {error.filename or 'A file'} cannot be written ({error.strerror}). Runs, checkpoints and kept"
            " features need a disk with room that can be written. Mend that, or move them with DOGBREEDS_HOME and"
            " DOGBREEDS_CACHE, and run the same command again."
        )
    finally:
        # What ended the command has been said already
        with signals.deferred(), contextlib.suppress(UserError, OSError):
            Sweep.close(status)


def alone(task: Callable[[DictConfig], None]) -> Callable[[DictConfig], None]:
    """A command's task that is no job of a sweep. What ends it passes Hydra by, which would add a line of its own to the sentences; and so does a
    reader of its results who leaves early, as `head` does: that is no error."""

    @functools.wraps(task)
    def run(config: DictConfig) -> None:
        try:
            task(config)
            sys.stdout.flush()
        except (UserError, MissingFileError) as error:
            if _traced:
                raise
            sys.exit(f"error: {error}")
        except BrokenPipeError:
            _end_unread()

    return run


def _end_unread() -> NoReturn:
    # For what Python would still write at its end
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(0)


def word(config: DictConfig, key: str) -> Any:
    """A setting as it was typed, where Hydra read a number: the beginning of a run's id may look like one, such as 3801e552."""
    typed = [
        override.split("=", 1)[1] for override in HydraConfig.get().overrides.task if override.startswith(f"{key}=")
    ]
    return typed[-1] if isinstance(config[key], float) and typed else config[key]


def sentences(error: Exception, name: str) -> str:
    """An error of a command as what was received, what is allowed, and what to type."""
    if isinstance(error, (UserError, MissingFileError)):
        return str(error)
    if isinstance(error, MissingConfigException):
        return _unknown_option(error, name)
    cause = error.__cause__ if not str(error) and isinstance(error.__cause__, Exception) else error
    first = str(cause).splitlines()[0].rstrip(".") if str(cause) else type(cause).__name__
    if first.startswith("Could not override '"):
        return _unknown_key(first.split("'")[1], name)
    return (
        f"The command line was not understood ({first}). Settings are written group=option or group.key=value, a list"
        f" as 'key=[1,2]'. Type python -m dogbreeds.{name} --help for the groups and their options."
    )


def _unknown_option(error: MissingConfigException, name: str) -> str:
    group, _, option = (error.missing_cfg_file or "").rpartition("/")
    options = sorted(error.options or ())
    if not group or not options:
        return (
            f"{str(error).splitlines()[0]} There is no such config. Type python -m dogbreeds.{name} --help for those"
            " that there are."
        )
    return (
        f"{group}={option} is not an option. {group} must be one of {', '.join(options)}. Type"
        f" {group}={_nearest(option, options)}."
    )


def _unknown_key(key: str, command: str) -> str:
    """For a key that no group has: what comes nearest to it."""
    keys = _dotted(OmegaConf.to_container(composed(command), resolve=False))
    nearest = _nearest(key, keys)
    siblings = [name for name in keys if name.rpartition(".")[0] == nearest.rpartition(".")[0]]
    return (
        f"{key} is not a setting. Near it there are {', '.join(siblings)}. Type {nearest}=<value>, or +{key}=<value> if"
        " you mean to add it."
    )


def _nearest(name: str, names: list[str]) -> str:
    return max(names, key=lambda other: difflib.SequenceMatcher(None, name, other).ratio())


def _dotted(config: Any, prefix: str = "") -> list[str]:
    if not isinstance(config, dict):
        return [prefix]
    return [
        name
        for key, value in config.items()
        if key != "_target_"
        for name in _dotted(value, f"{prefix}.{key}" if prefix else key)
    ]
