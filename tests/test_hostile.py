"""Untrusted images, names and folders: each ends in pixels or in an error, and nothing outside the root is read."""

import io
import os
import pickle
import stat
import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from bench import fuzz
from PIL import Image

from dogbreeds.core.errors import MissingFileError, UserError
from dogbreeds.core.text import digest, printable
from dogbreeds.data import files, image
from dogbreeds.data.files import examine, examined_image
from dogbreeds.data.folder import Folder
from dogbreeds.data.image import MAX_BYTES, REASONS, UnreadableImageError, decode
from dogbreeds.data.resize import resizer
from dogbreeds.data.tfds import tfds_source
from dogbreeds.features.cache import FeatureCache
from dogbreeds.features.extraction import DecodedImages

COMMON = {"resize": "stretch", "decoder": "pillow", "val_fraction": 0.2, "split_seed": 0}


def strict(root: Path) -> Folder:
    return Folder(root=str(root), on_corrupt="stop", max_corrupt_fraction=0.01, **COMMON)


def lenient(root: Path) -> Folder:
    return Folder(root=str(root), on_corrupt="skip", max_corrupt_fraction=0.5, **COMMON)


def encoded(shade: int = 90, size: tuple[int, int] = (8, 6), kind: str = "JPEG", **options: object) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (shade, shade, shade)).save(file, kind, **options)
    return file.getvalue()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes of three images each, which all differ."""
    for number, name in enumerate(("a/0", "a/1", "a/2", "b/0", "b/1", "b/2")):
        path = tmp_path / "photos" / f"{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(40 * number))
    return tmp_path / "photos"


# --- too large --------------------------------------------------------


def declaring(kind: str, width: int, height: int) -> bytes:
    return fuzz.declare_size(encoded(kind=kind), width, height)


@pytest.mark.parametrize(
    ("kind", "width", "height", "received"),
    [
        ("PNG", 12_000, 12_000, "declares 12,000 x 12,000 pixels"),
        ("PNG", 100_000_001, 1, "declares 100,000,001 x 1 pixels"),
        ("PNG", 60_000, 60_000, "declares far more than 100 megapixels"),
        ("PNG", 2**31 - 1, 2**31 - 1, "declares far more than 100 megapixels"),
        ("JPEG", 10_001, 10_000, "declares 10,001 x 10,000 pixels"),
        ("JPEG", 65_535, 65_535, "declares far more than 100 megapixels"),
        ("WEBP", 16_383, 16_383, "declares far more than 100 megapixels"),
    ],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_decode_rejects_a_decompression_bomb_by_its_header(
    kind: str, width: int, height: int, received: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda _: pytest.fail("it was decoded"))
    with pytest.raises(UnreadableImageError) as refusal:
        decode(declaring(kind, width, height), "bomb")
    assert (
        str(refusal.value)
        == f"bomb {received}. An image may have at most 100 megapixels and 16,384 pixels a side. Save it smaller, or"
        " type data.on_corrupt=skip."
    )
    assert refusal.value.reason == "too many pixels"


def test_decode_accepts_an_image_of_exactly_the_maximum_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image, "MAX_PIXELS", 48)
    assert decode(encoded(size=(8, 6)), "image").shape == (6, 8, 3)
    with pytest.raises(UnreadableImageError, match="declares 7 x 7 pixels"):
        decode(encoded(size=(7, 7)), "image")


def test_examine_does_not_open_a_file_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "large.jpg"
    path.write_bytes(encoded())
    os.truncate(path, MAX_BYTES + (9 << 20))
    monkeypatch.setattr(os, "open", lambda *_, **__: pytest.fail("it was opened"))
    [found] = examine([str(path)])
    assert isinstance(found, UnreadableImageError)
    assert (
        str(found)
        == f"{path} has 137 MiB. An image may have at most 128 MiB. Save it smaller, or type data.on_corrupt=skip."
    )
    assert found.reason == "too many bytes"


def test_decode_limits_the_bytes_of_an_image_from_an_archive() -> None:
    with pytest.raises(
        UnreadableImageError, match=r"^row 3 has 129 MiB\. An image may have at most 128 MiB"
    ) as refusal:
        decode(bytes(129 << 20), "row 3")
    assert refusal.value.reason == "too many bytes"


def test_decode_rejects_a_jpeg_with_thousands_of_scans(monkeypatch: pytest.MonkeyPatch) -> None:
    progressive = encoded(size=(4000, 4000), progressive=True)
    last = progressive.rfind(b"\xff\xda")
    bomb = progressive[:-2] + progressive[last:-2] * 3000 + progressive[-2:]
    with monkeypatch.context() as opening, pytest.raises(UnreadableImageError) as refusal:
        # Decoding it would take half a minute.
        opening.setattr(Image, "open", lambda *_, **__: pytest.fail("it was opened"))
        decode(bomb, "bomb")
    assert str(refusal.value).startswith("bomb has more than 100 JPEG scans. An image may have at most 100 scans. ")
    assert refusal.value.reason == "too many scans"
    assert decode(progressive, "image").shape == (4000, 4000, 3)


@pytest.mark.parametrize(
    "between", [b"", b"\xff", b"\xff\x01", b"\xff\xd3", b"\xff\xd8", b"\0", b"\xff\xfe\0\4\xff\xd9"]
)
def test_decode_counts_scans_after_any_marker(between: bytes) -> None:
    progressive = encoded(progressive=True)
    last = progressive.rfind(b"\xff\xda")
    with pytest.raises(UnreadableImageError, match="more than 100 JPEG scans"):
        decode(progressive[:-2] + (between + progressive[last:-2]) * 200 + progressive[-2:], "bomb")


def test_decode_does_not_count_scan_markers_outside_the_pixels() -> None:
    scans = b"\xff\xda\0\2" * 300
    assert decode(encoded(comment=scans) + scans, "image").shape == (6, 8, 3)


@pytest.mark.parametrize("tag", [b"zTXt", b"iTXt", b"iCCP"])
def test_decode_rejects_metadata_that_decompresses_to_a_huge_size(tag: bytes) -> None:
    with pytest.raises(
        UnreadableImageError, match=r"^bomb cannot be read as an image \(Decompressed data too large"
    ) as refusal:
        decode(fuzz.huge_chunk(tag), "bomb")
    assert refusal.value.reason == "truncated or damaged"


# --- not an image ---------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "reason", "cause"),
    [
        (b"", "not an image", "(no JPEG, PNG or WebP signature)"),
        (b"not a photo", "not an image", "(no JPEG, PNG or WebP signature)"),
        (b"GIF89a\1\0\1\0\0\0\0;", "not an image", "(no JPEG, PNG or WebP signature)"),
        (encoded()[:4], "truncated or damaged", "(its header is damaged)"),
        (encoded()[:200], "truncated or damaged", "(Truncated File Read)"),
        (encoded()[:-4], "truncated or damaged", "(image file is truncated"),
        (encoded(kind="PNG")[:-30], "truncated or damaged", "("),
        (encoded(kind="WEBP")[:-20], "truncated or damaged", "("),
    ],
)
def test_decode_names_the_cause_for_an_incomplete_image(content: bytes, reason: str, cause: str) -> None:
    with pytest.raises(UnreadableImageError) as refusal:
        decode(content, "1.jpg")
    assert refusal.value.reason == reason
    assert str(refusal.value).startswith(f"1.jpg cannot be read as an image {cause}")
    assert str(refusal.value).endswith(
        "). Images must be complete JPEG, PNG or WebP files. Replace the file, or type data.on_corrupt=skip."
    )


def chunk(tag: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + tag + body + struct.pack(">I", zlib.crc32(tag + body))


@pytest.mark.parametrize(
    "content",
    [
        # Each of these once escaped as an exception of Pillow.
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 3, 0, 0, 0)) + chunk(b"tRNS", b"\0")
        + chunk(b"IDAT", zlib.compress(b"\0\0")) + chunk(b"IEND", b""),
        encoded(exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x02\x01\x12\0\x03\0\0\0\1\0\6\0\0\x01\x0f\0\x05\0\0\0\1\0\0\0\2"),
        encoded(exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x04\0\0\0\0\0\0\0\0"),
        encoded(kind="PNG", exif=b"MM\0*\0\0\0\x08\xff\xff\x01\x12"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_decode_handles_metadata_that_pillow_fails_on(content: bytes) -> None:
    try:
        assert decode(content, "image").dtype == np.uint8
    except UnreadableImageError as error:
        assert error.reason == "truncated or damaged"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_decode_turns_every_orientation_upright(orientation: int) -> None:
    from PIL import ImageOps

    pixels = np.random.default_rng(0).integers(0, 256, (7, 5, 3), dtype=np.uint8)
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(file, "PNG", exif=exif)
    with Image.open(file) as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    assert np.array_equal(decode(file.getvalue(), "image"), expected)


def test_decode_keeps_the_shades_of_16_bit_greyscale() -> None:
    file = io.BytesIO()
    Image.fromarray(np.array([[0, 0x1234, 0x8000, 0xFFFF]], np.uint16)).save(file, "PNG")
    assert decode(file.getvalue(), "image").tolist() == [[[0] * 3, [0x12] * 3, [0x80] * 3, [0xFF] * 3]]


def test_unreadable_image_error_keeps_its_reason_when_pickled() -> None:
    error = pickle.loads(pickle.dumps(UnreadableImageError("a. b. c.", "too many bytes")))
    assert (str(error), error.reason) == ("a. b. c.", "too many bytes")


@pytest.mark.parametrize("mode", ["stretch", "crop"])
@pytest.mark.parametrize("size", [(1, 1), (1, 16_384), (16_384, 1)])
def test_resizer_accepts_images_of_one_pixel_width_or_height(size: tuple[int, int], mode: str) -> None:
    pixels = decode(encoded(77, size, "PNG"), "image")
    assert pixels.shape == (size[1], size[0], 3)
    small = resizer(32, mode)(pixels)
    assert small.shape == (32, 32, 3)
    assert (small == 77).all()


# --- not a file ----------------------------------------------------------


def pipe(path: Path) -> None:
    os.mkfifo(path)


def unix_socket(path: Path) -> None:
    os.mknod(path, stat.S_IFSOCK | 0o600)


def loop(path: Path) -> None:
    path.symlink_to(path.name)


def nowhere(path: Path) -> None:
    path.symlink_to("gone.jpg")


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def absent(path: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (pipe, "is a pipe. Images must be regular files. Remove it,"),
        (unix_socket, "is a socket. Images must be regular files."),
        (Path.mkdir, "is a folder. Images must be regular files."),
        (device, "is a device. Images must be regular files."),
        (
            loop,
            (
                "cannot be opened (Too many levels of symbolic links). Images must be readable files. Repair or remove"
                " it,"
            ),
        ),
        (nowhere, "cannot be opened (No such file or directory). Images must be readable files."),
        (absent, "cannot be opened (No such file or directory). Images must be readable files."),
    ],
)
def test_examine_returns_an_error_for_what_is_no_regular_file(
    tmp_path: Path, make: Callable[[Path], None], message: str
) -> None:
    path = tmp_path / "1.jpg"
    make(path)
    [found] = examine([str(path)])
    assert isinstance(found, UnreadableImageError)
    assert str(found).startswith(f"{path} {message}")
    assert str(found).endswith(" or type data.on_corrupt=skip.")
    assert found.reason == "not a readable file"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_folder_rejects_files_and_folders_without_read_permission(root: Path) -> None:
    (root / "a/0.jpg").chmod(0)
    with pytest.raises(UnreadableImageError, match=r"a/0\.jpg cannot be opened \(Permission denied\)"):
        strict(root).open()
    (root / "a").chmod(0)
    with pytest.raises(UserError, match=r"photos/a cannot be listed \(Permission denied\)"):
        strict(root).open()


def test_images_below_names_a_folder_that_disappears(root: Path) -> None:
    with pytest.raises(
        UserError,
        match=(
            r"gone cannot be listed \(No such file or directory\)\. Image folders must be readable\. Repair or"
            r" remove it\."
        ),
    ):
        files.images_below(root / "gone")


def test_folder_skips_no_image_if_the_machine_is_out_of_file_handles(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(*_: object, **__: object) -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, "open", exhausted)
    with pytest.raises(OSError, match="Too many open files"):
        lenient(root).open()


def test_folder_stops_at_a_pipe_or_skips_it(root: Path) -> None:
    os.mkfifo(root / "a/3.jpg")
    with pytest.raises(UnreadableImageError, match=r"a/3\.jpg is a pipe\."):
        strict(root).open()
    dataset = lenient(root).open()
    assert dataset.train.source.ids == ("a/0.jpg", "a/1.jpg", "a/2.jpg", "b/0.jpg", "b/1.jpg", "b/2.jpg")
    assert dataset.notes == (f"1 of 7 images of train skipped: {root}/a/3.jpg is a pipe",)


def test_folder_with_an_image_suffix_is_searched_as_a_folder(root: Path) -> None:
    (root / "a/x.jpg").mkdir()
    (root / "a/x.jpg/4.jpg").write_bytes(encoded(250))
    assert strict(root).open().train.source.ids[3:5] == ("a/x.jpg/4.jpg", "b/0.jpg")


# --- changed ----------------------------------------------------------


def another(path: Path) -> None:
    path.write_bytes(encoded(200))


def same_size_and_time(path: Path) -> None:
    before, content = path.stat(), bytearray(path.read_bytes())
    content[-10] ^= 1
    path.write_bytes(content)
    # The kernel's clock may advance in steps of 4 ms.
    while path.stat().st_ctime_ns == before.st_ctime_ns:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def replaced_by_a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def grown(path: Path) -> None:
    os.truncate(path, MAX_BYTES + 1)


@pytest.mark.parametrize("change", [another, same_size_and_time, replaced_by_a_pipe, grown, Path.unlink])
def test_image_that_changed_after_it_was_examined_stops_the_run(
    root: Path, tmp_path: Path, change: Callable[[Path], None]
) -> None:
    settings = lenient(root)
    source = settings.open().train.source
    change(root / "b/1.jpg")
    with pytest.raises(UserError) as refusal:
        DecodedImages(source, settings, 8, FeatureCache(tmp_path / "cache", 10**9)).rows()
    assert (
        str(refusal.value)
        == f"{root}/b/1.jpg changed while it was being read. Images must not change during a run. Run the same command"
        " again."
    )
    assert not isinstance(refusal.value, UnreadableImageError)
    # Nothing is cached under the fingerprint of other images.
    assert not list((tmp_path / "cache").glob("photos-*"))


def test_examine_reads_a_changed_file_again(root: Path) -> None:
    path = root / "a/0.jpg"
    [before] = examine([str(path)])
    same_size_and_time(path)
    [after] = examine([str(path)])
    assert before != after == digest(path.read_bytes())
    assert examined_image(str(path), after)().shape == (6, 8, 3)


# --- links ------------------------------------------------------------


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A folder with an image outside the root."""
    # Its path starts with the root's path, which must not count as being inside.
    folder = tmp_path / "photos_elsewhere"
    folder.mkdir()
    (folder / "secret.jpg").write_bytes(encoded(123))
    return folder


@pytest.mark.parametrize(
    "target", ["{elsewhere}/secret.jpg", "../../photos_elsewhere/secret.jpg", "{elsewhere}/gone.jpg", "../chain"]
)
def test_image_that_links_outside_the_root_is_never_read(
    root: Path, elsewhere: Path, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "chain").symlink_to(elsewhere / "secret.jpg")
    (root / "a/3.jpg").symlink_to(target.format(elsewhere=elsewhere))
    opened: list[str] = []
    monkeypatch.setattr(
        os, "open", lambda path, *more, real=os.open: (opened.append(os.path.realpath(path)), real(path, *more))[1]
    )
    with pytest.raises(UnreadableImageError) as refusal:
        strict(root).open()
    assert refusal.value.reason == "outside the root"
    assert str(refusal.value).startswith(f"{root}/a/3.jpg is a link to {elsewhere}/")
    assert str(refusal.value).endswith(
        f", outside data.root={root}. Images must be inside data.root. Copy the image there, or type"
        " data.on_corrupt=skip."
    )
    assert lenient(root).open().train.source.ids == ("a/0.jpg", "a/1.jpg", "a/2.jpg", "b/0.jpg", "b/1.jpg", "b/2.jpg")
    assert {os.path.dirname(path) for path in opened} == {f"{root}/a", f"{root}/b"}


def test_links_inside_the_root_and_a_linked_root_are_followed(root: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(root)
    plain = strict(root).open()
    assert strict(tmp_path / "link").open().fingerprint == plain.fingerprint
    (root / ".pool").mkdir()
    (root / ".pool/9.jpg").write_bytes(encoded(222))
    (root / "a/9.jpg").symlink_to("../.pool/9.jpg")
    (root / "c").symlink_to("b")
    linked = strict(tmp_path / "link").open()
    assert linked.class_names == ("a", "b", "c")
    assert linked.train.source.ids[2:4] == ("a/2.jpg", "a/9.jpg")
    assert linked.train.source.ids[-1] == "c/2.jpg"
    assert int(list(linked.train.source.loaders())[3]().mean()) == 222


@pytest.mark.parametrize(
    ("link", "target"),
    [
        ("c", "{elsewhere}"),
        ("c", "../photos_elsewhere"),
        ("c", ".."),
        ("c", "/"),
        ("c", "gone"),
        ("c", "c"),
        ("train", "{elsewhere}"),
        ("val", "{elsewhere}"),
        ("test", "gone"),
    ],
)
def test_folder_that_links_outside_the_root_is_rejected(root: Path, elsewhere: Path, link: str, target: str) -> None:
    (root / link).symlink_to(target.format(elsewhere=elsewhere))
    with pytest.raises(UserError) as refusal:
        lenient(root).open()
    assert not isinstance(refusal.value, UnreadableImageError)
    assert str(refusal.value).startswith(f"{root}/{link} is a link to /")
    assert str(refusal.value).endswith(
        f", which is not a folder inside data.root={root}. Image folders must be inside data.root. "
        "Put the folder itself there, remove the link, or set data.root to another folder."
    )


def test_class_folder_that_links_to_the_root_is_listed_once(root: Path) -> None:
    (root / "c").symlink_to(".")
    assert len(strict(root).open().train.source.ids) == 6 + 6


def test_folder_rejects_a_broken_or_unknown_root(tmp_path: Path) -> None:
    (tmp_path / "photos").symlink_to("photos")
    with pytest.raises(MissingFileError, match="is not a folder"):
        strict(tmp_path / "photos").open()
    with pytest.raises(MissingFileError, match=r"^data\.root=~nobody-of-that-name/photos is not a folder"):
        strict(Path("~nobody-of-that-name/photos")).open()


def test_folder_resolves_only_links(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "a/9.jpg").symlink_to("0.jpg")
    followed, realpath = [], os.path.realpath
    monkeypatch.setattr(
        os.path, "realpath", lambda path, **more: (followed.append(str(path)), realpath(path, **more))[1]
    )
    strict(root).open()
    # One folder costs as much as one link, and there are few of them.
    assert [path for path in followed if path.endswith(".jpg")] == [f"{root}/a/9.jpg"]


# --- names ------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "identity"),
    [
        (b"\xff\xfe.jpg", r"\udcff\udcfe.jpg"),
        ("Bärli ü.jpg".encode(), "Bärli ü.jpg"),
        (b"a\nb.jpg", r"a\nb.jpg"),
        (b"\x1b[2J.jpg", r"\x1b[2J.jpg"),
        (b"a\\nb.jpg", r"a\\nb.jpg"),
        ("line\u2028end.jpg".encode(), r"line\u2028end.jpg"),
        (b"a..jpg", "a..jpg"),
        (b"deep\xff/1.jpg", r"deep\udcff/1.jpg"),
    ],
)
def test_folder_accepts_any_file_name_and_prints_it_escaped(root: Path, name: bytes, identity: str) -> None:
    path = os.path.join(os.fsencode(root / "b"), name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(encoded(231))
    source = strict(root).open().train.source
    [row] = [row for row, found in enumerate(source.digests) if found == digest(encoded(231))]
    assert source.ids[row] == f"b/{identity}"
    assert list(source.loaders())[row]().shape == (6, 8, 3)
    source.fingerprint.encode()
    with open(path, "wb") as file:
        file.write(b"no photo")
    with pytest.raises(UnreadableImageError) as refusal:
        strict(root).open()
    assert str(refusal.value).startswith(f"{root}/b/{identity} cannot be read as an image")
    assert str(refusal.value).isprintable()


def test_printable_keeps_different_names_different() -> None:
    names = ["\udcff", "\\udcff", "\\\\udcff", "\n", "\\n", "\u2028", "\\u2028", "\x85", "\udc85"]
    assert len({printable(name) for name in names}) == len(names)
    assert all(printable(name).isprintable() for name in names)


@pytest.mark.parametrize("name", [b"c\xff", b"c\nd", b"c\x1b[31m", "c\u2028".encode(), b"c\x7f"])
def test_folder_rejects_a_class_with_an_unprintable_name(root: Path, name: bytes) -> None:
    os.mkdir(os.path.join(os.fsencode(root), name))
    with pytest.raises(UserError) as refusal:
        lenient(root).open()
    assert (
        str(refusal.value)
        == f"{root}/{printable(os.fsdecode(name))} has a name that is not UTF-8 or has control characters. "
        "A class folder's name becomes the name of the class. Rename the folder."
    )
    assert str(refusal.value).isprintable()


@pytest.mark.parametrize(
    ("name", "identity"),
    [
        (b"n02085620-Chihuahua/n02085620_7.jpg", "n02085620-Chihuahua/n02085620_7.jpg"),
        (b"\xff.jpg", r"\udcff.jpg"),
        (b"../../etc/passwd", r"\x2e\x2e/\x2e\x2e/etc/passwd"),
        (b"/etc/passwd", r"\x2fetc/passwd"),
        (b"//etc/./x..jpg", r"\x2f/etc/\x2e/x..jpg"),
        (b"/..", r"\x2f\x2e\x2e"),
        (b"..\n", r"..\n"),
        (b"", ""),
    ],
)
def test_archive_file_names_never_become_paths_outside(
    name: bytes, identity: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tensorflow_datasets as tfds

    monkeypatch.setattr(tfds, "as_numpy", lambda rows: rows)
    rows = [
        {"image": encoded(5), "label": 1, "image/filename": name},
        {"image": b"cut", "label": 0, "image/filename": name + b"2"},
    ]
    features = {
        "image": tfds.features.Image(),
        "label": tfds.features.ClassLabel(num_classes=2),
        "image/filename": tfds.features.Text(),
    }
    source = tfds_source(
        SimpleNamespace(info=SimpleNamespace(features=features), as_dataset=lambda **_: iter(rows)), "train"
    )
    assert source.ids[0] == identity
    assert source.labels.tolist() == [1, 0]
    assert ".." not in identity.split("/")
    first, second = source.loaders()
    assert first().shape == (6, 8, 3)
    with pytest.raises(UnreadableImageError) as refusal:
        second()
    assert str(refusal.value).startswith(
        f"{source.ids[1]} cannot be read as an image (no JPEG, PNG or WebP signature)."
    )


# --- random damage --------------------------------------------------------


def test_fuzz_reads_or_rejects_hundreds_of_damaged_files(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    report = fuzz.run_in_process(304, seed=3, root=(tmp_path / "root").resolve())
    assert report.crashes == []
    assert report.read + report.refused == 304
    assert all(report.outcomes[kind]["read"] == 16 for kind in ("undamaged", "wrong suffix", "trailing garbage"))
    assert set(report.total) >= {"read", "changed", *REASONS} - {"too many scans"}


def misbehaving(root: Path, case: fuzz.Case) -> str:
    """Stand-in for a decoder that crashes, hangs, writes a file, or raises an unexpected exception."""
    if case.number == 2:
        os.abort()
    if case.number == 4:
        time.sleep(60)
    if case.number == 6:
        (root / "written").write_text("by a decoder")
    return "escaped: KeyError: 7" if case.number == 7 else "read"


@pytest.mark.slow
def test_fuzz_reports_a_crash_a_hang_and_a_write(tmp_path: Path) -> None:
    report = fuzz.run_in_subprocess(9, 0, tmp_path, misbehaving, timeout=3)
    assert report.crashes == ["file 2: the process ended with -6", "file 7: escaped: KeyError: 7"]
    assert report.hangs == [4]
    assert len(report.writes) == 1
    assert report.writes[0].startswith("file 6: open (")
    assert (report.read, report.refused) == (6, 0)


@pytest.mark.long
@pytest.mark.parametrize("files", [1_000, 10_000])
def test_fuzz_reads_or_rejects_thousands_of_damaged_files(files: int, tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    report = fuzz.run_in_subprocess(files, 0, (tmp_path / "root").resolve())
    assert (report.crashes, report.hangs, report.writes) == ([], [], [])
    assert report.read + report.refused == files
    assert all(report.total[reason] > 0 for reason in ("read", "changed", *REASONS))
