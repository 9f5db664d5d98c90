"""Augmentation, drawn statelessly: a copy of an image depends on (seed, copy, index) alone.

So augmented copies can be cached, and every run that asks for the same copy gets the same pixels.
"""

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from dogbreeds.core.spec import Spec, boolean, integer, number

# Grey level of pixels from outside the image. Source: the guide.
_FILL_GREY = 128.0


@dataclass(frozen=True, kw_only=True)
class Augment(Spec):
    """Base of all augmentations. Applies none itself.

    A subclass with augmentation overrides `num_copies`, of which the field `copies` decides, and `apply`.
    """

    group = "augment"

    def num_copies(self) -> int:
        """Number of augmented copies of the training set that the epochs cycle through; 0 without such copies."""
        return 0

    @property
    def is_live(self) -> bool:
        """Whether each epoch has an augmentation of its own, whose features are computed as it trains, not cached."""
        return False

    def copy_at(self, epoch: int) -> int | None:
        """Return the augmented copy that an epoch trains on; None for the images as they are.

        Args:
            epoch: counted from 0.
        """
        if self.is_live:
            return epoch
        copies = self.num_copies()
        return None if not copies or self.is_plain(epoch % copies) else epoch % copies

    def train_size(self, image_size: int) -> int:
        """Return the pixels a side of augmented images.

        Args:
            image_size: pixels a side of the images.
        """
        return image_size

    def is_plain(self, copy: int) -> bool:
        """Whether a copy is the training set as it is, whose features need no computation of their own."""
        return False

    @property
    def identity(self) -> dict[str, Any]:
        """The settings that decide the pixels of a copy, part of the key of cached features."""
        return {name: value for name, value in asdict(self).items() if name != "copies"}

    def apply(self, images: np.ndarray, indices: np.ndarray, copy: int, seed: int) -> np.ndarray:
        """Augment a batch of images.

        Args:
            images: [b, s, s, 3] uint8.
            indices: [b] row of each image in its source.
            copy: number of the augmented copy, from 0.
            seed: 0 or more.

        Returns:
            [b, train_size(s), train_size(s), 3] float32 in [0, 255].
        """
        return images.astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class Plain(Augment):
    """No augmentation."""


@dataclass(frozen=True, kw_only=True)
class Flip(Augment):
    """The images, and their mirror images: two copies of the training set, of which nothing is drawn."""

    def num_copies(self) -> int:
        return 2

    def is_plain(self, copy: int) -> bool:
        return copy == 0

    def apply(self, images: np.ndarray, indices: np.ndarray, copy: int, seed: int) -> np.ndarray:
        return (images[:, :, ::-1] if copy % 2 else images).astype(np.float32)


class AugmentParameters(NamedTuple):
    """Random parameters for one image.

    Attributes:
        transform: [8] float32 projective transform from output to input coordinates.
        brightness: factor of all pixels.
        contrast: factor of the differences from the image's mean.
    """

    transform: np.ndarray
    brightness: float
    contrast: float


@dataclass(frozen=True, kw_only=True)
class Guide(Augment):
    """Augmentation of the guide.

    Rotation, flip, shear, shift and zoom about the centre in one bilinear step, then brightness and contrast. Each is
    drawn uniformly up to its limit, in both directions.

    Attributes:
        copies: number of augmented copies of the training set.
        rotation_degrees: largest angle.
        horizontal_flip: whether half of the images are mirrored.
        shear_radians: largest shear.
        shift_fraction: largest shift along each axis, as a fraction of the side.
        zoom_fraction: largest change of scale along each axis.
        brightness_fraction: largest change of brightness.
        contrast_fraction: largest change of contrast.
    """

    copies: int = integer(at_least=1, example=4)
    rotation_degrees: float = number(at_least=0, at_most=180, example=20)
    horizontal_flip: bool = boolean()
    shear_radians: float = number(at_least=0, below=1.5, example=0.15)
    shift_fraction: float = number(at_least=0, below=1, example=0.2)
    zoom_fraction: float = number(at_least=0, below=1, example=0.2)
    brightness_fraction: float = number(at_least=0, below=1, example=0.2)
    contrast_fraction: float = number(at_least=0, below=1, example=0.2)

    def num_copies(self) -> int:
        return self.copies

    def apply(self, images: np.ndarray, indices: np.ndarray, copy: int, seed: int) -> np.ndarray:
        import tensorflow as tf

        size = images.shape[1]
        drawn = [self.draw_parameters(int(index), copy, seed, size) for index in indices]
        transformed = tf.raw_ops.ImageProjectiveTransformV3(
            images=tf.cast(images, tf.float32),
            transforms=np.stack([parameters.transform for parameters in drawn]),
            output_shape=images.shape[1:3],
            fill_value=_FILL_GREY,
            interpolation="BILINEAR",
            fill_mode="CONSTANT",
        ).numpy()
        brightness = np.array([parameters.brightness for parameters in drawn], np.float32)[:, None, None, None]
        contrast = np.array([parameters.contrast for parameters in drawn], np.float32)[:, None, None, None]
        brightened = transformed * brightness
        mean = brightened.mean(axis=(1, 2, 3), keepdims=True)
        return np.clip((brightened - mean) * contrast + mean, 0, 255).astype(np.float32)

    def draw_parameters(self, index: int, copy: int, seed: int, size: int) -> AugmentParameters:
        """Draw the parameters for one image.

        Args:
            index: row of the image in its source.
            copy: number of the augmented copy.
            seed: 0 or more.
            size: pixels a side.
        """
        # The order of the draws must not change, because cached features depend on it.
        rng = np.random.Generator(np.random.Philox(key=[seed, copy], counter=[0, 0, 0, index]))
        angle = np.deg2rad(rng.uniform(-1, 1) * self.rotation_degrees)
        shear = rng.uniform(-1, 1) * self.shear_radians
        zoom_x, zoom_y = 1 + rng.uniform(-1, 1, size=2) * self.zoom_fraction
        shift = rng.uniform(-1, 1, size=2) * self.shift_fraction * size
        flip = -1.0 if rng.random() < 0.5 and self.horizontal_flip else 1.0
        brightness = 1 + rng.uniform(-1, 1) * self.brightness_fraction
        contrast = 1 + rng.uniform(-1, 1) * self.contrast_fraction
        rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        linear = rotation @ np.array([[1, -np.sin(shear)], [0, np.cos(shear)]]) @ np.diag([flip * zoom_x, zoom_y])
        centre = np.full(2, (size - 1) / 2)
        offset = centre - linear @ (centre + shift)
        transform = np.array([*linear[0], offset[0], *linear[1], offset[1], 0, 0], dtype=np.float32)
        return AugmentParameters(transform, brightness, contrast)
