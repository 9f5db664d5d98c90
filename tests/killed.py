"""Runs `dogbreeds.train` and ends it with SIGKILL at the n-th of the moments that are counted; with n = 0 it writes down what they are.

python -m tests.killed <n> <file for the moments> <arguments of dogbreeds.train>
"""

import contextlib
import os
import signal
import sys
from pathlib import Path

import numpy as np

from dogbreeds import cli, train
from dogbreeds.features import extraction
from dogbreeds.training import loop

MOMENT, FILE = int(sys.argv[1]), Path(sys.argv[2])
passed = 0


def moment(kind: str) -> None:
    """One more place where the process may end."""
    global passed
    passed += 1
    if MOMENT == 0:
        with FILE.open("a") as file:
            file.write(f"{kind}\n")
    if passed == MOMENT:
        os.kill(os.getpid(), signal.SIGKILL)


def before(owner, name: str, kind: str, after: bool = False) -> None:
    """Counts a moment before each call of a function, and one after it."""
    real = getattr(owner, name)

    def call(*arguments, **named):
        moment(kind)
        result = real(*arguments, **named)
        if after:
            moment(kind)
        return result

    setattr(owner, name, call)


@contextlib.contextmanager
def counted_progress(what: str, total: int, unit: str, **named):
    with real_progress(what, total, unit, **named) as advance:

        def counted(done: int) -> None:
            moment("features")
            advance(done)

        yield counted


real_progress, extraction.progress = extraction.progress, counted_progress
before(loop.Step, "__call__", "step", after=True)
before(Path, "replace", "rename", after=True)
# In the middle of a file
before(sys.modules[np.lib.format.write_array.__module__], "write_array", "checkpoint")


def watch_records() -> None:
    import mlflow

    for name in (
        "create_run",
        "update_run",
        "log_batch",
        "log_param",
        "log_artifact",
        "log_artifacts",
        "log_figure",
        "set_terminated",
    ):
        before(mlflow.MlflowClient, name, "record")


watch_records()
sys.argv = ["train", *sys.argv[3:]]
cli.main(train.task, "train")
