"""What keeping the frozen prefix saves, beside plain Keras done well, in one process on the same photos. `make bench` runs it.

Plain Keras is the way of its own transfer-learning example: `trainable=False`, `fit` on a tf.data pipeline whose decoded photos are cached and
prefetched. Both start from files and an empty cache and take the same batches and epochs; neither the import of TensorFlow nor tracking counts.
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
from dogbreeds.features.extraction import Photos
from dogbreeds.models.network import assemble
from dogbreeds.tracking.records import RunOrigin

FROZEN_BATCH, FINETUNE_BATCH, FINETUNE_LAYERS = 32, 16, 20


@dataclass(frozen=True)
class Setup:
    """Photos and backbone.

    Attributes:
        name: for people.
        root: folder of the photos, `root/{train,test}/<class>/…`.
        model: settings of the backbone.
        workload: how much is trained on them.
    """

    name: str
    root: Path
    model: tuple[str, ...]
    workload: "Workload"


@dataclass(frozen=True)
class Workload:
    """How much is trained on, and how often; the defaults are what `make bench` reports.

    Attributes:
        breeds: classes of drawn dogs.
        train, test: photos of a drawn breed.
        each: photos of a class beside plain Keras, which would take hours for all.
        rates: learning rates of the sweep.
        epochs: of every attempt.
        attempts: how many attempts on all photos are summed up, two numbers or more that ascend; the last but one is held against a bare pass.
        few: photos of a class in the smaller folders that an attempt is timed on.
        passes: bare passes, of which the median counts.
        change: what is changed in every run that no setting can change.
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
    """Print, write down and return ratios and the seconds they come from.

    Args:
        workload: how much is trained on, and how often.
        out: file to write; None stands for one in `multirun/`.
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
    """Real photos and EfficientNet-B0, where DOGBREEDS_REAL_DATA names them."""
    place = os.environ.get("DOGBREEDS_REAL_DATA")
    if not place:
        return None
    weights = Path(place) / "weights/efficientnetb0_notop.weights.h5"
    return Setup(
        "EfficientNet-B0 on real photos",
        Path(place) / "stanford_dogs_224",
        ("model=effnetb0", f"model.weights={weights}"),
        workload,
    )


def _drawn(folder: Path, workload: Workload) -> Setup:
    root = folder / "drawn"
    for part, count in (("train", workload.train), ("test", workload.test)):
        for breed in range(workload.breeds):
            place = root / part / drawn_dogs.breed_name(breed)
            place.mkdir(parents=True)
            for photo in range(count):
                Image.fromarray(drawn_dogs.draw(part, breed, photo)).save(place / f"{photo}.png")
    return Setup("the miniature on drawn dogs", root, ("model=miniature",), workload)


def subset(setup: Setup, folder: Path, each: int) -> Path:
    """A folder with the first training photos of each class."""
    root = folder / f"{each}_each"
    for source in sorted((setup.root / "train").iterdir()):
        (root / source.name).mkdir(parents=True)
        for photo in sorted(source.iterdir())[:each]:
            shutil.copy(photo, root / source.name / photo.name)
    return root


def measure(setup: Setup, folder: Path) -> dict[str, float]:
    """Ratios and the seconds they come from."""
    workload = setup.workload
    root = subset(setup, folder, workload.each)
    results: dict[str, float] = {"photos": sum(1 for _ in root.glob("*/*"))}
    finetune = (
        "unfreeze=last_n",
        f"unfreeze.layers={FINETUNE_LAYERS}",
        "optimizer.lr=1e-5",
        f"phase.batch_size={FINETUNE_BATCH}",
    )
    # The first use of TensorFlow's kernels counts for nobody.
    ours(setup, root, folder / "warm", "phase.epochs=1")

    bare = statistics.median(bare_pass(setup, root, folder) for _ in range(workload.passes))
    results["seconds/one bare pass of the prefix"] = bare
    kept = sum(timed(partial(ours, setup, root, folder / "sweep", f"optimizer.lr={lr}")) for lr in workload.rates)
    sweep = f"sweep of {len(workload.rates)} rates"
    results[f"seconds/{sweep}, kept"] = kept
    kept_finetune = timed(partial(ours, setup, root, folder / "finetune", *finetune))
    results["seconds/fine-tune of the top 20, kept"] = kept_finetune
    keras_sweep = sum(timed(partial(plain, setup, root, lr, FROZEN_BATCH, ())) for lr in workload.rates)
    results[f"seconds/{sweep}, plain Keras"] = keras_sweep
    trained = trained_layers(setup, root, finetune)
    keras_finetune = timed(partial(plain, setup, root, 1e-5, FINETUNE_BATCH, trained))
    results["seconds/fine-tune of the top 20, plain Keras"] = keras_finetune

    rates = np.geomspace(1e-4, 1e-2, workload.attempts[-1]).tolist()
    costs = [timed(partial(ours, setup, setup.root, folder / "attempts", f"optimizer.lr={lr}")) for lr in rates]
    for count in workload.attempts:
        results[f"seconds/{count} attempts on {len(list(setup.root.glob('*/*/*'))):,} photos"] = sum(costs[:count])
    for each in workload.few:
        few = subset(setup, folder, each)
        results[f"seconds/1 attempt on {len(list(few.glob('*/*'))):,} photos"] = timed(
            partial(ours, setup, few, folder / f"images{each}")
        )

    results["ratio/sweep: plain Keras to kept"] = keras_sweep / kept
    results["ratio/fine-tune: plain Keras to kept"] = keras_finetune / kept_finetune
    results["ratio/sweep, kept, to one bare pass"] = kept / bare
    results["ratio/a further attempt to the first, all photos"] = statistics.median(costs[1:]) / costs[0]
    several = workload.attempts[-2]
    results[f"ratio/{several} attempts to one bare pass, all photos"] = sum(costs[:several]) / bare_pass(
        setup, setup.root, folder
    )
    return results


def timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    seconds = time.perf_counter() - started
    print(f"{seconds:8.1f} s", file=sys.stderr)
    return seconds


def composed(setup: Setup, root: Path, cache: Path, *overrides: str) -> Run:
    fixed = (
        f"phase.epochs={setup.workload.epochs}",
        "phase.patience_epochs=null",
        "tracking=none",
        f"phase.batch_size={FROZEN_BATCH}",
    )
    places = (f"data.root={root}", f"features.dir={cache}", f"checkpoint_dir={cache}_checkpoints")
    asked = [*setup.model, "data=folder", *places, *fixed, *overrides]
    return setup.workload.change(
        from_config(compose.composed("train", list({item.split("=")[0]: item for item in asked}.values())))
    )


def ours(setup: Setup, root: Path, cache: Path, *overrides: str) -> Result:
    """An attempt of ours, from files to the best epoch."""
    result = execute(composed(setup, root, cache, *overrides), RunOrigin("", (), "bench", cache))
    assert isinstance(result, Result)
    return result


def bare_pass(setup: Setup, root: Path, folder: Path) -> float:
    """Seconds for the compiled prefix over all photos, decoded and in memory: the limit of what can be saved."""
    run = composed(setup, root, folder / "bare")
    sources = {split.source.name: split.source for split in run.data.open().splits.values()}
    store = run.features.store()
    photos = np.concatenate(
        [Photos(source, run.data, run.model.image_size, store).rows() for source in sources.values()]
    )
    FeatureCache.release()
    backbone = run.model.build(0)
    prefix = assemble(
        backbone, run.preprocessing, run.unfreeze.plan(backbone.blocks), lambda features: run.head.build(features, 2, 0)
    ).prefix
    batch = prefix.batch_size()
    prefix.compiled(photos[:batch])
    started = time.perf_counter()
    for start in range(0, len(photos), batch):
        prefix.compiled(photos[start : start + batch])
    return time.perf_counter() - started


def trained_layers(setup: Setup, root: Path, finetune: tuple[str, ...]) -> tuple[str, ...]:
    run = composed(setup, root, root, *finetune)
    return tuple(run.unfreeze.plan(run.model.build(0).blocks).stages[-1])


def plain(setup: Setup, root: Path, lr: float, batch: int, trained: tuple[str, ...]) -> None:
    """The same training in plain Keras: the whole network at every step."""
    import keras
    import tensorflow as tf

    keras.backend.clear_session()
    keras.utils.set_random_seed(0)
    run = composed(setup, root, root)
    dataset, size = run.data.open(), run.model.image_size

    def pipeline(split) -> tf.data.Dataset:
        paths = [str(root / split.source.ids[row]) for row in split.rows]
        decode = lambda path, label: (
            tf.io.decode_image(tf.io.read_file(path), channels=3, expand_animations=False),
            label,
        )
        resize = lambda photo, label: (
            tf.ensure_shape(tf.cast(tf.round(tf.image.resize(photo, (size, size))), tf.uint8), (size, size, 3)),
            label,
        )
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
    photos = keras.Input((size, size, 3))
    outputs = keras.layers.GlobalAveragePooling2D()(base(photos, training=False))
    for width in (512, 256):
        outputs = keras.layers.Dropout(0.5)(keras.layers.Dense(width, activation="relu")(outputs))
    network = keras.Model(photos, keras.layers.Dense(len(dataset.class_names), activation="softmax")(outputs))
    metrics = ["accuracy", keras.metrics.SparseTopKCategoricalAccuracy(5)]
    network.compile(optimizer=keras.optimizers.Adam(lr), loss="sparse_categorical_crossentropy", metrics=metrics)
    network.fit(train, validation_data=val, epochs=setup.workload.epochs, verbose=0)


if __name__ == "__main__":
    main()
