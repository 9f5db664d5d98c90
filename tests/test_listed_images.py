"""Data sets listed in a table, and data sets of TensorFlow Datasets."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from dogbreeds.core.errors import MissingFileError, UserError
from dogbreeds.data.table import Table
from dogbreeds.data.tfds import Tfds

COMMON = {
    "val_fraction": 0.25,
    "split_seed": 0,
    "resize": "stretch",
    "decoder": "pillow",
    "on_corrupt": "stop",
    "max_corrupt_fraction": 0.5,
}
CLASSES = ('Größe, "XL"', "-2+3", "🐕 dog")


def table(path: Path, **changes: object) -> Table:
    columns = {"image_column": "image", "label_column": "label", "split_column": "split"}
    return Table(**{"table": str(path), **columns, "root": None, "outside_root": False, **COMMON, **changes})


@pytest.fixture
def rows(tmp_path: Path) -> list[dict[str, str]]:
    """Rows of a table of 3 classes with odd names: 4 training and 1 test images each, written below photos/."""
    found = []
    for label, name in enumerate(CLASSES):
        for number in range(5):
            file = tmp_path / "lists" / "photos" / f"{label} {number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((8, 8, 3), 50 * label + number, np.uint8)).save(file)
            found.append({"image": f"photos/{file.name}", "label": name, "split": "test" if number == 4 else ""})
    return found


def write(rows: list[dict[str, str]], path: Path, **options: object) -> Path:
    frame = pd.DataFrame(rows)
    if path.suffix == ".parquet":
        frame.to_parquet(path)
    else:
        frame.to_csv(path, index=False, **options)
    return path


@pytest.mark.parametrize(
    ("name", "options"), [("a.csv", {}), ("b.csv", {"sep": ";"}), ("c.tsv", {"sep": "\t"}), ("d.parquet", {})]
)
def test_table_opens_each_format(rows: list[dict[str, str]], tmp_path: Path, name: str, options: dict) -> None:
    dataset = table(write(rows, tmp_path / "lists" / name, **options)).open()
    assert dataset.class_names == tuple(sorted(CLASSES))
    assert {split: len(found.rows) for split, found in dataset.splits.items()} == {"train": 9, "val": 3, "test": 3}
    for split in dataset.splits.values():
        loaders = list(split.source.loaders())
        for row in split.rows:
            label = CLASSES.index(dataset.class_names[split.source.labels[row]])
            assert loaders[row]().mean() // 50 == label
            assert split.source.ids[row].startswith(f"photos/{label} ")


def test_another_order_of_the_table_is_the_same_data_set(rows: list[dict[str, str]], tmp_path: Path) -> None:
    ordered = table(write(rows, tmp_path / "lists/a.csv")).open()
    assert table(write(rows[::-1], tmp_path / "lists/b.csv")).open().fingerprint == ordered.fingerprint
    moved = [row | {"split": "val" if row is rows[0] else row["split"]} for row in rows]
    validated = table(write(moved, tmp_path / "lists/c.csv")).open()
    assert [len(split.rows) for split in validated.splits.values()] == [11, 1, 3]
    assert validated.fingerprint != ordered.fingerprint


def test_numbers_are_names_of_classes(rows: list[dict[str, str]], tmp_path: Path) -> None:
    numbered = [row | {"label": CLASSES.index(row["label"])} for row in rows]
    assert table(write(numbered, tmp_path / "lists/a.parquet")).open().class_names == ("0", "1", "2")


@pytest.mark.parametrize(
    ("changes", "settings", "parts"),
    [
        ({0: {"image": "none.png"}, 1: {"image": "gone.png"}}, {}, ("2 of the 15 images", "/gone.png (row 3)", "skip")),
        ({4: {"label": "cat"}}, {}, ("Row 6 of", "the class cat", "remove the row")),
        ({3: {"split": "tset"}}, {}, ("Row 5 of", "the split tset", "train, val or test")),
        ({3: {"label": " "}}, {}, ("Row 5 of", "has no label")),
        ({3: {"label": "a\x07"}}, {}, ("Row 5 of", "control characters")),
        ({1: {"image": "photos/../photos/0 0.png"}}, {}, ("0 0.png has 2 rows", "first 2 and 3")),
        ({0: {"image": "../secret.png"}}, {}, ("Row 2 of", "secret.png, outside", "data.outside_root=true")),
        ({}, {"label_column": "breed"}, ("no column breed, only image, label, split", "data.label_column=<name>")),
        ({}, {"root": "/nowhere"}, ("data.root=/nowhere is not a folder",)),
        ({row: {"label": "one"} for row in range(15)}, {}, ("has 1 class to train", "two or more")),
    ],
)  # fmt: skip
def test_unusable_table_is_refused(
    rows: list[dict[str, str]], tmp_path: Path, changes: dict, settings: dict, parts: tuple[str, ...]
) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    path = write([row | changes.get(number, {}) for number, row in enumerate(rows)], tmp_path / "lists/a.csv")
    with pytest.raises((UserError, MissingFileError)) as refusal:
        table(path, **settings).open()
    assert all(part in str(refusal.value) for part in parts), refusal.value


def test_missing_images_are_skipped_and_counted_if_allowed(rows: list[dict[str, str]], tmp_path: Path) -> None:
    rows[0]["image"] = "photos/none.png"
    dataset = table(write(rows, tmp_path / "lists/a.csv"), on_corrupt="skip").open()
    assert sum(len(split.rows) for split in dataset.splits.values()) == 14
    assert "1 of 12 images of train skipped" in dataset.notes[0]


def test_paths_lead_out_of_the_root_if_allowed(rows: list[dict[str, str]], tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    rows[0]["image"] = "../secret.png"
    dataset = table(write(rows, tmp_path / "lists/a.csv"), outside_root=True).open()
    assert f"{tmp_path}/secret.png".lstrip("/") in dataset.train.source.ids


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        (None, b"", ("data.table was not given", "data.table=path")),
        ("none.csv", None, ("none.csv is not a file", "columns image and label")),
        ("a.csv", b"", ("cannot be read as a CSV file",)),
        ("a.csv", b"image,label\n\xff\xfe,a\n", ("cannot be read as a CSV file", "UTF-8")),
        ("a.parquet", b"PAR1", ("cannot be read as a Parquet file",)),
    ],
)
def test_unreadable_table_is_refused(tmp_path: Path, name: str | None, content: bytes | None, parts: tuple) -> None:
    if content is not None and name:
        (tmp_path / name).write_bytes(content)
    with pytest.raises((UserError, MissingFileError)) as refusal:
        table(tmp_path, table=name and str(tmp_path / name)).open()
    assert all(part in str(refusal.value) for part in parts), refusal.value


# --- TensorFlow Datasets ----------------------------------------------


def tfds_data(**changes: object) -> Tfds:
    return Tfds(**{"name": "shapes", "root": None, "image": None, "label": None, **COMMON, **changes})


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of TFDS in which a builder prepared `shapes`: 2 classes, images of 1 channel, no file names."""
    import tensorflow_datasets as tfds

    class Shapes(tfds.core.GeneratorBasedBuilder):
        """Grey images."""

        VERSION = tfds.core.Version("1.0.0")
        # TFDS would look for the package of the class, which a test has not.
        pkg_dir_path = Path(__file__).parent

        def _info(self) -> tfds.core.DatasetInfo:
            features = {
                "image": tfds.features.Image(shape=(None, None, 1)),
                "mask": tfds.features.Image(shape=(None, None, 1)),
                "label": tfds.features.ClassLabel(names=["círculo", "square"]),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features), supervised_keys=("image", "label")
            )

        def _split_generators(self, _: object) -> dict[str, Iterator]:
            return {"train": self._generate_examples(8), "validation": self._generate_examples(4)}

        def _generate_examples(self, count: int) -> Iterator[tuple[int, dict]]:
            for number in range(count):
                image = np.full((9, 8, 1), 100 * (number % 2) + number, np.uint8)
                yield number, {"image": image, "mask": image, "label": number % 2}

    folder = tmp_path_factory.mktemp("tfds")
    Shapes(data_dir=folder).download_and_prepare()
    return folder


def test_tfds_opens_a_prepared_data_set(prepared: Path) -> None:
    dataset = tfds_data(root=str(prepared)).open()
    assert dataset.class_names == ("círculo", "square")
    assert {name: np.bincount(split.labels).tolist() for name, split in dataset.splits.items()} == {
        "train": [4, 4],
        "val": [2, 2],
    }
    source = dataset.train.source
    assert sorted(source.ids) == [f"train/{number}" for number in range(8)]
    for row, load in enumerate(source.loaders()):
        pixels = load()
        assert pixels.shape == (9, 8, 3)
        assert pixels.mean() // 100 == source.labels[row]
    assert dataset.fingerprint == tfds_data(root=str(prepared)).open().fingerprint


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"name": None}, ("data.name was None", "data.name=oxford_flowers102")),
        ({"name": "huggingface:mnist"}, ("data.name was 'huggingface:mnist'",)),
        ({"name": "nosuch_set"}, ("data.name=nosuch_set is no data set", "data.name=oxford_flowers102")),
        ({"name": "mnist:9.9.9"}, ("data.name=mnist:9.9.9 is no data set", "3.0.1")),
        ({"image": "picture"}, ("data.image=picture is no Image", "image, mask", "data.image=image")),
        ({"label": "mask"}, ("data.label=mask is no ClassLabel", "data.label=label")),
    ],
)
def test_unusable_tfds_name_or_feature_is_refused(prepared: Path, changes: dict, parts: tuple[str, ...]) -> None:
    with pytest.raises(UserError) as refusal:
        tfds_data(**{"root": str(prepared), **changes}).open()
    assert all(part in str(refusal.value) for part in parts), refusal.value


def test_tfds_set_that_cannot_be_downloaded_names_alternatives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tensorflow_datasets as tfds

    def unreachable(*_: object, **__: object) -> None:
        raise tfds.download.DownloadError("no route to host")

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", unreachable)
    with pytest.raises(MissingFileError) as refusal:
        tfds_data(name="mnist", root=str(tmp_path)).open()
    assert "could not be downloaded (no route to host)" in str(refusal.value)
    assert "data=folder data.root=<images>" in str(refusal.value)
