"""Run an attempt in a process that has imported nothing heavy yet, and print the state that it leaves.

python -m tests.fresh_caller <caller or command> <folder of checkpoints> <file of the store>
"""

import gc
import json
import os
import random
import signal
import sys
from pathlib import Path

import numpy as np

from dogbreeds.core import process
from dogbreeds.experiments.attempt import execute
from dogbreeds.experiments.compose import compose_config, from_config
from dogbreeds.tracking.records import RunOrigin

OWNER, CHECKPOINTS, STORE = sys.argv[1:]
IMPORTED_BY_A_RUN = {"tensorflow", "keras", "mlflow"}
OVERRIDES = (
    "data.breeds=5",
    "phase.epochs=1",
    "head=linear",
    "preflight=none",
    "baseline=none",
    f"checkpoint_dir={CHECKPOINTS}",
    f"tracking.uri=sqlite:///{STORE}",
    f"tracking.artifacts={STORE}.artifacts",
    "tracking.model=none",
    "tracking.system_metrics_seconds=0",
)

if OWNER == "command":
    process.mark_as_command()
imported = IMPORTED_BY_A_RUN & set(sys.modules)
random.seed(1)
np.random.seed(2)
handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
variables = {name: value for name, value in os.environ.items() if name.startswith("MLFLOW")}

execute(from_config(compose_config("train", OVERRIDES)), RunOrigin("", (), "a run", Path()))

import keras  # noqa: E402
import mlflow  # noqa: E402
import tensorflow as tf  # noqa: E402

print(
    json.dumps(
        {
            "imported before": sorted(imported),
            "random": random.random(),
            "numpy": np.random.random(),
            # Without a global seed, an operation without one has none.
            "tensorflow": tf.compat.v1.get_seed(None),
            "layer name": keras.layers.Dense(1).name,
            "handlers kept": handlers == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
            "variables kept": variables
            == {name: value for name, value in os.environ.items() if name.startswith("MLFLOW")},
            "uses the run's store": STORE in mlflow.get_tracking_uri(),
            "frozen objects": gc.get_freeze_count(),
        }
    )
)
