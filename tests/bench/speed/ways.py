"""Ways to train: Keras' example, Keras' guide to feature extraction, this project by runtime, and PyTorch."""

import importlib.util
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dogbreeds.experiments.attempt import execute
from dogbreeds.experiments.result import Result
from dogbreeds.models import runtime
from dogbreeds.models.precision import FLOAT32
from dogbreeds.tracking.records import RunOrigin
from tests.bench.speed.photos import BATCH, FINETUNE, FINETUNE_BATCH, Setup

if TYPE_CHECKING:
    import keras
    import tensorflow as tf

# Learning rates of a sweep, in turn.
RATES = np.geomspace(1e-4, 1e-2, 64).tolist()
_FINETUNE_RATES = np.geomspace(3e-6, 3e-5, 64).tolist()


@dataclass(frozen=True)
class Seconds:
    """Duration of one run.

    Attributes:
        value: seconds.
        is_measured: whether all of it was measured. If not, epochs after the second count as the second.
    """

    value: float
    is_measured: bool = True


class Way:
    """A way to train heads on photos. Each of its methods starts from files, with nothing cached.

    Attributes:
        name: for the report.
        missing: why it cannot be measured here; empty if it can.
        has_costly_epochs: whether each epoch passes all photos through the frozen backbone.
    """

    name: str
    missing = ""
    has_costly_epochs = False

    def sweep(self, setup: Setup, root: Path, place: Path, epochs: int) -> Iterator[Seconds]:
        """Train heads on a frozen backbone, one for each rate, and yield the duration of each.

        Args:
            setup: backbone.
            root: folder of the photos.
            place: empty folder for what is cached.
            epochs: epochs that are measured.
        """
        raise NotImplementedError

    def finetunes(self, setup: Setup, root: Path, place: Path, epochs: int) -> Iterator[Seconds]:
        """Train the backbone's last layers and a head, once for each rate, and yield the duration of each."""
        raise NotImplementedError


class Ours(Way):
    """Runs of this project, on cached features."""

    def __init__(self, name: str, precision: str = FLOAT32):
        self.name = f"dogbreeds, {name}, {precision}"
        self._settings = (f"features.runtime={name}", f"features.precision={precision}")
        if not runtime.is_installed(name):
            self.missing = f"{name} is not installed"
        elif precision == runtime.BFLOAT16 and not runtime.has_bfloat16():
            self.missing = "this processor has no instructions for bfloat16"

    def sweep(self, setup: Setup, root: Path, place: Path, epochs: int) -> Iterator[Seconds]:
        return self._runs(setup, root, place, RATES)

    def finetunes(self, setup: Setup, root: Path, place: Path, epochs: int) -> Iterator[Seconds]:
        return self._runs(setup, root, place, _FINETUNE_RATES, *FINETUNE)

    def _runs(self, setup: Setup, root: Path, place: Path, rates: list[float], *overrides: str) -> Iterator[Seconds]:
        for rate in rates:
            started = time.perf_counter()
            run = setup.compose(root, place / "cache", *self._settings, *overrides, f"optimizer.lr={rate}")
            assert isinstance(execute(run, RunOrigin("", (), "bench", place)), Result)
            yield Seconds(time.perf_counter() - started)


class KerasExample(Way):
    """Keras' own example: a backbone that is frozen, or trains in its last layers, in `fit`, on cached photos."""

    name = "Keras: backbone in fit"
    has_costly_epochs = True

    def sweep(self, setup: Setup, root: Path, place: Path, epochs: int) -> Iterator[Seconds]:
        return self._runs(setup, root, place, RATES, epochs, BATCH, ())

    def finetunes(self, setup: Setup, root: Path, place: Path, epochs: int) -> Iterator[Seconds]:
        run = setup.compose(root, place, *FINETUNE)
        trained = tuple(run.unfreeze.plan(run.model.build(0).blocks).stages[-1])
        return self._runs(setup, root, place, _FINETUNE_RATES, epochs, FINETUNE_BATCH, trained)

    def _runs(
        self, setup: Setup, root: Path, place: Path, rates: list[float], epochs: int, batch: int, trained: tuple
    ) -> Iterator[Seconds]:
        import keras

        keras.backend.clear_session()
        photos = _KerasPhotos(setup, root, place)
        for rate in rates:
            started = time.perf_counter()
            keras.utils.set_random_seed(0)
            base = photos.backbone()
            for layer in base.layers:
                layer.trainable = layer.name in trained and not isinstance(layer, keras.layers.BatchNormalization)
            images = keras.Input(base.input.shape[1:])
            pooled = keras.layers.GlobalAveragePooling2D()(base(images, training=False))
            network = keras.Model(images, photos.head(pooled))
            compile_network(network, rate)
            clock = _clock()
            network.fit(
                photos.train.shuffle(photos.num_train, seed=0).batch(batch).prefetch(photos.autotune),
                validation_data=photos.val.batch(batch).prefetch(photos.autotune),
                epochs=epochs,
                callbacks=[clock],
                verbose=0,
            )
            seconds = time.perf_counter() - started
            left = setup.epochs - epochs
            yield Seconds(seconds + left * (clock.ends[-1] - clock.ends[-2]) if left else seconds, not left)


def _clock() -> "keras.callbacks.Callback":
    """Return a callback that notes when each epoch ends."""
    import keras

    class Clock(keras.callbacks.Callback):
        def __init__(self) -> None:
            super().__init__()
            self.ends: list[float] = []

        def on_epoch_end(self, epoch, logs=None) -> None:
            self.ends.append(time.perf_counter())

    return Clock()


class PredictThenFit(Way):
    """What Keras' guide recommends for a frozen backbone: one pass with `predict`, then `fit` on the arrays."""

    name = "Keras: predict, then fit"

    def sweep(self, setup: Setup, root: Path, place: Path, epochs: int) -> Iterator[Seconds]:
        import keras

        keras.backend.clear_session()
        started = time.perf_counter()
        photos = _KerasPhotos(setup, root, place)
        base = photos.backbone()
        extractor = keras.Model(base.input, keras.layers.GlobalAveragePooling2D()(base.output))
        inputs, labels = {}, {}
        for name, split in (("train", photos.train), ("val", photos.val)):
            inputs[name] = extractor.predict(split.batch(BATCH).prefetch(photos.autotune), verbose=0)
            labels[name] = np.array([int(label) for _, label in split.as_numpy_iterator()])
        for rate in RATES:
            keras.utils.set_random_seed(0)
            features = keras.Input(inputs["train"].shape[1:])
            network = keras.Model(features, photos.head(features))
            compile_network(network, rate)
            network.fit(
                inputs["train"],
                labels["train"],
                validation_data=(inputs["val"], labels["val"]),
                batch_size=BATCH,
                epochs=setup.epochs,
                verbose=0,
            )
            yield Seconds(time.perf_counter() - started)
            started = time.perf_counter()

    def finetunes(self, setup: Setup, root: Path, place: Path, epochs: int) -> Iterator[Seconds]:
        # The guide has no way to fine-tune on arrays.
        return iter(())


class _KerasPhotos:
    """The splits of a folder as pipelines of decoded photos, which are cached as they are read."""

    def __init__(self, setup: Setup, root: Path, place: Path):
        import tensorflow as tf

        self._run = setup.compose(root, place)
        self._root = root
        dataset = self._run.data.open()
        self._num_classes = len(dataset.class_names)
        self.autotune = tf.data.AUTOTUNE
        self.num_train = len(dataset.train.rows)
        self.train, self.val = self._pipeline(dataset.train), self._pipeline(dataset.val)

    def _pipeline(self, split) -> "tf.data.Dataset":
        import tensorflow as tf

        size = self._run.model.image_size

        def decode(path, label):
            return tf.io.decode_image(tf.io.read_file(path), channels=3, expand_animations=False), label

        def resize(image, label):
            resized = tf.cast(tf.round(tf.image.resize(image, (size, size))), tf.uint8)
            return tf.ensure_shape(resized, (size, size, 3)), label

        paths = [str(self._root / split.source.ids[row]) for row in split.rows]
        listed = tf.data.Dataset.from_tensor_slices((paths, split.labels))
        return listed.map(decode, self.autotune).map(resize, self.autotune).cache()

    def backbone(self) -> "keras.Model":
        base = self._run.model.construct(None)
        weights = self._run.model.weights_file()
        if weights is not None:
            base.load_weights(weights)
        return base

    def head(self, features):
        """Return the probabilities of the guide's head."""
        import keras

        outputs = features
        for width in (512, 256):
            outputs = keras.layers.Dropout(0.5)(keras.layers.Dense(width, activation="relu")(outputs))
        return keras.layers.Dense(self._num_classes, activation="softmax")(outputs)


def compile_network(network: "keras.Model", rate: float) -> None:
    """Compile a classifier as Keras' example does."""
    import keras

    metrics = ["accuracy", keras.metrics.SparseTopKCategoricalAccuracy(min(5, network.output.shape[-1]))]
    network.compile(keras.optimizers.Adam(rate), "sparse_categorical_crossentropy", metrics=metrics)


class Torch(Way):
    """PyTorch: one pass of torchvision's or timm's backbone, channels last, in bfloat16; then heads on its features."""

    name = "PyTorch, channels last, bfloat16"

    def __init__(self) -> None:
        if not importlib.util.find_spec("torch"):
            self.missing = "torch is not installed"
        elif not (importlib.util.find_spec("torchvision") or importlib.util.find_spec("timm")):
            self.missing = "neither torchvision nor timm is installed"

    def sweep(self, setup: Setup, root: Path, place: Path, epochs: int) -> Iterator[Seconds]:
        from tests.bench.speed import torch_way

        return torch_way.sweep(setup, root, place, RATES)

    def finetunes(self, setup: Setup, root: Path, place: Path, epochs: int) -> Iterator[Seconds]:
        from tests.bench.speed import torch_way

        return torch_way.finetunes(setup, root, place, _FINETUNE_RATES, epochs)


def all_ways() -> list[Way]:
    """Return all ways, also those that cannot be measured here."""
    return [
        KerasExample(),
        PredictThenFit(),
        Torch(),
        Ours(runtime.TENSORFLOW),
        Ours(runtime.ONNX_RUNTIME),
        Ours(runtime.OPENVINO),
        Ours(runtime.OPENVINO, runtime.BFLOAT16),
    ]
