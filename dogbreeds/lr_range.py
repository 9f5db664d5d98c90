"""The learning-rate range test: how far the rate can grow before the loss stops falling. Source: Smith 2017, Cyclical Learning Rates, section 3.3."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dogbreeds.fit import Rows, Step, order
from dogbreeds.network import Network
from dogbreeds.optimizer import Optimizer
from dogbreeds.phase import LrRange

_SMOOTHING = 0.95  # of the running mean of the loss
_BLOWN_UP = 2.0  # times the lowest smoothed loss: the test ends


@dataclass(frozen=True)
class Range:
    """What the test measured.

    Attributes:
        lrs: [steps] the rate of each step, ascending.
        losses: [steps] training loss in nats, before each step; the last may not be a number.
    """

    lrs: tuple[float, ...]
    losses: tuple[float, ...]

    @property
    def smoothed(self) -> tuple[float, ...]:
        """Running means of the losses, without bias towards the first."""
        means, mean, weight = [], 0.0, 0.0
        for loss in self.losses:
            if not math.isfinite(loss):
                break
            mean = _SMOOTHING * mean + (1 - _SMOOTHING) * loss
            weight = _SMOOTHING * weight + 1 - _SMOOTHING
            means.append(mean / weight)
        return tuple(means)

    @property
    def falling(self) -> bool:
        """Whether the loss was still at its lowest when the test ended."""
        smoothed = self.smoothed
        return len(smoothed) == len(self.losses) and min(smoothed) == smoothed[-1]

    @property
    def suggestion(self) -> float | None:
        """A rate to train with, as `suggest` has it; None where the loss fell to the end too."""
        return None if self.falling else suggest(self.lrs, self.smoothed)

    @property
    def objective(self) -> float:
        """The suggestion, for sweepers; 0 where there is none."""
        return self.suggestion or 0.0


def suggest(lrs: Sequence[float], smoothed: Sequence[float]) -> float | None:
    """A tenth of the rate at which the smoothed loss is lowest: it rises beyond, and well below that training is stable.

    The steepest point, which is often taken instead, lies right before the rise with a head that collapses: it gave 6e-3 where 1e-3 learns.

    Args:
        lrs: ascending.
        smoothed: a loss for each of the first of them.

    Returns:
        None where the loss never falls by a twentieth, so that there is nothing to suggest.
    """
    if not len(smoothed):
        return None
    low = int(np.argmin(smoothed))
    return lrs[low] / 10 if smoothed[low] < 0.95 * smoothed[0] else None


def range_test(network: Network, rows: Rows, phase: LrRange, optimizer: Optimizer, seed: int) -> Range:
    """Trains while the rate grows by the same factor each step, until the loss blows up.

    Args:
        network: what trains; it is spent afterwards.
        rows: to train on, gone through as often as it takes.
        phase: how many steps, and the rates at both ends.
        optimizer: its own rate is not used.
        seed: of the order.
    """
    step, a_batch = Step(network, optimizer), min(phase.batch_size, len(rows))
    batches = len(rows) // a_batch
    lrs, losses = list[float](), list[float]()
    shuffled = order(seed, 0, len(rows))
    for number in range(phase.steps):
        epoch, index = divmod(number, batches)
        if epoch and not index:
            shuffled = order(seed, epoch, len(rows))
        inputs, labels = rows[shuffled[index * a_batch : (index + 1) * a_batch]]
        lrs.append(phase.min_lr * (phase.max_lr / phase.min_lr) ** (number / (phase.steps - 1)))
        losses.append(float(step(network.plan.stages[-1], lrs[-1], inputs, labels)[0]))
        smoothed = Range(tuple(lrs), tuple(losses)).smoothed
        if not math.isfinite(losses[-1]) or smoothed[-1] > _BLOWN_UP * min(smoothed):
            break
    return Range(tuple(lrs), tuple(losses))
