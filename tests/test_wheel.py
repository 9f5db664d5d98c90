"""The wheel: the package with its configs, which works outside a checkout."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from zipfile import ZipFile

import mlflow
import pytest
from omegaconf import OmegaConf

from dogbreeds.core.paths import config_folder, home

pytest.importorskip("hatchling", reason="hatchling builds the wheel: make setup EXTRAS=dev")
Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel's file."""
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder],
        cwd=home(),
        check=True,
        capture_output=True,
    )
    (file,) = folder.glob("*.whl")
    return file


@pytest.fixture
def unpacked_command(wheel: Path, tmp_path: Path) -> Command:
    """A function that runs `python -m dogbreeds.<name>` of the wheel in an empty folder, with DOGBREEDS_HOME unset."""
    with ZipFile(wheel) as file:
        file.extractall(tmp_path / "site-packages")
    (tmp_path / "empty").mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DOGBREEDS_")}
    environment |= {"PYTHONPATH": str(tmp_path / "site-packages"), "DOGBREEDS_CACHE": str(tmp_path / "cache")}

    def run(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", f"dogbreeds.{name}", *arguments],
            cwd=tmp_path / "empty",
            env=environment,
            capture_output=True,
            text=True,
            timeout=900,
        )

    return run


def test_wheel_holds_the_package_and_its_configs(wheel: Path) -> None:
    names = set(ZipFile(wheel).namelist())
    configs = {f"dogbreeds/conf/{path.relative_to(config_folder())}" for path in config_folder().rglob("*.yaml")}
    modules = {str(path.relative_to(home())) for path in (home() / "dogbreeds").rglob("*.py")}
    assert len(configs) > 50
    assert configs | modules | {"dogbreeds/models/pretrained/miniature.weights.h5"} <= names
    # Nothing else would be installed beside the package.
    assert {name.split("/")[0].split("-")[0] for name in names} == {"dogbreeds"}


def test_command_of_the_wheel_has_its_configs_and_records_in_the_current_folder(
    unpacked_command: Command, tmp_path: Path
) -> None:
    done = unpacked_command("train", "--cfg", "job", "--resolve", "attempt=lr_collapse")
    assert done.returncode == 0, done.stderr
    config = OmegaConf.create(done.stdout)
    assert config.optimizer.lr == 0.01
    assert config.tracking.uri == f"sqlite:///{tmp_path}/empty/mlruns/mlflow.db"
    assert config.checkpoint_dir == f"{tmp_path}/empty/multirun/checkpoints"
    assert unpacked_command("train", "--help").returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "runs"),
    [
        (("--multirun", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=2", "optimizer.lr=interval(1e-4,1e-3)"), 3),
        (("hydra.job.chdir=true",), 1),
    ],
    ids=["search", "one run in a folder of its own"],
)
def test_train_of_the_wheel_records_in_the_current_folder(
    unpacked_command: Command, tmp_path: Path, arguments: tuple[str, ...], runs: int
) -> None:
    done = unpacked_command("train", *arguments, "data.breeds=4", "phase.epochs=2", "tracking.model=none")
    assert done.returncode == 0, done.stderr
    records = mlflow.MlflowClient(f"sqlite:///{tmp_path}/empty/mlruns/mlflow.db").search_runs(["1"])
    assert [record.info.status for record in records] == ["FINISHED"] * runs
    assert {record.data.tags["git.commit"] for record in records} == {"none"}
    assert {path.name for path in (tmp_path / "empty").iterdir()} == {"mlruns", "multirun"}
