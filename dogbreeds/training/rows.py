"""Rows: the labelled inputs that a network trains on or is measured on."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Rows:
    """Labelled rows of an array.

    Attributes:
        array: [m, ...] cached features, or images.
        indices: [n] rows of `array` in use.
        labels: [n] int32 class of each of them.
        transform: maps a batch of rows and their indices to inputs, such as augmentation; None for the rows themselves.
    """

    array: np.ndarray
    indices: np.ndarray
    labels: np.ndarray
    transform: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return inputs and labels of a batch, given positions in `indices`."""
        indices = self.indices[positions]
        inputs = self.array[indices]
        return inputs if self.transform is None else self.transform(inputs, indices), self.labels[positions]


@dataclass(frozen=True)
class JoinedRows(Rows):
    """The rows of several parts, one after the other, such as of two splits.

    Attributes:
        parts: rows with inputs of one shape.
    """

    parts: tuple[Rows, ...] = ()

    @classmethod
    def of(cls, *parts: Rows) -> "JoinedRows":
        """Join rows."""
        labels = np.concatenate([part.labels for part in parts])
        return cls(parts[0].array, np.arange(len(labels)), labels, parts=parts)

    def __getitem__(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        found = []
        first = 0
        for part in self.parts:
            chosen = np.flatnonzero((positions >= first) & (positions < first + len(part)))
            if len(chosen):
                found.append((chosen, part[positions[chosen] - first][0]))
            first += len(part)
        _, some = found[0]
        inputs = np.empty((len(positions), *some.shape[1:]), some.dtype)
        for chosen, values in found:
            inputs[chosen] = values
        return inputs, self.labels[positions]
