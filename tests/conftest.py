"""Fixtures: synthetic images on disk, runs from overrides, and commands in processes of their own."""

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
from dogbreeds.experiments.compose import compose_config, from_config
from dogbreeds.experiments.run import Run
from tests import prefork

if TYPE_CHECKING:
    import keras

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# What is installed beside TensorFlow must not decide what the tests test. Tests of other runtimes name them.
os.environ["DOGBREEDS_RUNTIME"] = "tensorflow"
_server = pytest.StashKey[tuple["subprocess.Popen[bytes]", Path]]()
_collected = pytest.StashKey[dict[str, list[set[str]]]]()
_frozen = False
# Files with few tests that take long. A worker takes a whole file, so the last to start should be short.
LONGEST_FILES = ("test_launchers", "test_process_state", "test_resume", "test_sweep")


def pytest_configure(config: pytest.Config) -> None:
    """Start the server that forks processes for commands, one for all pytest workers."""
    if hasattr(config, "workerinput"):
        return
    folder = Path(tempfile.mkdtemp(prefix="prefork-"))
    os.environ[prefork.ADDRESS_ENV] = str(folder / "socket")
    config.stash[_server] = prefork.start_server(folder / "socket", folder / "log"), folder


def pytest_unconfigure(config: pytest.Config) -> None:
    if _server in config.stash:
        process, folder = config.stash[_server]
        process.kill()
        process.wait()
        shutil.rmtree(folder)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Order the files, and save the names and marks of all tests before pytest deselects those of other tiers."""
    items.sort(key=lambda item: item.path.stem not in LONGEST_FILES)
    collected = config.stash[_collected] = {}
    for item in items:
        function = getattr(item, "originalname", item.name).removeprefix("test_")
        name = f"{item.path.stem.removeprefix('test_')}::{function}"
        collected.setdefault(name, []).append({mark.name for mark in item.iter_markers()})


@pytest.fixture
def collected_tests(request: pytest.FixtureRequest) -> dict[str, list[set[str]]]:
    """The marks of each case of every test, by `<file>::<name>` without `test_`."""
    return request.config.stash[_collected]


def pytest_runtest_setup() -> None:
    """Exclude TensorFlow's modules, once imported, from garbage collection, which took a quarter of an attempt's time.

    An attempt does this itself only if it is the one that imports TensorFlow.
    """
    global _frozen
    if not _frozen and "tensorflow" in sys.modules:
        _frozen = True
        gc.collect()
        gc.freeze()


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty SQLite store of MLflow, which takes seconds to create."""
    import mlflow

    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    mlflow.MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A feature cache that all tests of a process share, since most attempts read the same features."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def cache(request: pytest.FixtureRequest, tmp_path: Path, shared_cache: Path) -> Path:
    """The folder of the feature cache: shared, or the test's own if it has the mark `own_cache`."""
    return tmp_path / "cache" if request.node.get_closest_marker("own_cache") else shared_cache


@pytest.fixture(scope="session")
def composed_in(empty_store: Path) -> Callable[[Path, Path], Callable[..., Run]]:
    """A function that returns `composed` for a folder and a cache, for fixtures that several tests share."""

    def composed_in_folder(folder: Path, cache: Path) -> Callable[..., Run]:
        (folder / "mlruns").mkdir()
        shutil.copy(empty_store, folder / "mlruns/mlflow.db")

        def run(*overrides: str) -> Run:
            locations = [f"features.dir={cache}", f"checkpoint_dir={folder}/checkpoints"]
            if "tracking=none" in overrides:
                # Saving the network takes a third of the time of a small run.
                locations.append("tracking.folder=null")
            else:
                locations += [
                    f"tracking.uri=sqlite:///{folder}/mlruns/mlflow.db",
                    f"tracking.artifacts={folder}/mlruns/artifacts",
                ]
            return from_config(compose_config("train", [*locations, *overrides]))

        return run

    return composed_in_folder


@pytest.fixture
def composed(
    tmp_path: Path, cache: Path, composed_in: Callable[[Path, Path], Callable[..., Run]]
) -> Callable[..., Run]:
    """A function from overrides to a run whose checkpoints and records are in the test's folder."""
    return composed_in(tmp_path, cache)


@pytest.fixture
def write_images(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes synthetic images as `<root>/<split>/<class>/<n>.jpg` and returns the root.

    Keyword arguments are the number of images of each class, by split. The split `flat` is the root itself.
    """

    def write(classes: int = 3, size: int = 64, **splits: int) -> Path:
        root = tmp_path / "photos"
        for split, count in (splits or {"train": 6, "test": 3}).items():
            for label in range(classes):
                folder = root / ("" if split == "flat" else split) / f"breed_{label}"
                folder.mkdir(parents=True)
                for number in range(count):
                    stream = split if split in ("val", "test") else "train"
                    image = Image.fromarray(drawn_dogs.draw(stream, label, number))
                    image.resize((size, size)).save(folder / f"{number}.jpg", quality=95)
        return root

    return write


@pytest.fixture
def pretrained_backbone(tmp_path: Path) -> Callable[..., "keras.Model"]:
    """A function that builds a backbone of Keras and saves its weights as `<architecture>.weights.h5`.

    The weights are random, except for BatchNorm's running statistics, which are those of synthetic images in the
    backbone's own pixel convention. The file is in the test's folder.
    """

    def build(architecture: str, pixels: str, size: int = 64, **arguments: float) -> "keras.Model":
        import keras

        keras.utils.set_random_seed(3)
        network = getattr(keras.applications, architecture)(
            include_top=False, weights=None, input_shape=(size, size, 3), **arguments
        )
        images = np.stack([drawn_dogs.draw("pretrain", label, 0) for label in range(96)])
        momenta = {
            layer: layer.momentum for layer in network.layers if isinstance(layer, keras.layers.BatchNormalization)
        }
        for layer in momenta:
            layer.momentum = 0.0
            # Weakens ResNet's residual branches, as training does. Random ones at full strength amplify rounding.
            if layer.name.endswith("_3_bn"):
                layer.gamma.assign(layer.gamma * 0.2)
        inputs = images
        if pixels != "raw":
            inputs = keras.applications.imagenet_utils.preprocess_input(images.astype(np.float32), mode=pixels)
        network(inputs, training=True)
        for layer, momentum in momenta.items():
            layer.momentum = momentum
        network.save_weights(tmp_path / f"{architecture}.weights.h5")
        return network

    return build


@pytest.fixture(scope="session")
def make_home(empty_store: Path) -> Callable[[Path], Path]:
    """A function that prepares a folder as DOGBREEDS_HOME, with an empty store, unless it is one already."""

    def make(folder: Path) -> Path:
        if not (folder / "mlruns").exists():
            (folder / "mlruns").mkdir(parents=True)
            shutil.copy(empty_store, folder / "mlruns/mlflow.db")
        return folder

    return make


@pytest.fixture
def command_environment(tmp_path: Path, cache: Path) -> Callable[..., dict[str, str]]:
    """A function that returns the environment of a command in the test's DOGBREEDS_HOME, with further variables."""

    def environment(**variables: str) -> dict[str, str]:
        own = {"DOGBREEDS_HOME": str(tmp_path / "home"), "DOGBREEDS_CACHE": str(cache), "PYTHONPATH": str(home())}
        return os.environ | own | variables

    return environment


@pytest.fixture
def start_command(
    tmp_path: Path, make_home: Callable[[Path], Path], command_environment: Callable[..., dict[str, str]]
) -> Callable[..., prefork.Process]:
    """A function that starts `python -m dogbreeds.<name>` in the test's folder; a name with a dot is another module."""

    def start(name: str, *arguments: str, stdin: bytes = b"", **environment: str) -> prefork.Process:
        make_home(tmp_path / "home")
        module = name if "." in name else f"dogbreeds.{name}"
        return prefork.Process(
            address=os.environ[prefork.ADDRESS_ENV],
            module=module,
            arguments=arguments,
            cwd=tmp_path,
            environment=command_environment(**environment),
            stdin=stdin,
        )

    return start


@pytest.fixture
def command(start_command: Callable[..., prefork.Process]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """A function that runs a command to its end, as `start_command` starts it."""

    def run(
        name: str, *arguments: str, timeout: float = 900, stdin: bytes = b"", **environment: str
    ) -> subprocess.CompletedProcess[str]:
        with start_command(name, *arguments, stdin=stdin, **environment) as process:
            output, errors = process.communicate(timeout)
        return subprocess.CompletedProcess(process.args, process.returncode, output, errors)

    return run


@pytest.fixture
def fresh_command(
    tmp_path: Path, command_environment: Callable[..., dict[str, str]]
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """A function that runs `python -m dogbreeds.<name>` in a new interpreter, and in a new DOGBREEDS_HOME."""

    def run(name: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", f"dogbreeds.{name}", *arguments],
            cwd=tmp_path,
            env=command_environment(**environment),
            capture_output=True,
            text=True,
            timeout=900,
        )

    return run


@pytest.fixture
def ray_environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Environment variables that keep Ray's files out of the user's folders; its sockets need a short path."""
    short_path = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    yield {"RAY_TMPDIR": short_path, "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token"), "RAY_AUTH_MODE": "disabled"}
    shutil.rmtree(short_path, ignore_errors=True)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
