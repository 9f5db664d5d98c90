"""Near-duplicates: images that show the same picture, re-encoded, resized, cropped or mirrored."""

from dataclasses import dataclass

import numpy as np

from dogbreeds.data.alignment import align

# Correlations from which two images are copies of one. Of 400 planted copies (re-encoded, resized, cropped, mirrored;
# half of photos, half of drawn dogs) all but one are above them; no pair of drawn dogs of one breed and pose is.
MIN_DETAILS = 0.8
MIN_CORRELATION = 0.97
THRESHOLDS = (MIN_DETAILS, MIN_CORRELATION)
# Cosine of features below which no pair of pictures is compared.
MIN_SIMILARITY = 0.6


@dataclass(frozen=True)
class Copies:
    """Two images that show the same picture.

    Attributes:
        first, second: indices of the images.
        score: correlation of their details, in [0, 1].
        kind: `copy`, `crop`, `mirrored copy` or `mirrored crop`.
    """

    first: int
    second: int
    score: float
    kind: str


def find_copies(grey: np.ndarray, pairs: np.ndarray) -> list[Copies]:
    """Find the pairs of images that are near-duplicates, the most alike first.

    Args:
        grey: [n, s, s] float32, from `grey_images`.
        pairs: [p, 2] indices of images that may be copies.
    """
    found = align(grey, pairs)
    chosen = np.flatnonzero((found.details >= MIN_DETAILS) & (found.correlations >= MIN_CORRELATION))
    copies = []
    for pair in chosen[np.argsort(-found.details[chosen], kind="stable")]:
        name = "crop" if found.shares[pair] < 0.97 else "copy"
        kind = f"mirrored {name}" if found.mirrored[pair] else name
        copies.append(Copies(int(pairs[pair, 0]), int(pairs[pair, 1]), float(found.details[pair]), kind))
    return copies


def groups_of(copies: list[Copies], images: int) -> np.ndarray:
    """Return a number for each image, the same for all that are copies of each other: [images] int."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    first, second = ([getattr(each, name) for each in copies] for name in ("first", "second"))
    graph = coo_array((np.ones(len(copies)), (first, second)), shape=(images, images))
    return connected_components(graph, directed=False)[1]
