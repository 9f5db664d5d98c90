"""Benchmark of the command `predict`: images per second from files compared with the network alone, and peak memory.

python tests/bench/predict.py                  # EfficientNet-B0 at 224 px with random weights, as fast as trained ones
python tests/bench/predict.py model.keras      # a saved network
python tests/bench/predict.py miniature        # 64 px; so fast that decoding is a large part of the work

`make bench-predict` runs the first. Images are drawn, or come from DOGBREEDS_REAL_DATA if it is set. Three ways are
timed: the saved network, compiled, on decoded batches in memory; the network without its resize and with folded
weights, on resized batches; and the pipeline of `predict`, from files. All use the same batches and take turns in one
process, so that other load on the machine affects them equally.
"""

import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from PIL import Image

from dogbreeds.core.console import quiet_stderr
from dogbreeds.core.paths import home
from dogbreeds.data import drawn_dogs
from dogbreeds.experiments import compose
from dogbreeds.experiments.compose import from_config
from dogbreeds.experiments.run import Run
from dogbreeds.inference.classifier import Classifier, load
from dogbreeds.inference.image_sources import NamedImage, find_images
from dogbreeds.inference.predictor import inference_function, predict_images
from dogbreeds.models.assembly import assemble

TOP = 3
NUM_CLASSES = 120
NETWORK = "saved network"
CORE = "network without resize"
PREDICT = "predict from files"
# Runs the command and prints its peak memory in MiB. VmHWM, because ru_maxrss starts at the parent's peak.
_MEASURE_PEAK = (
    "from dogbreeds import cli, predict\ncli.main(predict.task, 'predict')\nprint('peak',"
    " next(int(line.split()[1]) // 1024 for line in open('/proc/self/status') if line.startswith('VmHWM')))"
)


@dataclass(frozen=True)
class Workload:
    """Size of the benchmark; the defaults are what `make bench-predict` runs.

    Attributes:
        images: number of images that rates are measured on.
        rounds: of which the median is reported.
        peaks: numbers of images to measure the command's peak memory on.
        change: changes the run of an untrained network where no setting can.
    """

    images: int = 1_000
    rounds: int = 5
    peaks: tuple[int, ...] = (250, 1_000)
    change: Callable[[Run], Run] = lambda run: run


class Times(NamedTuple):
    """Seconds by the clock, and of processor time, which other processes do not lengthen."""

    clock: float
    processor: float


FULL = Workload()


def main(model: str = "effnetb0", workload: Workload = FULL) -> dict[int, int]:
    """Print rates and peaks of memory.

    Args:
        model: option of `conf/model/`, with untrained weights, or a saved network's file.
        workload: size of the benchmark.

    Returns:
        Peak memory in MiB by number of images.
    """
    with quiet_stderr():
        import tensorflow  # noqa: F401
    peaks: dict[int, int] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        file = Path(model) if model.endswith(".keras") else save_untrained(folder, model, workload)
        classifier = load(file)
        root = write_images(folder, classifier.image_size, workload.images)
        measure_rates(classifier, root, workload)
        for count in workload.peaks:
            peaks[count] = peak_memory(file, root, count)
            print(f"{count:6,} images: peak {peaks[count]:,} MiB", flush=True)
    return peaks


def write_images(folder: Path, size: int, total: int) -> Path:
    """Write JPEG images: real ones, spread over their classes, or drawn ones with `size` pixels a side."""
    root = folder / "photos"
    root.mkdir()
    real_data = os.environ.get("DOGBREEDS_REAL_DATA")
    if real_data:
        files = sorted((Path(real_data) / "stanford_dogs_224/test").glob("*/*.jpg"))
        for number, row in enumerate(np.linspace(0, len(files) - 1, total).astype(int)):
            shutil.copy(files[row], root / f"{number:04}.jpg")
        return root
    for number in range(total):
        index, label = divmod(number, drawn_dogs.NUM_BREEDS)
        image = Image.fromarray(drawn_dogs.draw("test", label, index))
        image.resize((size, size)).save(root / f"{number:04}.jpg", quality=90)
    return root


def save_untrained(folder: Path, model: str, workload: Workload) -> Path:
    """Save an untrained network as a training run saves a trained one."""
    weights = [] if model == "miniature" else ["model.weights=null"]
    overrides = [f"model={model}", *weights, "data=folder", f"data.root={folder}"]
    run = workload.change(from_config(compose.compose_config("train", overrides)))
    backbone = run.model.build(0)
    plan = run.unfreeze.plan(backbone.blocks)
    network = assemble(backbone, run.preprocessing, plan, lambda features: run.head.build(features, NUM_CLASSES, 0))
    file = folder / "model.keras"
    network.full_model(tuple(f"breed {number}" for number in range(NUM_CLASSES)), "stretch").save(file)
    return file


def measure_rates(classifier: Classifier, root: Path, workload: Workload) -> None:
    """Print the images per second of each way, and the ratios of `predict` to the others."""
    import tensorflow as tf

    batch_size = classifier.batch_size()
    total = workload.images

    def images() -> Iterator[NamedImage]:
        return find_images([str(root)], sys.stdin.buffer).images

    # [n, h, w, 3] uint8, as decoded, and at the network's size.
    decoded = np.stack([image.pixels() for image in images()])
    resized = np.stack([classifier.decode(image.pixels) for image in images()])
    saved_network = tf.function(lambda batch: classifier.model(batch, training=False), reduce_retracing=True)
    infer = inference_function(classifier, explain=False)

    def run_network() -> None:
        for start in range(0, total, batch_size):
            saved_network(tf.constant(decoded[start : start + batch_size]))["probabilities"].numpy()

    def run_core() -> None:
        for start in range(0, total, batch_size):
            classifier.logits(resized[start : start + batch_size])

    def run_predict() -> None:
        predictions = predict_images(classifier, infer, images(), batch_size=batch_size, top=TOP)
        assert sum(not prediction.error for prediction in predictions) == total

    ways: dict[str, Callable[[], None]] = {NETWORK: run_network, CORE: run_core, PREDICT: run_predict}
    # An untimed round compiles, and brings the files into the page cache.
    for way in ways.values():
        way()
    times: dict[str, list[Times]] = {name: [] for name in ways}
    for _ in range(workload.rounds):
        for name, way in ways.items():
            times[name].append(timed(way))
    print(
        f"{total:,} images of {decoded.shape[1]} px, network of {classifier.image_size} px, batches of {batch_size},"
        f" {os.cpu_count()} cores, images/s:"
    )
    for name, rounds in times.items():
        rates = [total / seconds.clock for seconds in rounds]
        print(f"{name:22} {statistics.median(rates):8.1f}   ({', '.join(f'{rate:.1f}' for rate in rates)})")
    _print_ratios(times)


def _print_ratios(times: dict[str, list[Times]]) -> None:
    """Print how fast `predict` is relative to the other ways, by the clock and by processor time."""
    print("rate of predict relative to the others, by the clock and by processor time:")
    for name in (NETWORK, CORE):
        pairs = list(zip(times[PREDICT], times[name], strict=True))
        for clock, ratios in (
            ("clock", [other.clock / ours.clock for ours, other in pairs]),
            ("processor", [other.processor / ours.processor for ours, other in pairs]),
        ):
            rounds = ", ".join(f"{ratio:.3f}" for ratio in ratios)
            print(f"{name:22} {clock:10} {statistics.median(ratios):6.3f}   ({rounds})", flush=True)


def timed(way: Callable[[], None]) -> Times:
    """Run a way once and return the time it took."""
    started = time.perf_counter()
    processor_started = time.process_time()
    way()
    return Times(time.perf_counter() - started, time.process_time() - processor_started)


def peak_memory(file: Path, root: Path, count: int) -> int:
    """Return the peak memory, in MiB, of the command on `count` images."""
    paths = "".join(f"{path}\n" for path in sorted(root.iterdir())[:count])
    with tempfile.TemporaryDirectory() as folder:
        settings = (f"run={file}", "images=-", "format=csv", f"output={folder}/classes.csv")
        environment = os.environ | {"DOGBREEDS_HOME": folder, "PYTHONPATH": str(home())}
        done = subprocess.run(
            [sys.executable, "-c", _MEASURE_PEAK, *settings],
            input=paths,
            capture_output=True,
            text=True,
            env=environment,
        )
    found = re.search(r"peak (\d+)", done.stdout)
    if done.returncode or found is None:
        raise RuntimeError(f"the command ended with exit code {done.returncode}: {done.stderr}")
    return int(found[1])


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "effnetb0")
