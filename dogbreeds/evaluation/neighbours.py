"""Nearest neighbours of images by their features: the cosine of standardised features, along their main components."""

from dataclasses import dataclass

import numpy as np

# Main components that are compared.
_COMPONENTS = 256
_ROWS_AT_ONCE = 1024
_TINY = 1e-12


@dataclass(frozen=True)
class Neighbours:
    """The nearest other images of each image, the nearest first.

    Attributes:
        indices: [n, k] int32.
        similarities: [n, k] float32, in [-1, 1].
    """

    indices: np.ndarray
    similarities: np.ndarray

    def pairs(self, at_least: float) -> np.ndarray:
        """Return pairs of neighbours that are so similar, [p, 2], each once, the smaller index first."""
        return np.unique(np.sort(self.pairs_among(at_least), axis=1), axis=0)

    def pairs_among(self, at_least: float) -> np.ndarray:
        """Return pairs of an image and a neighbour in what was searched that are so similar, [p, 2]."""
        rows = np.repeat(np.arange(len(self.indices)), self.indices.shape[1])
        return np.stack([rows, self.indices.ravel()], 1)[self.similarities.ravel() >= at_least]


def directions(features: np.ndarray) -> np.ndarray:
    """Return features standardised, along their main components, and scaled to length 1: [n, at most 256] float32.

    Args:
        features: [n, d] of any float type. Values that are not finite count as the feature's mean.
    """
    from scipy.linalg import eigh

    values = np.asarray(features, np.float32)
    finite = np.isfinite(values)
    if not finite.all():
        values = np.where(finite, values, np.nanmean(np.where(finite, values, np.nan), axis=0))
    values = values - values.mean(axis=0)
    deviation = values.std(axis=0)
    values *= np.divide(1.0, deviation, out=np.zeros_like(deviation), where=deviation > _TINY)
    width = values.shape[1]
    if width > _COMPONENTS:
        _, components = eigh(values.T @ values, subset_by_index=(width - _COMPONENTS, width - 1))
        values = values @ np.ascontiguousarray(components[:, ::-1], np.float32)
    return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), _TINY)


def nearest(points: np.ndarray, k: int, among: np.ndarray | None = None) -> Neighbours:
    """Find the nearest images of each.

    Args:
        points: [n, d] of length 1, from `directions`.
        k: how many, or all others if they are fewer.
        among: [m, d] points to search; None for the others of `points`.
    """
    searched = points if among is None else among
    k = min(k, len(searched) - (among is None))
    indices = np.empty((len(points), k), np.int32)
    similarities = np.empty((len(points), k), np.float32)
    for first in range(0, len(points), _ROWS_AT_ONCE):
        block = points[first : first + _ROWS_AT_ONCE] @ searched.T
        if among is None:
            block[np.arange(len(block)), first + np.arange(len(block))] = -np.inf
        found = np.argpartition(-block, k - 1, axis=1)[:, :k] if k < block.shape[1] else np.argsort(-block)[:, :k]
        values = np.take_along_axis(block, found, 1)
        order = np.argsort(-values, axis=1, kind="stable")
        part = slice(first, first + len(block))
        indices[part] = np.take_along_axis(found, order, 1)
        similarities[part] = np.take_along_axis(values, order, 1)
    return Neighbours(indices, similarities)
