"""Zero-shot baseline: compared with plain Keras on the same images, and the reasons for having none."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dogbreeds.core.errors import MissingFileError, UserError
from dogbreeds.core.spec import boolean, integer, one_of
from dogbreeds.data.class_names import has_wordnet_id, imagenet_outputs
from dogbreeds.evaluation.metrics import Proportion
from dogbreeds.evaluation.results import ZeroShotBaseline
from dogbreeds.experiments.attempt import execute
from dogbreeds.models.assembly import assemble
from dogbreeds.models.model import MobileNetV2, Model
from dogbreeds.models.network import Network
from dogbreeds.models.preprocessing import Preprocessing
from dogbreeds.models.unfreeze import Blocks, Unfreeze
from dogbreeds.models.unfreeze import Nothing as Frozen
from dogbreeds.reports.baseline_note import describe, notes
from dogbreeds.tracking.records import Record, RunOrigin
from dogbreeds.training.baseline import Nothing, Top

BREEDS = {"n02085620-Chihuahua": 151, "n02113978-Mexican_hairless": 268, "n02116738-African_hunting_dog": 275}
RANDOM = Model(architecture="EfficientNetB0", image_size=64, pixels="raw", weights=None)
FROZEN = Frozen(batchnorm="frozen", drop_connect="off")


# --- class names --------------------------------------------------------------


def test_imagenet_outputs_match_the_order_of_imagenet_s_labels() -> None:
    """TensorFlow Datasets ships ILSVRC 2012's WordNet IDs in the order of its labels."""
    package = importlib.util.find_spec("tensorflow_datasets").origin
    numbers = (Path(package).parent / "datasets/imagenet2012/labels.txt").read_text().split()
    found = imagenet_outputs([f"{number}-name" for number in numbers])
    dogs = [place for place in found if place is not None]
    assert dogs == [place for place, found_place in enumerate(found) if found_place is not None]
    assert dogs == [*range(151, 269), 273, 274, 275]
    # The dalmatian, ImageNet's only dog that is missing from Stanford Dogs.
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
def test_imagenet_outputs_use_the_wordnet_id_before_the_name(name: str, numbered: bool, place: int | None) -> None:
    assert (has_wordnet_id(name), imagenet_outputs([name])) == (numbered, [place])


# --- measurement --------------------------------------------------------------


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
def test_top_gives_the_logits_of_the_full_keras_model(
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
    # The last normalisation of ConvNeXt has the same shape with and without the top.
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
    assert zero.description == "zero training: the 1000-way top's 3 outputs"
    assert (topped.prefix is network.prefix) == (architecture != "ConvNeXtTiny")
    images = rng.uniform(0, 255, (4, 64, 64, 3)).astype(np.float32)
    inputs = (
        keras.applications.imagenet_utils.preprocess_input(images.copy(), mode=pixels) if pixels != "raw" else images
    )
    expected = full(inputs, training=False).numpy()[:, list(BREEDS.values())]
    measured = topped.infer(topped.prefix.compiled(images)).numpy()
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
def image_root(write_images: Callable[..., Path]) -> Path:
    """Drawn images of three classes, in folders named after WordNet IDs."""
    root = write_images(train=6, val=12, test=15)
    for part in ("train", "val", "test"):
        for label, name in enumerate(BREEDS):
            (root / part / f"breed_{label}").rename(root / part / name)
    return root


@pytest.fixture
def weights(
    pretrained_backbone: Callable[..., object], image_root: Path, tmp_path: Path
) -> Callable[[np.ndarray], np.ndarray]:
    """Save weight files of one network with and without its top, and return a function that computes its 1000 logits.

    The top's highest logit is always that of a fish. Among the logits of `BREEDS` it is right, except for every fifth
    image.
    """
    import keras

    bare = pretrained_backbone("EfficientNetB0", "raw")
    full = keras.applications.EfficientNetB0(
        include_top=True, weights=None, input_shape=(64, 64, 3), classifier_activation=None
    )
    *_, kernel, bias = full.get_weights()
    images, labels = (
        np.concatenate(both) for both in zip(loaded(image_root, "val"), loaded(image_root, "test"), strict=True)
    )
    # [n, 1280]
    features = bare(images, training=False).numpy().mean(axis=(1, 2)).astype(np.float64)
    targets = np.where(np.arange(len(labels)) % 5, labels, (labels + 1) % len(BREEDS))
    solved, *_ = np.linalg.lstsq(
        np.pad(features, ((0, 0), (0, 1)), constant_values=1), np.eye(len(BREEDS))[targets], rcond=None
    )
    kernel[:, list(BREEDS.values())], bias[list(BREEDS.values())] = solved[:-1], solved[-1]
    # Output 0 is the tench, a fish.
    bias[0] = 1e4
    full.set_weights([*bare.get_weights(), kernel, bias])
    full.save_weights(tmp_path / "full.weights.h5")
    return lambda pixels: full(pixels, training=False).numpy()


def loaded(root: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Return [n, 64, 64, 3] images, as plain Pillow reads them, and their [n] labels."""
    files = [(file, label) for label, name in enumerate(BREEDS) for file in sorted((root / part / name).iterdir())]
    return np.stack([np.asarray(Image.open(file)) for file, _ in files]).astype(np.float32), np.array(
        [label for _, label in files]
    )


@pytest.fixture
def train_run(composed, weights, image_root: Path, tmp_path: Path):
    """Return a function that trains on the drawn images, and returns the result and its record."""

    def train(*overrides: str):
        places = ["data=folder", f"data.root={image_root}", "model=effnetb0", "model.image_size=64"]
        places += [f"model.weights={tmp_path}/EfficientNetB0.weights.h5", "tracking.system_metrics_seconds=0"]
        if not any(override.startswith("baseline") for override in overrides):
            places.append(f"baseline.weights={tmp_path}/full.weights.h5")
        run = composed(*places, "phase.epochs=2", "tracking.model=best", *overrides)
        result = execute(run, RunOrigin("seed: 0\n", (), "a run", tmp_path))
        return result, run.tracking.record(result.run_id)

    return train


@pytest.mark.long
def test_baseline_accuracy_is_that_of_the_full_keras_model(
    train_run, weights, image_root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    _, frozen = train_run()
    for split in ("val", "test"):
        images, labels = loaded(image_root, split)
        scores = weights(images)
        # The highest of the 1000 logits is that of the fish.
        assert (scores.argmax(axis=1) == 0).all()
        correct = scores[:, list(BREEDS.values())].argmax(axis=1) == labels
        assert correct.mean() == pytest.approx(0.8, abs=0.03)
        assert frozen.metrics[f"baseline/{split}_accuracy"] == correct.mean()
    assert frozen.tags["baseline"] == "zero training: the 1000-way top's 3 outputs"
    assert frozen.tags["data.imagenet_classes"] == "3"
    assert frozen.params["baseline"] == "Top"
    tested = Proportion(int(correct.sum()), 45)
    results = [message for message in caplog.messages if message.startswith(("best", "test", "baseline", "time"))]
    line = results[-2]
    assert line.startswith(f"baseline  test {tested}: the 1000-way top, untrained; ImageNet ")
    assert "Stanford Dogs" in line
    assert [message.split()[0] for message in results] == ["best", "best", "baseline", "time"]
    assert str(tested) in describe(frozen, "test", 45)
    caplog.clear()

    _, tuned = train_run("phase=finetune", "phase.epochs=1", "unfreeze=blocks", "unfreeze.top=1")
    for name in ("baseline/val_accuracy", "baseline/test_accuracy"):
        assert tuned.metrics[name] == frozen.metrics[name]
    assert tuned.tags["baseline"] == frozen.tags["baseline"]
    assert line in caplog.messages


@pytest.mark.long
def test_baseline_does_not_change_the_other_results(train_run, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    with_it, _ = train_run()
    without, record = train_run("baseline=none")
    assert [epoch.metrics() for epoch in without.history.epochs] == [
        epoch.metrics() for epoch in with_it.history.epochs
    ]
    assert without.test == with_it.test
    assert record.tags["baseline"] == "not requested"
    assert not any(name.startswith("baseline/") for name in record.metrics)
    assert caplog.messages.count("baseline  none: not requested") == 1
    assert train_run("baseline=top", "phase.epochs=1")[1].tags["baseline"] == "the weights have no 1000-way top"


def test_baseline_is_not_part_of_the_run_key(composed) -> None:
    assert len({composed(*change).key for change in ([], ["baseline=none"], ["baseline.weights=a.h5"])}) == 1


# --- reasons and errors -------------------------------------------------------


@pytest.mark.parametrize(
    ("class_names", "reason", "is_logged"),
    [
        (["Chihuahua", "Pug"], "the class names have no WordNet IDs", False),
        (["n02085620-Chihuahua", "Pug"], "1 of 2 classes are not among ImageNet's dogs", True),
        (["n02123045-tabby", "n02123159-tiger_cat"], "2 of 2 classes are not among ImageNet's dogs", False),
        (["n02085620-a", "n02085620-b"], "two classes have the same WordNet ID", True),
        (list(BREEDS), "the weights have no 1000-way top", True),
    ],
)
def test_top_gives_the_reason_if_classes_or_weights_rule_it_out(
    class_names: list[str], reason: str, is_logged: bool
) -> None:
    preprocessing = Preprocessing(mode="raw")
    zero, topped = Top(weights=None).build(
        RANDOM, RANDOM.build(0), preprocessing, built(RANDOM, preprocessing), class_names
    )
    assert (zero.description, topped, zero.metrics()) == (reason, None, {})
    assert zero.lines() == ([f"baseline  none: {reason}"] if is_logged else [])


@pytest.mark.parametrize(
    ("mode", "unfreeze", "reason"),
    [
        ("torch", FROZEN, "torch pixels are not those of pretraining"),
        ("raw", Blocks(top=1, names=(), batchnorm="frozen", drop_connect="off"), "part of the backbone trains"),
    ],
)
def test_top_gives_the_reason_if_pixels_or_unfreezing_rule_it_out(mode: str, unfreeze: Unfreeze, reason: str) -> None:
    preprocessing = Preprocessing(mode=mode)
    zero, topped = Top(weights="full.weights.h5").build(
        RANDOM, RANDOM.build(0), preprocessing, built(RANDOM, preprocessing, unfreeze), list(BREEDS)
    )
    assert (zero.description, topped, zero.tags()) == (reason, None, {"baseline": reason, "data.imagenet_classes": "3"})


@pytest.mark.long
def test_top_of_other_weights_raises_a_user_error(weights, tmp_path: Path) -> None:
    import keras

    bare = f"{tmp_path}/EfficientNetB0.weights.h5"
    model = Model(architecture="EfficientNetB0", image_size=64, pixels="raw", weights=bare)
    preprocessing = Preprocessing(mode="raw")
    parts = (model, model.build(0), preprocessing, built(model, preprocessing), list(BREEDS))
    with pytest.raises(
        MissingFileError,
        match=r"^baseline\.weights=/not/there\.h5 is not a file\. It must be .*, or null\. Set baseline\.weights=",
    ):
        Top(weights="/not/there.h5").weights_file()
    # The file has no top.
    with pytest.raises(UserError) as refusal:
        Top(weights=bare).build(*parts)
    assert str(refusal.value).startswith(f"baseline.weights={bare} does not fit EfficientNetB0 with its top (")
    assert "keras.applications.EfficientNetB0(include_top=True), with 1000 outputs." in str(refusal.value)
    assert str(refusal.value).endswith("Set baseline.weights=<the right file>, or baseline.weights=null.")
    keras.utils.set_random_seed(4)
    keras.applications.EfficientNetB0(include_top=True, weights=None, input_shape=(64, 64, 3)).save_weights(
        tmp_path / "other.weights.h5"
    )
    with pytest.raises(UserError) as refusal:
        Top(weights=f"{tmp_path}/other.weights.h5").build(*parts)
    assert str(refusal.value).startswith(
        f"baseline.weights={tmp_path}/other.weights.h5 holds other backbone weights than model.weights={bare}. "
    )
    assert str(refusal.value).endswith(
        ". Set baseline.weights=<the file that these weights come from>, or baseline.weights=null."
    )
    assert Nothing().build(*parts) == (ZeroShotBaseline("not requested", 3), None)


@dataclass(frozen=True, kw_only=True)
class OwnNetwork(Model):
    """As a plugin has it: one convolution, and a top that is pooled or not."""

    architecture: str = one_of("OwnNetwork")
    outputs: int = integer(at_least=1, example=1000)
    pooled: bool = boolean()

    def construct(self, weights: str | None, top: bool = False):
        import keras

        images = keras.Input((self.image_size, self.image_size, 3))
        maps = keras.layers.Conv2D(4, 3, strides=8, name="block1_conv")(images)
        if not top:
            return keras.Model(images, maps)
        pool = keras.layers.GlobalAveragePooling2D() if self.pooled else keras.layers.Flatten()
        return keras.Model(images, keras.layers.Dense(self.outputs)(pool(maps)))


@pytest.mark.slow
@pytest.mark.parametrize(("outputs", "pooled", "pools"), [(1000, False, 0), (1001, True, 1)])
def test_top_of_another_kind_raises_a_user_error(outputs: int, pooled: bool, pools: int) -> None:
    model = OwnNetwork(
        architecture="OwnNetwork", image_size=32, pixels="raw", weights="imagenet", outputs=outputs, pooled=pooled
    )
    preprocessing = Preprocessing(mode="raw")
    parts = (model, model.build(0), preprocessing, built(model, preprocessing), list(BREEDS))
    facts = rf"OwnNetwork with its top has {pools} .*\({outputs},\)\. .* 1000 logits .*\. Set baseline=none, or"
    with pytest.raises(UserError, match=facts):
        Top(weights=None).build(*parts)


# --- notes in reports ---------------------------------------------------------


def record(data: str = "dogs", baseline: str | None = None, dogs: int | None = None, **metrics: float) -> Record:
    tags = {} if baseline is None else {"baseline": baseline}
    tags |= {} if dogs is None else {"data.imagenet_classes": str(dogs)}
    params = {"data.name": data, "data.images.val": "960"}
    return Record(
        "id",
        "name",
        0,
        "FINISHED",
        params,
        {f"baseline/{name}_accuracy": value for name, value in metrics.items()},
        tags,
    )


OVERLAP = (
    " ImageNet contains the images of Stanford Dogs: pretrained weights have already seen them, so every result on them"
    " is optimistic."
)
MEASURED = record(baseline="zero training: the 1000-way top's 120 outputs", dogs=120, val=0.75, test=0.825)


@pytest.mark.parametrize(
    ("recorded", "split", "n", "sentence"),
    [
        (
            MEASURED,
            "test",
            2400,
            "Zero-shot baseline: without training, the backbone's own 1000-class top reaches 82.5 % (95 % interval"
            f" 80.9–84.0, n = 2,400) on test, with its outputs for these classes.{OVERLAP}",
        ),
        (MEASURED, "my-photos", 10, f"The zero-shot baseline was not measured on these images.{OVERLAP}"),
        (
            record("drawn", "the classes have no ImageNet numbers", 0),
            "val",
            9,
            "No zero-shot baseline: the classes have no ImageNet numbers.",
        ),
        (record("stanford_dogs"), "test", 8580, f"No zero-shot baseline was recorded.{OVERLAP}"),
        # An earlier version recorded no tags of the baseline.
        (record("photos"), "test", 10, "No zero-shot baseline was recorded."),
    ],
)
def test_describe_states_the_recorded_baseline_or_why_there_is_none(
    recorded: Record, split: str, n: int, sentence: str
) -> None:
    assert describe(recorded, split, n) == sentence


def test_notes_describe_the_baseline_of_several_runs_once() -> None:
    torch = record(baseline="torch pixels are not the backbone's own", dogs=120)
    assert notes([record(), torch, MEASURED]) == [
        "Zero-shot baseline: without training, the backbone's own 1000-class top reaches 75.0 % (95 % interval"
        f" 72.2–77.6, n = 960) on validation, with its outputs for these classes.{OVERLAP}"
    ]
    assert notes([record(), torch]) == [f"No zero-shot baseline: torch pixels are not the backbone's own.{OVERLAP}"]
    assert notes([record()]) == ["No zero-shot baseline was recorded."]
    assert notes([]) == []
