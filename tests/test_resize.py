import numpy as np
import pytest

from dogbreeds.data.resize import resized, resized_in_steps, resizer


def disc(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    inside = (y - height / 2) ** 2 + (x - width / 2) ** 2 < (min(height, width) / 4) ** 2
    return np.repeat(np.where(inside, 250, 10)[..., None], 3, axis=2).astype(np.uint8)


@pytest.mark.parametrize("how", ["stretch", "pad", "crop"])
def test_a_photo_of_the_right_size_is_left_alone(how: str, rng: np.random.Generator) -> None:
    photo = rng.integers(0, 256, size=(32, 32, 3), dtype=np.uint8)
    assert np.array_equal(resizer(32, how)(photo), photo)
    assert np.array_equal(np.asarray(resized(photo[None], 32, how))[0], photo)


def test_stretch_squeezes_pad_letterboxes_and_crop_cuts() -> None:
    photo = disc(60, 120)
    stretch, pad, crop = (resizer(30, how)(photo).astype(int)[..., 0] for how in ("stretch", "pad", "crop"))

    def extent(pixels: np.ndarray) -> tuple[int, int]:
        inside = pixels > 200
        return int(inside.any(axis=1).sum()), int(inside.any(axis=0).sum())

    assert extent(stretch) == pytest.approx((14, 7), abs=1)
    assert extent(pad) == pytest.approx((7, 7), abs=1)
    assert extent(crop) == pytest.approx((14, 14), abs=1)
    assert (pad[:7] == 128).all()
    assert (pad[-7:] == 128).all()


def test_shrinking_averages_instead_of_skipping() -> None:
    stripes = np.zeros((128, 128, 3), np.uint8)
    stripes[:, ::2] = 200
    small = resizer(16, "stretch")(stripes)[4:-4, 4:-4].astype(int)
    assert small.min() >= 95
    assert small.max() <= 105


def test_training_and_the_saved_graph_resize_alike(rng: np.random.Generator) -> None:
    import keras

    photo = rng.integers(0, 256, size=(75, 51, 3), dtype=np.uint8)
    entrance = keras.Input((None, None, 3), dtype="uint8")
    for how in ("stretch", "pad", "crop"):
        graph = keras.Model(entrance, resized(entrance, 32, how))
        assert np.array_equal(np.asarray(graph(photo[None]))[0], resizer(32, how)(photo))


@pytest.mark.parametrize("how", ["stretch", "pad", "crop"])
@pytest.mark.parametrize("size", [64, 97, 224])
def test_what_goes_into_other_formats_resizes_to_the_same_levels(how: str, size: int, rng: np.random.Generator) -> None:
    import tensorflow as tf

    graph = tf.function(
        lambda photos: resized_in_steps(photos, size, how),
        input_signature=[tf.TensorSpec([None, None, None, 3], tf.uint8)],
    )
    sides = [(1, 1), (37, 91), (size, size), (size - 1, size + 1), (200, 3), (448, 336), (500, 333), (300, 450)]
    for height, width in sides:
        photos = rng.integers(0, 256, size=(2, height, width, 3), dtype=np.uint8)
        expected = np.asarray(resized(photos, size, how))
        assert np.array_equal(graph(photos).numpy(), expected), (height, width)
        assert np.array_equal(resized_in_steps(tf.constant(photos), size, how).numpy(), expected), (height, width)
