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
from pathlib import Path

import numpy as np

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from PIL import Image

from dogbreeds import command, images, miniature
from dogbreeds.classifier import Classifier, load
from dogbreeds.network import assemble
from dogbreeds.prediction import answers, network
from dogbreeds.run import from_config
from dogbreeds.spec import home
from dogbreeds.terminal import hushed

PHOTOS, FEWER, ROUNDS, TOP, BREEDS = 1_000, 250, 5, 3, 120
_PEAK = (
    "import resource, sys; from dogbreeds import command, predict\n"
    "command.main(predict.task, 'predict')\n"
    "print('peak', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)"
)


def main() -> None:
    with hushed():
        import tensorflow  # noqa: F401
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        wanted = sys.argv[1] if len(sys.argv) > 1 else "effnetb0"
        file = Path(wanted) if wanted.endswith(".keras") else saved(place, wanted)
        classifier = load(file)
        root = photos(place, classifier.size)
        measure(classifier, root)
        for count in (FEWER, PHOTOS):
            print(f"{count:6,} photos: peak {peak(file, root, count):,} MiB", flush=True)


def photos(place: Path, side: int) -> Path:
    """A folder with so many photos as JPEG: real ones, evenly over their classes, or drawn ones with so many pixels a side."""
    root, real = place / "photos", os.environ.get("DOGBREEDS_REAL_DATA")
    root.mkdir()
    if real:
        there = sorted((Path(real) / "stanford_dogs_224/test").glob("*/*.jpg"))
        for number, row in enumerate(np.linspace(0, len(there) - 1, PHOTOS).astype(int)):
            shutil.copy(there[row], root / f"{number:04}.jpg")
        return root
    for number in range(PHOTOS):
        drawn = Image.fromarray(miniature.draw("test", number % miniature.BREEDS, number // miniature.BREEDS))
        drawn.resize((side, side)).save(root / f"{number:04}.jpg", quality=90)
    return root


def saved(place: Path, model: str) -> Path:
    """A network as an attempt keeps it, but untrained."""
    weights = [] if model == "miniature" else ["model.weights=null"]
    run = from_config(command.composed("train", [f"model={model}", *weights, "data=folder", f"data.root={place}"]))
    backbone = run.model.build(0)
    plan = run.unfreeze.plan(backbone.blocks)
    built = assemble(backbone, run.preprocessing, plan, lambda features: run.head.build(features, BREEDS, 0))
    built.whole(tuple(f"breed {number}" for number in range(BREEDS)), "stretch").save(place / "model.keras")
    return place / "model.keras"


def measure(classifier: Classifier, root: Path) -> None:
    """Prints the rates of each round, and the median ratios."""
    import tensorflow as tf

    batch = classifier.batch_size()
    ready = np.stack([photo.pixels() for photo in images.found([str(root)], sys.stdin.buffer).photos])  # [n, h, w, 3] uint8
    small = np.stack([classifier.resizer(photo) for photo in ready])
    whole = tf.function(lambda shown: classifier.whole(shown, training=False), reduce_retracing=True)
    run = network(classifier, explained=False)

    def bare() -> None:
        for start in range(0, PHOTOS, batch):
            whole(tf.constant(ready[start : start + batch]))["probabilities"].numpy()

    def core() -> None:
        for start in range(0, PHOTOS, batch):
            classifier.logits(small[start : start + batch])

    def ours() -> None:
        read = sum(not answer.error for answer in answers(classifier, run, images.found([str(root)], sys.stdin.buffer).photos, batch, TOP))
        assert read == PHOTOS

    ways: dict[str, Callable[[], None]] = {"the bare network": bare, "its core alone": core, "predict, from files": ours}
    for way in ways.values():
        way()  # compiled, and files in the page cache
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            seconds[name].append(timed(way))
    print(f"{PHOTOS:,} photos of {ready.shape[1]} px, network of {classifier.size} px, {batch} at a time, {os.cpu_count()} cores, images/s:")
    for name, values in seconds.items():
        rates = [PHOTOS / wall for wall, _ in values]
        print(f"{name:22} {statistics.median(rates):8.1f}   ({', '.join(f'{rate:.1f}' for rate in rates)})")
    print("predict's rate, as a part of what it is beside; by the clock, and by the processor's time, which other processes do not lengthen:")
    for name in ("the bare network", "its core alone"):
        for kind, what in enumerate(("clock", "processor")):
            ratios = [other[kind] / mine[kind] for mine, other in zip(seconds["predict, from files"], seconds[name], strict=True)]
            print(f"{name:18} {what:10} {statistics.median(ratios):6.3f}   ({', '.join(f'{ratio:.3f}' for ratio in ratios)})", flush=True)


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
        done = subprocess.run([sys.executable, "-c", _PEAK, *settings], input=listed, capture_output=True, text=True, env=environment, check=True)
    found = re.search(r"peak (\d+)", done.stdout)
    assert found is not None
    return int(found.group(1))


if __name__ == "__main__":
    main()
