"""`decoder`: Pillow's pixels compared with those of the saved network's resize, and files of every kind."""

import io

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from dogbreeds.data import drawn_dogs
from dogbreeds.data.decoder import PILLOW, PILLOW_SCALED, TENSORFLOW, decoder_to_size
from dogbreeds.data.image import EncodedImage, UnreadableImageError
from dogbreeds.data.resize import resize_images

MODES = ("stretch", "pad", "crop")


def noise(height: int, width: int, kind: str = "noise") -> np.ndarray:
    """[height, width, 3] uint8 of the values that a filter may get wrong."""
    rng = np.random.default_rng(height * width)
    if kind == "noise":
        return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    if kind == "black and white":
        return 255 * rng.integers(0, 2, (height, width, 3), dtype=np.uint8)
    return np.full((height, width, 3), rng.integers(0, 256), np.uint8)


def encoded(image: Image.Image, kind: str = "PNG", orientation: int | None = None, **options) -> EncodedImage:
    """Return the loader of an image file."""
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    file = io.BytesIO()
    image.save(file, kind, exif=exif, **options)
    return EncodedImage(file.getvalue, "an image")


def resized_by_network(pixels: np.ndarray, size: int, mode: str) -> np.ndarray:
    return np.asarray(resize_images(pixels[None], size, mode))[0].astype(np.uint8)


def largest_difference(one: np.ndarray, other: np.ndarray) -> int:
    assert one.shape == other.shape
    assert one.dtype == other.dtype == np.uint8
    return int(np.abs(one.astype(int) - other).max())


def test_tensorflow_decoder_has_the_bits_of_the_saved_network() -> None:
    pixels = noise(75, 51)
    for mode in MODES:
        by_tensorflow = decoder_to_size(32, mode, TENSORFLOW)(lambda: pixels)
        assert np.array_equal(by_tensorflow, resized_by_network(pixels, 32, mode))


@settings(max_examples=30, deadline=None)
@given(
    height=st.integers(1, 300),
    width=st.integers(1, 300),
    size=st.integers(1, 128),
    mode=st.sampled_from(MODES),
    kind=st.sampled_from(["noise", "black and white", "plain"]),
)
@example(height=1, width=1, size=32, mode="stretch", kind="noise")
@example(height=1, width=3000, size=33, mode="pad", kind="noise")
@example(height=3000, width=1, size=33, mode="stretch", kind="noise")
@example(height=2, width=2, size=97, mode="crop", kind="black and white")
@example(height=333, width=500, size=224, mode="crop", kind="black and white")
@example(height=500, width=333, size=224, mode="pad", kind="black and white")
@example(height=1001, width=17, size=97, mode="pad", kind="noise")
@example(height=64, width=64, size=64, mode="pad", kind="noise")
def test_pillow_resizes_as_the_saved_network_to_within_one_grey_level(
    height: int, width: int, size: int, mode: str, kind: str
) -> None:
    pixels = noise(height, width, kind)
    by_pillow = decoder_to_size(size, mode, PILLOW)(lambda: pixels)
    assert largest_difference(by_pillow, resized_by_network(pixels, size, mode)) <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", MODES)
def test_orientation_of_a_file_is_applied_before_it_becomes_square(orientation: int, mode: str) -> None:
    # The margins of a crop differ by a pixel.
    load_image = encoded(Image.fromarray(noise(61, 88)), orientation=orientation)
    by_pillow = decoder_to_size(40, mode, PILLOW)(load_image)
    assert largest_difference(by_pillow, resized_by_network(load_image(), 40, mode)) <= 1


def photo(height: int, width: int) -> Image.Image:
    """Draw an image as smooth as a photo."""
    dog = Image.fromarray(drawn_dogs.draw("test", 3, 0))
    return dog.resize((width, height), Image.Resampling.BICUBIC)


def files() -> dict[str, EncodedImage]:
    """Return a file of each kind that is converted to RGB."""
    picture = photo(50, 70)
    deep = Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257)
    transparent = picture.convert("RGBA")
    transparent.putalpha(90)
    return {
        "grey": encoded(picture.convert("L")),
        "grey JPEG": encoded(picture.convert("L"), "JPEG"),
        "16 bits": encoded(deep),
        "palette": encoded(picture.quantize(16)),
        "one bit": encoded(picture.convert("1")),
        "transparent": encoded(transparent),
        "transparent grey": encoded(picture.convert("LA")),
        "CMYK": encoded(picture.convert("CMYK"), "JPEG"),
        "progressive": encoded(picture, "JPEG", progressive=True),
        "WebP": encoded(picture, "WEBP"),
    }


@pytest.mark.parametrize("kind", files())
def test_pillow_decodes_each_kind_of_file_as_before(kind: str) -> None:
    load_image = files()[kind]
    by_pillow = decoder_to_size(24, "pad", PILLOW)(load_image)
    assert largest_difference(by_pillow, resized_by_network(load_image(), 24, "pad")) <= 1
    assert np.ptp(by_pillow) > 50


def test_pillow_reports_a_damaged_file_as_before() -> None:
    whole = encoded(photo(50, 70), "JPEG")
    damaged = EncodedImage(lambda: whole.read()[:-40], "rex.jpg")
    for decoder in (PILLOW, PILLOW_SCALED):
        with pytest.raises(UnreadableImageError, match=r"rex\.jpg cannot be read") as error:
            decoder_to_size(16, "stretch", decoder)(damaged)
        assert error.value.reason == "truncated or damaged"


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("orientation", [1, 6, 8])
def test_scaled_decode_of_a_large_drawing_is_nearly_the_same(mode: str, orientation: int) -> None:
    large = encoded(photo(904, 1203 if mode == "stretch" else 1208), "JPEG", orientation, quality=92)
    full, scaled = (decoder_to_size(96, mode, decoder)(large).astype(int) for decoder in (PILLOW, PILLOW_SCALED))
    difference = np.abs(full - scaled)
    assert (difference <= 1).mean() >= 0.99
    assert difference.max() <= 4
    # It was decoded at another size.
    assert difference.max() > 0


@pytest.mark.parametrize(("kind", "side"), [("PNG", 400), ("JPEG", 120)])
def test_scaled_decode_leaves_other_files_and_smaller_ones_alone(kind: str, side: int) -> None:
    image = encoded(photo(side, side), kind)
    full, scaled = (decoder_to_size(32, "crop", decoder)(image) for decoder in (PILLOW, PILLOW_SCALED))
    assert np.array_equal(full, scaled)
