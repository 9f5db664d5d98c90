"""Learning-rate schedules: pure arithmetic on epochs, so that any step's rate can be told, and tested, without training."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from dogbreeds.core.spec import Spec, integer, number


@dataclass(frozen=True, kw_only=True)
class Schedule(Spec):
    """The learning rate stays as it is."""

    group = "schedule"

    def lr(self, peak: float, progress: float, epochs: int, val_losses: Sequence[float]) -> float:
        """The rate of one training step.

        Args:
            peak: `optimizer.lr`.
            progress: epochs done so far, with the fraction of the running one.
            epochs: epochs that the run may take.
            val_losses: validation loss of each finished epoch.
        """
        return peak


@dataclass(frozen=True, kw_only=True)
class Constant(Schedule):
    """The learning rate stays as it is."""


@dataclass(frozen=True, kw_only=True)
class Plateau(Schedule):
    """The rate is cut when the validation loss has not fallen for a while, as Keras' ReduceLROnPlateau does.

    It is worked out from the losses alone, so that a resumed run needs no state of its own.
    """

    factor: float = number(above=0, below=1, example=0.5)
    patience_epochs: int = integer(at_least=1, example=3)
    min_delta: float = number(at_least=0, example=1e-4)
    min_lr: float = number(at_least=0, example=1e-7)

    def lr(self, peak: float, progress: float, epochs: int, val_losses: Sequence[float]) -> float:
        rate, best, waited = peak, math.inf, 0
        for loss in val_losses:
            if loss < best - self.min_delta:
                best, waited = loss, 0
            else:
                waited += 1
            if waited >= self.patience_epochs:
                rate, waited = max(rate * self.factor, min(self.min_lr, peak)), 0
        return rate


@dataclass(frozen=True, kw_only=True)
class Cosine(Schedule):
    """A linear warm-up, then half a cosine down to a fraction of the peak.

    Source: Loshchilov and Hutter 2017, SGDR, without restarts.
    """

    warmup_epochs: float = number(at_least=0, example=1)
    final_fraction: float = number(at_least=0, at_most=1, example=0)

    def lr(self, peak: float, progress: float, epochs: int, val_losses: Sequence[float]) -> float:
        if progress < self.warmup_epochs:
            return peak * max(progress / self.warmup_epochs, 1e-3)
        span = max(epochs - self.warmup_epochs, 1e-9)
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - self.warmup_epochs) / span)))
        return peak * (self.final_fraction + (1 - self.final_fraction) * cosine)
