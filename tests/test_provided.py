"""Data sets from Python: `Dataset.from_arrays` and `Dataset.from_files`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dogbreeds.core.errors import UserError
from dogbreeds.data.dataset import Dataset, Provided

IMAGES = np.random.default_rng(0).integers(0, 256, (12, 8, 10, 3), dtype=np.uint8)
NUMBERS = np.arange(12) % 3
NAMES = np.array(["cat", "dog", "fox"])[NUMBERS]


def test_arrays_keep_their_pixels_order_and_labels() -> None:
    dataset = Dataset.from_arrays((IMAGES, NUMBERS), val=(IMAGES[:3], NUMBERS[:3]), test=(list(IMAGES[3:5]), [0, 1]))
    assert dataset.class_names == ("class 0", "class 1", "class 2")
    assert {name: split.labels.tolist() for name, split in dataset.splits.items()} == {
        "train": NUMBERS.tolist(),
        "val": [0, 1, 2],
        "test": [0, 1],
    }
    np.testing.assert_array_equal([load() for load in dataset.train.source.loaders()], IMAGES)
    # The preflight finds the images that train and val share.
    assert set(dataset.val.source.digests) < set(dataset.train.source.digests)


def test_class_names_come_from_the_labels_and_validation_from_train() -> None:
    by_name = Dataset.from_arrays((IMAGES, NAMES), val_fraction=0.25)
    assert by_name.class_names == ("cat", "dog", "fox")
    assert (len(by_name.train.rows), sorted(by_name.val.labels.tolist()), by_name.test) == (9, [0, 1, 2], None)
    # Keras' own data sets have labels [n, 1], tables have columns of objects.
    for labels in (NUMBERS[:, None], NAMES.astype(object)):
        assert Dataset.from_arrays((IMAGES, labels)).train.source.labels.tolist() == NUMBERS.tolist()
    named = Dataset.from_arrays((IMAGES, NUMBERS), class_names=["b", "a", "d", "c"])
    assert named.class_names == ("b", "a", "d", "c")


def test_fingerprint_is_that_of_the_content() -> None:
    same = Dataset.from_arrays((list(IMAGES.copy()), NUMBERS.tolist()))
    assert Dataset.from_arrays((IMAGES, NUMBERS)).fingerprint == same.fingerprint
    pixel = IMAGES.copy()
    pixel[5, 1, 2, 0] ^= 1
    label = NUMBERS.copy()
    label[5] = 0
    others = [
        Dataset.from_arrays((pixel, NUMBERS)),
        Dataset.from_arrays((IMAGES, label)),
        Dataset.from_arrays((IMAGES, NUMBERS), split_seed=1),
        Dataset.from_arrays((IMAGES, NUMBERS), class_names=["a", "b", "c"]),
        Dataset.from_arrays((IMAGES.reshape(12, 10, 8, 3), NUMBERS)),
    ]
    assert len({same.fingerprint, *(other.fingerprint for other in others)}) == 6


def test_files_have_names_below_their_common_folder(write_images: Callable[..., Path], tmp_path: Path) -> None:
    root = write_images(classes=2, size=16, train=3, test=1)
    paths = {name: sorted((root / name).rglob("*.jpg")) for name in ("train", "test")}
    parts = {name: (found, [path.parent.name for path in found]) for name, found in paths.items()}
    dataset = Dataset.from_files(**parts)
    assert dataset.class_names == ("breed_0", "breed_1")
    assert dataset.test is not None
    assert dataset.test.source.ids == ("test/breed_0/0.jpg", "test/breed_1/0.jpg")
    assert next(dataset.train.source.loaders())().shape == (16, 16, 3)
    moved = Path(root.rename(tmp_path / "moved"))
    there = {
        name: ([moved / path.relative_to(root) for path in found], labels) for name, (found, labels) in parts.items()
    }
    assert Dataset.from_files(**there).fingerprint == dataset.fingerprint


@pytest.mark.parametrize(
    ("part", "received", "typed"),
    [
        ((IMAGES / 255, NUMBERS), "float64", "astype('uint8')"),
        ((IMAGES[..., 0], NUMBERS), "[8, 10]", "np.stack"),
        ((IMAGES, np.eye(3)[NUMBERS]), "[12, 3]", "labels.argmax(axis=1)"),
        ((IMAGES, NUMBERS / 1.0), "float64", "argmax"),
        ((IMAGES, NUMBERS[:5]), "12 images and 5 labels", "train=(images, labels)"),
        ((IMAGES, NUMBERS - 1), "-1", "class_names"),
        ((IMAGES, np.zeros(12, int)), "1 different", "class_names"),
        ((IMAGES[:0], []), "[0]", "labels"),
    ],
)
def test_what_is_no_labelled_image_is_refused(part: Any, received: str, typed: str) -> None:
    with pytest.raises(UserError) as error:
        Dataset.from_arrays(part)
    assert received in str(error.value)
    assert typed in str(error.value)


@pytest.mark.parametrize("names", [["a", "a", "b"], ["a", "", "b"], ["a", "b\n", "c"], ["a"]])
def test_class_names_are_different_and_printable(names: list[str]) -> None:
    with pytest.raises(UserError, match="class_names="):
        Dataset.from_arrays((IMAGES, NUMBERS), class_names=names)


def test_a_label_that_train_does_not_have_is_named() -> None:
    with pytest.raises(
        UserError, match=r"test has the label 'owl'\. Labels must be one of cat, dog, fox\. .*class_names="
    ):
        Dataset.from_arrays((IMAGES, NAMES), test=(IMAGES[:1], ["owl"]))


def test_files_that_cannot_be_read_or_are_named_twice_are_refused(write_images, tmp_path: Path) -> None:
    paths = sorted(write_images(classes=2, size=16, flat=2).rglob("*.jpg"))
    with pytest.raises(UserError, match=r"0\.jpg twice"):
        Dataset.from_files(([*paths, paths[0]], [0, 0, 1, 1, 0]))
    (tmp_path / "text.jpg").write_text("no image")
    for missing in (tmp_path / "text.jpg", tmp_path / "nowhere.jpg"):
        with pytest.raises(UserError) as error:
            Dataset.from_files(([*paths, missing], [0, 0, 1, 1, 1]))
        assert missing.name in str(error.value)
        assert "on_corrupt" not in str(error.value)


def test_such_data_is_not_opened_again() -> None:
    with pytest.raises(UserError, match=r"evaluate\(dataset\)"):
        Provided(resize="stretch", decoder="pillow", on_corrupt="stop", max_corrupt_fraction=0).open()
