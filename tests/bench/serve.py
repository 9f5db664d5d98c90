"""Benchmark of a served model: 1,000 images in one request, 50 requests at once, and what it refuses; peak memory.

python tests/bench/serve.py                  # EfficientNet-B0 at 224 px with random weights, as fast as trained ones
python tests/bench/serve.py model.keras      # a saved network
python tests/bench/serve.py miniature        # 64 px; so fast that decoding is most of the work

`make bench-serve` runs the first. The network is logged, with the limits of `conf/export.yaml`, and served by
`mlflow models serve`, as in the README. Images are drawn, JPEG files of 500 x 375 pixels, as photos of the web are.
"""

import contextlib
import io
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import psutil
from PIL import Image

from dogbreeds.core.console import quiet_stderr
from dogbreeds.data import drawn_dogs
from dogbreeds.experiments.compose import compose_config
from dogbreeds.inference.classifier import load
from dogbreeds.tracking.logged_model import ServingLimits, log_model
from dogbreeds.tracking.mlflow_backend import Mlflow
from tests.bench.predict import FULL as PREDICT_WORKLOAD
from tests.bench.predict import save_untrained

WIDTH, HEIGHT = 500, 375
_SECONDS_TO_START = 300


@dataclass(frozen=True)
class Workload:
    """Size of the benchmark; the defaults are what `make bench-serve` runs.

    Attributes:
        images: in the one large request.
        clients: number of requests at once, with one image each.
        rounds: of these and of single requests.
        records: in a request that is refused for its number of images.
        bombs: number of black images in a request that is refused for its megapixels.
        bomb_side: width and height of each in pixels.
        limits: of the served model; None for those of `conf/export.yaml`.
    """

    images: int = 1_000
    clients: int = 50
    rounds: int = 5
    records: int = 10_000
    bombs: int = 8
    bomb_side: int = 9_900
    limits: ServingLimits | None = None


class Served(NamedTuple):
    """A served model: its address, and the process whose memory is measured, with its children."""

    address: str
    process: int


class Answer(NamedTuple):
    """Status and body of an answer, and how long it took."""

    status: int
    body: dict[str, Any]
    seconds: float


# Serves a logged model of a tracking store, until the context ends.
Serve = Callable[[str, str], AbstractContextManager[Served]]
FULL = Workload()


def main(
    model: str = "effnetb0", workload: Workload = FULL, serve: "Serve | None" = None, store: Path | None = None
) -> dict[str, float]:
    """Log a network, serve it, and measure it.

    Args:
        model: option of `conf/model/`, with untrained weights, or a saved network's file.
        workload: size of the benchmark.
        serve: serves the logged model; None for `mlflow models serve` in a process of its own.
        store: an empty SQLite store, which is copied, since creating one takes seconds; None to create one.

    Returns:
        Measurements by name.
    """
    with quiet_stderr():
        import tensorflow  # noqa: F401
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        file = Path(model) if model.endswith(".keras") else save_untrained(folder, model, PREDICT_WORKLOAD)
        if store is not None:
            shutil.copy(store, folder / "mlflow.db")
        uri = f"sqlite:///{folder}/mlflow.db"
        limits = workload.limits or ServingLimits(**compose_config("export", [])["serving"])
        model_id = log_network(file, uri, folder, limits)
        started = time.perf_counter()
        with (serve or mlflow_serve)(uri, model_id) as served:
            return measure(served, workload) | {"seconds/start": time.perf_counter() - started}


def log_network(file: Path, uri: str, folder: Path, limits: ServingLimits) -> str:
    """Log a network in a new store, and return the model's id."""
    tracking = Mlflow(
        uri=uri,
        artifacts=str(folder / "artifacts"),
        experiment="bench",
        patience_minutes=1,
        ui="http://127.0.0.1:5000",
        model="best",
        system_metrics_seconds=0,
    )
    client, experiment_id = tracking.connect()
    run_id = client.create_run(experiment_id).info.run_id
    client.set_terminated(run_id)
    num_classes = len(load(file).class_names)
    return log_model(tracking, tracking.record(run_id), file, image_file(0), num_classes, limits)


@contextlib.contextmanager
def mlflow_serve(uri: str, model_id: str) -> Iterator[Served]:
    """Run `mlflow models serve`, and wait until it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = str(Path(sys.executable).parent)
    environment = os.environ | {"MLFLOW_TRACKING_URI": uri, "PATH": f"{folder}:{os.environ['PATH']}"}
    command = ["mlflow", "models", "serve", "-m", f"models:/{model_id}", "--env-manager", "local", "--port", str(port)]
    # A slow machine is to be measured too.
    command += ["--timeout", "600"]
    with tempfile.TemporaryFile() as log:
        # Python's own path would let the server import what is not logged.
        environment.pop("PYTHONPATH", None)
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=tempfile.gettempdir())
        address = f"http://127.0.0.1:{port}"
        try:
            until = time.monotonic() + _SECONDS_TO_START
            while not _answers(address):
                if process.poll() is not None or time.monotonic() > until:
                    log.seek(0)
                    raise RuntimeError(f"nothing was served: {log.read().decode()[-2000:]}")
                time.sleep(0.2)
            yield Served(address, process.pid)
        finally:
            for each in [*psutil.Process(process.pid).children(recursive=True), process]:
                with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
                    each.kill()
            process.wait()


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/ping", timeout=5) as response:
            return response.status == 200
    except OSError:
        return False


def measure(served: Served, workload: Workload) -> dict[str, float]:
    """Print and return what a served model takes for its requests."""
    found: dict[str, float] = {}
    images = [image_file(number) for number in range(min(workload.images, 200))]
    size = sum(map(len, images)) / len(images)
    print(f"images of {WIDTH} x {HEIGHT} pixels, {size / 1024:.0f} KiB each; {os.cpu_count()} cores")

    single = request(images[:1])
    singles = [_answered(post(served, single)).seconds for _ in range(workload.rounds)]
    found["seconds/one image"] = statistics.median(singles)
    print(f"one image: {1000 * found['seconds/one image']:.0f} ms (median of {workload.rounds})")

    many = request([images[number % len(images)] for number in range(workload.images)])
    answer = _answered(post(served, many), workload.images)
    found["rate/one request"] = workload.images / answer.seconds
    found["memory/one request"] = peak_memory(served)
    _print(
        f"{workload.images:,} images in one request, {len(many) / 2**20:.0f} MiB", answer.seconds, found, "one request"
    )

    seconds = []
    started = time.perf_counter()
    with ThreadPoolExecutor(workload.clients) as clients:
        for _ in range(workload.rounds):
            answers = list(clients.map(lambda _: _answered(post(served, single)), range(workload.clients)))
            seconds += [each.seconds for each in answers]
    total = time.perf_counter() - started
    found["rate/at once"] = workload.clients * workload.rounds / total
    found["memory/at once"] = peak_memory(served)
    found["seconds/slowest at once"] = max(seconds)
    _print(f"{workload.clients} requests at once, {workload.rounds} times", total, found, "at once")
    print(f"the slowest of them was answered after {max(seconds):.2f} s, half after {statistics.median(seconds):.2f} s")

    for name, body in (
        (f"{workload.records:,} images", request(images[:1] * workload.records)),
        (
            f"{workload.bombs} black images of {workload.bomb_side**2 / 1e6:.0f} megapixels",
            request([black(workload)] * workload.bombs),
        ),
    ):
        answer = post(served, body)
        found[f"seconds/{name}"] = answer.seconds
        found[f"status/{name}"] = answer.status
        reason = answer.body.get("message", "").rpartition("Error: ")[2]
        print(f"{name}: HTTP {answer.status} after {answer.seconds:.2f} s, peak {peak_memory(served):,} MiB: {reason}")
    return found


def _print(what: str, seconds: float, found: dict[str, float], key: str) -> None:
    rate, memory = found[f"rate/{key}"], found[f"memory/{key}"]
    print(f"{what}: {seconds:.1f} s, {rate:.1f} images/s, peak {memory:,.0f} MiB", flush=True)


def _answered(answer: Answer, images: int = 1) -> Answer:
    if answer.status != 200 or len(answer.body["predictions"]) != images:
        raise RuntimeError(f"HTTP {answer.status}: {str(answer.body)[-500:]}")
    return answer


def image_file(number: int) -> bytes:
    """Return a drawn image as the content of a JPEG file."""
    index, label = divmod(number, drawn_dogs.NUM_BREEDS)
    drawn = Image.fromarray(drawn_dogs.draw("test", label, index)).resize((WIDTH, HEIGHT))
    return encoded(drawn, "JPEG", quality=90)


def black(workload: Workload) -> bytes:
    """Return a PNG file of few bytes and many pixels."""
    return encoded(Image.new("L", (workload.bomb_side, workload.bomb_side)), "PNG")


def encoded(image: Image.Image, file_format: str, **options: int) -> bytes:
    """Return an image as the content of a file."""
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def request(images: list[bytes]) -> bytes:
    """Return the body of a request."""
    return json.dumps({"dataframe_records": [{"image": b64encode(image).decode()} for image in images]}).encode()


def post(served: Served, body: bytes) -> Answer:
    """Send a request and wait for the answer."""
    headers = {"Content-Type": "application/json"}
    started = time.perf_counter()
    try:
        sent = urllib.request.Request(f"{served.address}/invocations", body, headers)
        with urllib.request.urlopen(sent, timeout=600) as response:
            status, content = response.status, response.read()
    except urllib.error.HTTPError as error:
        status, content = error.code, error.read()
    seconds = time.perf_counter() - started
    return Answer(status, json.loads(content) if content.startswith(b"{") else {"message": content.decode()}, seconds)


def peak_memory(served: Served) -> int:
    """Return the peak memory in MiB of the largest process that serves."""
    process = psutil.Process(served.process)
    return max(_peak(each.pid) for each in [process, *process.children(recursive=True)])


def _peak(process: int) -> int:
    status = Path(f"/proc/{process}/status").read_text()
    return next((int(line.split()[1]) // 1024 for line in status.splitlines() if line.startswith("VmHWM")), 0)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "effnetb0")
