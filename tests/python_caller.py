"""Run attempts in a process that has state of its own, and print that state as it is without and after each of them.

python -m tests.python_caller <folder of checkpoints> <file of the store>
"""

import json
import logging
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import mlflow
import numpy as np
import tensorflow as tf

from dogbreeds.core.errors import UserError
from dogbreeds.experiments.attempt import execute
from dogbreeds.experiments.compose import compose_config, from_config
from dogbreeds.experiments.result import Result
from dogbreeds.tracking.records import RunOrigin

CHECKPOINTS, STORE = sys.argv[1:]
SMALL = (
    "data.breeds=5",
    "phase.epochs=2",
    "rerun=true",
    f"checkpoint_dir={CHECKPOINTS}",
    f"tracking.uri=sqlite:///{STORE}",
    f"tracking.artifacts={STORE}.artifacts",
    "tracking.model=none",
    "tracking.system_metrics_seconds=0",
    "preflight=none",
    "head=linear",
    "baseline=none",
)
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
received: list[str] = []


def receive(number: int, _: Any) -> None:
    received.append(signal.Signals(number).name)


def run(*overrides: str) -> list[float]:
    """Run an attempt, and return its training losses."""
    result = execute(from_config(compose_config("train", [*SMALL, *overrides])), RunOrigin("", (), "a run", Path()))
    assert isinstance(result, Result)
    return [epoch.train_loss for epoch in result.history.epochs]


class SendSignal(logging.Handler):
    """Sends a signal to this process when a run has finished its first epoch."""

    def __init__(self, number: int):
        super().__init__(logging.INFO)
        self._number = number

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage().startswith("epoch 1/"):
            os.kill(os.getpid(), self._number)


def interrupt(number: int) -> str:
    """Send a signal to a run; return the name of the exception that ends it."""
    handler = SendSignal(number)
    logging.getLogger("dogbreeds").addHandler(handler)
    try:
        run()
    except KeyboardInterrupt as error:
        return type(error).__name__
    finally:
        logging.getLogger("dogbreeds").removeHandler(handler)
    return "none"


def fail() -> str:
    """Run an attempt that is rejected after TensorFlow was set up for it; return the name of the error."""
    try:
        run("preprocessing.mode=torch", "preflight=stop")
    except UserError as error:
        return type(error).__name__
    return "none"


def in_thread() -> list[float]:
    losses: list[float] = []
    thread = threading.Thread(target=lambda: losses.extend(run()))
    thread.start()
    thread.join()
    return losses


def set_state() -> keras.Model:
    """Set state that a run would change, and return a compiled model."""
    keras.backend.clear_session()
    keras.utils.set_random_seed(11)
    random.seed(12)
    np.random.seed(13)
    keras.config.set_dtype_policy("mixed_float16")
    mlflow.set_tracking_uri(f"sqlite:///{STORE}.callers")
    os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = "77"
    os.environ.pop("MLFLOW_DISABLE_TELEMETRY", None)
    logging.getLogger("tensorflow").setLevel(logging.INFO)
    logging.getLogger("alembic").setLevel(logging.DEBUG)
    model = keras.Sequential(
        [keras.layers.Dense(8, activation="relu"), keras.layers.Dropout(0.5), keras.layers.Dense(1)]
    )
    model.compile(optimizer="adam", loss="mse", jit_compile=False)
    for draw in (random.random, np.random.random, lambda: tf.random.uniform([]), lambda: keras.random.uniform([])):
        draw()
    return model


def look(model: keras.Model) -> dict[str, Any]:
    """Return all of this process' state that a run could change, by name."""
    inputs = np.linspace(-1, 1, 320, dtype=np.float32).reshape(40, 8)
    return {
        "policy": keras.config.dtype_policy().name,
        "random": [random.random() for _ in range(3)],
        "numpy": np.random.random(3).tolist(),
        "tensorflow": tf.random.uniform([3]).numpy().tolist(),
        "global generator": tf.random.get_global_generator().state.numpy().tolist(),
        "keras": keras.random.uniform([3]).numpy().tolist(),
        "layer name": keras.layers.Dense(1).name,
        "losses": model.fit(inputs, inputs[:, :1], epochs=3, batch_size=8, verbose=0).history["loss"],
        "handlers": [getattr(signal.getsignal(number), "__name__", "none") for number in SIGNALS],
        "environment": {name: value for name, value in os.environ.items() if "MLFLOW" in name},
        "tracking URI": mlflow.get_tracking_uri(),
        "log levels": [logging.getLogger(name).level for name in ("tensorflow", "alembic")],
    }


def second_interruption() -> str:
    """Send SIGINT once more; return the name of the exception that it raises."""
    try:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)
    except KeyboardInterrupt as error:
        return type(error).__name__
    return "none"


def main() -> None:
    logging.getLogger("dogbreeds").setLevel(logging.INFO)
    for number in SIGNALS[1:]:
        signal.signal(number, receive)
    tf.random.set_global_generator(tf.random.Generator.from_seed(14))
    answers: dict[str, Any] = {"without": look(set_state())}
    keras.backend.clear_session()
    answers["losses"] = run()
    runs: dict[str, Callable[[], Any]] = {
        "finished": run,
        "failed": fail,
        "interrupted": lambda: interrupt(signal.SIGINT),
        "terminated": lambda: interrupt(signal.SIGTERM),
        "in a thread": in_thread,
    }
    # The shell handles SIGTERM, as a job of a command would.
    with subprocess.Popen(["sh", "-c", "trap 'exit 3' TERM; echo; read line"], stdin=-1, stdout=-1) as child:
        assert child.stdout is not None
        child.stdout.readline()
        for name, execute_run in runs.items():
            model = set_state()
            end = execute_run()
            answers[name] = {"end": end, "state": look(model), "again": second_interruption()}
        answers["child"] = child.poll()
        os.kill(os.getpid(), signal.SIGTERM)
        child.kill()
    answers["received"] = received
    print(json.dumps(answers))


if __name__ == "__main__":
    main()
