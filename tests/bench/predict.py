"""What `predict` costs beside the bare network: photos a second from files, and peak memory. `make bench-predict` runs it.

python tests/bench/predict.py                  # EfficientNet-B0 with random weights, which cost the same, on drawn photos of 224 px
python tests/bench/predict.py model.keras      # a network that an attempt kept
python tests/bench/predict.py miniature        # 64 px, and so fast that decoding a photo is a good part of the work

Photos are real ones where DOGBREEDS_REAL_DATA names them. The bare network is the saved one, compiled, on batches that are decoded and in memory
already; its core alone is what it does after the resize, with its weights folded in. All take the same batches, and turns in one process, so
that what else the machine does falls on all.
"""

import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from PIL import Image

from dogbreeds.core.console import quiet_stderr
from dogbreeds.core.paths import home
from dogbreeds.data import drawn_dogs
from dogbreeds.experiments import compose
from dogbreeds.experiments.compose import from_config
from dogbreeds.experiments.run import Run
from dogbreeds.inference import image_sources
from dogbreeds.inference.classifier import Classifier, load
from dogbreeds.inference.predictor import answers, network
from dogbreeds.models.network import assemble

TOP, BREEDS = 3, 120
# VmHWM and not ru_maxrss, which a process inherits: it begins with the peak of the one that started it.
_PEAK = (
    "from dogbreeds import command, predict\ncommand.main(predict.task, 'predict')\nprint('peak',"
    " next(int(line.split()[1]) // 1024 for line in open('/proc/self/status') if line.startswith('VmHWM')))"
)


@dataclass(frozen=True)
class Workload:
    """How many photos are predicted, and how often; the defaults are what `make bench-predict` reports.

    Attributes:
        photos: that rates are measured on.
        rounds: of which the median counts.
        peaks: how many of the photos each command goes through whose peak memory is measured.
        change: what is changed in the run of an untrained network that no setting can change.
    """

    photos: int = 1_000
    rounds: int = 5
    peaks: tuple[int, ...] = (250, 1_000)
    change: Callable[[Run], Run] = lambda run: run


FULL = Workload()


def main(wanted: str = "effnetb0", workload: Workload = FULL) -> dict[int, int]:
    """Print rates and peaks, and return the MiB of each number of photos.

    Args:
        wanted: a model with untrained weights, or a saved network's file.
        workload: how many photos, and how often.
    """
    with quiet_stderr():
        import tensorflow  # noqa: F401
    peaks: dict[int, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        file = Path(wanted) if wanted.endswith(".keras") else saved(place, wanted, workload)
        classifier = load(file)
        root = photos(place, classifier.size, workload.photos)
        measure(classifier, root, workload)
        for count in workload.peaks:
            peaks[count] = peak(file, root, count)
            print(f"{count:6,} photos: peak {peaks[count]:,} MiB", flush=True)
    return peaks


def photos(place: Path, side: int, total: int) -> Path:
    """A folder with so many photos as JPEG: real ones, evenly over their classes, or drawn ones with so many pixels a side."""
    root, real = place / "photos", os.environ.get("DOGBREEDS_REAL_DATA")
    root.mkdir()
    if real:
        there = sorted((Path(real) / "stanford_dogs_224/test").glob("*/*.jpg"))
        for number, row in enumerate(np.linspace(0, len(there) - 1, total).astype(int)):
            shutil.copy(there[row], root / f"{number:04}.jpg")
        return root
    for number in range(total):
        drawn = Image.fromarray(drawn_dogs.draw("test", number % drawn_dogs.BREEDS, number // drawn_dogs.BREEDS))
        drawn.resize((side, side)).save(root / f"{number:04}.jpg", quality=90)
    return root


def saved(place: Path, model: str, workload: Workload) -> Path:
    """A network as an attempt keeps it, but untrained."""
    weights = [] if model == "miniature" else ["model.weights=null"]
    run = workload.change(
        from_config(compose.composed("train", [f"model={model}", *weights, "data=folder", f"data.root={place}"]))
    )
    backbone = run.model.build(0)
    plan = run.unfreeze.plan(backbone.blocks)
    built = assemble(backbone, run.preprocessing, plan, lambda features: run.head.build(features, BREEDS, 0))
    built.whole(tuple(f"breed {number}" for number in range(BREEDS)), "stretch").save(place / "model.keras")
    return place / "model.keras"


def measure(classifier: Classifier, root: Path, workload: Workload) -> None:
    """Prints the rates of each round, and the median ratios."""
    import tensorflow as tf

    batch, total = classifier.batch_size(), workload.photos
    # [n, h, w, 3] uint8
    ready = np.stack([photo.pixels() for photo in image_sources.found([str(root)], sys.stdin.buffer).photos])
    small = np.stack([classifier.resizer(photo) for photo in ready])
    whole = tf.function(lambda shown: classifier.whole(shown, training=False), reduce_retracing=True)
    run = network(classifier, explained=False)

    def bare() -> None:
        for start in range(0, total, batch):
            whole(tf.constant(ready[start : start + batch]))["probabilities"].numpy()

    def core() -> None:
        for start in range(0, total, batch):
            classifier.logits(small[start : start + batch])

    def ours() -> None:
        read = sum(
            not answer.error
            for answer in answers(
                classifier, run, image_sources.found([str(root)], sys.stdin.buffer).photos, batch, TOP
            )
        )
        assert read == total

    ways: dict[str, Callable[[], None]] = {
        "the bare network": bare,
        "its core alone": core,
        "predict, from files": ours,
    }
    for way in ways.values():
        # Compiled, and files in the page cache
        way()
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(workload.rounds):
        for name, way in ways.items():
            seconds[name].append(timed(way))
    print(
        f"{total:,} photos of {ready.shape[1]} px, network of {classifier.size} px, {batch} at a time, {os.cpu_count()}"
        " cores, images/s:"
    )
    for name, values in seconds.items():
        rates = [total / wall for wall, _ in values]
        print(f"{name:22} {statistics.median(rates):8.1f}   ({', '.join(f'{rate:.1f}' for rate in rates)})")
    print(
        "predict's rate, as a part of what it is beside; by the clock, and by the processor's time, which other"
        " processes do not lengthen:"
    )
    for name in ("the bare network", "its core alone"):
        for kind, what in enumerate(("clock", "processor")):
            ratios = [
                other[kind] / mine[kind]
                for mine, other in zip(seconds["predict, from files"], seconds[name], strict=True)
            ]
            print(
                f"{name:18} {what:10} {statistics.median(ratios):6.3f}  "
                f" ({', '.join(f'{ratio:.3f}' for ratio in ratios)})",
                flush=True,
            )


def timed(way: Callable[[], None]) -> tuple[float, float]:
    """Seconds of the clock, and of the processor."""
    started, used = time.perf_counter(), time.process_time()
    way()
    return time.perf_counter() - started, time.process_time() - used


def peak(file: Path, root: Path, count: int) -> int:
    """MiB at most, while the command goes through so many photos."""
    listed = "".join(f"{photo}\n" for photo in sorted(root.iterdir())[:count])
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "conf").symlink_to(home() / "conf")
        settings = (f"run={file}", "images=-", "format=csv", f"output={folder}/breeds.csv")
        environment = os.environ | {"DOGBREEDS_HOME": folder, "PYTHONPATH": str(home())}
        done = subprocess.run(
            [sys.executable, "-c", _PEAK, *settings], input=listed, capture_output=True, text=True, env=environment
        )
    found = re.search(r"peak (\d+)", done.stdout)
    if done.returncode or found is None:
        raise RuntimeError(f"the command ended with {done.returncode}: {done.stderr}")
    return int(found[1])


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "effnetb0")
