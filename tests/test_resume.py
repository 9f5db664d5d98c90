"""Resumed runs compared with uninterrupted ones: they must be equal, bit for bit."""

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
    "--multirun", "phase=frozen,finetune", "preflight=none",
    "data.classes=5", "data.train_per_class=8", "data.val_per_class=4", "data.test_per_class=4",
    "phase.epochs=4", "phase.batch_size=8", "phase.patience_epochs=2", "checkpoint_steps=2",
    # How many fit the time of a call depends on the machine, and so would the number of moments.
    "steps_per_execution=2",
    "optimizer.lr=1e-3", "schedule=plateau", "schedule.patience_epochs=1", "unfreeze.drop_connect=on",
    "augment=guide", "augment.copies=2", "features.batch_size=8",
    "tracking.model=all", "tracking.system_metrics_seconds=0",
)  # fmt: skip


def train(place: Path, moment: int, *settings: str) -> subprocess.CompletedProcess[str]:
    """Run the train command, and kill it at a moment.

    Args:
        place: home of its runs, checkpoints and cache.
        moment: number of the moment, from 1; 0 does not kill it.
        settings: further overrides.
    """
    environment = os.environ | {"DOGBREEDS_HOME": str(place), "DOGBREEDS_CACHE": str(place / "cache")}
    arguments = (str(moment), str(place / "moments"), *PHASES, *settings)
    with prefork.Process(os.environ[prefork.ADDRESS_ENV], "tests.killed", arguments, place, environment) as process:
        output, errors = process.communicate(900)
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


def final(place: Path, cut_off: int = 0) -> dict[str, dict]:
    """Return weights, curves, verdict and test logits of each phase, checking that each has one run, which finished.

    Args:
        place: home of the runs.
        cut_off: number of killed sweep runs.
    """
    client = mlflow.MlflowClient(f"sqlite:///{place}/mlruns/mlflow.db")
    runs = client.search_runs(["1"])
    killed_sweeps = [run for run in runs if run.info.status == "KILLED" and run.info.run_name.startswith("sweep ")]
    assert len(killed_sweeps) == cut_off
    runs = [run for run in runs if run not in killed_sweeps]
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
        # A resumed run continues its record, so there is one run for each phase.
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
    tmp_path_factory: pytest.TempPathFactory, make_home: Callable[[Path], Path]
) -> tuple[dict[str, dict], list[str]]:
    """Return the results of uninterrupted runs, and the kind of each moment at which they could be killed."""
    place = make_home(tmp_path_factory.mktemp("uninterrupted"))
    done = train(place, 0)
    assert done.returncode == 0, done.stderr
    return final(place), (place / "moments").read_text().split()


def chosen(moments: list[str], number: int) -> int:
    """Choose the moment of a test: the kinds in turn, and a random moment of the kind."""
    kinds = sorted(set(moments))
    places = [index for index, kind in enumerate(moments, 1) if kind == kinds[number % len(kinds)]]
    return random.Random(number).choice(places)


@pytest.mark.parametrize(
    "number",
    [pytest.param(number, marks=pytest.mark.slow if number == 0 else pytest.mark.long) for number in range(20)],
)
def test_train_resumes_bit_for_bit_after_a_kill_at_any_moment(
    number: int, uninterrupted, tmp_path: Path, make_home
) -> None:
    expected, moments = uninterrupted
    assert set(moments) == {"features", "step", "checkpoint", "rename", "record"}
    assert set(expected) == {"Frozen", "Finetune"}
    make_home(tmp_path)
    assert train(tmp_path, chosen(moments, number)).returncode == -signal.SIGKILL
    done = train(tmp_path, 0)
    assert done.returncode == 0, done.stderr
    assert json.dumps(final(tmp_path), default=repr) == json.dumps(expected, default=repr)
    assert not list((tmp_path / "multirun/checkpoints").glob("*/*"))


@pytest.mark.long
@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_train_resumes_bit_for_bit_with_another_runtime_after_a_kill_in_its_pass(
    runtime: str, tmp_path: Path, make_home: Callable[[Path], Path]
) -> None:
    whole, cut = make_home(tmp_path / "whole"), make_home(tmp_path / "cut")
    setting = f"features.runtime={runtime}"
    done = train(whole, 0, setting)
    assert done.returncode == 0, done.stderr
    moments = (whole / "moments").read_text().split()
    passes = [index for index, kind in enumerate(moments, 1) if kind == "features"]
    for moment in (passes[2], passes[-1]):
        assert train(cut, moment, setting).returncode == -signal.SIGKILL
    # Which runtime it was is known from the unfinished run.
    done = train(cut, 0, "features.runtime=auto")
    assert done.returncode == 0, done.stderr
    expected, resumed = final(whole), final(cut, cut_off=1)
    assert json.dumps(resumed, default=repr) == json.dumps(expected, default=repr)


@pytest.mark.long
def test_logistic_regression_on_depths_resumes_bit_for_bit_after_a_kill_between_its_strengths(
    tmp_path: Path, make_home: Callable[[Path], Path]
) -> None:
    whole, cut = make_home(tmp_path / "whole"), make_home(tmp_path / "cut")
    settings = ("head=logistic", "features.layers=[block5,top]")
    done = train(whole, 0, *settings)
    assert done.returncode == 0, done.stderr
    moments = (whole / "moments").read_text().split()
    before_any_step = moments[: moments.index("step")]
    checkpoints = [index for index, kind in enumerate(before_any_step, 1) if kind == "checkpoint"]
    assert train(cut, checkpoints[len(checkpoints) // 2], *settings).returncode == -signal.SIGKILL
    done = train(cut, 0, *settings)
    assert done.returncode == 0, done.stderr
    assert "Resuming from checkpoint" in done.stderr + done.stdout
    assert json.dumps(final(cut), default=repr) == json.dumps(final(whole), default=repr)
