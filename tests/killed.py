"""Run `dogbreeds.train`, and end it with SIGKILL at the n-th counted moment; n = 0 writes the kinds of all moments.

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
    """Count a moment, and kill the process if it is the chosen one."""
    global passed
    passed += 1
    if MOMENT == 0:
        with FILE.open("a") as file:
            file.write(f"{kind}\n")
    if passed == MOMENT:
        os.kill(os.getpid(), signal.SIGKILL)


def before(owner, name: str, kind: str, after: bool = False) -> None:
    """Count a moment before each call of a function, and with `after` another one after it."""
    real = getattr(owner, name)

    def call(*arguments, **named):
        moment(kind)
        result = real(*arguments, **named)
        if after:
            moment(kind)
        return result

    setattr(owner, name, call)


@contextlib.contextmanager
def counted_progress(description: str, total: int, unit: str, **named):
    """Count a moment whenever computed features are reported."""
    with real_progress(description, total, unit, **named) as advance:

        def counted(done: int) -> None:
            moment("features")
            advance(done)

        yield counted


real_progress, extraction.progress = extraction.progress, counted_progress
before(loop.Step, "take", "step", after=True)
before(Path, "replace", "rename", after=True)
# In the middle of a checkpoint file, between two of its arrays.
before(sys.modules[np.lib.format.write_array.__module__], "write_array", "checkpoint")


def count_records() -> None:
    """Count a moment before each request that records something in MLflow."""
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


count_records()
sys.argv = ["train", *sys.argv[3:]]
cli.main(train.task, "train")
