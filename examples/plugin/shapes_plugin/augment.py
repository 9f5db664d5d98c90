"""An augmentation: noise."""

from dataclasses import dataclass

import numpy as np

import dogbreeds


@dataclass(frozen=True, kw_only=True)
class Noise(dogbreeds.Augment):
    """Gaussian noise on each pixel.

    Attributes:
        copies: number of augmented copies of the training set, which are computed once.
        stddev: of the noise, on the scale of 0 to 255.
    """

    copies: int = dogbreeds.integer(at_least=1, example=2)
    stddev: float = dogbreeds.number(at_least=0, example=10)

    def num_copies(self) -> int:
        return self.copies

    def apply(self, images: np.ndarray, indices: np.ndarray, copy: int, seed: int) -> np.ndarray:
        # An image's noise depends on (seed, copy, index) alone, so that copies can be cached and shards agree.
        noise = [np.random.default_rng((seed, copy, int(index))).normal(size=images.shape[1:]) for index in indices]
        return np.clip(images + self.stddev * np.stack(noise), 0, 255).astype(np.float32)
