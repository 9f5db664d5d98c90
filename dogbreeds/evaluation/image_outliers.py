"""Outliers: images that look like none of their class, nor of another one."""

import numpy as np

from dogbreeds.evaluation.neighbours import Neighbours

# Modified z-score beyond which an image is an outlier. Source: Iglewicz and Hoaglin 1993.
_LIMIT = 3.5
# The standard deviation of a normal distribution by its median absolute deviation.
_SCALE = 1.4826


def find_outliers(neighbours: Neighbours, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find images whose nearest neighbours are far away.

    Args:
        neighbours: of all images.
        groups: [n] int, the same for copies of an image, which are no neighbours.

    Returns:
        Indices of the outliers, the worst first, and the distance of each from its neighbours, in [0, 1].
    """
    if not neighbours.indices.size:
        return np.empty(0, int), np.empty(0)
    others = groups[neighbours.indices] != groups[:, None]
    total = np.where(others, neighbours.similarities, 0).sum(axis=1)
    similarity = np.divide(total, others.sum(axis=1), out=np.zeros(len(total)), where=others.any(axis=1))
    middle = np.median(similarity)
    deviation = _SCALE * np.median(np.abs(similarity - middle))
    found = np.flatnonzero((middle - similarity) > _LIMIT * deviation) if deviation else np.empty(0, int)
    found = found[np.argsort(similarity[found], kind="stable")]
    return found, np.clip(1 - similarity[found], 0, 1)
