"""`examples/plugin`, installed as a user installs it: its own tests, and a run that is killed, resumed and used."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest
from PIL import Image

from dogbreeds.core.paths import home

pytest.importorskip("hatchling", reason="hatchling builds the plugin: make setup EXTRAS=dev")
pytestmark = pytest.mark.slow
EXAMPLE = home() / "examples/plugin"
PARTS = ("model=tinynet", "head=norm", "augment=noise", "optimizer=nadam", "preprocessing=grey")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the installed plugin, to be put on Python's path."""
    folder = tmp_path_factory.mktemp("plugin")
    # pip builds in the source folder.
    shutil.copytree(EXAMPLE, folder / "source", ignore=shutil.ignore_patterns("__pycache__"))
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--disable-pip-version-check", "--no-index"]
    subprocess.run(
        [sys.executable, "-m", "pip", "install", *options, "--target", folder / "site", folder / "source"], check=True
    )
    return folder / "site"


def runs(folder: Path) -> list:
    """Return the recorded runs of commands in a folder, the newest first."""
    client = mlflow.MlflowClient(f"sqlite:///{folder}/home/mlruns/mlflow.db")
    return list(client.search_runs(["0", "1"], order_by=["attributes.start_time desc"]))


def python_path(site: Path) -> str:
    return os.pathsep.join([str(home()), str(site)])


def test_tests_of_the_example_pass_with_the_installed_plugin(installed: Path, command: Callable) -> None:
    arguments = ("-q", "-p", "no:cacheprovider", "--rootdir", str(EXAMPLE), str(EXAMPLE / "tests"))
    done = command("pytest.__main__", *arguments, PYTHONPATH=python_path(installed), PYTHONDONTWRITEBYTECODE="1")
    assert done.returncode == 0, done.stdout
    assert re.search(r"\b5 passed", done.stdout)


def test_a_run_of_the_example_gives_a_network_that_predicts_without_the_plugin(
    installed: Path, tmp_path: Path, command: Callable
) -> None:
    trained = command("train", *PARTS, "phase.epochs=2", PYTHONPATH=python_path(installed))
    assert trained.returncode == 0, trained.stderr
    (run,) = runs(tmp_path)
    parameters = {name: value for name, value in run.data.params.items() if name.endswith(".class.source")}
    groups = ("data", "model", "head", "augment", "optimizer", "preprocessing")
    assert {name: value.partition("@")[0] for name, value in parameters.items()} == {
        f"{group}.class.source": f"shapes_plugin.{group}" for group in groups
    }
    Image.new("RGB", (60, 50), "white").save(tmp_path / "white.png")
    predicted = command("predict", "run=latest", "images=white.png", "format=csv")
    assert predicted.returncode == 0, predicted.stderr
    assert re.search(r"white\.png.*(circle|cross|square)", predicted.stdout)
    # The run's images need the plugin.
    evaluated = command("evaluate", "run=latest")
    assert evaluated.returncode == 1
    assert "'plugins=[shapes_plugin]'" in evaluated.stderr


@pytest.mark.long
@pytest.mark.own_cache
def test_a_run_of_the_example_resumes_after_sigkill_but_not_with_edited_source(
    installed: Path, tmp_path: Path, command: Callable
) -> None:
    site = tmp_path / "site"
    shutil.copytree(installed, site)
    path = python_path(site)
    arguments = (*PARTS, "phase.epochs=12", "phase.patience_epochs=null", "tracking.system_metrics_seconds=0")
    # About 90 moments pass before the end of the first epoch, and 33 in each later one.
    killed = command("tests.killed", "200", "moments", *arguments, PYTHONPATH=path)
    assert killed.returncode == -signal.SIGKILL
    resumed = command("train", *arguments, PYTHONPATH=path)
    assert resumed.returncode == 0, resumed.stderr
    assert re.search(r"Resuming from checkpoint: epoch [1-9]\d*/12 done", resumed.stdout), resumed.stdout
    assert "epoch  1/12  train" not in resumed.stdout
    with (site / "shapes_plugin/augment.py").open("a") as source:
        source.write("\n# edited\n")
    edited = command("train", *arguments, PYTHONPATH=path)
    assert edited.returncode == 0, edited.stderr
    assert "epoch  1/12  train" in edited.stdout
    assert "features of train, augmented copy 0: 120 in" in edited.stdout
    newest, first = runs(tmp_path)
    assert (first.data.tags["resumed"], first.info.status, newest.info.status) == ("1", "FINISHED", "FINISHED")
    assert first.data.tags["key"] != newest.data.tags["key"]


def test_a_head_with_a_layer_of_its_own_is_refused_before_training(tmp_path: Path, command: Callable) -> None:
    (tmp_path / "mydogs.py").write_text(
        "from dataclasses import dataclass\n\nimport keras\n\nimport dogbreeds\n\n\n"
        "class Twice(keras.layers.Layer):\n    def call(self, inputs):\n        return 2 * inputs\n\n\n"
        "@dataclass(frozen=True, kw_only=True)\nclass Own(dogbreeds.Head):\n"
        '    def hidden(self, seed):\n        return [Twice(name="twice")]\n'
    )
    (tmp_path / "conf/head").mkdir(parents=True)
    (tmp_path / "conf/head/own.yaml").write_text("_target_: mydogs.Own\n")
    refused = command("train", "--config-dir", "conf", "plugins=[mydogs]", "head=own", "data.classes=3")
    assert refused.returncode == 1
    assert "the layer twice," in refused.stderr
    assert "tracking.model=none" in refused.stderr
    assert runs(tmp_path) == []


@pytest.mark.long
def test_jobs_of_a_parallel_sweep_import_the_plugin(installed: Path, tmp_path: Path, command: Callable) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="make setup EXTRAS=dev")
    conf = installed / "shapes_plugin/conf"
    # A folder on the path without an entry point.
    shutil.copytree(installed / "shapes_plugin", tmp_path / "shapes_plugin")
    done = command(
        "train",
        "--config-dir",
        str(conf),
        "--multirun",
        "hydra/launcher=joblib",
        "plugins=[shapes_plugin]",
        "head=norm",
        "head.dropout=2,3",
        "tracking=none",
    )
    # The error is raised by the plugin's class, in each job.
    assert re.search(r"head\.dropout was [23]", done.stderr)
    assert done.returncode == 1
