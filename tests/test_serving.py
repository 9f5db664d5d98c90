"""The logged model as `mlflow models serve` runs it: over HTTP, in a process that cannot import this project."""

import base64
import html
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import psutil
import pytest
from PIL import Image

from dogbreeds.core.paths import home
from dogbreeds.data import drawn_dogs
from tests.bench import serve

SECONDS = 900
GUIDE = (home() / "docs/pages/guides/export-and-serve.md").read_text()
# Names of the three classes, which must go through everything unharmed; sorted, as the network has them.
ODD_NAMES = ("-2+3", 'Größe, "XL"', "🐕 <dog>")
# Settings of a run by its number of classes.
TRAINED: dict[int, tuple[str, ...]] = {
    3: ("phase.epochs=4",),
    120: (
        "phase.epochs=4",
        "data.classes=120",
        "data.train_per_class=4",
        "data.val_per_class=2",
        "data.test_per_class=2",
    ),
}


@dataclass(frozen=True)
class Served:
    """A served model.

    Attributes:
        address: of the server.
        network: file of the network.
        classes: number of classes.
        images: contents of the two images that the guide's lines ask about.
        answer: what they print.
        shell: process of the shell that runs the lines, whose child the server is.
    """

    address: str
    network: Path
    classes: int
    images: tuple[bytes, bytes]
    answer: dict
    shell: int


def _jpeg(label: int) -> bytes:
    drawn = Image.fromarray(drawn_dogs.draw("test", label, 1)).resize((91, 37))
    return serve.encoded(drawn, "JPEG", quality=95)


def _post(address: str, images: list[bytes], **params: int) -> tuple[int, dict]:
    rows = [[base64.b64encode(image).decode()] for image in images]
    body = {"dataframe_split": {"columns": ["image"], "data": rows}} | ({"params": params} if params else {})
    request = urllib.request.Request(
        f"{address}/invocations", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def _script(file: Path, *lines: str) -> None:
    file.write_text("\n".join(("#!/bin/sh", *lines, "")))
    file.chmod(0o755)


def _write_programs(folder: Path) -> Path:
    """Write `python`, which exports fewer images and formats, and `mlflow`, which cannot import the project."""
    hidden = folder / "hidden/dogbreeds"
    hidden.mkdir(parents=True)
    # This package hides an installed project. Only the modules that are logged with the model come before it.
    (hidden / "__init__.py").write_text("raise ImportError('the project is not here')\n")
    programs = folder / "programs"
    programs.mkdir()
    real = Path(sys.executable).parent
    _script(programs / "python", f'exec {sys.executable} "$@" "formats=[keras]" images=10')
    _script(
        programs / "mlflow",
        "unset DOGBREEDS_HOME DOGBREEDS_CACHE",
        f'PYTHONPATH={hidden.parent} PATH={real}:$PATH exec {real / "mlflow"} "$@"',
    )
    return programs


@pytest.fixture(params=[3, 120], ids=lambda classes: f"{classes}_classes")
def served(
    request: pytest.FixtureRequest, command, command_environment: Callable, tmp_path: Path, write_images: Callable
) -> Iterator[Served]:
    """Train, and run the lines of the guide that export, register, serve and ask, as they are written there."""
    classes = request.param
    data = ()
    if classes == 3:
        data = ("data=csv", f"data.table={_list_images(write_images(classes=3, train=12, val=8, test=8))}")
    ran = command("train", *TRAINED[classes], *data, "tracking.system_metrics_seconds=0")
    assert ran.returncode == 0, ran.stderr
    (lines,) = (block for block in re.findall(r"```sh\n(.*?)```", GUIDE, re.DOTALL) if "mlflow models serve" in block)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tmp_path / "home"
    images = _jpeg(0), _jpeg(2)
    for name, image in zip(("one.jpg", "two.jpg"), images, strict=True):
        (folder / name).write_bytes(image)
    environment = command_environment() | {"PATH": f"{_write_programs(tmp_path)}:{os.environ['PATH']}"}
    printed = tmp_path / "printed.txt"
    with printed.open("w") as log:
        shell = subprocess.Popen(
            ["bash", "-euo", "pipefail", "-c", f"{lines.replace('5001', str(port))}\nwait"],
            cwd=folder,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            answer = _wait_for_answer(printed, shell)
            (network,) = (folder / "multirun/exported").glob("*/model.keras")
            yield Served(f"http://127.0.0.1:{port}", network, classes, images, answer, shell.pid)
        finally:
            os.killpg(shell.pid, signal.SIGKILL)
            shell.wait()


def _list_images(root: Path) -> Path:
    """Write a table of the images below a folder, whose classes get odd names."""
    rows = [
        {"image": file.relative_to(root), "label": ODD_NAMES[int(file.parent.name[-1])], "split": file.parts[-3]}
        for file in root.rglob("*.jpg")
    ]
    pd.DataFrame(rows).to_csv(root / "images.csv", index=False)
    return root / "images.csv"


def _wait_for_answer(printed: Path, shell: "subprocess.Popen[bytes]") -> dict:
    until = time.monotonic() + SECONDS
    while time.monotonic() < until and shell.poll() is None:
        found = re.search(r'^\{"(?:predictions|error_code)".*\}$', printed.read_text(), re.MULTILINE)
        if found:
            return json.loads(found[0])
        time.sleep(0.2)
    pytest.fail(f"nothing was answered: {printed.read_text()[-3000:]}")


@pytest.mark.skipif(shutil.which("curl") is None, reason="the guide's lines need curl")
@pytest.mark.long
def test_served_model_predicts_as_the_trained_network_and_refuses_bad_requests(
    served: Served, command: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    from dogbreeds.data.image import decode
    from dogbreeds.inference.classifier import load

    address, classes = served.address, served.classes
    classifier = load(served.network)
    assert classifier.class_names == ODD_NAMES if classes == 3 else len(classifier.class_names) == classes
    top = min(5, classes)
    assert len(served.answer["predictions"]) == 2
    for image, prediction in zip(served.images, served.answer["predictions"], strict=True):
        expected = classifier.model(decode(image, "image")[None])
        probabilities = expected["probabilities"].numpy()[0]
        assert prediction["class"] == expected["class"].numpy()[0].decode()
        assert prediction["probability"] == pytest.approx(probabilities.max(), abs=1e-4)
        assert len(prediction["probabilities"]) == top
        for name, probability in prediction["probabilities"].items():
            assert probability == pytest.approx(probabilities[classifier.class_names.index(name)], abs=1e-4)
    # The network has learned something, so the comparison is not one of two untrained networks.
    assert min(prediction["probability"] for prediction in served.answer["predictions"]) > 1.5 / classes

    # The classes' names come through the other commands too.
    if classes == 3:
        evaluated = command("evaluate")
        assert evaluated.returncode == 0, evaluated.stderr
        (page,) = served.network.parents[2].glob("evaluation/*/*/*.html")
        shown = page.read_text()
        assert all(name in html.unescape(shown) for name in ODD_NAMES)
        assert "<dog>" not in shown
    images = list(served.images)
    status, body = _post(address, images[::-1])
    assert status == 200
    # The order within a batch changes the last digits.
    for prediction, earlier in zip(body["predictions"], served.answer["predictions"][::-1], strict=True):
        assert prediction["class"] == earlier["class"]
        assert prediction["probabilities"] == pytest.approx(earlier["probabilities"], abs=1e-4)
    (prediction,) = _post(address, images[:1], top=2)[1]["predictions"]
    assert len(prediction["probabilities"]) == 2

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
        (
            images[:1],
            {"top": classes + 1},
            f"params.top was {classes + 1}. ",
            f"from 1 to {classes}",
            'Send "params": {"top": 3}',
        ),
        (images[:1] * 1_001, {}, "The request has 1,001 images. At most 1,000 are allowed"),
    ):
        status, body = _post(address, sent, **params)
        assert status == 400
        assert all(fact in body["message"] for fact in facts), body
        assert "on_corrupt" not in body["message"]
    # The server still answers after bad requests, one large request, and several at once.
    workload = serve.Workload(images=100, clients=8, rounds=1, records=1_001, bombs=8)
    (server,) = psutil.Process(served.shell).children()
    measured = serve.measure(serve.Served(address, server.pid), workload)
    assert [value for name, value in measured.items() if name.startswith("status/")] == [400, 400]
    assert _post(address, images[:1])[0] == 200
