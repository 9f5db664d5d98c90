"""`ServedModel` without a server: its predictions, its batches, and which requests it refuses."""

import io
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException
from PIL import Image

from dogbreeds.core.text import digest_file
from dogbreeds.data.image import decode
from dogbreeds.inference import served_model
from dogbreeds.inference.classifier import Classifier, load
from dogbreeds.inference.served_model import ServedModel
from tests.tiny_network import class_names, save_tiny


def png(rng: np.random.Generator, height: int = 20, width: int = 30) -> bytes:
    pixels = rng.integers(0, 256, size=3).astype(np.uint8) + np.zeros((height, width, 3), np.uint8)
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, "PNG")
    return encoded.getvalue()


def black(width: int, height: int) -> bytes:
    """Return a PNG file of few bytes and many pixels."""
    encoded = io.BytesIO()
    Image.new("L", (width, height)).save(encoded, "PNG")
    return encoded.getvalue()


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("network") / "model.keras"
    save_tiny(file, classes=3)
    return file


def context(network: Path, **config: object) -> SimpleNamespace:
    """Return what MLflow passes to a model when it loads it."""
    model_config = {"network_digest": digest_file(network), "max_images": 100, "max_megapixels": 10} | config
    return SimpleNamespace(artifacts={"network": str(network)}, model_config=model_config)


@pytest.fixture(scope="module")
def served(network: Path) -> Callable[..., pd.DataFrame]:
    """A function from the contents of image files to the predictions of a served model."""
    model = ServedModel()
    model.load_context(context(network))
    return lambda files, top=3: model.predict(None, pd.DataFrame({"image": files}), {"top": top})


def test_predictions_are_those_of_the_network_in_batches_of_images_of_any_size(
    served: Callable[..., pd.DataFrame], network: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served_model, "_batch_size", lambda classifier: 3)
    batches: list[int] = []
    original = Classifier.probabilities.func

    def counting(classifier: Classifier) -> Callable[[np.ndarray], np.ndarray]:
        compute = original(classifier)
        return lambda images: (batches.append(len(images)), compute(images))[1]

    monkeypatch.setattr(Classifier, "probabilities", property(counting))
    files = [png(rng, 10 + 7 * number, 40 - 4 * number) for number in range(7)]
    table = served(files, top=2)
    assert batches == [3, 3, 1]
    assert list(table.columns) == ["class", "probability", "probabilities"]
    model = load(network).model
    for encoded, (_, row) in zip(files, table.iterrows(), strict=True):
        expected = model(decode(encoded, "image")[None])
        probabilities = dict(zip(class_names(3), expected["probabilities"].numpy()[0].tolist(), strict=True))
        assert row["class"] == expected["class"].numpy()[0].decode()
        assert row["probability"] == pytest.approx(max(probabilities.values()), abs=1e-5)
        ranked = sorted(probabilities, key=probabilities.__getitem__, reverse=True)[:2]
        assert list(row["probabilities"]) == ranked
        assert row["probabilities"] == pytest.approx({name: probabilities[name] for name in ranked}, abs=1e-5)
    # The images differ, so that rows in another order would be noticed.
    assert len(set(table["probability"].round(3))) > 4


def refused(served: Callable[..., pd.DataFrame], files: list[object], top: int = 3) -> str:
    with pytest.raises(MlflowException) as error:
        served(files, top)
    assert error.value.get_http_status_code() == 400
    return error.value.message


def test_a_damaged_image_fails_the_request_by_its_number(
    served: Callable[..., pd.DataFrame], rng: np.random.Generator
) -> None:
    whole = png(rng)
    for damaged in (whole[:-30], b"GIF89a nothing", b""):
        message = refused(served, [whole, damaged, whole])
        assert message.startswith("Image 2 of 3 cannot be read as an image (")
        assert "on_corrupt" not in message
    message = refused(served, [whole, "text"])
    assert message.startswith("Image 2 of 2 arrived as ")
    assert '{"dataframe_records": [{"image": "<base64>"}]}' in message
    assert len(served([whole])) == 1


@pytest.mark.parametrize("top", [0, 4, -1])
def test_top_beyond_the_classes_is_refused(
    served: Callable[..., pd.DataFrame], rng: np.random.Generator, top: int
) -> None:
    message = refused(served, [png(rng)], top)
    assert message.startswith(f"params.top was {top}. ")
    assert "from 1 to 3" in message


def test_top_that_is_advised_is_accepted_by_a_network_of_two_classes(tmp_path: Path, rng: np.random.Generator) -> None:
    save_tiny(tmp_path / "two.keras", classes=2)
    model = ServedModel()
    model.load_context(context(tmp_path / "two.keras"))

    def ask(files: list[object], top: int) -> pd.DataFrame:
        return model.predict(None, pd.DataFrame({"image": files}), {"top": top})

    assert 'Send "params": {"top": 2}' in refused(ask, [png(rng)], 5)
    assert len(ask([png(rng)], 2)["probabilities"][0]) == 2


def test_a_request_beyond_a_limit_is_refused_before_anything_is_decoded(
    served: Callable[..., pd.DataFrame], rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = png(rng)
    assert len(served([small] * 100)) == 100
    decoded: list[str] = []
    monkeypatch.setattr(served_model, "decode", lambda encoded, name: decoded.append(name))
    message = refused(served, [small] * 101)
    assert message.startswith("The request has 101 images. At most 100 are allowed in one request. ")
    # 4 megapixels each: the third exceeds 10.
    message = refused(served, [small, *[black(2000, 2000)] * 4])
    assert message.startswith("The request has more than 10 megapixels, up to Image 4 of 5. ")
    assert decoded == []


def test_a_request_that_the_server_has_given_up_is_not_computed_to_its_end(
    served: Callable[..., pd.DataFrame], rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served_model, "_batch_size", lambda classifier: 3)
    files = [png(rng)] * 7
    monkeypatch.setenv("MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT", "0")
    assert "3 of 7 images were predicted" in refused(served, files)
    assert len(served(files[:3])) == 3
    monkeypatch.setenv("MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT", "60")
    assert len(served(files)) == 7


@pytest.mark.parametrize("value", [0, -3, 1.5, "many", True, None])
def test_a_limit_that_is_no_whole_number_above_0_is_refused(network: Path, value: object) -> None:
    with pytest.raises(MlflowException, match=r"^max_images was .*whole number above 0\. Set MLFLOW_PYFUNC_INFERENCE_"):
        ServedModel().load_context(context(network, max_images=value))


def test_a_network_that_was_replaced_is_not_served(network: Path, tmp_path: Path) -> None:
    save_tiny(tmp_path / "other.keras", classes=3, seed=1)
    config = context(network).model_config
    with pytest.raises(MlflowException, match=r"other\.keras is not the network that was logged\. .*dogbreeds\.export"):
        ServedModel().load_context(
            SimpleNamespace(artifacts={"network": tmp_path / "other.keras"}, model_config=config)
        )


def test_requests_at_the_same_time_share_the_decoding_threads(
    served: Callable[..., pd.DataFrame], rng: np.random.Generator
) -> None:
    files = [png(rng) for _ in range(4)]
    expected = served(files)
    before = threading.active_count()
    with ThreadPoolExecutor(8) as clients:
        found = list(clients.map(served, [files] * 24))
        # The clients' own threads, and none for decoding.
        assert threading.active_count() <= before + 8
    assert all(table.equals(expected) for table in found)
