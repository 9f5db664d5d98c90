"""Record the loss of every training step."""

import contextlib
from collections.abc import Iterator
from unittest import mock

from dogbreeds.training.step import Step


@contextlib.contextmanager
def recorded() -> Iterator[list[float]]:
    """Within the context, append the loss of each training step to the list that it gives."""
    losses: list[float] = []
    step = Step.__call__

    def record(self: Step, *arguments):
        metrics = step(self, *arguments)
        losses.append(metrics.loss)
        return metrics

    with mock.patch.object(Step, "__call__", record):
        yield losses
