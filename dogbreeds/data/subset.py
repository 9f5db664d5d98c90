"""A part of a data set: some of the images that it trains and validates on, in the same proportions."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from dogbreeds.core.text import digest
from dogbreeds.data.dataset import Dataset, Source, Split
from dogbreeds.data.image import ImageLoader

# Separates these random draws from others with the same seed.
_STREAM = 0x5A3B


def sample_dataset(dataset: Dataset, images: int, seed: int) -> Dataset:
    """Sample training and validation images, each class in its proportion. The test images are left out.

    Args:
        dataset: opened data set.
        images: number of images to sample, of training and validation together.
        seed: the same one gives the same images.
    """
    total = len(dataset.train.rows) + len(dataset.val.rows)
    train = _sample(dataset.train, round(images * len(dataset.train.rows) / total), seed)
    val = _sample(dataset.val, round(images * len(dataset.val.rows) / total), seed)
    return replace(dataset, train=train, val=val, test=None, notes=())


def _sample(split: Split, count: int, seed: int) -> Split:
    """Sample rows of a split: at least one, and at most all."""
    count = min(max(1, count), len(split.rows))
    shuffled = np.random.Generator(np.random.Philox(key=[seed, _STREAM])).permutation(len(split.rows))
    by_class = shuffled[np.argsort(split.labels[shuffled], kind="stable")]
    # Evenly spaced, so that each class is sampled in its proportion.
    chosen = by_class[np.linspace(0, len(by_class) - 1, count).round().astype(int)]
    return Split(split.source, np.sort(split.rows[chosen]))


def with_own_sources(dataset: Dataset) -> Dataset:
    """Return a data set whose sources have only the images of its splits, since a source is decoded as a whole."""
    splits = dataset.splits
    rows: dict[str, np.ndarray] = {}
    for split in splits.values():
        key = split.source.fingerprint
        rows[key] = np.union1d(rows.get(key, np.empty(0, int)), split.rows)
    sources = {
        split.source.fingerprint: _part(split.source, rows[split.source.fingerprint]) for split in splits.values()
    }
    own = {
        name: Split(sources[key], np.searchsorted(rows[key], split.rows))
        for name, split in splits.items()
        for key in [split.source.fingerprint]
    }
    return replace(dataset, train=own["train"], val=own["val"], test=own.get("test"), notes=())


def _part(source: Source, rows: np.ndarray) -> Source:
    """Return a source of some rows, in their order."""
    kept = frozenset(rows.tolist())

    def loaders() -> Iterator[ImageLoader]:
        return (loader for row, loader in enumerate(source.loaders()) if row in kept)

    return Source(
        name=f"{source.name}, sample",
        labels=source.labels[rows],
        ids=tuple(source.ids[row] for row in rows),
        digests=tuple(source.digests[row] for row in rows),
        fingerprint=digest(f"{source.fingerprint}:{digest(np.asarray(rows, np.int64).tobytes())}".encode()),
        loaders=loaders,
    )
