"""The zero-training baseline, beside plain Keras on the same photos, and why there may be none."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dogbreeds.core.errors import MissingFileError, UserError
from dogbreeds.data.class_names import is_numbered, outputs
from dogbreeds.evaluation.metrics import Proportion
from dogbreeds.evaluation.results import ZeroShotBaseline
from dogbreeds.experiments.attempt import execute
from dogbreeds.models.model import MobileNetV2, Model
from dogbreeds.models.network import Network, assemble
from dogbreeds.models.preprocessing import Preprocessing
from dogbreeds.models.unfreeze import Blocks, Unfreeze
from dogbreeds.models.unfreeze import Nothing as Frozen
from dogbreeds.reports.baseline_note import note, said
from dogbreeds.tracking.records import Record, RunOrigin
from dogbreeds.training.baseline import Nothing, Top

BREEDS = {"n02085620-Chihuahua": 151, "n02113978-Mexican_hairless": 268, "n02116738-African_hunting_dog": 275}
RANDOM = Model(architecture="EfficientNetB0", image_size=64, pixels="raw", weights=None)
FROZEN = Frozen(batchnorm="frozen", drop_connect="off")


# --- names --------------------------------------------------------------------------------------------------------------


def test_dogs_have_the_places_that_imagenet_s_own_list_gives_them() -> None:
    """TensorFlow Datasets ships ILSVRC 2012's numbers in the order of its labels."""
    package = importlib.util.find_spec("tensorflow_datasets").origin
    numbers = (Path(package).parent / "datasets/imagenet2012/labels.txt").read_text().split()
    found = outputs([f"{number}-name" for number in numbers])
    dogs = [place for place in found if place is not None]
    assert dogs == [place for place, found_place in enumerate(found) if found_place is not None]
    assert dogs == [*range(151, 269), 273, 274, 275]
    # The dalmatian, which is ImageNet's only dog that Stanford Dogs lacks
    assert numbers[251] == "n02110341"


@pytest.mark.parametrize(
    ("name", "numbered", "place"),
    [
        ("n02085620-chihuahua", True, 151),
        ("n02085620-Chihuahua", True, 151),
        ("n02085620", True, 151),
        ("n02116738_African_hunting_dog", True, 275),
        ("n02123045-tabby", True, None),
        ("n020856200-chihuahua", False, None),
        ("Chihuahua", False, None),
        ("nose", False, None),
    ],
)
def test_a_class_is_known_by_the_number_before_its_name(name: str, numbered: bool, place: int | None) -> None:
    assert (is_numbered(name), outputs([name])) == (numbered, [place])


# --- what is measured -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("architecture", "pixels"),
    [
        pytest.param("MobileNetV2", "tf", marks=pytest.mark.slow),
        *(
            pytest.param(*each, marks=pytest.mark.long)
            for each in (("ConvNeXtTiny", "raw"), ("EfficientNetV2B0", "raw"), ("ResNet50", "caffe"))
        ),
    ],
)
def test_the_top_says_what_the_whole_network_says(
    architecture: str, pixels: str, tmp_path: Path, rng: np.random.Generator
) -> None:
    import keras

    keras.utils.set_random_seed(1)
    narrow = {"alpha": 0.35} if architecture == "MobileNetV2" else {}
    build = getattr(keras.applications, architecture)
    full = build(include_top=True, weights=None, input_shape=(64, 64, 3), classifier_activation=None, **narrow)
    full.set_weights(
        [weights + rng.uniform(0, 0.02, weights.shape).astype(weights.dtype) for weights in full.get_weights()]
    )
    bare = build(include_top=False, weights=None, input_shape=(64, 64, 3), **narrow)
    # ConvNeXt's last normalisation has the same shape in both
    bare.set_weights(full.get_weights()[: len(bare.get_weights())])
    full.save_weights(tmp_path / "full.weights.h5")
    bare.save_weights(tmp_path / "bare.weights.h5")
    kind = MobileNetV2 if narrow else Model
    model = kind(
        architecture=architecture, image_size=64, pixels=pixels, weights=f"{tmp_path}/bare.weights.h5", **narrow
    )
    backbone, preprocessing = model.build(0), Preprocessing(mode=pixels)
    network = built(model, preprocessing)
    zero, topped = Top(weights=f"{tmp_path}/full.weights.h5").build(
        model, backbone, preprocessing, network, list(BREEDS)
    )
    assert zero.said == "zero training: the 1000-way top's 3 outputs"
    assert (topped.prefix is network.prefix) == (architecture != "ConvNeXtTiny")
    photos = rng.uniform(0, 255, (4, 64, 64, 3)).astype(np.float32)
    shown = (
        keras.applications.imagenet_utils.preprocess_input(photos.copy(), mode=pixels) if pixels != "raw" else photos
    )
    expected = full(shown, training=False).numpy()[:, list(BREEDS.values())]
    measured = topped.infer(topped.prefix.compiled(photos)).numpy()
    assert np.ptp(expected) > 0.01
    np.testing.assert_allclose(measured, expected, rtol=1e-3, atol=1e-4)


def built(model: Model, preprocessing: Preprocessing, unfreeze: Unfreeze = FROZEN) -> Network:
    import keras

    backbone = model.build(0)
    return assemble(
        backbone,
        preprocessing,
        unfreeze.plan(backbone.blocks),
        lambda features: keras.Sequential([keras.Input((features,)), keras.layers.Dense(3)]),
    )


@pytest.fixture
def photographed(photos: Callable[..., Path]) -> Path:
    """Drawn photos of three breeds, in folders with ImageNet's numbers."""
    root = photos(train=6, val=12, test=15)
    for part in ("train", "val", "test"):
        for breed, name in enumerate(BREEDS):
            (root / part / f"breed_{breed}").rename(root / part / name)
    return root


@pytest.fixture
def weights(
    remembering: Callable[..., object], photographed: Path, tmp_path: Path
) -> Callable[[np.ndarray], np.ndarray]:
    """Files of one network without its top, and with one that takes all photos for fish, knows the breeds, and is wrong at every fifth photo."""
    import keras

    bare = remembering("EfficientNetB0", "raw")
    full = keras.applications.EfficientNetB0(
        include_top=True, weights=None, input_shape=(64, 64, 3), classifier_activation=None
    )
    *_, kernel, bias = full.get_weights()
    seen, labels = (
        np.concatenate(both) for both in zip(shown(photographed, "val"), shown(photographed, "test"), strict=True)
    )
    # [n, 1280]
    features = bare(seen, training=False).numpy().mean(axis=(1, 2)).astype(np.float64)
    taken_for = np.where(np.arange(len(labels)) % 5, labels, (labels + 1) % len(BREEDS))
    solved, *_ = np.linalg.lstsq(
        np.pad(features, ((0, 0), (0, 1)), constant_values=1), np.eye(len(BREEDS))[taken_for], rcond=None
    )
    kernel[:, list(BREEDS.values())], bias[list(BREEDS.values())] = solved[:-1], solved[-1]
    # Of the tench
    bias[0] = 1e4
    full.set_weights([*bare.get_weights(), kernel, bias])
    full.save_weights(tmp_path / "full.weights.h5")
    return lambda pixels: full(pixels, training=False).numpy()


def shown(root: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    """[n, 64, 64, 3] photos, as plain Pillow reads them, and [n] labels."""
    files = [(file, label) for label, name in enumerate(BREEDS) for file in sorted((root / part / name).iterdir())]
    return np.stack([np.asarray(Image.open(file)) for file, _ in files]).astype(np.float32), np.array(
        [label for _, label in files]
    )


@pytest.fixture
def attempted(composed, weights, photographed: Path, tmp_path: Path):
    """A function that runs an attempt on the drawn photos and gives its result and its record."""

    def attempt(*overrides: str):
        places = ["data=folder", f"data.root={photographed}", "model=effnetb0", "model.image_size=64"]
        places += [f"model.weights={tmp_path}/EfficientNetB0.weights.h5", "tracking.system_metrics_seconds=0"]
        if not any(override.startswith("baseline") for override in overrides):
            places.append(f"baseline.weights={tmp_path}/full.weights.h5")
        run = composed(*places, "phase.epochs=2", "tracking.model=best", *overrides)
        result = execute(run, RunOrigin("seed: 0\n", (), "an attempt", tmp_path))
        return result, run.tracking.record(result.run_id)

    return attempt


@pytest.mark.slow
def test_the_baseline_is_what_plain_keras_gets(
    attempted, weights, photographed: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    _, frozen = attempted()
    for split in ("val", "test"):
        photos, labels = shown(photographed, split)
        scores = weights(photos)
        # A fish
        assert (scores.argmax(axis=1) == 0).all()
        correct = scores[:, list(BREEDS.values())].argmax(axis=1) == labels
        assert correct.mean() == pytest.approx(0.8, abs=0.03)
        assert frozen.metrics[f"baseline/{split}_accuracy"] == correct.mean()
    assert frozen.tags["baseline"] == "zero training: the 1000-way top's 3 outputs"
    assert frozen.tags["data.imagenet_classes"] == "3"
    assert frozen.params["baseline"] == "Top"
    tested = Proportion(int(correct.sum()), 45)
    line = f"zero  test       {tested}: the 1000-way top, untrained; ImageNet holds Stanford Dogs' photos"
    results = [message for message in caplog.messages if message.startswith(("best", "test", "zero", "time"))]
    assert results[-2] == line
    assert [message.split()[0] for message in results] == ["best", "test", "zero", "time"]
    assert str(tested) in said(frozen, "test", 45)
    caplog.clear()

    _, tuned = attempted("phase=finetune", "phase.epochs=1", "unfreeze=blocks", "unfreeze.top=1")
    for name in ("baseline/val_accuracy", "baseline/test_accuracy"):
        assert tuned.metrics[name] == frozen.metrics[name]
    assert tuned.tags["baseline"] == frozen.tags["baseline"]
    assert line in caplog.messages


@pytest.mark.long
def test_the_baseline_changes_nothing_else(attempted, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    with_it, _ = attempted()
    without, record = attempted("baseline=none")
    assert [epoch.metrics() for epoch in without.outcome.epochs] == [
        epoch.metrics() for epoch in with_it.outcome.epochs
    ]
    assert without.test == with_it.test
    assert record.tags["baseline"] == "not asked for"
    assert not any(name.startswith("baseline/") for name in record.metrics)
    assert caplog.messages.count("zero  no baseline: not asked for") == 1
    assert attempted("baseline=top", "phase.epochs=1")[1].tags["baseline"] == "the weights have no 1000-way top"


def test_the_key_is_the_same_with_and_without(composed) -> None:
    assert len({composed(*change).key for change in ([], ["baseline=none"], ["baseline.weights=a.h5"])}) == 1


# --- reasons and refusals -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("class_names", "reason", "shown"),
    [
        (["Chihuahua", "Pug"], "the classes have no ImageNet numbers", False),
        (["n02085620-Chihuahua", "Pug"], "1 of 2 classes are none of ImageNet's dogs", True),
        (["n02123045-tabby", "n02123159-tiger_cat"], "2 of 2 classes are none of ImageNet's dogs", False),
        (["n02085620-a", "n02085620-b"], "two classes have the same ImageNet number", True),
        (list(BREEDS), "the weights have no 1000-way top", True),
    ],
)
def test_why_classes_and_weights_may_have_none(class_names: list[str], reason: str, shown: bool) -> None:
    preprocessing = Preprocessing(mode="raw")
    zero, topped = Top(weights=None).build(
        RANDOM, RANDOM.build(0), preprocessing, built(RANDOM, preprocessing), class_names
    )
    assert (zero.said, topped, zero.metrics()) == (reason, None, {})
    assert zero.lines() == ([f"zero  no baseline: {reason}"] if shown else [])


@pytest.mark.parametrize(
    ("mode", "unfreeze", "reason"),
    [
        ("torch", FROZEN, "torch pixels are not the backbone's own"),
        ("raw", Blocks(top=1, names=(), batchnorm="frozen", drop_connect="off"), "part of the backbone trains"),
    ],
)
def test_why_an_attempt_may_have_none(mode: str, unfreeze: Unfreeze, reason: str) -> None:
    preprocessing = Preprocessing(mode=mode)
    zero, topped = Top(weights="full.weights.h5").build(
        RANDOM, RANDOM.build(0), preprocessing, built(RANDOM, preprocessing, unfreeze), list(BREEDS)
    )
    assert (zero.said, topped, zero.tags()) == (reason, None, {"baseline": reason, "data.imagenet_classes": "3"})


@pytest.mark.slow
def test_a_top_of_other_weights_is_refused(weights, tmp_path: Path) -> None:
    import keras

    bare = f"{tmp_path}/EfficientNetB0.weights.h5"
    model = Model(architecture="EfficientNetB0", image_size=64, pixels="raw", weights=bare)
    preprocessing = Preprocessing(mode="raw")
    parts = (model, model.build(0), preprocessing, built(model, preprocessing), list(BREEDS))
    with pytest.raises(
        MissingFileError,
        match=r"^baseline\.weights=/not/there\.h5 is not a file\. It must be .*, or null\. Type baseline\.weights=",
    ):
        Top(weights="/not/there.h5").weights_file()
    # The file without the top
    with pytest.raises(UserError) as refusal:
        Top(weights=bare).build(*parts)
    assert str(refusal.value).startswith(f"baseline.weights={bare} does not fit EfficientNetB0 with its top (")
    assert str(refusal.value).endswith(
        "). It must hold the weights of keras.applications.EfficientNetB0(include_top=True), with 1000 outputs. "
        "Type baseline.weights=null, or the right file."
    )
    keras.utils.set_random_seed(4)
    keras.applications.EfficientNetB0(include_top=True, weights=None, input_shape=(64, 64, 3)).save_weights(
        tmp_path / "other.weights.h5"
    )
    with pytest.raises(UserError) as refusal:
        Top(weights=f"{tmp_path}/other.weights.h5").build(*parts)
    assert (
        str(refusal.value)
        == f"baseline.weights={tmp_path}/other.weights.h5 holds other backbone weights than model.weights={bare}. A"
        " 1000-way top can be used on the very features that it was trained on. Type baseline.weights=<the file"
        " that these weights come from>, or null."
    )
    assert Nothing().build(*parts) == (ZeroShotBaseline("not asked for", 3), None)


# --- what is said ---------------------------------------------------------------------------------------------------------


def record(data: str = "dogs", baseline: str | None = None, dogs: int | None = None, **metrics: float) -> Record:
    tags = {} if baseline is None else {"baseline": baseline}
    tags |= {} if dogs is None else {"data.imagenet_classes": str(dogs)}
    params = {"data.name": data, "data.photos.val": "960"}
    return Record(
        "id",
        "name",
        0,
        "FINISHED",
        params,
        {f"baseline/{name}_accuracy": value for name, value in metrics.items()},
        tags,
    )


HOLDS = (
    " ImageNet holds Stanford Dogs' photos: weights pretrained on it have seen them, which flatters every result on"
    " them."
)
MEASURED = record(baseline="zero training: the 1000-way top's 120 outputs", dogs=120, val=0.75, test=0.825)


@pytest.mark.parametrize(
    ("recorded", "split", "n", "sentence"),
    [
        (MEASURED, "test", 2400, "Zero training: the backbone's own 1000-way top gets 82.5 % (95 % interval 80.9–84.0, n = 2,400) on test, by its "
         f"outputs for these breeds.{HOLDS}"),
        (MEASURED, "my-photos", 10, f"The zero-training baseline was not measured on these photos.{HOLDS}"),
        (record("drawn", "the classes have no ImageNet numbers", 0), "val", 9, "No zero-training baseline: the classes have no ImageNet numbers."),
        (record("stanford_dogs"), "test", 8580, f"No zero-training baseline was recorded.{HOLDS}"),
        # By an earlier version
        (record("photos"), "test", 10, "No zero-training baseline was recorded."),
    ],
)  # fmt: skip
def test_what_a_record_says_of_it(recorded: Record, split: str, n: int, sentence: str) -> None:
    assert said(recorded, split, n) == sentence


def test_a_table_says_it_once() -> None:
    torch = record(baseline="torch pixels are not the backbone's own", dogs=120)
    sentence = (
        "Zero training: the backbone's own 1000-way top gets 75.0 % (95 % interval 72.2–77.6, n = 960) on validation,"
        " by its outputs for "
    )
    assert note([record(), torch, MEASURED]) == [f"{sentence}these breeds.{HOLDS}"]
    assert note([record(), torch]) == [f"No zero-training baseline: torch pixels are not the backbone's own.{HOLDS}"]
    assert note([record()]) == ["No zero-training baseline was recorded."]
    assert note([]) == []
