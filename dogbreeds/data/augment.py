"""Augmentation, drawn statelessly: what a photo looks like in a view depends on (seed, view, index) alone."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from dogbreeds.core.spec import Spec, boolean, integer, number

# The guide's
FILL_GREY = 128.0


@dataclass(frozen=True, kw_only=True)
class Augment(Spec):
    """Photos are shown as they are."""

    group = "augment"

    def views(self) -> int:
        """How many different copies of the training set the epochs go through in turn; 0 for the plain one."""
        return 0

    @property
    def identity(self) -> dict[str, Any]:
        return {}

    def view(self, photos: np.ndarray, indices: np.ndarray, view: int, seed: int) -> np.ndarray:
        """[b, s, s, 3] uint8 -> [b, s, s, 3] float32 in [0, 255]: copy number `view` of the photos with these indices."""
        return photos.astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class Plain(Augment):
    """Photos are shown as they are."""


@dataclass(frozen=True, kw_only=True)
class Guide(Augment):
    """The guide's: rotation, flip, shear, shift and zoom about the middle in one bilinear step, then brightness and contrast."""

    copies: int = integer(at_least=1, example=4)
    rotation_degrees: float = number(at_least=0, at_most=180, example=20)
    horizontal_flip: bool = boolean()
    shear_radians: float = number(at_least=0, below=1.5, example=0.15)
    shift_fraction: float = number(at_least=0, below=1, example=0.2)
    zoom_fraction: float = number(at_least=0, below=1, example=0.2)
    brightness_fraction: float = number(at_least=0, below=1, example=0.2)
    contrast_fraction: float = number(at_least=0, below=1, example=0.2)

    def views(self) -> int:
        return self.copies

    @property
    def identity(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if name != "copies"}

    def view(self, photos: np.ndarray, indices: np.ndarray, view: int, seed: int) -> np.ndarray:
        import tensorflow as tf

        size = photos.shape[1]
        drawn = [self.draw(int(index), view, seed, size) for index in indices]
        moved = tf.raw_ops.ImageProjectiveTransformV3(
            images=tf.cast(photos, tf.float32),
            transforms=np.stack([transform for transform, _, _ in drawn]),
            output_shape=photos.shape[1:3],
            fill_value=FILL_GREY,
            interpolation="BILINEAR",
            fill_mode="CONSTANT",
        ).numpy()
        brightness = np.array([factor for _, factor, _ in drawn], np.float32)[:, None, None, None]
        contrast = np.array([factor for _, _, factor in drawn], np.float32)[:, None, None, None]
        lit = moved * brightness
        middle = lit.mean(axis=(1, 2, 3), keepdims=True)
        return np.clip((lit - middle) * contrast + middle, 0, 255).astype(np.float32)

    def draw(self, index: int, view: int, seed: int, size: int) -> tuple[np.ndarray, float, float]:
        """One photo's transform, [8] float32 from output to input coordinates, and its brightness and contrast factors."""
        rng = np.random.Generator(np.random.Philox(key=[seed, view], counter=[0, 0, 0, index]))
        angle = np.deg2rad(rng.uniform(-1, 1) * self.rotation_degrees)
        shear = rng.uniform(-1, 1) * self.shear_radians
        zoom_x, zoom_y = 1 + rng.uniform(-1, 1, size=2) * self.zoom_fraction
        shift = rng.uniform(-1, 1, size=2) * self.shift_fraction * size
        flip = -1.0 if rng.random() < 0.5 and self.horizontal_flip else 1.0
        brightness = 1 + rng.uniform(-1, 1) * self.brightness_fraction
        contrast = 1 + rng.uniform(-1, 1) * self.contrast_fraction
        rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        linear = rotation @ np.array([[1, -np.sin(shear)], [0, np.cos(shear)]]) @ np.diag([flip * zoom_x, zoom_y])
        middle = np.full(2, (size - 1) / 2)
        offset = middle - linear @ (middle + shift)
        transform = np.array([*linear[0], offset[0], *linear[1], offset[1], 0, 0], dtype=np.float32)
        return transform, brightness, contrast
