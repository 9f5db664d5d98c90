"""Learning-rate schedules: pure arithmetic on epochs, so each step's rate can be computed without training."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from dogbreeds.core.spec import Spec, integer, number


@dataclass(frozen=True, kw_only=True)
class Schedule(Spec):
    """Base class of schedules; it keeps the learning rate constant."""

    group = "schedule"

    def lr(self, peak: float, progress: float, epochs: int, val_losses: Sequence[float]) -> float:
        """Compute the learning rate of one training step.

        Args:
            peak: `optimizer.lr`.
            progress: epochs done so far, including the fraction of the current one.
            epochs: maximum number of epochs of the run.
            val_losses: validation loss of each finished epoch.
        """
        return peak


@dataclass(frozen=True, kw_only=True)
class Constant(Schedule):
    """Constant learning rate."""


@dataclass(frozen=True, kw_only=True)
class Plateau(Schedule):
    """Reduce the learning rate when the validation loss stops falling, as Keras' ReduceLROnPlateau does.

    It is computed from the losses alone, so a resumed run needs no state of its own.

    Attributes:
        factor: multiplies the learning rate, in (0, 1).
        patience_epochs: epochs without a lower loss before a reduction.
        min_delta: smallest decrease, in nats, that counts as a lower loss.
        min_lr: lower bound of the learning rate.
    """

    factor: float = number(above=0, below=1, example=0.5)
    patience_epochs: int = integer(at_least=1, example=3)
    min_delta: float = number(at_least=0, example=1e-4)
    min_lr: float = number(at_least=0, example=1e-7)

    def lr(self, peak: float, progress: float, epochs: int, val_losses: Sequence[float]) -> float:
        rate = peak
        best = math.inf
        waited = 0
        for loss in val_losses:
            if loss < best - self.min_delta:
                best = loss
                waited = 0
            else:
                waited += 1
            if waited >= self.patience_epochs:
                rate = max(rate * self.factor, min(self.min_lr, peak))
                waited = 0
        return rate


@dataclass(frozen=True, kw_only=True)
class Cosine(Schedule):
    """A linear warm-up, then half a cosine down to a fraction of the peak.

    Source: Loshchilov and Hutter 2017, SGDR, without restarts.

    Attributes:
        warmup_epochs: length of the warm-up.
        final_fraction: learning rate at the end, as a fraction of the peak, in [0, 1].
    """

    warmup_epochs: float = number(at_least=0, example=1)
    final_fraction: float = number(at_least=0, at_most=1, example=0)

    def lr(self, peak: float, progress: float, epochs: int, val_losses: Sequence[float]) -> float:
        if progress < self.warmup_epochs:
            return peak * max(progress / self.warmup_epochs, 1e-3)
        span = max(epochs - self.warmup_epochs, 1e-9)
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - self.warmup_epochs) / span)))
        return peak * (self.final_fraction + (1 - self.final_fraction) * cosine)
