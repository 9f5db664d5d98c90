"""A saved network, read again."""

from pathlib import Path

import numpy as np
import pytest

from dogbreeds.core.errors import UserError
from dogbreeds.data import drawn_dogs
from dogbreeds.data.class_names import spoken
from dogbreeds.evaluation.metrics import probabilities
from dogbreeds.inference.classifier import load
from dogbreeds.models.unfreeze import All, LastN, Nothing
from tests.test_network import FROZEN, NAMES, build
from tests.tiers import tiered

POLICIES = HEAD, TOP, ALL = Nothing(**FROZEN), LastN(layers=20, exact=False, **FROZEN), All(**FROZEN)


@pytest.mark.parametrize(
    ("policy", "resize", "mode"),
    tiered(
        [(policy, *shown) for policy in POLICIES for shown in (("pad", "raw"), ("crop", "torch"))],
        slow=[(HEAD, "pad", "raw"), (TOP, "crop", "torch")],
    ),
)
def test_its_parts_say_what_it_says(policy, resize: str, mode: str, tmp_path: Path) -> None:
    build(policy, mode).whole(NAMES, resize).save(tmp_path / "model.keras")
    found = load(tmp_path / "model.keras")
    assert (found.class_names, found.size, found.resize) == (NAMES, 64, resize)
    photos = np.stack([drawn_dogs.draw("test", breed, 0)[:50] for breed in range(3)])
    expected = found.whole(photos)["probabilities"].numpy()
    shown = np.stack([found.resizer(photo) for photo in photos])
    assert np.allclose(probabilities(found.logits(shown)), expected, atol=1e-5)
    maps, head = found.ends
    assert np.allclose(
        probabilities(head(maps(shown.astype(np.float32)).numpy().mean(axis=(1, 2))).numpy()), expected, atol=1e-5
    )


def test_files_that_are_no_network_of_ours_are_refused(tmp_path: Path) -> None:
    import keras

    (tmp_path / "broken.keras").write_bytes(b"PK\x03\x04 and then nothing")
    with pytest.raises(
        UserError,
        match=(
            r"cannot be read as a saved network .* It must be a .keras file that an attempt kept, whole. Type"
            r" run=latest"
        ),
    ):
        load(tmp_path / "broken.keras")
    keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]).save(tmp_path / "other.keras")
    with pytest.raises(
        UserError, match=r"other.keras is a network without class names. It must give names and probabilities"
    ):
        load(tmp_path / "other.keras")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("n02113978-Mexican_hairless", "Mexican hairless"),
        ("n02099267-flat-coated_retriever", "flat-coated retriever"),
        ("000-cream-bib-prick", "000-cream-bib-prick"),
        ("breed_0", "breed 0"),
        ("newfoundland-x", "newfoundland-x"),
    ],
)
def test_breeds_are_said_without_their_numbers(name: str, said: str) -> None:
    assert spoken(name) == said
