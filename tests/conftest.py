"""Small real inputs: drawn photos on disk, composed runs, and commands as a user types them."""

import gc
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from dogbreeds.core.paths import home
from dogbreeds.data import drawn_dogs
from dogbreeds.experiments import compose
from dogbreeds.experiments.compose import from_config
from dogbreeds.experiments.run import Run
from tests import prefork

if TYPE_CHECKING:
    import keras

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
_server = pytest.StashKey[tuple["subprocess.Popen[bytes]", Path]]()
_collected = pytest.StashKey[dict[str, list[set[str]]]]()
_frozen = False


def pytest_configure(config: pytest.Config) -> None:
    """Begins the server that forks for commands, one for all workers."""
    if hasattr(config, "workerinput"):
        return
    folder = Path(tempfile.mkdtemp(prefix="prefork-"))
    os.environ[prefork.ADDRESS] = str(folder / "socket")
    config.stash[_server] = prefork.begin(folder / "socket", folder / "log"), folder


def pytest_unconfigure(config: pytest.Config) -> None:
    if _server in config.stash:
        process, folder = config.stash[_server]
        process.kill()
        process.wait()
        shutil.rmtree(folder)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Notes all tests and their marks, before those of other tiers are left out."""
    noted = config.stash[_collected] = {}
    for item in items:
        name = (
            f"{item.path.stem.removeprefix('test_')}::{getattr(item, 'originalname', item.name).removeprefix('test_')}"
        )
        noted.setdefault(name, []).append({mark.name for mark in item.iter_markers()})


@pytest.fixture
def collected(request: pytest.FixtureRequest) -> dict[str, list[set[str]]]:
    """All tests by `<file>::<name>`, and the marks of each of a test's cases."""
    return request.config.stash[_collected]


def pytest_runtest_setup() -> None:
    """What has been imported stays: looking for garbage among it takes a quarter of an attempt, which freezes it when it imports TensorFlow."""
    global _frozen
    if not _frozen and "tensorflow" in sys.modules:
        _frozen = True
        gc.collect()
        gc.freeze()


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite store as MLflow makes it, made once: it takes seconds."""
    import mlflow

    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    mlflow.MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Kept features that all tests of a process share: most attempts in them see the same photos through the same backbone."""
    return tmp_path_factory.mktemp("kept")


@pytest.fixture
def cache(request: pytest.FixtureRequest, tmp_path: Path, shared_cache: Path) -> Path:
    """Where a test's attempts keep features: what it shares with others, or with the mark `own_cache` a folder of its own."""
    return tmp_path / "cache" if request.node.get_closest_marker("own_cache") else shared_cache


@pytest.fixture(scope="session")
def composed_in(empty_store: Path) -> Callable[[Path, Path], Callable[..., Run]]:
    """As `composed`, for a folder and a cache: for fixtures that several tests share."""

    def place(folder: Path, cache: Path) -> Callable[..., Run]:
        (folder / "mlruns").mkdir()
        shutil.copy(empty_store, folder / "mlruns/mlflow.db")

        def run(*overrides: str) -> Run:
            places = [f"features.dir={cache}", f"checkpoint_dir={folder}/checkpoints"]
            if not any(override.startswith("tracking=") for override in overrides):
                places += [
                    f"tracking.uri=sqlite:///{folder}/mlruns/mlflow.db",
                    f"tracking.artifacts={folder}/mlruns/artifacts",
                ]
            return from_config(compose.composed("train", [*places, *overrides]))

        return run

    return place


@pytest.fixture
def composed(
    tmp_path: Path, cache: Path, composed_in: Callable[[Path, Path], Callable[..., Run]]
) -> Callable[..., Run]:
    """A function from overrides to a run whose checkpoints and records lie in the test's folder."""
    return composed_in(tmp_path, cache)


@pytest.fixture
def photos(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes drawn photos as `root/<part>/<class>/<n>.jpg`; parts map to photos a class, '' is the root itself."""

    def write(classes: int = 3, size: int = 64, **parts: int) -> Path:
        root = tmp_path / "photos"
        for part, count in (parts or {"train": 6, "test": 3}).items():
            for breed in range(classes):
                folder = root / ("" if part == "flat" else part) / f"breed_{breed}"
                folder.mkdir(parents=True)
                for number in range(count):
                    stream = part if part in ("val", "test") else "train"
                    picture = Image.fromarray(drawn_dogs.draw(stream, breed, number))
                    picture.resize((size, size)).save(folder / f"{number}.jpg", quality=95)
        return root

    return write


@pytest.fixture
def remembering(tmp_path: Path) -> Callable[..., "keras.Model"]:
    """A function that builds one of Keras' backbones with weights that do something, and saves them as `<architecture>.weights.h5` in the
    test's folder: random ones, its BatchNorm statistics those of drawn photos in its own pixels."""

    def build(architecture: str, pixels: str, size: int = 64, **more: float) -> "keras.Model":
        import keras

        keras.utils.set_random_seed(3)
        network = getattr(keras.applications, architecture)(
            include_top=False, weights=None, input_shape=(size, size, 3), **more
        )
        photos = np.stack([drawn_dogs.draw("pretrain", breed, 0) for breed in range(96)])
        momenta = {
            layer: layer.momentum for layer in network.layers if isinstance(layer, keras.layers.BatchNormalization)
        }
        for layer in momenta:
            layer.momentum = 0.0
            # Of ResNet's residual branches, as trained ones are: random ones at full strength amplify rounding
            if layer.name.endswith("_3_bn"):
                layer.gamma.assign(layer.gamma * 0.2)
        shown = (
            photos
            if pixels == "raw"
            else keras.applications.imagenet_utils.preprocess_input(photos.astype(np.float32), mode=pixels)
        )
        network(shown, training=True)
        for layer, momentum in momenta.items():
            layer.momentum = momentum
        network.save_weights(tmp_path / f"{architecture}.weights.h5")
        return network

    return build


@pytest.fixture(scope="session")
def made_home(empty_store: Path) -> Callable[[Path], Path]:
    """A function that makes a folder a home for runs and records, unless it is one."""

    def make(place: Path) -> Path:
        if not (place / "conf").exists():
            (place / "mlruns").mkdir(parents=True)
            (place / "conf").symlink_to(home() / "conf")
            shutil.copy(empty_store, place / "mlruns/mlflow.db")
        return place

    return make


@pytest.fixture
def at_home(tmp_path: Path, cache: Path) -> Callable[..., dict[str, str]]:
    """A function that gives the environment of a command whose runs and records lie in the test's folder, with more variables."""

    def environment(**more: str) -> dict[str, str]:
        places = {"DOGBREEDS_HOME": str(tmp_path / "home"), "DOGBREEDS_CACHE": str(cache), "PYTHONPATH": str(home())}
        return os.environ | places | more

    return environment


@pytest.fixture
def begun(
    tmp_path: Path, made_home: Callable[[Path], Path], at_home: Callable[..., dict[str, str]]
) -> Callable[..., prefork.Process]:
    """Begins `python -m dogbreeds.<name>` as a user does, from another folder; a name with a dot is another module's."""

    def begin(name: str, *arguments: str, given: bytes = b"", **environment: str) -> prefork.Process:
        made_home(tmp_path / "home")
        module = name if "." in name else f"dogbreeds.{name}"
        return prefork.Process(os.environ[prefork.ADDRESS], module, arguments, tmp_path, at_home(**environment), given)

    return begin


@pytest.fixture
def command(begun: Callable[..., prefork.Process]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs a command as `begun` begins it, to its end."""

    def run(
        name: str, *arguments: str, timeout: float = 900, given: bytes = b"", **environment: str
    ) -> subprocess.CompletedProcess[str]:
        with begun(name, *arguments, given=given, **environment) as process:
            output, errors = process.communicate(timeout)
        return subprocess.CompletedProcess(process.args, process.returncode, output, errors)

    return run


@pytest.fixture
def typed(tmp_path: Path, at_home: Callable[..., dict[str, str]]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs `python -m dogbreeds.<name>` in a new interpreter, and in a home in which nothing has been."""

    def run(name: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        if not (tmp_path / "home").exists():
            (tmp_path / "home").mkdir()
            (tmp_path / "home/conf").symlink_to(home() / "conf")
        script = [sys.executable, "-m", f"dogbreeds.{name}", *arguments]
        return subprocess.run(
            script, cwd=tmp_path, env=at_home(**environment), capture_output=True, text=True, timeout=900
        )

    return run


@pytest.fixture
def of_ray(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Environment variables that keep what Ray writes out of the user's folders; its sockets need a short path."""
    short = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    yield {"RAY_TMPDIR": short, "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token"), "RAY_AUTH_MODE": "disabled"}
    shutil.rmtree(short, ignore_errors=True)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
