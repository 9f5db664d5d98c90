"""The logged model as `mlflow models serve` runs it: over HTTP, in a process that cannot import this project."""

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


def _jpeg(tmp_path: Path, label: int) -> bytes:
    file = tmp_path / f"{label}.jpg"
    Image.fromarray(drawn_dogs.draw("test", label, 1)).resize((91, 37)).save(file, quality=95)
    return file.read_bytes()


def _post(address: str, images: list[bytes], **params: int) -> tuple[int, dict]:
    rows = [[base64.b64encode(image).decode()] for image in images]
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
    """The address of a served model, and the file of its network."""
    ran = command("train", "phase.epochs=2", "data.classes=12", "tracking.system_metrics_seconds=0")
    assert ran.returncode == 0, ran.stderr
    exported = command("export", "formats=[keras]", "images=10", "register=dogs")
    assert exported.returncode == 0, exported.stderr
    (network,) = (tmp_path / "home/multirun/exported").glob("*/model.keras")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "dogbreeds").mkdir(parents=True)
    # This package hides an installed project. Only the modules that are logged with the model come before it.
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
def test_served_model_predicts_as_the_trained_network_and_refuses_bad_requests(
    served: tuple[str, Path], tmp_path: Path
) -> None:
    from dogbreeds.data.image import decode
    from dogbreeds.inference.classifier import load

    address, network = served
    classifier = load(network)
    images = [_jpeg(tmp_path, label) for label in (0, 5, 11)]
    status, body = _post(address, images)
    assert status == 200, body
    assert len(body["predictions"]) == 3
    for image, prediction in zip(images, body["predictions"], strict=True):
        expected = classifier.model(decode(image, "image")[None])
        probabilities = expected["probabilities"].numpy()[0]
        assert prediction["breed"] == expected["breed"].numpy()[0].decode()
        assert prediction["probability"] == pytest.approx(probabilities.max(), abs=1e-4)
        assert len(prediction["probabilities"]) == 5
        for name, probability in prediction["probabilities"].items():
            assert probability == pytest.approx(probabilities[classifier.class_names.index(name)], abs=1e-4)
    # The network has learned something, so the comparison is not one of two untrained networks.
    assert min(prediction["probability"] for prediction in body["predictions"]) > 1.5 / 12
    assert [len(prediction["probabilities"]) for prediction in _post(address, images[:1], top=2)[1]["predictions"]] == [
        2
    ]

    truncated = images[0][: len(images[0]) // 2]
    for sent, params, *facts in (
        ([images[0], truncated], {}, "Image 2 of 2 cannot be read", "(image file is truncated"),
        (
            [b"GIF89a nothing"],
            {},
            "Image 1 of 1 cannot be read",
            "JPEG, PNG or WebP signature",
            "JPEG, PNG or WebP files.",
        ),
        (images[:1], {"top": 13}, "params.top was 13. ", "from 1 to 12", 'Send "params": {"top": 3}'),
    ):
        status, body = _post(address, sent, **params)
        assert status == 400
        assert all(fact in body["message"] for fact in facts), body
        assert "on_corrupt" not in body["message"]
    # The server still answers after bad requests.
    assert _post(address, images[:1])[0] == 200
