"""Augmentation with field-standard random crops and pixel operations, which Keras' own layers compute.

The layers draw once for a batch, and from generators whose state cannot be resumed. So each image's parameters are
drawn here, from (seed, copy, index) alone, and the layers apply them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dogbreeds.core.spec import boolean, integer, number
from dogbreeds.data.augment import Augment

if TYPE_CHECKING:
    import tensorflow as tf

# Narrowest and widest crop, as width over height. Source: Szegedy et al. 2015.
_ASPECT_RATIOS = (3 / 4, 4 / 3)
# Draws of a crop's shape, of which the first that lies within the image is taken.
_TRIES = 10
# Separates these random draws from others with the same seed.
_STREAM = 0xA06
# Grey level of pixels from outside the image.
_FILL_GREY = 128.0


class ImageParameters(NamedTuple):
    """Random parameters for one image.

    Attributes:
        box: top, left, bottom, right of the crop as fractions of the image; mirrored ones have left and right swapped.
        operations: number in `OPERATIONS` and strength in [-1, 1] of each operation, in order.
    """

    box: tuple[float, float, float, float]
    operations: tuple[tuple[int, float], ...]


@dataclass(frozen=True, kw_only=True)
class Crop(Augment):
    """Random resized crop, and mirroring of half of the images.

    Source: Szegedy et al. 2015. Training crops smaller than the images that are tested: Touvron et al. 2019, FixRes.

    Attributes:
        copies: number of augmented copies of the training set, whose features are cached; None augments each epoch
            anew.
        area_fraction: smallest area of the crop; at 1 it is the whole image.
        size: pixels a side that the crop is resized to, in training alone; None for `model.image_size`.
        horizontal_flip: whether half of the images are mirrored.
    """

    copies: int | None = integer(at_least=1, example=4, optional=True)
    area_fraction: float = number(above=0, at_most=1, example=0.35)
    size: int | None = integer(at_least=32, at_most=2048, example=192, optional=True)
    horizontal_flip: bool = boolean()

    def num_copies(self) -> int:
        return self.copies or 0

    @property
    def is_live(self) -> bool:
        return self.copies is None

    def train_size(self, image_size: int) -> int:
        return self.size or image_size

    def apply(self, images: np.ndarray, indices: np.ndarray, copy: int, seed: int) -> np.ndarray:
        import tensorflow as tf

        drawn = [self.draw_parameters(int(index), copy, seed) for index in indices]
        pixels = images.astype(np.float32)
        for step in range(max(len(parameters.operations) for parameters in drawn)):
            _apply_step(pixels, [parameters.operations[step] for parameters in drawn])
        size = self.train_size(images.shape[1])
        boxes = np.array([parameters.box for parameters in drawn], np.float32)
        cropped = tf.image.crop_and_resize(pixels, boxes, np.arange(len(pixels), dtype=np.int32), (size, size))
        return np.clip(cropped.numpy(), 0, 255)

    def draw_parameters(self, index: int, copy: int, seed: int) -> ImageParameters:
        """Draw the parameters for one image.

        Args:
            index: row of the image in its source.
            copy: number of the augmented copy.
            seed: 0 or more.
        """
        # The order of the draws must not change, because cached features depend on it.
        rng = np.random.Generator(np.random.Philox(key=[seed, copy], counter=[0, 0, _STREAM, index]))
        top, left, bottom, right = _draw_crop(rng, self.area_fraction)
        if rng.random() < 0.5 and self.horizontal_flip:
            left, right = right, left
        return ImageParameters((top, left, bottom, right), self._draw_operations(rng))

    def _draw_operations(self, rng: np.random.Generator) -> tuple[tuple[int, float], ...]:
        return ()


@dataclass(frozen=True, kw_only=True)
class Rand(Crop):
    """RandAugment: so many operations an image, each chosen at random, of one strength. Then a crop.

    Source: Cubuk et al. 2020; the operations are those of `keras.layers.RandAugment`.

    Attributes:
        operations: number of operations.
        strength: of each, in [0, 1]; with a random sign where it has one.
    """

    operations: int = integer(at_least=1, at_most=8, example=2)
    strength: float = number(at_least=0, at_most=1, example=0.3)

    def _draw_operations(self, rng: np.random.Generator) -> tuple[tuple[int, float], ...]:
        numbers = rng.integers(len(OPERATIONS), size=self.operations)
        signs = np.where(rng.random(self.operations) < 0.5, -1.0, 1.0)
        return tuple((int(which), float(sign) * self.strength) for which, sign in zip(numbers, signs, strict=True))


@dataclass(frozen=True, kw_only=True)
class Trivial(Crop):
    """TrivialAugment: one operation an image, chosen at random, of a random strength. Then a crop.

    Source: Müller and Hutter 2021.
    """

    def _draw_operations(self, rng: np.random.Generator) -> tuple[tuple[int, float], ...]:
        return ((int(rng.integers(len(OPERATIONS))), float(rng.uniform(-1, 1))),)


def _draw_crop(rng: np.random.Generator, area_fraction: float) -> tuple[float, float, float, float]:
    """Return top, left, bottom and right of a crop, as fractions of a square image."""
    for _ in range(_TRIES):
        area = rng.uniform(area_fraction, 1)
        ratio = np.exp(rng.uniform(*np.log(_ASPECT_RATIOS)))
        top, left = rng.random(2)
        width, height = np.sqrt(area * ratio), np.sqrt(area / ratio)
        if width <= 1 and height <= 1:
            top, left = top * (1 - height), left * (1 - width)
            return float(top), float(left), float(top + height), float(left + width)
    return 0.0, 0.0, 1.0, 1.0


# --- operations of Keras' layers ---------------------------------------------------

# [n, s, s, 3] float32 in [0, 255] and [n] strengths in [-1, 1] -> the same images, changed.
Operation = Callable[[np.ndarray, np.ndarray], "np.ndarray | tf.Tensor"]


@cache
def _layer(name: str, **arguments: Any) -> Any:
    """Return one of Keras' layers, built once. What it draws itself is not used."""
    import keras

    return getattr(keras.layers, name)(**arguments)


def _affine(images: np.ndarray, linear: np.ndarray, shift: np.ndarray) -> "tf.Tensor":
    """Transform images about their centre.

    Args:
        images: [n, s, s, 3] float32.
        linear: [n, 2, 2] from output to input coordinates.
        shift: [n, 2] in pixels.
    """
    import keras

    centre = np.full(2, (images.shape[1] - 1) / 2)
    offset = centre - np.einsum("nij,nj->ni", linear, centre + shift)
    transforms = np.zeros((len(images), 8), np.float32)
    transforms[:, [0, 1, 3, 4]] = linear.reshape(-1, 4)
    transforms[:, [2, 5]] = offset
    return keras.ops.image.affine_transform(
        images, transforms, interpolation="bilinear", fill_mode="constant", fill_value=_FILL_GREY
    )


def _shear(images: np.ndarray, strength: np.ndarray, axis: int) -> "tf.Tensor":
    linear = np.tile(np.eye(2), (len(images), 1, 1))
    linear[:, axis, 1 - axis] = 0.99 * strength
    return _affine(images, linear, np.zeros((len(images), 2)))


def _translate(images: np.ndarray, strength: np.ndarray, axis: int) -> "tf.Tensor":
    shift = np.zeros((len(images), 2))
    shift[:, axis] = 32 / 224 * images.shape[1] * strength
    return _affine(images, np.tile(np.eye(2), (len(images), 1, 1)), shift)


def _rotate(images: np.ndarray, strength: np.ndarray) -> "tf.Tensor":
    angle = np.deg2rad(135 * strength)
    linear = np.stack([np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)], axis=1).reshape(-1, 2, 2)
    return _affine(images, linear, np.zeros((len(images), 2)))


def _brightness(images: np.ndarray, strength: np.ndarray) -> "tf.Tensor":
    import keras

    return keras.ops.clip(images * (1 + 0.99 * strength[:, None, None, None]), 0, 255)


def _contrast(images: np.ndarray, strength: np.ndarray) -> "tf.Tensor":
    layer = _layer("RandomContrast", factor=0.99)
    return layer.transform_images(images, {"contrast_factor": 1 + 0.99 * strength[:, None, None, None]})


def _colour(images: np.ndarray, strength: np.ndarray) -> "tf.Tensor":
    layer = _layer("RandomColorDegeneration", factor=1.0)
    return layer.transform_images(images, {"factor": -0.99 * strength[:, None, None, None]})


def _sharpness(images: np.ndarray, strength: np.ndarray) -> "tf.Tensor":
    # The layer takes half of the factor of the image's own detail.
    return _layer("RandomSharpness", factor=1.0).transform_images(images, {"factor": (1 + 0.99 * strength) / 2})


def _posterize(images: np.ndarray, strength: np.ndarray) -> "tf.Tensor":
    shift = np.round(6 * np.abs(strength)).astype(np.uint8)
    return _layer("RandomPosterization", factor=8).transform_images(images, {"shift_factor": shift})


def _solarize(images: np.ndarray, strength: np.ndarray) -> "tf.Tensor":
    thresholds = (255 * (1 - np.abs(strength)) + 1e-3).astype(np.float32)[:, None, None, None]
    return _layer("Solarization").transform_images(images, {"thresholds": thresholds, "additions": np.float32(0)})


def _auto_contrast(images: np.ndarray, strength: np.ndarray) -> "tf.Tensor":
    return _layer("AutoContrast").transform_images(images)


def _equalize(images: np.ndarray, strength: np.ndarray) -> np.ndarray:
    # The layer takes one histogram for a whole batch.
    equalized = [_layer("Equalization").transform_images(image[None], None) for image in images]
    return np.concatenate([np.asarray(image) for image in equalized])


# The order decides which operation a number stands for, and cached features depend on it. The ranges of their strengths
# are those of TrivialAugment's wide space.
OPERATIONS: tuple[Operation, ...] = (
    lambda images, strength: images,
    lambda images, strength: _shear(images, strength, 0),
    lambda images, strength: _shear(images, strength, 1),
    lambda images, strength: _translate(images, strength, 0),
    lambda images, strength: _translate(images, strength, 1),
    _rotate,
    _brightness,
    _colour,
    _contrast,
    _sharpness,
    _posterize,
    _solarize,
    _auto_contrast,
    _equalize,
)


def _apply_step(pixels: np.ndarray, operations: list[tuple[int, float]]) -> None:
    """Apply one operation to each image, in place; images with the same one are computed together."""
    numbers = np.array([which for which, _ in operations])
    strengths = np.array([strength for _, strength in operations], np.float32)
    for which in np.unique(numbers):
        rows = np.flatnonzero(numbers == which)
        pixels[rows] = np.asarray(OPERATIONS[which](pixels[rows], strengths[rows]))
