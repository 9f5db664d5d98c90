"""Mixing of the images of a batch: mixup and cutmix, of pixels or of cached features.

What is drawn follows from (seed, epoch, step).
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from dogbreeds.core.spec import Spec, number

# Separates these random draws from others with the same seed.
_STREAM = 0x3195


class MixedBatch(NamedTuple):
    """A batch whose rows are mixtures of two.

    Attributes:
        inputs: [b, …] float32.
        partners: [b] int32 class of the other row.
        shares: [b] float32 share of the row's own class in the loss; that of the other is the rest.
    """

    inputs: np.ndarray
    partners: np.ndarray
    shares: np.ndarray

    def targets(self, labels: np.ndarray) -> np.ndarray:
        """Return own class, that of the partner, and share, [b, 3] float32, which holds class numbers exactly."""
        return np.stack([labels, self.partners, self.shares], axis=1).astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class Mix(Spec):
    """Base class of mixings. By itself it mixes nothing."""

    group = "mix"
    # Whether batches are mixed, and whether only inputs with height and width can be.
    is_active = False
    needs_maps = False

    def apply(self, inputs: np.ndarray, labels: np.ndarray, *, seed: int, epoch: int, step: int) -> MixedBatch:
        """Mix each row of a batch with another one of it.

        Args:
            inputs: [b, …] images or features.
            labels: [b] int32.
            seed: of the run.
            epoch: counted from 0.
            step: in the epoch, counted from 0.
        """
        raise NotImplementedError

    def apply_steps(
        self, inputs: np.ndarray, labels: np.ndarray, *, seed: int, epoch: int, first_step: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Mix the batches of several steps.

        Args:
            inputs: [n, b, …].
            labels: [n, b] int32.
            seed, epoch: as of `apply`.
            first_step: in the epoch, counted from 0.

        Returns:
            Inputs, [n, b, …] float32, and targets, [n, b, 3] float32, as of `MixedBatch.targets`.
        """
        mixed = [
            self.apply(inputs[index], labels[index], seed=seed, epoch=epoch, step=first_step + index)
            for index in range(len(labels))
        ]
        targets = [batch.targets(own) for own, batch in zip(labels, mixed, strict=True)]
        return np.stack([batch.inputs for batch in mixed]), np.stack(targets)


@dataclass(frozen=True, kw_only=True)
class Nothing(Mix):
    """No mixing."""


@dataclass(frozen=True, kw_only=True)
class Mixup(Mix):
    """Each row is a weighted mean of two; so is the loss. Of cached features it is manifold mixup.

    Source: Zhang et al. 2018; of features, Verma et al. 2019.

    Attributes:
        alpha: both parameters of the Beta distribution of the weights.
    """

    is_active = True
    alpha: float = number(above=0, at_most=100, example=0.2)

    def apply(self, inputs: np.ndarray, labels: np.ndarray, *, seed: int, epoch: int, step: int) -> MixedBatch:
        rng = _generator(seed, epoch, step)
        order = rng.permutation(len(labels))
        shares = rng.beta(self.alpha, self.alpha, size=len(labels)).astype(np.float32)
        weights = shares.reshape(-1, *[1] * (inputs.ndim - 1))
        own = inputs.astype(np.float32)
        return MixedBatch(weights * own + (1 - weights) * own[order], labels[order], shares)


@dataclass(frozen=True, kw_only=True)
class Cutmix(Mix):
    """A rectangle of each row's image is that of another; the loss counts both by their areas.

    Source: Yun et al. 2019.

    Attributes:
        alpha: both parameters of the Beta distribution of the area that is left.
    """

    is_active = True
    needs_maps = True
    alpha: float = number(above=0, at_most=100, example=1)

    def apply(self, inputs: np.ndarray, labels: np.ndarray, *, seed: int, epoch: int, step: int) -> MixedBatch:
        rng = _generator(seed, epoch, step)
        order = rng.permutation(len(labels))
        height, width = inputs.shape[1:3]
        sides = np.sqrt(1 - rng.beta(self.alpha, self.alpha, size=len(labels)))
        centres = rng.random((len(labels), 2))
        own, mixed = inputs.astype(np.float32), inputs.astype(np.float32)
        shares = np.empty(len(labels), np.float32)
        for row, (side, (y, x)) in enumerate(zip(sides, centres, strict=True)):
            top, bottom = _interval(y, side, height)
            left, right = _interval(x, side, width)
            mixed[row, top:bottom, left:right] = own[order[row], top:bottom, left:right]
            shares[row] = 1 - (bottom - top) * (right - left) / (height * width)
        return MixedBatch(mixed, labels[order], shares)


def _generator(seed: int, epoch: int, step: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=[seed, epoch], counter=[0, 0, step, _STREAM]))


def _interval(centre: float, side: float, length: int) -> tuple[int, int]:
    """Return the first cell of an interval and the one after its last; centre and side are fractions of the length."""
    begin, end = np.clip(np.round(length * (centre + np.array([-0.5, 0.5]) * side)), 0, length).astype(int)
    return int(begin), int(end)
