"""Speed of a sweep and of a fine-tune with the feature cache, compared with plain Keras in the same process.

Run: make bench.

Plain Keras follows its own transfer-learning example: `trainable=False`, and `fit` on a tf.data pipeline whose decoded
images are cached and prefetched. Both start from files and an empty cache and take the same batches and epochs. Neither
the import of TensorFlow nor tracking counts.
"""

import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from PIL import Image

from dogbreeds.core.console import quiet_stderr
from dogbreeds.core.paths import home
from dogbreeds.data import drawn_dogs
from dogbreeds.experiments import compose
from dogbreeds.experiments.attempt import execute
from dogbreeds.experiments.compose import from_config
from dogbreeds.experiments.result import Result
from dogbreeds.experiments.run import Run
from dogbreeds.features.cache import FeatureCache
from dogbreeds.features.extraction import DecodedImages
from dogbreeds.models.assembly import assemble
from dogbreeds.tracking.records import RunOrigin

FROZEN_BATCH, FINETUNE_BATCH, FINETUNE_LAYERS = 32, 16, 20


@dataclass(frozen=True)
class Setup:
    """Images and backbone.

    Attributes:
        name: for the printed report.
        root: folder of the images, `root/{train,test}/<class>/…`.
        model: overrides that choose the backbone.
        workload: how much is trained on them.
    """

    name: str
    root: Path
    model: tuple[str, ...]
    workload: "Workload"


@dataclass(frozen=True)
class Workload:
    """How much is trained on, and how often. The defaults are what `make bench` reports.

    Attributes:
        breeds: classes of drawn dogs.
        train: training images per drawn class.
        test: test images per drawn class.
        each: images per class for the comparison with plain Keras, which would take hours on all images.
        rates: learning rates of the sweep.
        epochs: epochs of every run.
        attempts: ascending numbers of runs on all images whose times are summed, at least two; the last but one is
            compared with a bare pass.
        few: images per class of the smaller folders that one run is timed on.
        passes: bare passes, of which the median counts.
        change: change to every run that no override can make.
    """

    breeds: int = 120
    train: int = 40
    test: int = 20
    each: int = 6
    rates: tuple[float, ...] = (1e-2, 3e-3, 1e-3, 3e-4)
    epochs: int = 6
    attempts: tuple[int, ...] = (1, 2, 4, 8)
    few: tuple[int, ...] = (2, 4)
    passes: int = 3
    change: Callable[[Run], Run] = lambda run: run


FULL = Workload()


def main(workload: Workload = FULL, out: Path | None = None) -> dict[str, float]:
    """Print ratios and the seconds that they come from, and write them to a JSON file.

    Args:
        workload: how much is trained on, and how often.
        out: file to write; None for `multirun/bench.json`.

    Returns:
        Seconds and ratios by name.
    """
    started = time.perf_counter()
    with quiet_stderr():
        import tensorflow  # noqa: F401
    with tempfile.TemporaryDirectory() as folder:
        setup = _real(workload) or _drawn(Path(folder), workload)
        results = measure(setup, Path(folder))
    results["seconds/whole benchmark"] = time.perf_counter() - started
    out = out or home() / "multirun" / "bench.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(results, indent=1))
    print(f"\n{setup.name}\n")
    for name, value in results.items():
        print(f"{name:64} {value:>9.3f}")
    print(f"\nwritten to {out}")
    return results


def _real(workload: Workload) -> Setup | None:
    """Set up real images and EfficientNet-B0, if DOGBREEDS_REAL_DATA names their folder."""
    place = os.environ.get("DOGBREEDS_REAL_DATA")
    if not place:
        return None
    weights = Path(place) / "weights/efficientnetb0_notop.weights.h5"
    return Setup(
        "EfficientNet-B0 on real images",
        Path(place) / "stanford_dogs_224",
        ("model=effnetb0", f"model.weights={weights}"),
        workload,
    )


def _drawn(folder: Path, workload: Workload) -> Setup:
    """Write drawn dogs to a folder, and set them up with the miniature."""
    root = folder / "drawn"
    for split, count in (("train", workload.train), ("test", workload.test)):
        for breed in range(workload.breeds):
            class_folder = root / split / drawn_dogs.breed_name(breed)
            class_folder.mkdir(parents=True)
            for number in range(count):
                Image.fromarray(drawn_dogs.draw(split, breed, number)).save(class_folder / f"{number}.png")
    return Setup("the miniature on drawn dogs", root, ("model=miniature",), workload)


def subset(setup: Setup, folder: Path, each: int) -> Path:
    """Copy the first training images of each class to a folder, and return it."""
    root = folder / f"{each}_each"
    for source in sorted((setup.root / "train").iterdir()):
        (root / source.name).mkdir(parents=True)
        for image in sorted(source.iterdir())[:each]:
            shutil.copy(image, root / source.name / image.name)
    return root


def measure(setup: Setup, folder: Path) -> dict[str, float]:
    """Measure ratios and the seconds that they come from."""
    workload = setup.workload
    root = subset(setup, folder, workload.each)
    results: dict[str, float] = {"photos": sum(1 for _ in root.glob("*/*"))}
    finetune = (
        "unfreeze=last_n",
        f"unfreeze.layers={FINETUNE_LAYERS}",
        "optimizer.lr=1e-5",
        f"phase.batch_size={FINETUNE_BATCH}",
    )
    # Warm-up: the first use of TensorFlow's kernels does not count.
    run_cached(setup, root, folder / "warm", "phase.epochs=1")

    bare = statistics.median(bare_pass(setup, root, folder) for _ in range(workload.passes))
    results["seconds/one bare pass of the prefix"] = bare
    cached = sum(
        timed(partial(run_cached, setup, root, folder / "sweep", f"optimizer.lr={lr}")) for lr in workload.rates
    )
    sweep = f"sweep of {len(workload.rates)} rates"
    results[f"seconds/{sweep}, kept"] = cached
    cached_finetune = timed(partial(run_cached, setup, root, folder / "finetune", *finetune))
    results["seconds/fine-tune of the top 20, kept"] = cached_finetune
    keras_sweep = sum(timed(partial(fit_plain_keras, setup, root, lr, FROZEN_BATCH, ())) for lr in workload.rates)
    results[f"seconds/{sweep}, plain Keras"] = keras_sweep
    trained = trained_layers(setup, root, finetune)
    keras_finetune = timed(partial(fit_plain_keras, setup, root, 1e-5, FINETUNE_BATCH, trained))
    results["seconds/fine-tune of the top 20, plain Keras"] = keras_finetune

    rates = np.geomspace(1e-4, 1e-2, workload.attempts[-1]).tolist()
    costs = [timed(partial(run_cached, setup, setup.root, folder / "attempts", f"optimizer.lr={lr}")) for lr in rates]
    for count in workload.attempts:
        results[f"seconds/{count} attempts on {len(list(setup.root.glob('*/*/*'))):,} photos"] = sum(costs[:count])
    for each in workload.few:
        few = subset(setup, folder, each)
        results[f"seconds/1 attempt on {len(list(few.glob('*/*'))):,} photos"] = timed(
            partial(run_cached, setup, few, folder / f"images{each}")
        )

    results["ratio/sweep: plain Keras to kept"] = keras_sweep / cached
    results["ratio/fine-tune: plain Keras to kept"] = keras_finetune / cached_finetune
    results["ratio/sweep, kept, to one bare pass"] = cached / bare
    results["ratio/a further attempt to the first, all photos"] = statistics.median(costs[1:]) / costs[0]
    several = workload.attempts[-2]
    results[f"ratio/{several} attempts to one bare pass, all photos"] = sum(costs[:several]) / bare_pass(
        setup, setup.root, folder
    )
    return results


def timed(work: Callable[[], object]) -> float:
    """Measure the seconds that a call takes, and print them."""
    started = time.perf_counter()
    work()
    seconds = time.perf_counter() - started
    print(f"{seconds:8.1f} s", file=sys.stderr)
    return seconds


def compose_run(setup: Setup, root: Path, cache: Path, *overrides: str) -> Run:
    """Compose a run on a folder of images, with its feature cache and checkpoints in a place of its own."""
    fixed = (
        f"phase.epochs={setup.workload.epochs}",
        "phase.patience_epochs=null",
        "tracking=none",
        "tracking.folder=null",
        f"phase.batch_size={FROZEN_BATCH}",
    )
    places = (f"data.root={root}", f"features.dir={cache}", f"checkpoint_dir={cache}_checkpoints")
    requested = [*setup.model, "data=folder", *places, *fixed, *overrides]
    return setup.workload.change(
        from_config(compose.compose_config("train", list({item.split("=")[0]: item for item in requested}.values())))
    )


def run_cached(setup: Setup, root: Path, cache: Path, *overrides: str) -> Result:
    """Execute a run with the feature cache, from files to the best epoch."""
    result = execute(compose_run(setup, root, cache, *overrides), RunOrigin("", (), "bench", cache))
    assert isinstance(result, Result)
    return result


def bare_pass(setup: Setup, root: Path, folder: Path) -> float:
    """Measure the compiled prefix over all images, decoded and in memory: the lower bound of a first run."""
    run = compose_run(setup, root, folder / "bare")
    sources = {split.source.name: split.source for split in run.data.open().splits.values()}
    cache = run.features.open_cache()
    images = np.concatenate(
        [DecodedImages(source, run.data, run.model.image_size, cache).rows() for source in sources.values()]
    )
    FeatureCache.release()
    backbone = run.model.build(0)
    prefix = assemble(
        backbone, run.preprocessing, run.unfreeze.plan(backbone.blocks), lambda features: run.head.build(features, 2, 0)
    ).prefix
    batch = prefix.batch_size()
    prefix.compiled(images[:batch])
    started = time.perf_counter()
    for start in range(0, len(images), batch):
        prefix.compiled(images[start : start + batch])
    return time.perf_counter() - started


def trained_layers(setup: Setup, root: Path, finetune: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names of the backbone's layers that a fine-tune trains."""
    run = compose_run(setup, root, root, *finetune)
    return tuple(run.unfreeze.plan(run.model.build(0).blocks).stages[-1])


def fit_plain_keras(setup: Setup, root: Path, lr: float, batch: int, trained: tuple[str, ...]) -> None:
    """Train the same in plain Keras: the whole network runs at every step."""
    import keras
    import tensorflow as tf

    keras.backend.clear_session()
    keras.utils.set_random_seed(0)
    run = compose_run(setup, root, root)
    dataset, size = run.data.open(), run.model.image_size

    def pipeline(split) -> tf.data.Dataset:
        paths = [str(root / split.source.ids[row]) for row in split.rows]

        def decode(path, label):
            return tf.io.decode_image(tf.io.read_file(path), channels=3, expand_animations=False), label

        def resize(image, label):
            resized = tf.cast(tf.round(tf.image.resize(image, (size, size))), tf.uint8)
            return tf.ensure_shape(resized, (size, size, 3)), label

        return (
            tf.data.Dataset.from_tensor_slices((paths, split.labels))
            .map(decode, tf.data.AUTOTUNE)
            .map(resize, tf.data.AUTOTUNE)
            .cache()
        )

    train = pipeline(dataset.train).shuffle(len(dataset.train.rows), seed=0).batch(batch).prefetch(tf.data.AUTOTUNE)
    val = pipeline(dataset.val).batch(batch).prefetch(tf.data.AUTOTUNE)
    base = run.model.construct(None)
    weights = run.model.weights_file()
    assert weights is not None
    base.load_weights(weights)
    for layer in base.layers:
        layer.trainable = layer.name in trained and not isinstance(layer, keras.layers.BatchNormalization)
    images = keras.Input((size, size, 3))
    outputs = keras.layers.GlobalAveragePooling2D()(base(images, training=False))
    for width in (512, 256):
        outputs = keras.layers.Dropout(0.5)(keras.layers.Dense(width, activation="relu")(outputs))
    network = keras.Model(images, keras.layers.Dense(len(dataset.class_names), activation="softmax")(outputs))
    metrics = ["accuracy", keras.metrics.SparseTopKCategoricalAccuracy(5)]
    network.compile(optimizer=keras.optimizers.Adam(lr), loss="sparse_categorical_crossentropy", metrics=metrics)
    network.fit(train, validation_data=val, epochs=setup.workload.epochs, verbose=0)


if __name__ == "__main__":
    main()
