import numpy as np
import pytest

from dogbreeds.data.resize import resize_images, resize_images_portable, resizer


def disc(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    inside = (y - height / 2) ** 2 + (x - width / 2) ** 2 < (min(height, width) / 4) ** 2
    return np.repeat(np.where(inside, 250, 10)[..., None], 3, axis=2).astype(np.uint8)


@pytest.mark.parametrize("mode", ["stretch", "pad", "crop"])
def test_resize_leaves_an_image_of_the_right_size_unchanged(mode: str, rng: np.random.Generator) -> None:
    image = rng.integers(0, 256, size=(32, 32, 3), dtype=np.uint8)
    assert np.array_equal(resizer(32, mode)(image), image)
    assert np.array_equal(np.asarray(resize_images(image[None], 32, mode))[0], image)


def test_resize_stretches_pads_or_crops_by_mode() -> None:
    image = disc(60, 120)
    stretch, pad, crop = (resizer(30, mode)(image).astype(int)[..., 0] for mode in ("stretch", "pad", "crop"))

    def extent(pixels: np.ndarray) -> tuple[int, int]:
        inside = pixels > 200
        return int(inside.any(axis=1).sum()), int(inside.any(axis=0).sum())

    assert extent(stretch) == pytest.approx((14, 7), abs=1)
    assert extent(pad) == pytest.approx((7, 7), abs=1)
    assert extent(crop) == pytest.approx((14, 14), abs=1)
    assert (pad[:7] == 128).all()
    assert (pad[-7:] == 128).all()


def test_resize_averages_pixels_when_it_shrinks() -> None:
    stripes = np.zeros((128, 128, 3), np.uint8)
    stripes[:, ::2] = 200
    small = resizer(16, "stretch")(stripes)[4:-4, 4:-4].astype(int)
    assert small.min() >= 95
    assert small.max() <= 105


def test_resize_is_the_same_in_training_and_in_a_saved_graph(rng: np.random.Generator) -> None:
    import keras

    image = rng.integers(0, 256, size=(75, 51, 3), dtype=np.uint8)
    inputs = keras.Input((None, None, 3), dtype="uint8")
    for mode in ("stretch", "pad", "crop"):
        graph = keras.Model(inputs, resize_images(inputs, 32, mode))
        assert np.array_equal(np.asarray(graph(image[None]))[0], resizer(32, mode)(image))


@pytest.mark.parametrize("mode", ["stretch", "pad", "crop"])
@pytest.mark.parametrize("size", [64, 97, 224])
def test_portable_resize_equals_resize_bit_for_bit(mode: str, size: int, rng: np.random.Generator) -> None:
    import tensorflow as tf

    graph = tf.function(
        lambda images: resize_images_portable(images, size, mode),
        input_signature=[tf.TensorSpec([None, None, None, 3], tf.uint8)],
    )
    sides = [(1, 1), (37, 91), (size, size), (size - 1, size + 1), (200, 3), (448, 336), (500, 333), (300, 450)]
    for height, width in sides:
        images = rng.integers(0, 256, size=(2, height, width, 3), dtype=np.uint8)
        expected = np.asarray(resize_images(images, size, mode))
        assert np.array_equal(graph(images).numpy(), expected), (height, width)
        assert np.array_equal(resize_images_portable(tf.constant(images), size, mode).numpy(), expected), (
            height,
            width,
        )
