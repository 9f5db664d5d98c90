"""The learning-rate range test: how far the rate can grow before the loss stops falling. Source: Smith 2017, Cyclical Learning Rates, section 3.3."""

import math

from dogbreeds.evaluation.results import Range
from dogbreeds.models.network import Network
from dogbreeds.training.loop import Rows, Step, order
from dogbreeds.training.optimizer import Optimizer
from dogbreeds.training.phase import LrRange

# Times the lowest smoothed loss: the test ends
_BLOWN_UP = 2.0


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
