"""What the trainable part of a network is shown, split by split and epoch by epoch."""

import logging
import time

import numpy as np

from dogbreeds.data.dataset import Dataset, Split
from dogbreeds.experiments.run import Run
from dogbreeds.features.extraction import Photos, View, compute
from dogbreeds.features.features import ALL, Share
from dogbreeds.models.network import Network
from dogbreeds.training.loop import Rows
from dogbreeds.training.phase import Finetune, Training

log = logging.getLogger(__name__)


class TrainingInputs:
    """What the network's trainable part is shown of each split: kept features, or the photos where nothing is frozen."""

    def __init__(self, run: Run, dataset: Dataset, network: Network):
        self._run, self._dataset, self._network = run, dataset, network
        self._store = run.features.store()
        self._train: dict[int | None, Rows] = {}

    def rows(self, split: Split, view: View | None = None) -> Rows:
        """The rows of a split that could be read."""
        photos = self._photos(split)
        keeps = self._network.keeps
        array = compute(self._network.prefix, photos, self._run.features, view) if keeps else photos.rows()
        readable = split.without(photos.skipped())
        if view is None or not keeps:
            return Rows(array, readable.rows, readable.labels, view)
        return Rows(array, np.searchsorted(view.rows, readable.rows), readable.labels)

    def train(self, epoch: int) -> Rows:
        """The training rows of an epoch, counted from 0: the plain ones, or those of the epoch's view."""
        view = self._view(epoch)
        number = view.number if view else None
        # Opened once: epochs come back to the same rows
        if number not in self._train:
            self._train[number] = self.rows(self._dataset.train, view)
        return self._train[number]

    def compute(self, split: Split, share: Share, epoch: int | None = None) -> None:
        """Computes a share of what will be shown of a split, in an epoch of training or as it is; of all, what others have computed is part."""
        photos, view = self._photos(split), None if epoch is None else self._view(epoch)
        if share == ALL:
            self.rows(split, view)
        elif self._network.keeps:
            compute(self._network.prefix, photos, self._run.features, view, share)
        else:
            photos.compute(share)

    def _view(self, epoch: int) -> View | None:
        views = self._run.augment.views()
        return View(self._run.augment, epoch % views, self._run.seed, self._dataset.train.rows) if views else None

    def _photos(self, split: Split) -> Photos:
        return Photos(split.source, self._run.data, self._run.model.image_size, self._store)


def extract(run: Run, share: Share) -> None:
    """Computes a share of the kept arrays that an attempt with these settings would compute.

    Raises:
        Missing, Refused: as the attempt, of what is looked at before it trains.
    """
    started = time.perf_counter()
    run.baseline.weights_file()
    # What can be refused without TensorFlow is refused before it is imported
    dataset = run.data.open()

    from dogbreeds.experiments.prepare import assembled, untrained_of

    backbone, network, _, _ = assembled(run, dataset)
    shown = TrainingInputs(run, dataset, network)
    epochs = run.phase.epochs if isinstance(run.phase, Training) else 1
    for epoch in range(min(epochs, max(1, run.augment.views()))):
        shown.compute(dataset.train, share, epoch)
    judged = [split for name, split in dataset.splits.items() if name != "train" and isinstance(run.phase, Training)]
    for split in judged:
        shown.compute(split, share)
    # A fine-tune inherits what its frozen attempt measured.
    untrained = (
        None if isinstance(run.phase, Finetune) else untrained_of(run, backbone, network, None, dataset.class_names)[1]
    )
    if untrained is not None:
        for split in judged:
            TrainingInputs(run, dataset, untrained).compute(split, share)
    part = "all" if share == ALL else f"shard {share.shard} of {share.shards}"
    log.info("%s is kept in %s, after %.1f s", part, run.features.store().root, time.perf_counter() - started)
