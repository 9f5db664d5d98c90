"""Each format, written and asked, beside the network that it is of."""

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
from dogbreeds.inference.agreement import ParityCheck, compare, with_odd_sizes
from dogbreeds.inference.classifier import Classifier, load
from dogbreeds.inference.export_formats import FORMATS, LABELS
from dogbreeds.models.unfreeze import Nothing
from tests.test_network import FROZEN, NAMES, build
from tests.tiers import tiered

ABSENT = [
    name for name, kind in FORMATS.items() if any(importlib.util.find_spec(module) is None for module in kind.needs)
]


@pytest.fixture(scope="module")
def classifiers(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Classifier]:
    """A function from how photos are resized to the miniature with a head that sets breeds apart."""
    folder = tmp_path_factory.mktemp("networks")

    @functools.cache
    def made(how: str) -> Classifier:
        network = build(Nothing(**FROZEN))
        for variable in network.head.trainable_variables:
            variable.assign(variable * 3)
        network.whole(NAMES, how).save(folder / f"{how}.keras")
        return load(folder / f"{how}.keras")

    return made


def photos(count: int = 6) -> list[np.ndarray]:
    drawn = [lambda breed=breed: drawn_dogs.draw("test", breed, 0) for breed in range(count)]
    return [photo() for photo in with_odd_sizes(drawn)]


# Each way of resizing is a network of its own, and takes long to write: in the first tiers there is one.
@pytest.mark.parametrize(
    ("name", "how"),
    tiered(
        itertools.product(FORMATS, ("stretch", "pad", "crop")),
        first=[("tflite", "pad")],
        slow=[("keras", "pad"), ("onnx", "pad")],
    ),
)
def test_a_format_says_what_the_network_says(
    name: str, how: str, classifiers: Callable[[str], Classifier], tmp_path: Path
) -> None:
    if name in ABSENT:
        pytest.skip(f"{name} needs dogbreeds[export]")
    classifier = classifiers(how)
    place = export_formats.write(name, classifier, tmp_path)
    assert place == tmp_path / FORMATS[name].file
    trained = export_formats.ask_keras(classifier.whole)
    found = compare({name: export_formats.opened(name, place)}, trained, photos(), lambda done: None)[name]
    assert (found.n, found.same) == (10, 10)
    assert found.difference <= (2e-5 if FORMATS[name].allowed == export_formats.EXACT else 5e-3)
    assert found.difference > 0 or name == "keras"
    answers = [trained(photo[None]) for photo in photos()]
    # Else any network would agree
    assert len({breed for _, (breed,) in answers}) > 1
    assert max(scores.max() for scores, _ in answers) > 1.5 / len(NAMES)


@pytest.mark.slow
def test_names_travel_with_a_file(classifiers: Callable[[str], Classifier], tmp_path: Path) -> None:
    if "tflite" in ABSENT or "onnx" in ABSENT:
        pytest.skip("needs dogbreeds[export]")
    import onnx

    lite = export_formats.write("tflite", classifiers("pad"), tmp_path)
    with zipfile.ZipFile(lite) as end:
        assert end.read(LABELS).decode().split("\n") == list(NAMES)
    model = onnx.load(str(export_formats.write("onnx", classifiers("pad"), tmp_path)))
    assert {prop.key: json.loads(prop.value) for prop in model.metadata_props} == {"class_names": list(NAMES)}
    sides = [
        [side.dim_param or side.dim_value for side in end.type.tensor_type.shape.dim]
        for end in [*model.graph.input, *model.graph.output]
    ]
    assert [end.name for end in [*model.graph.input, *model.graph.output]] == ["photo", "probabilities", "breed"]
    assert sides == [["b", "h", "w", 3], ["b", len(NAMES)], ["b"]]


@pytest.mark.long
def test_half_precision_halves_a_file(classifiers: Callable[[str], Classifier], tmp_path: Path) -> None:
    if "tflite_float16" in ABSENT:
        pytest.skip("needs dogbreeds[export]")
    whole, half = (
        export_formats.write(name, classifiers("pad"), tmp_path).stat().st_size for name in ("tflite", "tflite_float16")
    )
    # A third of this small network's weights lies in kernels that are small or depthwise
    assert 0.5 < half / whole < 0.7


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (
            ["keras", "coreml"],
            (
                "formats has 'coreml'. It must be a list of keras, savedmodel, tflite, tflite_float16, onnx. Type"
                " 'formats=[keras,onnx]'"
            ),
        ),
        ([], "formats was empty. It must be a list of keras"),
    ],
)
def test_an_unknown_format_is_refused(names: list[str], said: str) -> None:
    with pytest.raises(UserError) as refused:
        export_formats.check_installed(names)
    assert str(refused.value).startswith(said)


def test_what_is_not_installed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_formats, "find_spec", lambda module: None)
    export_formats.check_installed(["keras", "savedmodel"])
    with pytest.raises(
        UserError,
        match=(
            r"onnx was asked for, and tf2onnx is not installed. It needs the extra named export. Type pip install"
            r" 'dogbreeds\[export\]'"
        ),
    ):
        export_formats.check_installed(["keras", "onnx"])


def test_another_network_does_not_agree() -> None:
    shown = [np.full((8, 8, 3), level, np.uint8) for level in (0, 100, 200)]

    def trained(batch: np.ndarray) -> export_formats.Answers:
        first = batch[:, 0, 0, 0] / 255
        return np.stack([first, 1 - first], axis=1), ["a" if each > 0.5 else "b" for each in first]

    def off(by: float) -> export_formats.Ask:
        return lambda batch: (trained(batch)[0] + np.float64(by) * (batch[0, 0, 0, 0] == 200), ["b"] * len(batch))

    advanced: list[int] = []
    found = compare({"near": off(5e-5), "far": off(2e-4), "broken": off(np.nan)}, trained, shown, advanced.append)
    assert sum(advanced) == 3
    assert (found["near"].n, found["near"].same) == (3, 2)
    # All three are of one size, and so in one batch, which begins with 0
    assert found["near"].difference == 0
    found = compare(
        {"near": off(5e-5), "far": off(2e-4), "broken": off(np.nan)},
        trained,
        [shown[2], shown[0][:4], shown[1]],
        advanced.append,
    )
    assert {name: agreement.within(1e-4) for name, agreement in found.items()} == {
        "near": True,
        "far": False,
        "broken": False,
    }
    assert found["far"].difference == pytest.approx(2e-4)


def test_fewer_probabilities_are_no_agreement() -> None:
    found = compare(
        {"less": lambda batch: (np.zeros((1, 2)), ["a"])},
        lambda batch: (np.zeros((1, 3)), ["a"]),
        [np.zeros((2, 2, 3), np.uint8)],
        print,
    )
    assert found["less"] == ParityCheck(np.inf, 1, 1)


def test_large_photos_are_asked_about_one_by_one() -> None:
    sizes: list[int] = []

    def ask(batch: np.ndarray) -> export_formats.Answers:
        sizes.append(len(batch))
        return np.zeros((len(batch), 2)), ["a"] * len(batch)

    small, large = np.zeros((224, 224, 3), np.uint8), np.zeros((2000, 2000, 3), np.uint8)
    compare({}, ask, [*[small] * 40, large, large], lambda done: None)
    assert sizes == [32, 8, 1, 1]
