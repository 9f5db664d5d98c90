"""`model=keras`: a backbone from a file of the user's own."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dogbreeds.core.errors import MissingFileError, UserError
from dogbreeds.experiments.attempt import execute
from dogbreeds.experiments.pixel_convention import with_pixels
from dogbreeds.models.keras_file import KerasFile
from dogbreeds.models.pooling import pool
from dogbreeds.tracking.records import RunOrigin
from dogbreeds.training.pixel_fit import PixelFit
from dogbreeds.training.preflight import told_convention
from tests.losses import recorded
from tests.tiers import tiered
from tests.whole_training import of_same_place, whole_network_losses


def own_model(kind: str = "maps", size: int | None = 64) -> Any:
    """Return an untrained network with two residual blocks, whose names say nothing, and a certain output."""
    import keras

    keras.utils.set_random_seed(3)
    layers = keras.layers
    inputs = keras.Input((size, size, 3))
    outputs = layers.Conv2D(8, 3, strides=4, padding="same")(layers.Rescaling(1 / 127.5, -1.0)(inputs))
    for _ in range(2):
        branch = layers.Conv2D(8, 3, padding="same")(layers.ReLU()(layers.BatchNormalization()(outputs)))
        outputs = layers.Add()([outputs, branch])
    if kind == "tokens":
        outputs = layers.Reshape((-1 if size is None else (size // 4) ** 2, 8))(outputs)
    elif kind == "vector":
        outputs = layers.Dense(6)(layers.GlobalMaxPooling2D()(outputs))
    return keras.Model(inputs, outputs)


def spec(path: Path | str, **more: Any) -> KerasFile:
    settings = {"architecture": "own", "image_size": 64, "pixels": "raw", "weights": None, "path": str(path), **more}
    return KerasFile(**settings)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A function that saves a network, and returns the file."""
    folder = tmp_path_factory.mktemp("own")

    def save(kind: str = "maps", size: int | None = 64) -> Path:
        file = folder / f"{kind} {size}.keras"
        if not file.exists():
            own_model(kind, size).save(file)
        return file

    return save


@pytest.mark.parametrize(("kind", "size"), [("maps", 64), ("maps", None), ("tokens", 64), ("vector", 64)])
def test_a_file_gives_its_network_in_blocks(
    saved: Callable[..., Path], rng: np.random.Generator, kind: str, size: int | None
) -> None:
    import keras

    backbone = spec(saved(kind, size)).build(0)
    assert [block.name for block in backbone.blocks][:2] == ["block1", "block2"]
    images = rng.uniform(0, 255, size=(3, 64, 64, 3)).astype(np.float32)
    expected = np.asarray(keras.models.load_model(saved(kind, size))(images, training=False))
    assert backbone.network.input.shape == (None, 64, 64, 3)
    assert np.allclose(backbone.network(images, training=False), expected, atol=1e-6)
    cut = backbone.blocks[0].output
    below, above = keras.Model(backbone.network.input, cut), keras.Model(cut, backbone.network.output)
    assert np.allclose(above(below(images, training=False), training=False), expected, atol=1e-5)


def test_the_file_s_content_is_its_identity(saved: Callable[..., Path], tmp_path: Path) -> None:
    copy = tmp_path / "copy.keras"
    copy.write_bytes(saved().read_bytes())
    assert spec(copy).weights_digest() == spec(saved()).weights_digest()
    assert spec(copy).build(0).fingerprint == spec(saved()).build(0).fingerprint
    assert spec(copy, pooling="max").build(0).fingerprint != spec(copy).build(0).fingerprint
    assert spec(saved("vector")).weights_digest() != spec(copy).weights_digest()


def bad_models() -> dict[str, Callable[[], Any]]:
    import keras

    layers = keras.layers
    image = keras.Input((64, 64, 3))
    pixels = layers.Flatten()(image)

    class Subclassed(keras.Model):
        def call(self, inputs):
            return inputs

    return {
        "two inputs": lambda: keras.Model([image, keras.Input((64, 64, 3))], image),
        "two outputs": lambda: keras.Model(image, [layers.Conv2D(2, 1)(image), pixels]),
        "no image": lambda: keras.Model(vector := keras.Input((7,)), layers.Dense(2)(vector)),
        "one channel": lambda: keras.Model(grey := keras.Input((64, 64, 1)), layers.Conv2D(2, 1)(grey)),
        "rank 5": lambda: keras.Model(image, layers.Reshape((8, 8, 8, 24))(image)),
        "another size": lambda: own_model(size=96),
        "not square": lambda: keras.Model(wide := keras.Input((64, 96, 3)), layers.Conv2D(2, 1)(wide)),
        "lambda": lambda: keras.Model(image, layers.Lambda(lambda x: x * 2)(image)),
        "no graph": Subclassed,
    }


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("two inputs", "has 2 inputs and 1 outputs"),
        ("two outputs", "has 1 inputs and 2 outputs"),
        ("no image", r"The input of model\.path=.* is \[7\]\. It must be RGB images"),
        ("one channel", r"The input of model\.path=.* is \[64, 64, 1\]"),
        ("rank 5", r"The output of model\.path=.* is \[8, 8, 8, 24\]"),
        ("another size", r"^model\.image_size was 64, .* takes 96 x 96 pixels.*Type model\.image_size=96\."),
        ("not square", r"takes 64 x 96 pixels.*Save it for square images\."),
        ("lambda", r"would execute code that it contains .*Replace the Lambda layers"),
        ("no graph", r"Type model\.path=<file>"),
    ],
)
def test_other_networks_are_refused_in_three_sentences(tmp_path: Path, kind: str, message: str) -> None:
    file = tmp_path / "bad.keras"
    bad_models()[kind]().save(file)
    with pytest.raises(UserError, match=message) as caught:
        spec(file).build(0)
    assert str(caught.value).count(". ") >= 2


@pytest.mark.parametrize(
    ("content", "message"), [(None, "is not a file"), (b"no zip", "cannot be read as a Keras model")]
)
def test_a_missing_or_damaged_file_is_refused(tmp_path: Path, content: bytes | None, message: str) -> None:
    file = tmp_path / "x.keras"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises((UserError, MissingFileError), match=message):
        spec(file).build(0)


@pytest.mark.parametrize(
    ("shape", "pooling", "expected"),
    [
        ((4, 5, 6), "avg", lambda values: values.mean(axis=(1, 2))),
        ((4, 5, 6), "max", lambda values: values.max(axis=(1, 2))),
        ((7, 6), "avg", lambda values: values.mean(axis=1)),
        ((7, 6), "max", lambda values: values.max(axis=1)),
        ((7, 6), "cls", lambda values: values[:, 0]),
        ((6,), "avg", lambda values: values),
    ],
)
def test_pool_makes_a_vector_of_each_output(
    shape: tuple[int, ...], pooling: str, expected: Callable[[np.ndarray], np.ndarray], rng: np.random.Generator
) -> None:
    import keras

    inputs = keras.Input(shape)
    network = keras.Model(inputs, pool(inputs, pooling))
    values = rng.normal(size=(2, *shape)).astype(np.float32)
    assert np.allclose(network(values), expected(values), atol=1e-6)
    assert network.layers[-1].name == "pool"


@pytest.mark.parametrize("shape", [(4, 5, 6), (2, 3, 4, 5)])
def test_a_class_token_is_taken_from_tokens_only(shape: tuple[int, ...]) -> None:
    import keras

    with pytest.raises(UserError, match=r"^model\.pooling=cls was given, .* \[[\d, ]+\]\. .* Type model\.pooling=avg"):
        pool(keras.Input(shape), "cls")


@pytest.mark.parametrize(
    ("distances", "told"),
    [
        ({"raw": 0.01, "torch": 1.5, "caffe": 0.9, "tf": 1.4, "unit": 1.4}, "raw"),
        # Two fit, or none.
        ({"raw": 0.01, "torch": 1.5, "caffe": 0.02, "tf": 1.4, "unit": 1.4}, None),
        ({"raw": 9.0, "torch": 30.0, "caffe": 40.0, "tf": 50.0, "unit": 60.0}, None),
    ],
)
def test_a_convention_is_told_if_only_one_fits(distances: dict[str, float], told: str | None) -> None:
    assert told_convention(PixelFit(True, distances)) == told
    # Without BatchNorm and without a reading nothing is.
    assert told_convention(PixelFit(False, distances)) is None


def test_pixels_that_the_weights_tell_are_part_of_the_run(composed) -> None:
    run = composed("model.pixels=auto")
    assert (run.model.pixels, run.preprocessing.mode) == ("auto", "auto")
    resolved = with_pixels(run, run.data.open())
    assert (resolved.model.pixels, resolved.preprocessing.mode) == ("raw", "raw")
    assert resolved.key == composed().key
    # A mode that was typed stays, and nothing is measured where nothing is asked.
    assert with_pixels(composed("model.pixels=auto", "preprocessing=tf"), run.data.open()).preprocessing.mode == "tf"
    assert with_pixels(composed(), run.data.open()) == composed()


def test_pixels_of_untrained_weights_are_asked_for(composed, saved: Callable[..., Path]) -> None:
    run = composed("model=keras", f"model.path={saved()}", "model.image_size=64", "data=miniature", "data.classes=2")
    with pytest.raises(UserError, match=r"^model\.pixels=auto was given, .* do not tell .* Type model\.pixels=raw"):
        with_pixels(run, run.data.open())


@pytest.mark.parametrize(
    ("kind", "unfreeze"),
    tiered(itertools.product(("maps", "tokens", "vector"), ("top", "all")), slow=[("maps", "top")]),
)
def test_every_step_of_an_own_network_has_the_loss_of_training_it_whole(
    composed, saved: Callable[..., Path], tmp_path: Path, kind: str, unfreeze: str
) -> None:
    policy = ["unfreeze=blocks", "unfreeze.top=2"] if unfreeze == "top" else ["unfreeze=all"]
    run = composed(
        "model=keras", f"model.path={saved(kind)}", "model.image_size=64", "model.pixels=raw", "data=miniature",
        "data.classes=3", "data.train_per_class=8", "data.val_per_class=2", "data.test_per_class=1", "baseline=none",
        "preflight=none", "augment=none", "head.widths=[16]", "phase.epochs=1", "phase.batch_size=6", "tracking=none",
        "features.dtype=float32", "optimizer.lr=1e-3", *policy,
    )  # fmt: skip
    with recorded() as losses:
        execute(run, RunOrigin("", (), "own", tmp_path))
    whole = run.model.construct(None)
    trained = run.unfreeze.plan(run.model.build(0).blocks).stages[-1]
    expected = whole_network_losses(run, whole, of_same_place(whole, run.model.build(0).network, trained))
    assert losses == pytest.approx(expected, rel=1e-4)
    assert len(losses) == len({round(loss, 5) for loss in losses}) == 4


@pytest.mark.parametrize("kind", ["tokens", "vector", "maps"])
def test_an_output_of_any_rank_is_averaged_over_its_positions_for_the_pixel_check(
    rng: np.random.Generator, kind: str
) -> None:
    from dogbreeds.training.pixel_fit import pooled_features

    network = own_model(kind)
    images = rng.integers(0, 255, size=(3, 64, 64, 3)).astype(np.uint8)
    outputs = np.asarray(network(images.astype(np.float32), training=False))
    expected = outputs.reshape(3, -1, outputs.shape[-1]).mean(axis=1)
    assert np.allclose(pooled_features(network, images)["raw"], expected, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("maps", ("model.pooling=max",)),
        pytest.param("tokens", ("model.pooling=cls",), marks=pytest.mark.long),
        pytest.param("vector", (), marks=pytest.mark.long),
    ],
)
def test_a_run_with_an_own_network_trains_fine_tunes_and_predicts(
    composed, saved: Callable[..., Path], tmp_path: Path, kind: str, more: tuple[str, ...]
) -> None:
    from dogbreeds.inference import classifier

    settings = (
        "model=keras",
        f"model.path={saved(kind)}",
        "model.image_size=64",
        "model.pixels=raw",
        "data=miniature",
        "data.classes=3",
        "data.train_per_class=8",
        "baseline=none",
        "tracking.model=all",
        *more,
    )
    frozen = execute(composed(*settings, "phase.epochs=1"), RunOrigin("", (), "own", tmp_path))
    tuned_run = composed(*settings, "phase=finetune", "unfreeze=blocks", "unfreeze.top=1", "phase.epochs=1")
    tuned = execute(tuned_run, RunOrigin("", (), "tuned", tmp_path))
    assert frozen.history.best is not None
    # Compared with its parent, image by image.
    assert "p_value" in tuned.verdict.numbers
    client, _ = tuned_run.tracking.connect()
    loaded = classifier.load(Path(client.download_artifacts(tuned.run_id, "model/model.keras", str(tmp_path))))
    assert len(loaded.class_names) == 3
    with pytest.raises(UserError, match="Grad-CAM"):
        _ = loaded.maps_and_head
