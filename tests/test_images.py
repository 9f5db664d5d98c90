"""`image_sources`: images from files, folders, patterns and standard input, and the errors; `prefetch` at the end."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dogbreeds.core import prefetch
from dogbreeds.core.errors import MissingFileError, UserError
from dogbreeds.data.image import MAX_BYTES, UnreadableImageError
from dogbreeds.inference.image_sources import find_images, parse_images

EMPTY = io.BytesIO()


def encoded(shade: int = 90, kind: str = "JPEG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 6), (shade, shade, shade)).save(file, kind)
    return file.getvalue()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with `photos/` in it: images and other files, some of them hidden."""
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
    return [image.name for image in find_images(images, io.BytesIO(given)).images]


ALL = ["1.jpg", "[1].jpg", "a/deep/er/y.webp", "a/x.png", "b/10.JPG", "b/2.jpg", "top.jpeg"]


def test_find_images_lists_a_folder_recursively_sorted_without_hidden_files(here: Path) -> None:
    assert names("photos") == [f"photos/{name}" for name in ALL]
    assert names("photos/") == names("photos")
    assert names(str(here / "photos")) == [f"{here}/photos/{name}" for name in ALL]
    assert find_images(["photos", "photos/1.jpg"], EMPTY).total == 8


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("photos/*.jpg", ["1.jpg", "[1].jpg"]),
        ("photos/*/*.jpg", ["b/2.jpg"]),
        ("photos/**/*.[jJ][pP]*", ["1.jpg", "[1].jpg", "b/10.JPG", "b/2.jpg", "top.jpeg"]),
        ("photos/**", ALL),
        # A matching folder gives all images below it.
        ("photos/a/*", ["a/deep/er/y.webp", "a/x.png"]),
        ("photos/?.jpg", ["1.jpg"]),
        ("photos/**.jpg", ["1.jpg", "[1].jpg"]),
        # A file with this very name exists, so the text is not taken for a pattern.
        ("photos/[1].jpg", ["[1].jpg"]),
        ("photos/[0-9].jpg", ["1.jpg"]),
    ],
)
def test_find_images_lists_what_a_pattern_matches(here: Path, pattern: str, expected: list[str]) -> None:
    assert names(pattern) == [f"photos/{name}" for name in expected]


def test_find_images_takes_an_existing_folder_with_brackets_literally_within_a_pattern(here: Path) -> None:
    (here / "photos").rename(here / "photos [2024]")
    assert names("photos [2024]/*.jpg") == ["photos [2024]/1.jpg", "photos [2024]/[1].jpg"]


def test_find_images_preserves_the_given_order_and_expands_the_home_folder(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(here))
    assert names("photos/top.jpeg", "~/photos/b", "photos/1.jpg") == [
        "photos/top.jpeg",
        f"{here}/photos/b/10.JPG",
        f"{here}/photos/b/2.jpg",
        "photos/1.jpg",
    ]


def test_find_images_opens_images_lazily_and_gives_different_files_different_keys(here: Path) -> None:
    images = list(find_images(["photos/1.jpg", "photos/[1].jpg", "photos/../photos/1.jpg"], EMPTY).images)
    (here / "photos/1.jpg").write_bytes(encoded(200))
    assert images[0].pixels().shape == (6, 8, 3)
    assert int(images[0].pixels().mean()) == 200
    assert images[0].key == images[2].key != images[1].key


def test_find_images_accepts_a_single_file_of_any_name_and_any_link(here: Path) -> None:
    (here / "elsewhere").write_bytes(encoded(77))
    (here / "link.dat").symlink_to("elsewhere")
    (image,) = find_images(["link.dat"], EMPTY).images
    assert int(image.pixels().mean()) == 77


def test_find_images_checks_links_against_the_folder_that_each_image_came_from(here: Path) -> None:
    (here / "alone.jpg").write_bytes(encoded())
    images = list(find_images(["photos/b", "alone.jpg", "photos/a/*", "photos/1.jpg"], EMPTY).images)
    assert [image.pixels().shape for image in images] == [(6, 8, 3)] * 6


@pytest.mark.parametrize("text", ["photos", "photos/*.jpg", "photos/**", "photos/*/secret.jpg"])
def test_an_image_that_is_a_link_out_of_its_folder_is_unreadable(here: Path, text: str) -> None:
    (here / "secret.jpg").write_bytes(encoded())
    (here / "photos/secret.jpg").symlink_to(here / "secret.jpg")
    (here / "photos/b/secret.jpg").symlink_to("../../secret.jpg")
    refused = []
    for image in find_images([text], EMPTY).images:
        try:
            image.pixels()
        except UnreadableImageError as error:
            refused.append(error)
    assert {error.reason for error in refused} == {"outside the root"}
    message = refused[-1].message_without_skip
    link = f"photos/{'b/' if text == 'photos/*/secret.jpg' else ''}secret.jpg"
    assert message.startswith(f"{link} is a link to {here}/secret.jpg, outside {here}/photos. ")
    assert message.endswith("Name the image itself, or copy it there.")


def test_find_images_does_not_follow_links_to_folders(here: Path) -> None:
    for name in ("loop", "round"):
        (here / "photos/a" / name).symlink_to("..")
    assert names("photos/**/x.png") == ["photos/a/x.png"]
    assert len(names("photos")) == len(ALL)


@pytest.mark.parametrize(
    "text", ["empty", "photos/*.gif", "photos/none/*.jpg", "photos/.cache/*.txt", "photos/**/.hidden.jpg"]
)
def test_find_images_refuses_a_folder_or_pattern_without_images(here: Path, text: str) -> None:
    (here / "empty").mkdir()
    with pytest.raises(UserError) as error:
        find_images([text], EMPTY)
    message = str(error.value)
    assert message.startswith(f"images={text} has no images. ")
    assert "end in .jpg, .jpeg, .png, .webp and are not hidden" in message
    assert message.endswith("Type images=path/to/images, or 'images=photos/**/*.jpg', for example.")


def test_find_images_refuses_a_path_that_does_not_exist(here: Path) -> None:
    with pytest.raises(MissingFileError) as error:
        find_images(["photos", "phtos"], EMPTY)
    message = str(error.value)
    assert message.startswith(f"images=phtos does not exist (looked for {here}/phtos). ")
    assert "a folder, a pattern, or - for standard input" in message
    assert message.endswith("Type images=path/to/images, for example.")


@pytest.mark.parametrize("value", [None, "", [], ()])
def test_parse_images_refuses_an_empty_setting(value: object) -> None:
    with pytest.raises(
        UserError,
        match=(
            r"^images was not given\. .* a folder, a pattern, or - .* Type images=path/to/images, or"
            r" 'images=photos/\*\.jpg', for example\.$"
        ),
    ):
        parse_images(value)


@pytest.mark.parametrize("value", [7, ["a.jpg", 7], {"a": "b"}, [""], [["a.jpg"]]])
def test_parse_images_refuses_what_is_no_list_of_texts(value: object) -> None:
    with pytest.raises(UserError) as error:
        parse_images(value)
    message = str(error.value)
    assert message.startswith(f"images was {value!r}. ")
    assert ", or a list of them. " in message
    assert message.endswith("Type 'images=[first.jpg,second.jpg]', for example.")
    assert parse_images("a.jpg") == parse_images(["a.jpg"]) == ("a.jpg",)


# --- standard input ---------------------------------------------------


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_find_images_reads_an_encoded_image_from_standard_input(kind: str) -> None:
    source = find_images(["-"], io.BytesIO(encoded(50, kind)))
    (image,) = source.images
    assert (image.name, source.total) == ("standard input", None)
    assert abs(int(image.pixels().mean()) - 50) <= 1


def test_find_images_stops_reading_an_endless_image_from_standard_input_at_the_limit() -> None:
    class Endless(io.RawIOBase):
        given = 0

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
            buffer[:3] = b"\xff\xd8\xff"
            self.given += len(buffer)
            return len(buffer)

    endless = Endless()
    (image,) = find_images(["-"], io.BufferedReader(endless)).images
    with pytest.raises(
        UnreadableImageError, match=r"^standard input has 128 MiB\. An image may have at most 128 MiB\. Save it smaller"
    ):
        image.pixels()
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
def test_find_images_reads_a_list_of_paths_from_standard_input(here: Path, given: bytes, expected: list[str]) -> None:
    assert names("-", given=given) == expected


def test_a_listed_path_that_does_not_exist_is_unreadable_and_the_rest_is_read(here: Path) -> None:
    first, second = find_images(["-"], io.BytesIO(b"photos/gone.jpg\nphotos/1.jpg\n")).images
    with pytest.raises(UnreadableImageError, match=r"^photos/gone\.jpg cannot be opened \(No such file or directory\)"):
        first.pixels()
    assert second.pixels().shape == (6, 8, 3)


def test_find_images_yields_listed_images_while_the_list_is_still_being_written(here: Path) -> None:
    reading, writing = os.pipe()
    with open(reading, "rb") as stream, open(writing, "wb", buffering=0) as writer:
        writer.write(b"photos/1.jpg\nphotos/to")
        images = find_images(["-", "photos/b"], stream).images
        assert next(images).name == "photos/1.jpg"
        writer.write(b"p.jpeg\n")
        assert next(images).name == "photos/top.jpeg"
        writer.close()
        assert [image.name for image in images] == ["photos/b/10.JPG", "photos/b/2.jpg"]


@pytest.mark.parametrize("given", [b"", b"\n\n", b"  \n"])
def test_find_images_refuses_empty_standard_input(given: bytes) -> None:
    with pytest.raises(
        UserError,
        match=(
            r"^images=- was given, and standard input is empty\. .* one per line\. Type find photos .*"
            r" python -m dogbreeds\.predict images=-"
        ),
    ):
        find_images(["-"], io.BytesIO(given))


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
def test_find_images_refuses_standard_input_that_is_neither_an_image_nor_a_list(given: bytes) -> None:
    with pytest.raises(
        UserError,
        match=(
            r"^Standard input is neither an image nor a list of paths\. .* JPEG, PNG or WebP .* newline or a NUL\. Type"
            r" find photos -name '\*\.jpg' -print0 \| python -m dogbreeds\.predict images=-"
        ),
    ):
        list(find_images(["-"], io.BytesIO(given)).images)


# --- prefetch ---------------------------------------------------------


def test_map_ahead_yields_results_in_order_and_starts_a_bounded_number_of_items() -> None:
    started: list[int] = []

    def items():
        for number in range(100):
            started.append(number)
            yield number

    results = prefetch.map_ahead(lambda number: number**2, items(), ahead=7)
    for number in range(100):
        assert next(results) == number**2
        assert len(started) <= min(100, number + 7)
    assert next(results, None) is None


def test_map_ahead_starts_nothing_more_after_it_is_closed() -> None:
    done: list[int] = []
    results = prefetch.map_ahead(done.append, range(10**9), ahead=3)
    next(results)
    results.close()
    assert len(done) <= 3


def test_map_ahead_raises_a_failure_in_the_place_of_its_result() -> None:
    results = prefetch.map_ahead(lambda number: 6 // (3 - number), range(9), ahead=4)
    assert [next(results), next(results), next(results)] == [2, 3, 6]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_find_images_gives_the_pixels_of_the_file(here: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(here / "noise.png")
    (image,) = find_images(["noise.png"], EMPTY).images
    assert np.array_equal(image.pixels(), pixels)
