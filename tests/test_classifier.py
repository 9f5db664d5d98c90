"""`Classifier`: a saved network, loaded again."""

from pathlib import Path

import numpy as np
import pytest

from dogbreeds.core.errors import UserError
from dogbreeds.data import drawn_dogs
from dogbreeds.data.class_names import display_name
from dogbreeds.evaluation.metrics import probabilities
from dogbreeds.inference.classifier import load
from dogbreeds.models.unfreeze import All, LastN, Nothing
from tests.test_network import FROZEN, NAMES, build
from tests.tiers import tiered
from tests.tiny_network import SIZE, class_names, tiny_network

POLICIES = HEAD, TOP, ALL = Nothing(**FROZEN), LastN(layers=20, exact=False, **FROZEN), All(**FROZEN)


@pytest.mark.parametrize(
    ("policy", "resize", "mode"),
    tiered(
        [(policy, *inputs) for policy in POLICIES for inputs in (("pad", "raw"), ("crop", "torch"))],
        slow=[(TOP, "crop", "torch")],
    ),
)
def test_parts_of_a_loaded_network_give_its_probabilities(policy, resize: str, mode: str, tmp_path: Path) -> None:
    build(policy, mode).full_model(NAMES, resize).save(tmp_path / "model.keras")
    classifier = load(tmp_path / "model.keras")
    assert (classifier.class_names, classifier.image_size, classifier.resize) == (NAMES, 64, resize)
    images = np.stack([drawn_dogs.draw("test", label, 0)[:50] for label in range(3)])
    expected = classifier.model(images)["probabilities"].numpy()
    resized = np.stack([classifier.decode(lambda image=image: image) for image in images])
    assert np.allclose(probabilities(classifier.logits(resized)), expected, atol=1e-5)
    maps_model, head = classifier.maps_and_head
    pooled = maps_model(resized.astype(np.float32)).numpy().mean(axis=(1, 2))
    assert np.allclose(probabilities(head(pooled).numpy()), expected, atol=1e-5)


def test_load_refuses_a_damaged_file_and_a_network_without_class_names(tmp_path: Path) -> None:
    import keras

    (tmp_path / "broken.keras").write_bytes(b"PK\x03\x04 and then nothing")
    with pytest.raises(
        UserError, match=r"broken\.keras cannot be read as a saved network \(.+\)\. .*\.keras .* Type run=latest"
    ):
        load(tmp_path / "broken.keras")
    keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]).save(tmp_path / "other.keras")
    with pytest.raises(
        UserError,
        match=r"other\.keras is a network without class names\. .* probabilities and class, .* Type run=latest",
    ):
        load(tmp_path / "other.keras")


def test_load_gives_a_network_of_an_earlier_version_its_present_names(tmp_path: Path) -> None:
    import keras

    present = tiny_network(3).full_model(class_names(3), "pad")
    photo = keras.Input((None, None, 3), dtype="uint8", name="photo")
    outputs = present.call(photo)
    present.get_layer("class").name = "breed"
    former = keras.Model(photo, {"probabilities": outputs["probabilities"], "breed": outputs["class"]})
    former.save(tmp_path / "former.keras")
    images = np.stack([drawn_dogs.draw("test", label, 0)[:50] for label in range(3)])
    expected = former(images)

    classifier = load(tmp_path / "former.keras")
    classifier.model.save(tmp_path / "saved again.keras")
    for model in (classifier.model, keras.models.load_model(tmp_path / "saved again.keras")):
        assert [each.name for each in model.inputs] == ["image"]
        found = model(images)
        assert found.keys() == {"probabilities", "class"}
        assert np.array_equal(found["probabilities"], expected["probabilities"])
        assert np.array_equal(found["class"], expected["breed"])
    assert (classifier.class_names, classifier.image_size, classifier.resize) == (class_names(3), SIZE, "pad")
    resized = np.stack([classifier.decode(lambda image=image: image) for image in images])
    assert np.allclose(probabilities(classifier.logits(resized)), expected["probabilities"], atol=1e-5)
    assert np.allclose(classifier.probabilities(resized), expected["probabilities"], atol=1e-5)


def test_load_refuses_a_network_with_fewer_class_names_than_outputs(tmp_path: Path) -> None:
    tiny_network(4).full_model(class_names(3), "pad").save(tmp_path / "odd.keras")
    with pytest.raises(UserError, match=r"odd\.keras has 4 outputs and 3 class names\. .* Type run=latest"):
        load(tmp_path / "odd.keras")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("n02113978-Mexican_hairless", "Mexican hairless"),
        ("n02099267-flat-coated_retriever", "flat-coated retriever"),
        ("000-cream-bib-prick", "000-cream-bib-prick"),
        ("breed_0", "breed 0"),
        ("newfoundland-x", "newfoundland-x"),
    ],
)
def test_display_name_drops_a_wordnet_id_and_underscores(name: str, expected: str) -> None:
    assert display_name(name) == expected
