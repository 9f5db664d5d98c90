"""The logged model as `mlflow models serve` runs it: over loopback, in a process that does not have this project."""

import base64
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from dogbreeds.data import drawn_dogs

SECONDS = 900


def _jpeg(tmp_path: Path, breed: int) -> bytes:
    file = tmp_path / f"{breed}.jpg"
    Image.fromarray(drawn_dogs.draw("test", breed, 1)).resize((91, 37)).save(file, quality=95)
    return file.read_bytes()


def _post(address: str, photos: list[bytes], **params: int) -> tuple[int, dict]:
    rows = [[base64.b64encode(photo).decode()] for photo in photos]
    body = {"dataframe_split": {"columns": ["photo"], "data": rows}} | ({"params": params} if params else {})
    request = urllib.request.Request(
        f"{address}/invocations", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


@pytest.fixture
def served(command, tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """The address of a model that is served, and the network's own file."""
    ran = command("train", "phase.epochs=2", "data.breeds=12", "tracking.system_metrics_seconds=0")
    assert ran.returncode == 0, ran.stderr
    exported = command("export", "formats=[keras]", "photos=10", "register=dogs")
    assert exported.returncode == 0, exported.stderr
    (network,) = (tmp_path / "home/multirun/exported").glob("*/model.keras")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "dogbreeds").mkdir(parents=True)
    # Found before the project wherever that is installed; only what is shipped with the model comes before this.
    (elsewhere / "dogbreeds/__init__.py").write_text("raise ImportError('the project is not here')\n")
    environment = {key: value for key, value in os.environ.items() if key != "DOGBREEDS_HOME"} | {
        "PYTHONPATH": str(elsewhere)
    }
    environment |= {
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/home/mlruns/mlflow.db",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    mlflow = shutil.which("mlflow", path=environment["PATH"]) or "mlflow"
    log = (tmp_path / "served.txt").open("w")
    process = subprocess.Popen(
        [
            mlflow,
            "models",
            "serve",
            "-m",
            "models:/dogs@champion",
            "--env-manager",
            "local",
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
        ],
        cwd=elsewhere,
        env=environment,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        _wait(address, process, tmp_path / "served.txt")
        yield address, network
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        log.close()


def _wait(address: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    until = time.monotonic() + SECONDS
    while time.monotonic() < until and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{address}/ping", timeout=5) as response:
                if response.status == 200:
                    return
        except OSError:
            time.sleep(0.5)
    pytest.fail(f"nothing was served: {log.read_text()[-2000:]}")


@pytest.mark.slow
def test_a_photo_sent_over_http_is_answered_as_the_trained_network_would(
    served: tuple[str, Path], tmp_path: Path
) -> None:
    from dogbreeds.data.image import decode
    from dogbreeds.inference.classifier import load

    address, network = served
    classifier = load(network)
    photos = [_jpeg(tmp_path, breed) for breed in (0, 5, 11)]
    status, body = _post(address, photos)
    assert status == 200, body
    assert len(body["predictions"]) == 3
    for photo, said in zip(photos, body["predictions"], strict=True):
        expected = classifier.whole(decode(photo, "photo")[None])
        scores = expected["probabilities"].numpy()[0]
        assert said["breed"] == expected["breed"].numpy()[0].decode()
        assert said["probability"] == pytest.approx(scores.max(), abs=1e-4)
        assert len(said["probabilities"]) == 5
        for name, probability in said["probabilities"].items():
            assert probability == pytest.approx(scores[classifier.class_names.index(name)], abs=1e-4)
    # It has learned something: agreement is not of two blanks
    assert min(said["probability"] for said in body["predictions"]) > 1.5 / 12
    assert [len(said["probabilities"]) for said in _post(address, photos[:1], top=2)[1]["predictions"]] == [2]

    cut = photos[0][: len(photos[0]) // 2]
    for sent, params, sentence in (
        ([photos[0], cut], {}, "Photo 2 of 2 cannot be read as a photo (image file is truncated"),
        (
            [b"GIF89a nothing"],
            {},
            (
                "Photo 1 of 1 cannot be read as a photo (it does not begin as one). Photos must be whole JPEG, PNG or"
                " WebP files."
            ),
        ),
        (photos[:1], {"top": 13}, "params.top was 13. It must be a whole number from 1 to 12."),
    ):
        status, body = _post(address, sent, **params)
        assert status == 400
        assert sentence in body["message"], body
        assert "on_corrupt" not in body["message"]
    # And goes on
    assert _post(address, photos[:1])[0] == 200
