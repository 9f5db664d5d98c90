"""Learning-rate range test: how far the learning rate can grow before the loss stops falling.

Source: Smith 2017, Cyclical Learning Rates, section 3.3.
"""

import math

import numpy as np

from dogbreeds.core import console
from dogbreeds.evaluation.results import Range
from dogbreeds.models.network import Network
from dogbreeds.models.precision import FLOAT32
from dogbreeds.training.loop import epoch_order
from dogbreeds.training.optimizer import Optimizer
from dogbreeds.training.phase import LrRange
from dogbreeds.training.rows import Rows
from dogbreeds.training.step import Step

# The test ends once the smoothed loss exceeds its minimum by this factor.
_DIVERGENCE_FACTOR = 2.0


def range_test(
    network: Network,
    rows: Rows,
    phase: LrRange,
    optimizer: Optimizer,
    seed: int,
    class_weights: np.ndarray | None = None,
    precision: str = FLOAT32,
) -> Range:
    """Train while the learning rate grows by the same factor each step, until the loss diverges.

    Args:
        network: the network to train; it is of no use afterwards.
        rows: training rows, repeated as often as needed.
        phase: number of steps, batch size, and the first and the last learning rate.
        optimizer: its own learning rate is not used.
        seed: of the order of the rows.
        class_weights: [classes] float32, weight of each class in the loss; None for 1.
        precision: in which the layers compute, one of `PRECISIONS`.

    Returns:
        Learning rate and loss of each step.
    """
    step = Step.of(network, optimizer, class_weights, precision)
    batch_size = min(phase.batch_size, len(rows))
    batches = len(rows) // batch_size
    lrs = list[float]()
    losses = list[float]()
    shuffled = epoch_order(seed, 0, len(rows))
    with console.progress("range test", phase.steps, "steps", brief=True) as advance:
        for number in range(phase.steps):
            epoch, index = divmod(number, batches)
            if epoch and not index:
                shuffled = epoch_order(seed, epoch, len(rows))
            inputs, labels = rows[shuffled[index * batch_size : (index + 1) * batch_size]]
            lrs.append(phase.min_lr * (phase.max_lr / phase.min_lr) ** (number / (phase.steps - 1)))
            losses.append(step(network.plan.stages[-1], lrs[-1], inputs, labels).loss)
            smoothed = Range(tuple(lrs), tuple(losses)).smoothed
            if not math.isfinite(losses[-1]) or smoothed[-1] > _DIVERGENCE_FACTOR * min(smoothed):
                break
            advance(1)
    return Range(tuple(lrs), tuple(losses))
