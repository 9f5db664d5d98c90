import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dogbreeds.core.errors import MissingFileError, UserError
from dogbreeds.data.dataset import stratified_split
from dogbreeds.data.folder import Folder
from dogbreeds.data.image import Unreadable, decode
from dogbreeds.data.miniature import Miniature
from dogbreeds.data.stanford_dogs import StanfordDogs

COMMON = {"resize": "stretch", "on_corrupt": "stop", "max_corrupt_fraction": 0.01}


def folder(root: Path | str, **changes: object) -> Folder:
    return Folder(**{"root": str(root), "val_fraction": 0.2, "split_seed": 0, **COMMON, **changes})


def read(source, row: int) -> np.ndarray:
    return list(source.read())[row]()


# --- splits ---------------------------------------------------------------------------------------------------------


def test_a_hold_out_is_stratified_disjoint_and_stable() -> None:
    labels = np.repeat([0, 1, 2], [10, 20, 5])
    stays, held = stratified_split(labels, 0.2, seed=0)
    assert np.bincount(labels[held]).tolist() == [2, 4, 1]
    assert np.array_equal(np.sort(np.concatenate([stays, held])), np.arange(35))
    again = stratified_split(labels, 0.2, seed=0)
    assert np.array_equal(again[1], held)
    assert not np.array_equal(stratified_split(labels, 0.2, seed=1)[1], held)


def test_a_hold_out_of_one_class_does_not_depend_on_the_others() -> None:
    alone = stratified_split(np.zeros(10, int), 0.3, seed=4)[1]
    beside = stratified_split(np.repeat([0, 1], [10, 7]), 0.3, seed=4)[1]
    assert np.array_equal(beside[beside < 10], alone)


def test_a_class_of_one_photo_cannot_be_held_out_of() -> None:
    with pytest.raises(UserError, match=r"Class number 1 has one photo.*Every class needs two photos or more"):
        stratified_split(np.array([0, 0, 1]), 0.2, seed=0)


# --- folders --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parts", "sizes"),
    [
        ({"flat": 10}, {"train": 24, "val": 6}),
        ({"train": 10}, {"train": 24, "val": 6}),
        ({"train": 10, "test": 4}, {"train": 24, "val": 6, "test": 12}),
        ({"train": 10, "val": 5}, {"train": 30, "val": 15}),
        ({"train": 10, "val": 5, "test": 2}, {"train": 30, "val": 15, "test": 6}),
    ],
)
def test_layouts(photos: Callable[..., Path], parts: dict[str, int], sizes: dict[str, int]) -> None:
    dataset = folder(photos(**parts)).open()
    assert {name: len(split.rows) for name, split in dataset.splits.items()} == sizes
    assert dataset.class_names == ("breed_0", "breed_1", "breed_2")
    shown = [split.source.ids[row] for split in dataset.splits.values() for row in split.rows]
    assert len(set(shown)) == sum(sizes.values())
    for split in dataset.splits.values():
        assert [int(split.source.ids[row].split("breed_")[1][0]) for row in split.rows] == split.labels.tolist()


def test_the_fingerprint_follows_content_names_and_split(photos: Callable[..., Path]) -> None:
    root = photos()
    before = folder(root).open()
    assert before.fingerprint == folder(root).open().fingerprint
    seeded = folder(root, split_seed=1).open()
    assert seeded.fingerprint != before.fingerprint
    # The same photos: nothing is computed again
    assert seeded.train.source.fingerprint == before.train.source.fingerprint
    path = root / "train/breed_0/0.jpg"
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(path)
    changed = folder(root).open()
    assert changed.train.source.fingerprint != before.train.source.fingerprint
    path.rename(path.with_name("00.jpg"))
    assert folder(root).open().train.source.fingerprint != changed.train.source.fingerprint


def write(root: Path, files: dict[str, bytes | None]) -> Path:
    picture = root / "picture.jpg"
    root.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8, 3), 90, np.uint8)).save(picture)
    good = picture.read_bytes()
    picture.unlink()
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(good if content is None else content)
    return root


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (
            {"a/1.jpg": None, "a/2.jpg": None},
            "has 1 class folder. There must be two or more, one for each breed. Name the folder above",
        ),
        ({"1.jpg": None}, "has 0 class folders. There must be two or more"),
        (
            {"train/a/1.jpg": None, "train/b/readme.txt": b"x"},
            "train/b has no photos. Every class folder needs files ending in .jpg, ",
        ),
        (
            {"train/a/1.jpg": None, "train/b/1.jpg": None, "test/c/1.jpg": None},
            "test/c is a class that train does not have. Classes of test",
        ),
        ({"val/a/1.jpg": None, "test/a/1.jpg": None}, "has val and test but no train. It must hold train/<class>/"),
        (
            {"a/1.jpg": None, "a/2.jpg": None, "b/1.jpg": None, "b/2.jpg": b"GIF89a"},
            "b/2.jpg cannot be read as a photo (",
        ),
        (
            {"a/1.jpg": None, "a/2.jpg": None, "b/1.jpg": None},
            "Class number 1 has one photo, and validation has to be held out",
        ),
    ],
)
def test_a_folder_that_cannot_be_trained_on(tmp_path: Path, files: dict[str, bytes | None], said: str) -> None:
    with pytest.raises(UserError) as refusal:
        folder(write(tmp_path / "photos", files)).open()
    assert said in str(refusal.value)


def test_a_missing_root() -> None:
    with pytest.raises(
        MissingFileError,
        match=(
            r"data.root=/nowhere is not a folder \(looked in /nowhere\)\. It must hold .* Type"
            r" data.root=path/to/photos\."
        ),
    ):
        folder("/nowhere").open()


def test_fake_photos_are_skipped_counted_and_capped(tmp_path: Path) -> None:
    files: dict[str, bytes | None] = {f"{breed}/{number}.jpg": None for breed in "ab" for number in range(10)}
    root = write(tmp_path / "photos", files | {"a/3.jpg": b"not a photo"})
    dataset = folder(root, on_corrupt="skip", max_corrupt_fraction=0.05).open()
    assert len(dataset.train.source.ids) == 19
    assert "a/3.jpg" not in dataset.train.source.ids
    assert dataset.notes[0].startswith("1 of 20 photos of train skipped: ")
    assert "a/3.jpg" in dataset.notes[0]
    with pytest.raises(
        UserError,
        match=r"1 of 20 photos of train cannot be read\. data.max_corrupt_fraction allows 0.01 of them\. .* Type|type",
    ):
        folder(root, on_corrupt="skip", max_corrupt_fraction=0.01).open()


def test_hidden_files_and_other_suffixes_are_passed_over(tmp_path: Path) -> None:
    files: dict[str, bytes | None] = {f"{breed}/{number}.jpg": None for breed in "ab" for number in range(2)}
    root = write(
        tmp_path / "photos",
        files | {".cache/1.jpg": b"", "a/.DS_Store": b"", "a/notes.txt": b"", "a/._1.jpg": b"", "a/deep/9.JPEG": None},
    )
    assert folder(root).open().train.source.ids == ("a/0.jpg", "a/1.jpg", "a/deep/9.JPEG", "b/0.jpg", "b/1.jpg")


@pytest.mark.parametrize("make", [[], ["a", "b"], ["val"], ["train/a", "train/b", "val/c"]])
def test_a_root_of_an_odd_name_is_named_so_that_it_can_be_printed(tmp_path: Path, make: list[str]) -> None:
    odd = tmp_path / os.fsdecode(b"caf\xe9\n")
    odd.mkdir()
    for place in make:
        (odd / place).mkdir(parents=True)
    with pytest.raises(UserError) as refusal:
        folder(odd).open()
    assert r"/caf\udce9\n" in str(refusal.value)
    assert str(refusal.value).isprintable()


@pytest.mark.parametrize(
    ("named", "shown"), [("a\0b", r"a\x00b"), ("no\udcff", r"no\udcff"), ("a\nb", r"a\nb"), ("x" * 5000, "x" * 5000)]
)
def test_a_root_that_is_not_there_is_named_as_it_was_given(named: str, shown: str) -> None:
    with pytest.raises(MissingFileError) as refusal:
        folder(named).open()
    assert str(refusal.value).startswith(f"data.root={shown} is not a folder (looked in /")
    assert str(refusal.value).isprintable()


# --- decoding -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [("L", "jpg"), ("CMYK", "jpg"), ("P", "png"), ("LA", "png"), ("RGBA", "webp"), ("I;16", "png"), ("1", "png")],
)
def test_every_kind_of_photo_becomes_rgb(tmp_path: Path, mode: str, suffix: str) -> None:
    path = tmp_path / f"photo.{suffix}"
    picture = Image.new("RGB", (6, 4), (204, 204, 204))
    (Image.new("I;16", (6, 4), 204 * 257) if mode == "I;16" else picture.convert(mode)).save(path)
    pixels = decode(path.read_bytes(), "photo")
    assert (pixels.shape, pixels.dtype) == ((4, 6, 3), np.uint8)
    if mode != "1":
        assert np.abs(pixels.astype(int) - 204).max() <= 3


def test_a_photo_taken_sideways_is_turned_upright(tmp_path: Path) -> None:
    pixels = np.zeros((4, 6, 3), np.uint8)
    pixels[:, :3] = 255
    exif = Image.Exif()
    # To be turned a quarter clockwise
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "photo.png", exif=exif)
    upright = decode((tmp_path / "photo.png").read_bytes(), "photo")
    assert upright.shape == (6, 4, 3)
    assert (upright[:3] == 255).all()
    assert (upright[3:] == 0).all()


def test_a_cut_off_photo_is_named(photos: Callable[..., Path]) -> None:
    path = photos() / "train/breed_0/0.jpg"
    with pytest.raises(
        Unreadable,
        match=(
            r"^0\.jpg cannot be read as a photo \(.*truncated.*\)\. Photos must be whole JPEG.* Replace the file, or"
            r" type"
        ),
    ):
        decode(path.read_bytes()[:-400], "0.jpg")


# --- the miniature and Stanford Dogs --------------------------------------------------------------------------------


def test_the_miniature_is_the_same_everywhere() -> None:
    dataset = Miniature(breeds=3, train_per_breed=2, val_per_breed=1, test_per_breed=1, **COMMON).open()
    assert dataset.class_names == ("000-cream-bib-prick", "001-red-saddle-prick", "002-blue-masked-round")
    assert {name: split.labels.tolist() for name, split in dataset.splits.items()} == {
        "train": [0, 0, 1, 1, 2, 2],
        "val": [0, 1, 2],
        "test": [0, 1, 2],
    }
    first, second, held = read(dataset.train.source, 0), read(dataset.train.source, 1), read(dataset.val.source, 0)
    assert first.shape == (64, 64, 3)
    assert np.array_equal(first, read(dataset.train.source, 0))
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, held)


def dogs(**changes: object) -> StanfordDogs:
    return StanfordDogs(
        **{
            "split": "official",
            "root": None,
            "val_fraction": 0.2,
            "split_seed": 0,
            "guide_seed": 42,
            **COMMON,
            **changes,
        }
    )


@pytest.fixture
def archives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The three archives of Stanford Dogs, small: 120 breeds, 3 train and 1 test photo each; TFDS' downloads are answered with them."""
    import tensorflow_datasets as tfds
    from scipy.io import savemat

    source = tmp_path / "source"
    lists: dict[str, list[str]] = {"train": [], "test": []}
    for breed in range(120):
        for number in range(4):
            folder, name = f"n{breed:08d}-Breed_{breed}", f"n{breed:08d}_{number}"
            lists["test" if number == 3 else "train"].append(f"{folder}/{name}.jpg")
            for part in ("Images", "Annotation"):
                (source / part / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((12, 10, 3), breed, np.uint8)).save(source / "Images" / folder / f"{name}.jpg")
            box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
            size = "<size><width>10</width><height>12</height></size>"
            (source / "Annotation" / folder / name).write_text(f"<annotation>{size}{box}</annotation>")
    (source / "lists").mkdir()
    for part, names in lists.items():
        savemat(source / "lists" / f"{part}_list.mat", {"file_list": np.array(names, dtype=object)})
    images = tmp_path / "images.tar"
    with tarfile.open(images, "w") as tar:
        tar.add(source / "Images", arcname="Images")
    monkeypatch.setattr(tfds.download.DownloadManager, "download", lambda _, url: images)
    monkeypatch.setattr(
        tfds.download.DownloadManager, "download_and_extract", lambda _, urls: [source / "lists", source / "Annotation"]
    )
    return tmp_path / "tfds"


@pytest.mark.slow
def test_stanford_dogs_comes_through_tfds_own_builder(archives: Path) -> None:
    official = dogs(root=str(archives)).open()
    assert len(official.class_names) == 120
    assert official.class_names[7] == "n00000007-breed_7"
    assert {name: np.bincount(split.labels).tolist() for name, split in official.splits.items()} == {
        "train": [2] * 120,
        "val": [1] * 120,
        "test": [1] * 120,
    }
    assert not set(official.train.rows) & set(official.val.rows)
    for row, photo in enumerate(official.train.source.read()):
        pixels = photo()
        assert pixels.shape == (12, 10, 3)
        assert abs(int(pixels.mean()) - official.train.source.labels[row]) <= 1
    guide = dogs(root=str(archives), split="guide").open()
    assert {name: len(split.rows) for name, split in guide.splits.items()} == {"train": 360, "val": 120}
    # Its seed is its own
    assert guide.fingerprint == dogs(root=str(archives), split="guide", split_seed=9).open().fingerprint
    assert guide.fingerprint != dogs(root=str(archives), split="guide", guide_seed=9).open().fingerprint


def test_without_network_stanford_dogs_says_the_offline_ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tensorflow_datasets as tfds

    def unreachable(*_: object, **__: object) -> None:
        raise tfds.download.DownloadError("no route to host")

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", unreachable)
    with pytest.raises(MissingFileError) as refusal:
        dogs(root=str(tmp_path)).open()
    assert "could not be downloaded from vision.stanford.edu (no route to host)" in str(refusal.value)
    assert "Type data.root=<folder> if another machine prepared it, data=folder data.root=<photos>" in str(
        refusal.value
    )
