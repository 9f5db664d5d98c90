"""What the trainable part of a network is shown, split by split and epoch by epoch."""

import numpy as np

from dogbreeds.data import Dataset, Split
from dogbreeds.features import Photos, View, compute
from dogbreeds.fit import Rows
from dogbreeds.network import Network
from dogbreeds.run import Run


class Shown:
    """What the network's trainable part is shown of each split: kept features, or the photos where nothing is frozen."""

    def __init__(self, run: Run, dataset: Dataset, network: Network):
        self._run, self._dataset, self._network = run, dataset, network
        self._store = run.features.store()
        self._train: dict[int | None, Rows] = {}

    def rows(self, split: Split, view: View | None = None) -> Rows:
        """The rows of a split that could be read."""
        photos = Photos(split.source, self._run.data, self._run.model.image_size, self._store)
        keeps = self._network.keeps
        array = compute(self._network.prefix, photos, self._run.features, view) if keeps else photos.rows()
        readable = split.without(photos.skipped())
        if view is None or not keeps:
            return Rows(array, readable.rows, readable.labels, view)
        return Rows(array, np.searchsorted(view.rows, readable.rows), readable.labels)

    def train(self, epoch: int) -> Rows:
        """The training rows of an epoch, counted from 0: the plain ones, or those of the epoch's view."""
        split, views = self._dataset.train, self._run.augment.views()
        number = epoch % views if views else None
        if number not in self._train:  # opened once: epochs come back to the same rows
            view = None if number is None else View(self._run.augment, number, self._run.seed, split.rows)
            self._train[number] = self.rows(split, view)
        return self._train[number]
