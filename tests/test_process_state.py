"""Process-wide state of a Python caller, which is as it was after a run has finished, failed or been interrupted."""

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dogbreeds.core.paths import home
from dogbreeds.experiments import prepare
from tests import prefork

ENDS = {
    "finished": None,
    "failed": "UserError",
    "interrupted": "KeyboardInterrupt",
    "terminated": "Terminated",
    "in a thread": None,
}


@pytest.fixture(scope="module")
def caller(tmp_path_factory: pytest.TempPathFactory, shared_cache: Path, empty_store: Path) -> dict[str, Any]:
    """What `tests.python_caller` prints: state without a run and after each way in which a run can end."""
    folder = tmp_path_factory.mktemp("caller")
    shutil.copy(empty_store, folder / "runs.db")
    with prefork.Process(
        address=os.environ[prefork.ADDRESS_ENV],
        module="tests.python_caller",
        arguments=(str(folder / "checkpoints"), str(folder / "runs.db")),
        cwd=folder,
        environment=os.environ | {"DOGBREEDS_CACHE": str(shared_cache), "PYTHONPATH": str(home())},
    ) as process:
        output, errors = process.communicate(900)
    assert process.returncode == 0, errors
    return json.loads(output.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("how", ENDS)
def test_state_after_a_run_is_that_without_a_run(caller: dict[str, Any], how: str) -> None:
    assert caller["without"]["policy"] == "mixed_float16"
    assert caller["without"]["handlers"] == ["default_int_handler", "receive", "receive", "receive"]
    assert caller[how]["state"] == caller["without"]


@pytest.mark.slow
@pytest.mark.parametrize("how", ENDS)
def test_callers_state_does_not_change_a_run(caller: dict[str, Any], how: str) -> None:
    # A run in float16, or with other seeds, has other losses.
    assert len(caller["losses"]) == 2
    assert caller[how]["end"] == (ENDS[how] or caller["losses"])


@pytest.mark.slow
@pytest.mark.parametrize("how", ENDS)
def test_second_interruption_is_the_callers(caller: dict[str, Any], how: str) -> None:
    assert caller[how]["again"] == "KeyboardInterrupt"


@pytest.mark.slow
def test_signal_after_a_run_reaches_the_callers_handler_and_its_child_processes_are_left_alone(
    caller: dict[str, Any],
) -> None:
    assert caller["received"] == ["SIGTERM"]
    # While a run is interrupted, a command would end its child processes.
    assert caller["child"] is None


@pytest.mark.slow
@pytest.mark.parametrize("owner", ["caller", pytest.param("command", marks=pytest.mark.long)])
def test_run_that_imports_everything_leaves_a_new_process_as_it_was(
    owner: str, tmp_path: Path, command_environment: Callable[..., dict[str, str]]
) -> None:
    environment = {name: value for name, value in command_environment().items() if not name.startswith("MLFLOW")}
    done = subprocess.run(
        [sys.executable, "-m", "tests.fresh_caller", owner, str(tmp_path / "checkpoints"), str(tmp_path / "runs.db")],
        cwd=tmp_path,
        env=environment | {"DOGBREEDS_HOME": str(home())},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    state = json.loads(done.stdout.splitlines()[-1])
    # A command's garbage collection leaves out the modules that the run has imported.
    assert (state.pop("frozen objects") > 0) is (owner == "command")
    assert state == {
        "imported before": [],
        "random": random.Random(1).random(),
        "numpy": np.random.RandomState(2).random_sample(),
        "tensorflow": [None, None],
        "layer name": "dense",
        "handlers kept": True,
        "variables kept": True,
        "uses the run's store": False,
    }


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("Physical devices cannot be modified after being initialized"),
        ValueError("Cannot set memory growth on device when virtual devices configured"),
    ],
)
def test_gpu_that_the_caller_uses_already_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    import tensorflow as tf

    asked: list[object] = []

    def refuse(gpu: object, enable: bool) -> None:
        asked.append((gpu, enable))
        raise error

    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [f"{kind}:0", f"{kind}:1"])
    monkeypatch.setattr(tf.config.experimental, "set_memory_growth", refuse)
    prepare._import_tensorflow()
    assert asked == [("GPU:0", True), ("GPU:1", True)]
