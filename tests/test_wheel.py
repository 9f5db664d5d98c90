"""The wheel: the package with its configs, which works outside a checkout."""

import email
import os
import subprocess
import sys
import sysconfig
import tomllib
import venv
from collections.abc import Callable, Iterator
from pathlib import Path
from zipfile import ZipFile

import mlflow
import pytest
from omegaconf import OmegaConf
from packaging.requirements import Requirement
from PIL import Image

from dogbreeds.core.paths import config_folder, home
from dogbreeds.data import drawn_dogs

pytest.importorskip("hatchling", reason="hatchling builds the wheel: make setup EXTRAS=dev")
Command = Callable[..., subprocess.CompletedProcess[str]]
# Refuses connections to other machines, and notes them in a file, also if the caller goes on without them.
OFFLINE = """import os, sys

def refuse(event, arguments):
    if event == "socket.getaddrinfo" or event == "socket.connect" and isinstance(arguments[1], tuple):
        host = str(arguments[0] if event == "socket.getaddrinfo" else arguments[1][0])
        if host not in ("localhost", "127.0.0.1", "::1"):
            with open(os.environ["REFUSED_CONNECTIONS"], "a") as file:
                print(sys.argv, event, host, file=file)
            raise OSError(f"no connection to {host}")

sys.addaudithook(refuse)
"""
# Root may write anywhere, unless it gives up this capability.
UNPRIVILEGED = ["setpriv", "--bounding-set", "-dac_override"] if os.geteuid() == 0 else []


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


def folder_environment(folder: Path) -> dict[str, str]:
    """Return the environment of a command without the package's variables, except for a cache in a folder."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DOGBREEDS_")}
    return environment | {"DOGBREEDS_CACHE": str(folder / "cache"), "PYTHONPATH": ""}


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A virtual environment with the wheel, whose package is read-only. It borrows the dependencies of this one."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    python = folder / "bin/python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--disable-pip-version-check", wheel], check=True)
    (site_packages,) = folder.glob("lib/*/site-packages")
    # The installation of the checkout in the folder below is not seen, since it is a .pth file too.
    (site_packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    (site_packages / "sitecustomize.py").write_text(OFFLINE)
    subprocess.run(["chmod", "-R", "a-w", site_packages], check=True)
    yield folder
    subprocess.run(["chmod", "-R", "u+w", site_packages], check=True)


@pytest.fixture
def installed_command(environment: Path, tmp_path: Path) -> Iterator[Command]:
    """A function that runs a script of the environment in an empty folder, offline, with DOGBREEDS_HOME unset."""
    (tmp_path / "empty").mkdir()
    refused = tmp_path / "refused"

    def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*UNPRIVILEGED, environment / "bin" / script, *arguments],
            cwd=tmp_path / "empty",
            env=folder_environment(tmp_path) | {"REFUSED_CONNECTIONS": str(refused)},
            capture_output=True,
            text=True,
            timeout=900,
        )

    yield run
    assert not refused.exists(), refused.read_text()


@pytest.fixture(scope="module")
def unpacked(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what is in the wheel, to be put on Python's path."""
    folder = tmp_path_factory.mktemp("site-packages")
    with ZipFile(wheel) as file:
        file.extractall(folder)
    return folder


@pytest.fixture
def unpacked_command(unpacked: Path, tmp_path: Path) -> Command:
    """A function that runs `python -m dogbreeds.<name>` of the wheel in an empty folder, with DOGBREEDS_HOME unset."""
    (tmp_path / "empty").mkdir()
    environment = folder_environment(tmp_path) | {"PYTHONPATH": str(unpacked)}

    def run(name: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", f"dogbreeds.{name}", *arguments],
            cwd=tmp_path / "empty",
            env=environment | variables,
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


def test_wheel_requires_what_each_extra_names(wheel: Path) -> None:
    with ZipFile(wheel) as file:
        (name,) = (name for name in file.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = email.message_from_bytes(file.read(name))
    project = tomllib.loads((home() / "pyproject.toml").read_text())["project"]
    requirements = [Requirement(text) for text in metadata.get_all("Requires-Dist", [])]
    always = {each.name for each in requirements if each.marker is None}
    assert always == {Requirement(text).name for text in project["dependencies"]}
    extras = project["optional-dependencies"]
    assert set(metadata.get_all("Provides-Extra", [])) == set(extras)
    for extra, texts in extras.items():
        required = {each.name for each in requirements if each.marker and each.marker.evaluate({"extra": extra})}
        assert required >= {Requirement(text).name for text in texts} - {"dogbreeds"}, extra


@pytest.mark.parametrize("place", ["empty", "elsewhere"])
def test_command_of_the_wheel_has_its_configs_and_records_in_the_current_folder_or_home(
    unpacked_command: Command, tmp_path: Path, place: str
) -> None:
    variables = {"DOGBREEDS_HOME": str(tmp_path / place)} if place != "empty" else {}
    done = unpacked_command("train", "--cfg", "job", "--resolve", "attempt=lr_collapse", **variables)
    assert done.returncode == 0, done.stderr
    config = OmegaConf.create(done.stdout)
    assert config.optimizer.lr == 0.01
    assert config.tracking.uri == f"sqlite:///{tmp_path}/{place}/mlruns/mlflow.db"
    assert config.checkpoint_dir == f"{tmp_path}/{place}/multirun/checkpoints"


@pytest.mark.slow
def test_train_of_the_wheel_prints_its_help(unpacked_command: Command) -> None:
    done = unpacked_command("train", "--help")
    assert done.returncode == 0, done.stderr
    assert "attempt: " in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "runs"),
    [
        pytest.param(
            ("--multirun", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=2", "optimizer.lr=interval(1e-4,1e-3)"),
            3,
            marks=pytest.mark.long,
        ),
        (("hydra.job.chdir=true",), 1),
    ],
    ids=["search", "one run in a folder of its own"],
)
def test_train_of_the_wheel_records_in_the_current_folder(
    installed_command: Command, tmp_path: Path, arguments: tuple[str, ...], runs: int
) -> None:
    done = installed_command("dogbreeds", "train", *arguments, "data.breeds=4", "phase.epochs=2", "tracking.model=none")
    assert done.returncode == 0, done.stderr
    records = mlflow.MlflowClient(f"sqlite:///{tmp_path}/empty/mlruns/mlflow.db").search_runs(["1"])
    assert [record.info.status for record in records] == ["FINISHED"] * runs
    assert {record.data.tags["git.commit"] for record in records} == {"none"}
    assert {path.name for path in (tmp_path / "empty").iterdir()} == {"mlruns", "multirun"}


@pytest.mark.long
def test_every_step_from_training_to_export_works_from_the_wheel(
    environment: Path, installed_command: Command, tmp_path: Path
) -> None:
    Image.fromarray(drawn_dogs.draw("test", 0, 0)).save(tmp_path / "dog.png")
    steps = [
        ("python", "-m", "dogbreeds.train"),
        # The second rate is that of the first run, which is skipped.
        ("dogbreeds", "train", "--multirun", "optimizer.lr=1e-2,1e-3"),
        ("dogbreeds", "evaluate", "run=best"),
        ("dogbreeds", "predict", "run=best", f"images={tmp_path}/dog.png", "format=csv"),
        ("dogbreeds", "export", "run=best", "output=exported"),
        ("dogbreeds", "--help"),
    ]
    write = "import dogbreeds; open(dogbreeds.__path__[0] + '/written', 'w')"
    assert "Permission" in installed_command("python", "-c", write).stderr
    outputs = []
    for step in steps:
        done = installed_command(*step)
        assert done.returncode == 0, (step, done.stderr)
        outputs.append(done.stdout)
    records = mlflow.MlflowClient(f"sqlite:///{tmp_path}/empty/mlruns/mlflow.db").search_runs(["1"])
    verdicts = [record.data.tags["verdict"] for record in records if "verdict" in record.data.tags]
    assert sorted(verdicts) == ["collapsed", "learned"]
    assert drawn_dogs.breed_name(0) in outputs[3]
    exported = {path.name for path in (tmp_path / "empty/exported").iterdir()}
    assert exported >= {"model.onnx", "model.tflite", "savedmodel", "classes.txt"}
    assert {path.name for path in (tmp_path / "empty").iterdir()} == {"mlruns", "multirun", "exported"}
    assert "  train " in outputs[-1]
