"""From what was typed to photos: files, folders, patterns, the standard input; and what holds none."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dogbreeds.core import prefetch
from dogbreeds.core.errors import MissingFileError, UserError
from dogbreeds.data.image import MAX_BYTES, Unreadable
from dogbreeds.inference.image_sources import found, typed

NOTHING = io.BytesIO()


def encoded(shade: int = 90, kind: str = "JPEG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 6), (shade, shade, shade)).save(file, kind)
    return file.getvalue()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with photos and other things, which is the current one."""
    for number, name in enumerate(
        ("b/2.jpg", "b/10.JPG", "a/x.png", "a/deep/er/y.webp", "top.jpeg", "[1].jpg", "1.jpg")
    ):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(10 * number))
    for name in ("a/notes.txt", "a/.hidden.jpg", ".cache/z.jpg"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(*images: str, given: bytes = b"") -> list[str]:
    return [photo.name for photo in found(images, io.BytesIO(given)).photos]


ALL = ["1.jpg", "[1].jpg", "a/deep/er/y.webp", "a/x.png", "b/10.JPG", "b/2.jpg", "top.jpeg"]


def test_a_folder_gives_all_below_it_sorted_and_nothing_hidden(here: Path) -> None:
    assert names("photos") == [f"photos/{name}" for name in ALL]
    assert names("photos/") == names("photos")
    assert names(str(here / "photos")) == [f"{here}/photos/{name}" for name in ALL]
    assert found(["photos", "photos/1.jpg"], NOTHING).total == 8


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("photos/*.jpg", ["1.jpg", "[1].jpg"]),
        ("photos/*/*.jpg", ["b/2.jpg"]),
        ("photos/**/*.[jJ][pP]*", ["1.jpg", "[1].jpg", "b/10.JPG", "b/2.jpg", "top.jpeg"]),
        ("photos/**", ALL),
        # A folder that matches stands for what is below it
        ("photos/a/*", ["a/deep/er/y.webp", "a/x.png"]),
        ("photos/?.jpg", ["1.jpg"]),
        ("photos/**.jpg", ["1.jpg", "[1].jpg"]),
        # It is there, and is not taken for a pattern
        ("photos/[1].jpg", ["[1].jpg"]),
        ("photos/[0-9].jpg", ["1.jpg"]),
    ],
)
def test_a_pattern_gives_what_matches(here: Path, pattern: str, expected: list[str]) -> None:
    assert names(pattern) == [f"photos/{name}" for name in expected]


def test_a_folder_with_brackets_is_a_folder_within_a_pattern_too(here: Path) -> None:
    (here / "photos").rename(here / "photos [2024]")
    assert names("photos [2024]/*.jpg") == ["photos [2024]/1.jpg", "photos [2024]/[1].jpg"]


def test_what_was_typed_keeps_its_order_and_home_is_found(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(here))
    assert names("photos/top.jpeg", "~/photos/b", "photos/1.jpg") == [
        "photos/top.jpeg",
        f"{here}/photos/b/10.JPG",
        f"{here}/photos/b/2.jpg",
        "photos/1.jpg",
    ]


def test_photos_are_opened_when_their_turn_comes_and_other_names_have_other_keys(here: Path) -> None:
    photos = list(found(["photos/1.jpg", "photos/[1].jpg", "photos/../photos/1.jpg"], NOTHING).photos)
    (here / "photos/1.jpg").write_bytes(encoded(200))
    assert photos[0].pixels().shape == (6, 8, 3)
    assert int(photos[0].pixels().mean()) == 200
    assert photos[0].key == photos[2].key != photos[1].key


def test_a_single_file_may_be_called_anything_and_be_any_link(here: Path) -> None:
    (here / "elsewhere").write_bytes(encoded(77))
    (here / "link.dat").symlink_to("elsewhere")
    (photo,) = found(["link.dat"], NOTHING).photos
    assert int(photo.pixels().mean()) == 77


def test_each_folder_holds_its_own_photos_only(here: Path) -> None:
    (here / "alone.jpg").write_bytes(encoded())
    photos = list(found(["photos/b", "alone.jpg", "photos/a/*", "photos/1.jpg"], NOTHING).photos)
    assert [photo.pixels().shape for photo in photos] == [(6, 8, 3)] * 6


@pytest.mark.parametrize("images", ["photos", "photos/*.jpg", "photos/**", "photos/*/secret.jpg"])
def test_a_link_that_leads_out_of_the_folder_is_not_opened(here: Path, images: str) -> None:
    (here / "secret.jpg").write_bytes(encoded())
    (here / "photos/secret.jpg").symlink_to(here / "secret.jpg")
    (here / "photos/b/secret.jpg").symlink_to("../../secret.jpg")
    refused = []
    for photo in found([images], NOTHING).photos:
        try:
            photo.pixels()
        except Unreadable as error:
            refused.append(error)
    assert {error.reason for error in refused} == {"out of the root"}
    assert (
        refused[-1].plain
        == f"photos/{'b/' if images == 'photos/*/secret.jpg' else ''}secret.jpg is a link to {here}/secret.jpg, out of"
        f" {here}/photos. Photos must lie below the folder that was named. Name the photo itself, or copy it there."
    )


def test_links_to_folders_are_not_gone_round(here: Path) -> None:
    for name in ("loop", "round"):
        (here / "photos/a" / name).symlink_to("..")
    assert names("photos/**/x.png") == ["photos/a/x.png"]
    assert len(names("photos")) == len(ALL)


@pytest.mark.parametrize(
    "images", ["empty", "photos/*.gif", "photos/none/*.jpg", "photos/.cache/*.txt", "photos/**/.hidden.jpg"]
)
def test_what_holds_no_photos_is_refused(here: Path, images: str) -> None:
    (here / "empty").mkdir()
    with pytest.raises(UserError) as refusal:
        found([images], NOTHING)
    assert (
        str(refusal.value)
        == f"images={images} holds no photos. They are files that end in .jpg, .jpeg, .png, .webp and are not hidden. "
        "Type images=path/to/photos, or 'images=photos/**/*.jpg', for example."
    )


def test_what_is_not_there_is_missing(here: Path) -> None:
    with pytest.raises(MissingFileError) as refusal:
        found(["photos", "phtos"], NOTHING)
    assert (
        str(refusal.value)
        == f"images=phtos is not there (looked for {here}/phtos). It must be a photo, a folder of photos, a pattern, or"
        " - for the standard input. Type images=path/to/photos, for example."
    )


@pytest.mark.parametrize("value", [None, "", [], ()])
def test_images_must_be_given(value: object) -> None:
    with pytest.raises(
        UserError,
        match=(
            r"^images was not given\. It must be a photo, .* Type images=path/to/photos, or 'images=photos/\*\.jpg',"
            r" for example\.$"
        ),
    ):
        typed(value)


@pytest.mark.parametrize("value", [7, ["a.jpg", 7], {"a": "b"}, [""], [["a.jpg"]]])
def test_images_are_texts(value: object) -> None:
    with pytest.raises(
        UserError,
        match=(
            r"^images was .*\. It must be a photo, .* or a list of them\. Type 'images=\[first\.jpg,second\.jpg\]', for"
            r" example\.$"
        ),
    ):
        typed(value)
    assert typed("a.jpg") == typed(["a.jpg"]) == ("a.jpg",)


# --- the standard input ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_the_standard_input_may_be_a_photo(kind: str) -> None:
    images = found(["-"], io.BytesIO(encoded(50, kind)))
    (photo,) = images.photos
    assert (photo.name, images.total) == ("standard input", None)
    assert abs(int(photo.pixels().mean()) - 50) <= 1


def test_a_photo_without_end_on_the_standard_input_is_read_to_the_limit_only() -> None:
    class Endless(io.RawIOBase):
        given = 0

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
            buffer[:3] = b"\xff\xd8\xff"
            self.given += len(buffer)
            return len(buffer)

    endless = Endless()
    (photo,) = found(["-"], io.BufferedReader(endless)).photos
    with pytest.raises(
        Unreadable, match=r"^standard input has 128 MiB\. A photo may have 128, and no more\. Save it smaller"
    ):
        photo.pixels()
    assert endless.given < MAX_BYTES + (1 << 20)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (b"photos/1.jpg\nphotos/b\n", ["photos/1.jpg", "photos/b"]),
        (b"photos/1.jpg\r\n\r\n  \nphotos/[1].jpg", ["photos/1.jpg", "photos/[1].jpg"]),
        (b"photos/1.jpg\0a\nb.jpg\0", ["photos/1.jpg", "a\\nb.jpg"]),
        ("Bärli, [1] 犬.jpg\n".encode(), ["Bärli, [1] 犬.jpg"]),
        (b"a-name-that-is-there.jpg\n\xff.jpg\n", ["a-name-that-is-there.jpg", "\\udcff.jpg"]),
        (b"x.jpg", ["x.jpg"]),
    ],
)
def test_the_standard_input_may_be_a_list(here: Path, given: bytes, expected: list[str]) -> None:
    assert names("-", given=given) == expected


def test_a_path_of_a_list_that_is_not_there_is_a_bad_photo_and_the_rest_goes_on(here: Path) -> None:
    first, second = found(["-"], io.BytesIO(b"photos/gone.jpg\nphotos/1.jpg\n")).photos
    with pytest.raises(Unreadable, match=r"^photos/gone\.jpg cannot be opened \(No such file or directory\)"):
        first.pixels()
    assert second.pixels().shape == (6, 8, 3)


def test_a_list_is_worked_on_while_it_is_being_made(here: Path) -> None:
    reading, writing = os.pipe()
    with open(reading, "rb") as stream, open(writing, "wb", buffering=0) as maker:
        maker.write(b"photos/1.jpg\nphotos/to")
        photos = found(["-", "photos/b"], stream).photos
        assert next(photos).name == "photos/1.jpg"
        maker.write(b"p.jpeg\n")
        assert next(photos).name == "photos/top.jpeg"
        maker.close()
        assert [photo.name for photo in photos] == ["photos/b/10.JPG", "photos/b/2.jpg"]


@pytest.mark.parametrize("given", [b"", b"\n\n", b"  \n"])
def test_an_empty_standard_input_is_refused(given: bytes) -> None:
    with pytest.raises(
        UserError,
        match=(
            r"^images=- was given, and the standard input is empty\. It must be a photo, or paths of photos, each on a"
            r" line\. Type find"
        ),
    ):
        found(["-"], io.BytesIO(given))


@pytest.mark.parametrize(
    "given",
    [
        b"GIF89a\1\0\1\0\0\0;",
        b"\0\0\0\x18ftypheic\0\0\0\0",
        b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n\0\0",
        b"RIFF\x24\x08\0\0WAVEfmt ",
        b"x" * 200_000,
    ],
)
def test_other_bytes_on_the_standard_input_are_not_taken_for_names(given: bytes) -> None:
    with pytest.raises(
        UserError,
        match=(
            r"^The standard input is neither a photo nor a list of paths\. It must be one JPEG, PNG or WebP file, or"
            r" paths"
        ),
    ):
        list(found(["-"], io.BytesIO(given)).photos)


# --- looking ahead --------------------------------------------------------------------------------------------------------


def test_results_come_in_order_and_only_so_many_are_begun_ahead() -> None:
    begun: list[int] = []

    def items():
        for number in range(100):
            begun.append(number)
            yield number

    results = prefetch.mapped(lambda number: number**2, items(), ahead=7)
    for number in range(100):
        assert next(results) == number**2
        assert len(begun) <= min(100, number + 7)
    assert next(results, None) is None


def test_what_is_closed_early_begins_nothing_more() -> None:
    done: list[int] = []
    results = prefetch.mapped(done.append, range(10**9), ahead=3)
    next(results)
    results.close()
    assert len(done) <= 3


def test_a_failure_comes_at_its_place() -> None:
    results = prefetch.mapped(lambda number: 6 // (3 - number), range(9), ahead=4)
    assert [next(results), next(results), next(results)] == [2, 3, 6]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_pixels_are_those_of_the_file(here: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(here / "noise.png")
    (photo,) = found(["noise.png"], NOTHING).photos
    assert np.array_equal(photo.pixels(), pixels)
