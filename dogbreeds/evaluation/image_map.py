"""A map of images: their features in two dimensions, those that look alike close together."""

import warnings

import numpy as np

from dogbreeds.evaluation.neighbours import nearest

# Images that t-SNE places; the others get the mean place of the nearest of them.
_MAX_PLACED = 2500
_COMPONENTS = 50
_NEAREST = 3


def place(points: np.ndarray, seed: int = 0) -> np.ndarray:
    """Place images on a map by t-SNE. Source: van der Maaten and Hinton 2008.

    Args:
        points: [n, d] from `directions`, along the main components.
        seed: of the sample that t-SNE places, where there are many images.

    Returns:
        [n, 2] float32 in [0, 1].
    """
    from sklearn.manifold import TSNE

    n = len(points)
    if n < 4:
        return np.stack([np.arange(n), np.zeros(n)], 1).astype(np.float32) / max(1, n - 1)
    generator = np.random.Generator(np.random.Philox(key=[seed, n]))
    chosen = np.sort(generator.permutation(n)[:_MAX_PLACED])
    reduced = np.ascontiguousarray(points[:, :_COMPONENTS])
    embedding = TSNE(perplexity=min(30, (len(chosen) - 1) / 3), init="pca", random_state=seed, max_iter=500)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        placed = embedding.fit_transform(reduced[chosen])
    places = np.empty((n, 2), np.float32)
    places[chosen] = placed
    others = np.setdiff1d(np.arange(n), chosen)
    if len(others):
        found = nearest(points[others], _NEAREST, among=points[chosen])
        weights = np.maximum(found.similarities, 1e-3)[..., None]
        places[others] = (placed[found.indices] * weights).sum(1) / weights.sum(1)
    low, high = places.min(axis=0), places.max(axis=0)
    return (places - low) / np.maximum(high - low, 1e-9)
