"""`export_formats` and `exporter.compare`: each format, written, loaded and compared with its network."""

import functools
import importlib.util
import itertools
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dogbreeds.core.errors import UserError
from dogbreeds.data import drawn_dogs
from dogbreeds.inference import export_formats
from dogbreeds.inference.classifier import Classifier, load
from dogbreeds.inference.export_formats import FORMATS, LABELS_FILE
from dogbreeds.inference.exporter import ParityCheck, compare, with_odd_sizes
from dogbreeds.models.precision import FLOAT32_TOLERANCE
from dogbreeds.models.unfreeze import Nothing
from tests.test_network import FROZEN, NAMES, build
from tests.tiers import tiered

ABSENT = [
    name for name, spec in FORMATS.items() if any(importlib.util.find_spec(module) is None for module in spec.requires)
]


@pytest.fixture(scope="module")
def classifiers(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Classifier]:
    """A function from a resize mode to a saved miniature network whose head separates the classes."""
    folder = tmp_path_factory.mktemp("networks")

    @functools.cache
    def make(resize: str) -> Classifier:
        network = build(Nothing(**FROZEN))
        for variable in network.head.trainable_variables:
            variable.assign(variable * 3)
        network.full_model(NAMES, resize).save(folder / f"{resize}.keras")
        return load(folder / f"{resize}.keras")

    return make


def odd_images(count: int = 6) -> list[np.ndarray]:
    drawn = [lambda label=label: drawn_dogs.draw("test", label, 0) for label in range(count)]
    return [image() for image in with_odd_sizes(drawn)]


# Each resize mode is a network of its own that takes long to write, so the faster tiers have one each.
@pytest.mark.parametrize(
    ("name", "resize"),
    tiered(
        itertools.product(FORMATS, ("stretch", "pad", "crop")),
        slow=[("tflite", "pad"), ("onnx", "pad")],
    ),
)
def test_a_format_gives_the_probabilities_of_the_network(
    name: str, resize: str, classifiers: Callable[[str], Classifier], tmp_path: Path
) -> None:
    if name in ABSENT:
        pytest.skip(f"{name} needs dogbreeds[export]")
    classifier = classifiers(resize)
    path = export_formats.write(name, classifier, tmp_path)
    assert path == tmp_path / FORMATS[name].file
    trained = export_formats.keras_predictor(classifier.model)
    check = compare({name: export_formats.load(name, path)}, trained, odd_images(), lambda done: None)[name]
    assert (check.n, check.same_class) == (10, 10)
    assert check.max_difference <= (2e-5 if FORMATS[name].tolerance == FLOAT32_TOLERANCE else 5e-3)
    assert check.max_difference > 0 or name == "keras"
    predictions = [trained(image[None]) for image in odd_images()]
    # The network distinguishes images; otherwise any network would agree.
    assert len({class_name for _, (class_name,) in predictions}) > 1
    assert max(probabilities.max() for probabilities, _ in predictions) > 1.5 / len(NAMES)


@pytest.mark.slow
def test_tflite_and_onnx_files_contain_the_class_names(
    classifiers: Callable[[str], Classifier], tmp_path: Path
) -> None:
    if "tflite" in ABSENT or "onnx" in ABSENT:
        pytest.skip("needs dogbreeds[export]")
    import onnx

    tflite_file = export_formats.write("tflite", classifiers("pad"), tmp_path)
    with zipfile.ZipFile(tflite_file) as archive:
        assert archive.read(LABELS_FILE).decode().split("\n") == list(NAMES)
    model = onnx.load(str(export_formats.write("onnx", classifiers("pad"), tmp_path)))
    assert {prop.key: json.loads(prop.value) for prop in model.metadata_props} == {"class_names": list(NAMES)}
    tensors = [*model.graph.input, *model.graph.output]
    shapes = [
        [dimension.dim_param or dimension.dim_value for dimension in tensor.type.tensor_type.shape.dim]
        for tensor in tensors
    ]
    assert [tensor.name for tensor in tensors] == ["image", "probabilities", "class"]
    assert shapes == [["b", "h", "w", 3], ["b", len(NAMES)], ["b"]]


@pytest.mark.long
def test_tflite_float16_file_is_about_half_the_size(classifiers: Callable[[str], Classifier], tmp_path: Path) -> None:
    if "tflite_float16" in ABSENT:
        pytest.skip("needs dogbreeds[export]")
    float32_size, float16_size = (
        export_formats.write(name, classifiers("pad"), tmp_path).stat().st_size for name in ("tflite", "tflite_float16")
    )
    # A third of this small network's weights is in small or depthwise kernels, which stay float32.
    assert 0.5 < float16_size / float32_size < 0.7


@pytest.mark.parametrize(
    ("names", "received"),
    [(["keras", "coreml"], "formats has 'coreml'. "), ([], "formats was empty. ")],
)
def test_check_available_refuses_an_unknown_format_and_an_empty_list(names: list[str], received: str) -> None:
    with pytest.raises(UserError) as error:
        export_formats.check_available(names)
    message = str(error.value)
    assert message.startswith(received)
    assert "keras, savedmodel, tflite, tflite_float16, onnx. " in message
    assert "Type 'formats=[keras,onnx]'" in message


def test_check_available_names_the_extra_of_a_module_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_formats, "find_spec", lambda module: None)
    export_formats.check_available(["keras", "savedmodel"])
    with pytest.raises(
        UserError,
        match=(
            r"^formats has onnx, and tf2onnx is not installed\. .* extra export\. Type pip install"
            r" 'dogbreeds\[export\]', or 'formats=\[keras,savedmodel\]'\.$"
        ),
    ):
        export_formats.check_available(["keras", "onnx"])


def test_compare_finds_a_network_with_other_probabilities() -> None:
    images = [np.full((8, 8, 3), level, np.uint8) for level in (0, 100, 200)]

    def trained(batch: np.ndarray) -> export_formats.BatchPrediction:
        brightness = batch[:, 0, 0, 0] / 255
        return np.stack([brightness, 1 - brightness], axis=1), ["a" if each > 0.5 else "b" for each in brightness]

    def off(by: float) -> export_formats.PredictBatch:
        return lambda batch: (trained(batch)[0] + np.float64(by) * (batch[0, 0, 0, 0] == 200), ["b"] * len(batch))

    advanced: list[int] = []
    formats = {"near": off(5e-5), "far": off(2e-4), "broken": off(np.nan)}
    checks = compare(formats, trained, images, advanced.append)
    assert sum(advanced) == 3
    assert (checks["near"].n, checks["near"].same_class) == (3, 2)
    # All three have one size, so they are one batch, and its first image is black.
    assert checks["near"].max_difference == 0
    checks = compare(formats, trained, [images[2], images[0][:4], images[1]], advanced.append)
    assert {name: check.within(1e-4) for name, check in checks.items()} == {
        "near": True,
        "far": False,
        "broken": False,
    }
    assert checks["far"].max_difference == pytest.approx(2e-4)


def test_compare_finds_a_network_with_fewer_classes() -> None:
    checks = compare(
        {"less": lambda batch: (np.zeros((1, 2)), ["a"])},
        lambda batch: (np.zeros((1, 3)), ["a"]),
        [np.zeros((2, 2, 3), np.uint8)],
        print,
    )
    assert checks["less"] == ParityCheck(np.inf, 1, 1)


def test_compare_batches_images_of_one_size_up_to_a_bound() -> None:
    sizes: list[int] = []

    def predict(batch: np.ndarray) -> export_formats.BatchPrediction:
        sizes.append(len(batch))
        return np.zeros((len(batch), 2)), ["a"] * len(batch)

    small, large = np.zeros((224, 224, 3), np.uint8), np.zeros((2000, 2000, 3), np.uint8)
    compare({}, predict, [*[small] * 40, large, large], lambda done: None)
    assert sizes == [32, 8, 1, 1]
