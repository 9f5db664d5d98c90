"""A folder that looks like a clone of the project after `make setup`, and a shell in it that runs what a user types."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import mlflow
from PIL import Image

from dogbreeds.data import drawn_dogs
from tests import prefork
from tests.documentation import ROOT

_LINKED = (".ci", "CHANGELOG.md", "Makefile", "conf", "docs", "dogbreeds", "examples", "pyproject.toml", "tests")
# The package's commands are forked from the server that has imported TensorFlow. All else is Python as it is.
_PYTHON = f"""#!/bin/sh
case "$1 $2" in "-m dogbreeds."*) exec {sys.executable} -S -E {prefork.__file__} "$@" ;; esac
exec {sys.executable} "$@"
"""
_SECONDS = 600.0


class Clone:
    """A clone, with images in the files and folders that the documentation names.

    Args:
        folder: where it is made.
        store: an empty store of MLflow, which is copied.
        environment: the environment variables of its shell.
    """

    def __init__(self, folder: Path, store: Path, environment: dict[str, str]):
        self.folder = folder
        programs = folder / ".venv/bin"
        programs.mkdir(parents=True)
        (folder / "mlruns").mkdir()
        shutil.copy(store, folder / "mlruns/mlflow.db")
        for name in _LINKED:
            (folder / name).symlink_to(ROOT / name)
        for name in ("mlflow", "mkdocs"):
            (programs / name).symlink_to(Path(sys.executable).parent / name)
        (programs / "python").write_text(_PYTHON)
        (programs / "python").chmod(0o755)
        # As `make setup EXTRAS=dev` writes it.
        (folder / ".venv/.ready").write_text("dev\n")
        # A make that runs the tests has set variables for its children.
        inherited = {name: value for name, value in environment.items() if not name.startswith(("MAKE", "MFLAGS"))}
        self._environment = inherited | {"DOGBREEDS_HOME": str(folder), "PATH": f"{programs}:{environment['PATH']}"}
        self._write_images()
        self._write_histories()

    def _write_images(self) -> None:
        for number, split in enumerate(("photos/train", "photos/test", "other/photos")):
            for label in range(3):
                for image in range(8):
                    self._draw(f"{split}/breed_{label}/{image}.jpg", label, 8 * number + image)
        listed = sorted(path.relative_to(self.folder) for path in self.folder.glob("photos/*/*/*.jpg"))
        rows = [f"{path},{path.parts[2]},{path.parts[1]}" for path in listed]
        (self.folder / "photos.csv").write_text("\n".join(["image,label,split", *rows]))
        for label, name in enumerate(("dog.jpg", "one.jpg", "two.jpg", "new/rex.jpg", "new/deep/rex.jpg")):
            self._draw(name, label % 3, 30 + label)

    def _write_histories(self) -> None:
        """Write logs of trainings for `judge`: as Keras' CSVLogger does, with a name of its own, and as JSON."""
        log = (ROOT / "tests/fixtures/keras_log.csv").read_text()
        (self.folder / "logs").mkdir()
        for name in ("log.csv", "logs/first.csv", "logs/second.csv"):
            (self.folder / name).write_text(log)
        (self.folder / "other.csv").write_text(log.replace("val_accuracy", "quality"))
        names, *rows = (line.split(",") for line in log.splitlines())
        curves = {name: [float(row[index]) for row in rows] for index, name in enumerate(names)}
        (self.folder / "log.json").write_text(json.dumps(curves))

    def _draw(self, name: str, label: int, number: int) -> None:
        file = self.folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(drawn_dogs.draw("train", label, number)).save(file, quality=95)

    def run(self, line: str) -> tuple[int, str]:
        """Run a line to its end; return the exit code, and its output with standard error."""
        with self._start(line) as shell:
            try:
                output, _ = shell.communicate(timeout=_SECONDS)
            finally:
                _end(shell)
        return shell.returncode, output

    def read_page(self, line: str, port: int) -> str:
        """Run a line that serves a page, and return the page; the server is ended."""
        until = time.monotonic() + _SECONDS
        with self._start(line) as shell:
            try:
                while time.monotonic() < until and shell.poll() is None:
                    try:
                        with urllib.request.urlopen(f"http://127.0.0.1:{port}", timeout=60) as response:
                            return response.read().decode()
                    except urllib.error.URLError:
                        time.sleep(0.2)
            finally:
                _end(shell)
            raise AssertionError(f"{line} served nothing: {shell.stdout.read()}")

    def _start(self, line: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            ["bash", "-euo", "pipefail", "-c", line],
            cwd=self.folder,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run_ids(self) -> list[str]:
        """Return the ids of the runs with a verdict, the oldest first."""
        client = mlflow.MlflowClient(f"sqlite:///{self.folder}/mlruns/mlflow.db")
        runs = client.search_runs(["1"], "tags.verdict != ''", order_by=["attributes.start_time ASC"])
        return [run.info.run_id for run in runs]


def _end(shell: "subprocess.Popen[str]") -> None:
    """End a shell with all that it has started, if it still runs."""
    if shell.poll() is None:
        os.killpg(shell.pid, signal.SIGTERM)
        shell.wait()
