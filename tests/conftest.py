"""Small real inputs: drawn photos on disk, composed runs, and caches of their own."""

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

from dogbreeds import command as commands
from dogbreeds import miniature
from dogbreeds.run import Run, from_config
from dogbreeds.spec import home

if TYPE_CHECKING:
    import keras

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite store as MLflow makes it, made once: it takes seconds."""
    import mlflow

    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    mlflow.MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def composed(tmp_path: Path, empty_store: Path) -> Callable[..., Run]:
    """A function from overrides to a run whose caches and records lie in the test's folder."""
    (tmp_path / "mlruns").mkdir()
    shutil.copy(empty_store, tmp_path / "mlruns/mlflow.db")

    def run(*overrides: str) -> Run:
        places = [f"features.dir={tmp_path}/kept", f"checkpoint_dir={tmp_path}/checkpoints"]
        if not any(override.startswith("tracking=") for override in overrides):
            places += [f"tracking.uri=sqlite:///{tmp_path}/mlruns/mlflow.db", f"tracking.artifacts={tmp_path}/mlruns/artifacts"]
        return from_config(commands.composed("train", [*places, *overrides]))

    return run


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
                    picture = Image.fromarray(miniature.draw(stream, breed, number))
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
        network = getattr(keras.applications, architecture)(include_top=False, weights=None, input_shape=(size, size, 3), **more)
        photos = np.stack([miniature.draw("pretrain", breed, 0) for breed in range(96)])
        momenta = {layer: layer.momentum for layer in network.layers if isinstance(layer, keras.layers.BatchNormalization)}
        for layer in momenta:
            layer.momentum = 0.0
            if layer.name.endswith("_3_bn"):  # of ResNet's residual branches, as trained ones are: random ones at full strength amplify rounding
                layer.gamma.assign(layer.gamma * 0.2)
        shown = photos if pixels == "raw" else keras.applications.imagenet_utils.preprocess_input(photos.astype(np.float32), mode=pixels)
        network(shown, training=True)
        for layer, momentum in momenta.items():
            layer.momentum = momentum
        network.save_weights(tmp_path / f"{architecture}.weights.h5")
        return network

    return build


@pytest.fixture
def begun(tmp_path: Path) -> Callable[..., "subprocess.Popen[str]"]:
    """Begins `python -m dogbreeds.<name>` as a user does, from another folder, with a home of its own for runs and records."""

    def begin(name: str, *arguments: str, **environment: str) -> "subprocess.Popen[str]":
        place = tmp_path / "home"
        place.mkdir(exist_ok=True)
        if not (place / "conf").exists():
            (place / "conf").symlink_to(home() / "conf")
        return subprocess.Popen(
            [sys.executable, "-m", f"dogbreeds.{name}", *arguments],
            cwd=tmp_path,
            env=os.environ | {"DOGBREEDS_HOME": str(place), "DOGBREEDS_CACHE": str(tmp_path / "cache"), "PYTHONPATH": str(home())} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # so that a test can end it with all its processes
        )

    return begin


@pytest.fixture
def command(begun: "Callable[..., subprocess.Popen[str]]") -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs a command as `begun` begins it, to its end."""

    def run(name: str, *arguments: str, timeout: float = 900, **environment: str) -> subprocess.CompletedProcess[str]:
        with begun(name, *arguments, **environment) as process:
            try:
                output, errors = process.communicate(timeout=timeout)
            finally:
                process.kill()
        return subprocess.CompletedProcess(process.args, process.returncode, output, errors)

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
