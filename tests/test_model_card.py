"""Model cards: which data they speak of, and that their usage examples run."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dogbreeds.evaluation.results import Predictions
from dogbreeds.inference import export_formats
from dogbreeds.inference.export_formats import FORMATS
from dogbreeds.reports.model_card import model_card
from dogbreeds.tracking.records import Record
from tests.tiny_network import class_names, save_tiny

PREDICTIONS = {"test": Predictions(["a", "b"], np.array([0, 1]), np.eye(2), ("circle", "square"))}


def card(data: str, spec: str = "Folder", **tags: str) -> str:
    params = {"data": spec, "data.name": data, "data.images.train": "90", "model.architecture": "EfficientNetB0"}
    record = Record("a" * 32, "frozen", 0.0, "FINISHED", params, {}, tags)
    return rendered(record)


def rendered(record: Record | None) -> str:
    return model_card(
        title="EfficientNetB0",
        record=record,
        predictions=PREDICTIONS if record else {},
        class_names=("circle", "square"),
        image_size=224,
        resize="pad",
        usages={name: spec.usage.format(file=spec.file) for name, spec in FORMATS.items()},
    )


def test_card_of_other_data_does_not_speak_of_dogs() -> None:
    text = card("shapes")
    assert "dog" not in text.lower()
    assert "accuracy is that on images of `shapes`" in text
    assert "(95 % interval" in text


def test_card_of_a_file_says_how_to_measure_it() -> None:
    text = rendered(None)
    assert "stanford" not in text.lower()
    assert "python -m dogbreeds.evaluate run=" in text


def test_card_of_stanford_dogs_names_the_overlap_with_imagenet() -> None:
    for data, text in (
        ("stanford_dogs", card("stanford_dogs", "StanfordDogs")),
        ("photos", card("photos", **{"data.imagenet_classes": "120"})),
    ):
        assert "Stanford Dogs is part of ImageNet" in text
        assert f"those of `{data}`" in text
        assert "No zero-shot baseline was recorded" in text
    assert "drawn by a program" in card("miniature", "Miniature")


# Not tflite_float16, whose code is that of tflite: the tiny network has no kernel that is large enough to be cast.
@pytest.mark.parametrize(
    "name", ["keras", *(pytest.param(name, marks=pytest.mark.slow) for name in ("savedmodel", "tflite", "onnx"))]
)
def test_usage_in_the_card_runs_as_written(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = FORMATS[name]
    if any(importlib.util.find_spec(module) is None for module in spec.requires):
        pytest.skip(f"{name} needs dogbreeds[export]")
    classifier = save_tiny(tmp_path / "network.keras", classes=3)
    export_formats.write(name, classifier, tmp_path)
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, size=(30, 20, 3)).astype(np.uint8)
    Image.fromarray(pixels).save("image.jpg", quality=95)
    blocks = rendered(None).split("```python\n")
    names: dict = {}
    exec(blocks[1].split("```")[0], names)
    exec(next(block for block in blocks if block.startswith(spec.usage.split("{")[0])).split("```")[0], names)
    expected = classifier.model(names["images"])
    np.testing.assert_allclose(names["probabilities"], expected["probabilities"], atol=1e-2)
    if "class_names" in names:
        found = np.asarray(names["class_names"]).tolist()
        assert [each.decode() if isinstance(each, bytes) else each for each in found] == [
            class_names(3)[int(np.argmax(expected["probabilities"][0]))]
        ]
