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
from dogbreeds.data.image import UnreadableImageError, decode
from dogbreeds.data.miniature import Miniature
from dogbreeds.data.stanford_dogs import StanfordDogs

COMMON = {"resize": "stretch", "decoder": "pillow", "on_corrupt": "stop", "max_corrupt_fraction": 0.01}


def folder(root: Path | str, **changes: object) -> Folder:
    return Folder(**{"root": str(root), "val_fraction": 0.2, "split_seed": 0, **COMMON, **changes})


def read(source, row: int) -> np.ndarray:
    return list(source.loaders())[row]()


NAMES = ("akita", "beagle", "collie")

# --- splits -----------------------------------------------------------


def test_stratified_split_is_disjoint_and_reproducible() -> None:
    labels = np.repeat([0, 1, 2], [10, 20, 5])
    remaining, held_out = stratified_split(labels, 0.2, 0, NAMES)
    assert np.bincount(labels[held_out]).tolist() == [2, 4, 1]
    assert np.array_equal(np.sort(np.concatenate([remaining, held_out])), np.arange(35))
    again = stratified_split(labels, 0.2, 0, NAMES)
    assert np.array_equal(again[1], held_out)
    assert not np.array_equal(stratified_split(labels, 0.2, 1, NAMES)[1], held_out)


def test_stratified_split_of_a_class_does_not_depend_on_other_classes() -> None:
    alone = stratified_split(np.zeros(10, int), 0.3, 4, NAMES)[1]
    with_another = stratified_split(np.repeat([0, 1], [10, 7]), 0.3, 4, NAMES)[1]
    assert np.array_equal(with_another[with_another < 10], alone)


def test_stratified_split_rejects_a_class_with_one_image() -> None:
    with pytest.raises(
        UserError,
        match=r"^The class beagle has one image.*Every class needs two images or more.* create root/val/<class>/",
    ):
        stratified_split(np.array([0, 0, 1]), 0.2, 0, NAMES)


# --- folders ----------------------------------------------------------


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
def test_folder_opens_each_layout(
    write_images: Callable[..., Path], parts: dict[str, int], sizes: dict[str, int]
) -> None:
    dataset = folder(write_images(**parts)).open()
    assert {name: len(split.rows) for name, split in dataset.splits.items()} == sizes
    assert dataset.class_names == ("breed_0", "breed_1", "breed_2")
    ids = [split.source.ids[row] for split in dataset.splits.values() for row in split.rows]
    assert len(set(ids)) == sum(sizes.values())
    for split in dataset.splits.values():
        assert [int(split.source.ids[row].split("breed_")[1][0]) for row in split.rows] == split.labels.tolist()


def test_folder_fingerprint_depends_on_content_names_and_split(write_images: Callable[..., Path]) -> None:
    root = write_images()
    before = folder(root).open()
    assert before.fingerprint == folder(root).open().fingerprint
    seeded = folder(root, split_seed=1).open()
    assert seeded.fingerprint != before.fingerprint
    # The images are the same, so that features are cached once for both splits.
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
    ("files", "message"),
    [
        (
            {"a/1.jpg": None, "a/2.jpg": None},
            "has 1 class folder. There must be two or more, one for each class. Set data.root to the folder",
        ),
        ({"1.jpg": None}, "has 0 class folders. There must be two or more"),
        (
            {"train/a/1.jpg": None, "train/b/readme.txt": b"x"},
            "train/b has no images. Every class folder needs files ending in .jpg, ",
        ),
        (
            {"train/a/1.jpg": None, "train/b/1.jpg": None, "test/c/1.jpg": None},
            "test/c is a class that train does not have. Classes of test",
        ),
        ({"val/a/1.jpg": None, "test/a/1.jpg": None}, "has val and test but no train. It must contain train/<class>/"),
        (
            {"a/1.jpg": None, "a/2.jpg": None, "b/1.jpg": None, "b/2.jpg": b"GIF89a"},
            "b/2.jpg cannot be read as an image (",
        ),
        (
            {"a/1.jpg": None, "a/2.jpg": None, "b/1.jpg": None},
            "The class b has one image, so none can be held out for validation",
        ),
    ],
)
def test_folder_rejects_unusable_layout_or_file(tmp_path: Path, files: dict[str, bytes | None], message: str) -> None:
    with pytest.raises(UserError) as refusal:
        folder(write(tmp_path / "photos", files)).open()
    assert message in str(refusal.value)


def test_folder_rejects_a_missing_root() -> None:
    with pytest.raises(
        MissingFileError,
        match=(
            r"data.root=/nowhere is not a folder \(looked in /nowhere\)\. It must contain .* Type"
            r" data.root=path/to/images\."
        ),
    ):
        folder("/nowhere").open()


def test_folder_skips_unreadable_images_up_to_the_allowed_fraction(tmp_path: Path) -> None:
    files: dict[str, bytes | None] = {f"{name}/{number}.jpg": None for name in "ab" for number in range(10)}
    root = write(tmp_path / "photos", files | {"a/3.jpg": b"not a photo"})
    dataset = folder(root, on_corrupt="skip", max_corrupt_fraction=0.05).open()
    assert len(dataset.train.source.ids) == 19
    assert "a/3.jpg" not in dataset.train.source.ids
    assert dataset.notes[0].startswith("1 of 20 images of train skipped: ")
    assert "a/3.jpg" in dataset.notes[0]
    with pytest.raises(
        UserError,
        match=(
            r"1 of 20 images of train cannot be read\. data\.max_corrupt_fraction allows 0\.01 of them\. .* type"
            r" data\.max_corrupt_fraction=0\.06\."
        ),
    ):
        folder(root, on_corrupt="skip", max_corrupt_fraction=0.01).open()


def test_folder_ignores_hidden_files_and_other_suffixes(tmp_path: Path) -> None:
    files: dict[str, bytes | None] = {f"{name}/{number}.jpg": None for name in "ab" for number in range(2)}
    root = write(
        tmp_path / "photos",
        files | {".cache/1.jpg": b"", "a/.DS_Store": b"", "a/notes.txt": b"", "a/._1.jpg": b"", "a/deep/9.JPEG": None},
    )
    assert folder(root).open().train.source.ids == ("a/0.jpg", "a/1.jpg", "a/deep/9.JPEG", "b/0.jpg", "b/1.jpg")


@pytest.mark.parametrize("folders", [[], ["a", "b"], ["val"], ["train/a", "train/b", "val/c"]])
def test_folder_error_escapes_an_unprintable_root(tmp_path: Path, folders: list[str]) -> None:
    odd = tmp_path / os.fsdecode(b"caf\xe9\n")
    odd.mkdir()
    for name in folders:
        (odd / name).mkdir(parents=True)
    with pytest.raises(UserError) as refusal:
        folder(odd).open()
    assert r"/caf\udce9\n" in str(refusal.value)
    assert str(refusal.value).isprintable()


@pytest.mark.parametrize(
    ("root", "printed"), [("a\0b", r"a\x00b"), ("no\udcff", r"no\udcff"), ("a\nb", r"a\nb"), ("x" * 5000, "x" * 5000)]
)
def test_folder_error_names_a_missing_root_as_it_was_given(root: str, printed: str) -> None:
    with pytest.raises(MissingFileError) as refusal:
        folder(root).open()
    assert str(refusal.value).startswith(f"data.root={printed} is not a folder (looked in /")
    assert str(refusal.value).isprintable()


# --- decoding ---------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [("L", "jpg"), ("CMYK", "jpg"), ("P", "png"), ("LA", "png"), ("RGBA", "webp"), ("I;16", "png"), ("1", "png")],
)
def test_decode_converts_every_mode_to_rgb(tmp_path: Path, mode: str, suffix: str) -> None:
    path = tmp_path / f"image.{suffix}"
    picture = Image.new("RGB", (6, 4), (204, 204, 204))
    (Image.new("I;16", (6, 4), 204 * 257) if mode == "I;16" else picture.convert(mode)).save(path)
    pixels = decode(path.read_bytes(), "image")
    assert (pixels.shape, pixels.dtype) == ((4, 6, 3), np.uint8)
    if mode != "1":
        assert np.abs(pixels.astype(int) - 204).max() <= 3


def test_decode_turns_an_image_upright(tmp_path: Path) -> None:
    pixels = np.zeros((4, 6, 3), np.uint8)
    pixels[:, :3] = 255
    exif = Image.Exif()
    # Orientation 6: the image needs a quarter turn clockwise.
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "image.png", exif=exif)
    upright = decode((tmp_path / "image.png").read_bytes(), "image")
    assert upright.shape == (6, 4, 3)
    assert (upright[:3] == 255).all()
    assert (upright[3:] == 0).all()


def test_decode_names_a_truncated_image(write_images: Callable[..., Path]) -> None:
    path = write_images() / "train/breed_0/0.jpg"
    with pytest.raises(
        UnreadableImageError,
        match=(
            r"^0\.jpg cannot be read as an image \(.*truncated.*\)\. Images must be complete JPEG.* Replace the file,"
            r" or type data\.on_corrupt=skip\."
        ),
    ):
        decode(path.read_bytes()[:-400], "0.jpg")


# --- the miniature and Stanford Dogs ----------------------------------


def test_miniature_draws_the_same_images_every_time() -> None:
    dataset = Miniature(classes=3, train_per_class=2, val_per_class=1, test_per_class=1, **COMMON).open()
    assert dataset.class_names == ("000-cream-bib-prick", "001-red-saddle-prick", "002-blue-masked-round")
    assert {name: split.labels.tolist() for name, split in dataset.splits.items()} == {
        "train": [0, 0, 1, 1, 2, 2],
        "val": [0, 1, 2],
        "test": [0, 1, 2],
    }
    first = read(dataset.train.source, 0)
    second = read(dataset.train.source, 1)
    validation = read(dataset.val.source, 0)
    assert first.shape == (64, 64, 3)
    assert np.array_equal(first, read(dataset.train.source, 0))
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, validation)


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
    """Small archives in place of the TFDS downloads of Stanford Dogs: 120 classes of 3 training and 1 test image."""
    import tensorflow_datasets as tfds
    from scipy.io import savemat

    source = tmp_path / "source"
    lists: dict[str, list[str]] = {"train": [], "test": []}
    for label in range(120):
        for number in range(4):
            folder, name = f"n{label:08d}-Breed_{label}", f"n{label:08d}_{number}"
            lists["test" if number == 3 else "train"].append(f"{folder}/{name}.jpg")
            for part in ("Images", "Annotation"):
                (source / part / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((12, 10, 3), label, np.uint8)).save(source / "Images" / folder / f"{name}.jpg")
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
def test_stanford_dogs_opens_with_the_tfds_builder(archives: Path) -> None:
    official = dogs(root=str(archives)).open()
    assert len(official.class_names) == 120
    assert official.class_names[7] == "n00000007-breed_7"
    assert {name: np.bincount(split.labels).tolist() for name, split in official.splits.items()} == {
        "train": [2] * 120,
        "val": [1] * 120,
        "test": [1] * 120,
    }
    assert not set(official.train.rows) & set(official.val.rows)
    for row, load in enumerate(official.train.source.loaders()):
        pixels = load()
        assert pixels.shape == (12, 10, 3)
        assert abs(int(pixels.mean()) - official.train.source.labels[row]) <= 1
    guide = dogs(root=str(archives), split="guide").open()
    assert {name: len(split.rows) for name, split in guide.splits.items()} == {"train": 360, "val": 120}
    # The guide's split depends on guide_seed, not on split_seed.
    assert guide.fingerprint == dogs(root=str(archives), split="guide", split_seed=9).open().fingerprint
    assert guide.fingerprint != dogs(root=str(archives), split="guide", guide_seed=9).open().fingerprint


def test_stanford_dogs_names_offline_alternatives_without_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tensorflow_datasets as tfds

    def unreachable(*_: object, **__: object) -> None:
        raise tfds.download.DownloadError("no route to host")

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", unreachable)
    with pytest.raises(MissingFileError) as refusal:
        dogs(root=str(tmp_path)).open()
    assert "could not be downloaded from vision.stanford.edu (no route to host)" in str(refusal.value)
    assert "Type data.root=<folder> if another machine prepared it, data=folder data.root=<images>" in str(
        refusal.value
    )
