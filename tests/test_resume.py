"""What was cut off and is run again, beside what was not cut off: the bar is equality, bit for bit."""

import json
import os
import random
import signal
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import h5py
import mlflow
import numpy as np
import pytest

from tests import prefork

# Two phases in one command, with dropout, drop-connect, a plateau, patience and augmented copies.
PHASES = (
    "--multirun", "phase=frozen,finetune", "data.breeds=5", "data.train_per_breed=8", "data.val_per_breed=4", "data.test_per_breed=4",
    "phase.epochs=4", "phase.batch_size=8", "phase.patience_epochs=2", "schedule=plateau", "schedule.patience_epochs=1", "augment=guide",
    "augment.copies=2", "features.batch_size=8", "tracking.model=all", "checkpoint_steps=2", "tracking.system_metrics_seconds=0",
    "optimizer.lr=1e-3", "unfreeze.drop_connect=on", "preflight=none",
)  # fmt: skip


def train(place: Path, moment: int, *settings: str) -> subprocess.CompletedProcess[str]:
    """The command in a home of its own, with more settings, killed at a moment; 0 for not at all."""
    environment = os.environ | {"DOGBREEDS_HOME": str(place), "DOGBREEDS_CACHE": str(place / "cache")}
    arguments = (str(moment), str(place / "moments"), *PHASES, *settings)
    with prefork.Process(os.environ[prefork.ADDRESS], "tests.killed", arguments, place, environment) as process:
        output, errors = process.communicate(900)
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


def final(place: Path, cut_off: int = 0) -> dict[str, dict]:
    """Of each phase: weights, curves, verdict and what was predicted. So many sweeps may have been given up for another."""
    client = mlflow.MlflowClient(f"sqlite:///{place}/mlruns/mlflow.db")
    runs = client.search_runs(["1"])
    others = [run for run in runs if run.info.status == "KILLED" and run.info.run_name.startswith("sweep ")]
    assert len(others) == cut_off
    runs = [run for run in runs if run not in others]
    assert {run.info.status for run in runs} == {"FINISHED"}
    found = {}
    for run in runs:
        if "phase" not in run.data.params:
            continue
        folder = place / run.info.run_id
        folder.mkdir(exist_ok=True)
        client.download_artifacts(run.info.run_id, "model", str(folder))
        client.download_artifacts(run.info.run_id, "predictions", str(folder))
        names = [
            name
            for name in run.data.metrics
            if name.startswith(("train/", "val/", "lr", "best/", "last/", "test/", "verdict/", "parent/"))
        ]
        curves = {
            name: [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, name)]
            for name in sorted(names)
        }
        # One run a phase, whatever happened to it
        assert run.data.params["phase"] not in found
        found[run.data.params["phase"]] = {
            "weights": _weights(folder / "model/model.keras"),
            "curves": {name: sorted(points) for name, points in curves.items()},
            "verdict": run.data.tags["verdict"] + run.data.tags["verdict.reason"],
            "logits": np.load(folder / "predictions/test.npz")["logits"].tobytes(),
        }
    return found


def _weights(file: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(file) as zipped, h5py.File(zipped.open("model.weights.h5")) as stored:
        found: dict[str, bytes] = {}
        stored.visititems(
            lambda name, item: found.__setitem__(name, item[()].tobytes()) if isinstance(item, h5py.Dataset) else None
        )
    return found


@pytest.fixture(scope="session")
def uninterrupted(
    tmp_path_factory: pytest.TempPathFactory, made_home: Callable[[Path], Path]
) -> tuple[dict[str, dict], list[str]]:
    """What both phases give when nothing happens to them, and the moments at which something might."""
    place = made_home(tmp_path_factory.mktemp("uninterrupted"))
    done = train(place, 0)
    assert done.returncode == 0, done.stderr
    return final(place), (place / "moments").read_text().split()


def chosen(moments: list[str], number: int) -> int:
    """The moment of a test: each kind in turn, at random within it."""
    kinds = sorted(set(moments))
    places = [index for index, kind in enumerate(moments, 1) if kind == kinds[number % len(kinds)]]
    return random.Random(number).choice(places)


@pytest.mark.parametrize(
    "number", [pytest.param(number, marks=pytest.mark.slow if number < 5 else pytest.mark.long) for number in range(20)]
)
def test_a_run_that_was_killed_ends_as_if_it_had_not_been(
    number: int, uninterrupted, tmp_path: Path, made_home
) -> None:
    expected, moments = uninterrupted
    assert set(moments) == {"features", "step", "checkpoint", "rename", "record"}
    assert set(expected) == {"Frozen", "Finetune"}
    made_home(tmp_path)
    assert train(tmp_path, chosen(moments, number)).returncode == -signal.SIGKILL
    done = train(tmp_path, 0)
    assert done.returncode == 0, done.stderr
    assert json.dumps(final(tmp_path), default=repr) == json.dumps(expected, default=repr)
    assert not list((tmp_path / "multirun/checkpoints").glob("*/*"))
