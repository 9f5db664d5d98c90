"""Training inputs: what a network reads from each split in each epoch, cached features or images."""

import contextlib
import logging
import time

import numpy as np

from dogbreeds.data.corrections import open_corrected
from dogbreeds.data.dataset import Dataset, Split
from dogbreeds.experiments.isolation import process_state_restored
from dogbreeds.experiments.run import Run
from dogbreeds.features.array_info import Identity
from dogbreeds.features.extraction import (
    AugmentedView,
    DecodedImages,
    cached_runtimes,
    compute_features,
    features_identity,
    has_features,
)
from dogbreeds.features.features import UNSHARDED, ShardSpec
from dogbreeds.models.network import Network, Prefix
from dogbreeds.training.phase import Finetune, Training
from dogbreeds.training.rows import JoinedRows, Rows

log = logging.getLogger(__name__)


class TrainingInputs:
    """Inputs of a network's trainable part: cached features, or images if nothing is frozen.

    Args:
        run: settings.
        dataset: opened dataset.
        network: network that reads the inputs; its frozen part computes the features.
    """

    def __init__(self, run: Run, dataset: Dataset, network: Network):
        self._run = run
        self._dataset = dataset
        self._network = network
        self._cache = run.features.open_cache()
        # By split and copy.
        self._opened: dict[tuple[str, int | None], Rows] = {}

    def rows(self, split: Split, view: AugmentedView | None = None) -> Rows:
        """Return the inputs of a split's readable images, computed or from the cache.

        Args:
            split: split of the dataset.
            view: augmented copy to use; None for the plain images.
        """
        images = self._images(split)
        if view is not None and view.augment.is_live:
            return self._live_rows(split, images, view)
        uses_cache = self._network.uses_cache
        features = self._run.features
        array = compute_features(self._prefix(view), images, features, view) if uses_cache else images.rows()
        readable = split.without(images.skipped_rows())
        if view is None or not uses_cache:
            return Rows(array, readable.rows, readable.labels, view)
        return Rows(array, np.searchsorted(view.rows, readable.rows), readable.labels)

    def _live_rows(self, split: Split, images: DecodedImages, view: AugmentedView) -> Rows:
        """Return rows whose inputs are computed from the images whenever they are read, and never cached."""
        readable = split.without(images.skipped_rows())
        prefix = self._prefix(view)

        def transform(pixels: np.ndarray, indices: np.ndarray) -> np.ndarray:
            augmented = view(pixels, indices)
            if not self._network.uses_cache:
                return augmented
            size = prefix.batch_size()
            parts = [augmented[first : first + size] for first in range(0, len(augmented), size)]
            with contextlib.closing(prefix.stream(parts)) as outputs:
                return np.concatenate(list(outputs))

        return Rows(images.rows(), readable.rows, readable.labels, transform)

    def _prefix(self, view: AugmentedView | None) -> Prefix:
        """Return the frozen part for the size of a view's images."""
        return self._network.train_prefix if view is not None else self._network.prefix

    def train(self, epoch: int) -> Rows:
        """Return the training rows of an epoch: plain ones, or those of the epoch's augmented copy.

        Args:
            epoch: counted from 0.
        """
        return self._epoch_rows("train", epoch)

    def train_and_val(self, epoch: int) -> Rows:
        """Return the training and the validation rows, both plain or both of an epoch's augmented copy."""
        return JoinedRows.of(self.train(epoch), self._epoch_rows("val", epoch))

    def train_copies(self) -> list[Rows]:
        """Return the training rows of every augmented copy, in order; without augmentation those of the images."""
        return [self.train(copy) for copy in range(max(1, self._run.augment.num_copies()))]

    def plain_train(self) -> Rows:
        """Return the training rows of the plain images, also if the epochs have augmented copies."""
        return self._epoch_rows("train", None)

    def _epoch_rows(self, name: str, epoch: int | None) -> Rows:
        """Return the rows of a split, by its name, in the augmented copy of an epoch; the plain ones without epoch."""
        split = self._dataset.splits[name]
        view = None if epoch is None else self._view(epoch, split)
        key = name, view.copy if view else None
        # Epochs return to the same copies, so each array is opened once.
        if key not in self._opened:
            self._opened[key] = self.rows(split, view)
        return self._opened[key]

    def class_weights(self) -> np.ndarray | None:
        """Return the weight of each class in the loss, [classes] float32; None if all are 1."""
        return self._run.loss.weights(self.train(0).labels, len(self._dataset.class_names))

    def reason_for_no_probe(self) -> str:
        """Return why there are no features that a reference probe could be fitted on; empty if there are."""
        if not self._network.uses_cache:
            return "the whole network trains"
        return "part of the backbone trains" if self._network.suffix is not None else ""

    def cached_runtimes(self) -> list[tuple[str, str]]:
        """Return runtime and precision of each complete array of the first epoch's training features."""
        images, view = self._images(self._dataset.train), self._view(0, self._dataset.train)
        return cached_runtimes(self._prefix(view), images, self._run.features, view)

    def are_cached(self, split: Split) -> bool:
        """Return whether the features of a split's plain images, and the images themselves, are cached."""
        images = self._images(split)
        return images.is_cached and has_features(self._network.prefix, images, self._run.features)

    def identity(self, split: Split) -> Identity:
        """Return what the features of a split's plain images depend on."""
        return features_identity(self._network.prefix, self._images(split), self._run.features)

    def pixels(self, split: Split) -> np.ndarray:
        """Return the decoded images of a split's source, [n, size, size, 3] uint8."""
        return self._images(split).rows()

    def compute(self, split: Split, shard_spec: ShardSpec, epoch: int | None = None) -> None:
        """Compute one shard of a split's inputs into the cache.

        Args:
            split: split of the dataset.
            shard_spec: which rows; with `UNSHARDED`, all of them, and the finished shards of other jobs are joined.
            epoch: epoch whose augmented copy is computed, counted from 0; None for the plain images.
        """
        images = self._images(split)
        view = None if epoch is None else self._view(epoch, split)
        if shard_spec == UNSHARDED:
            self.rows(split, view)
        elif self._network.uses_cache:
            compute_features(self._prefix(view), images, self._run.features, view, shard_spec)
        else:
            images.decode_shard(shard_spec)

    def _view(self, epoch: int, split: Split) -> AugmentedView | None:
        """Return the augmented copy of a split in an epoch; None without augmentation."""
        copy = self._run.augment.copy_at(epoch)
        return None if copy is None else AugmentedView(self._run.augment, copy, self._run.seed, split.rows)

    def _images(self, split: Split) -> DecodedImages:
        return DecodedImages(split.source, self._run.data, self._run.model.image_size, self._cache)


def extract_features(run: Run, shard_spec: ShardSpec) -> None:
    """Compute one shard of the arrays that an attempt with these settings reads from the cache.

    Process-wide state is restored afterwards: see `isolation`.

    Args:
        run: settings of the attempt.
        shard_spec: which rows of each array; `UNSHARDED` for all of them.

    Raises:
        MissingFileError, UserError: as the attempt raises them before it trains.
    """
    with process_state_restored():
        _extract_features(run, shard_spec)


def _extract_features(run: Run, shard_spec: ShardSpec) -> None:
    started = time.perf_counter()
    # Errors that need no TensorFlow are raised before it is imported.
    run.baseline.weights_file()
    dataset = open_corrected(run.data)

    from dogbreeds.experiments.automatic_settings import resolve
    from dogbreeds.experiments.prepare import assemble_network, build_baseline

    run, assembly = resolve(run, dataset, looks_up_runs=False)
    assembly = assembly or assemble_network(run, dataset)
    inputs = TrainingInputs(run, dataset, assembly.network)
    epochs = run.phase.epochs if isinstance(run.phase, Training) else 1
    if run.logistic_head is not None:
        # Each fit is one of all copies.
        epochs = run.augment.num_copies()
    # What is augmented live is not cached.
    computed = [None] if run.augment.is_live else range(max(1, min(epochs, run.augment.num_copies())))
    for epoch in computed:
        inputs.compute(dataset.train, shard_spec, epoch)
    held_out = [split for name, split in dataset.splits.items() if name != "train" and isinstance(run.phase, Training)]
    for split in held_out:
        inputs.compute(split, shard_spec)
    # A fine-tune takes reference probe and baseline from its parent.
    if not isinstance(run.phase, Finetune):
        if held_out and run.augment.num_copies() and not inputs.reason_for_no_probe():
            inputs.compute(dataset.train, shard_spec)
        _, baseline_network = build_baseline(run, assembly.backbone, assembly.network, None, dataset.class_names)
        if baseline_network is not None:
            for split in held_out:
                TrainingInputs(run, dataset, baseline_network).compute(split, shard_spec)
    part = "all" if shard_spec == UNSHARDED else f"shard {shard_spec.shard} of {shard_spec.shards}"
    log.info("%s is cached in %s, after %.1f s", part, run.features.open_cache().root, time.perf_counter() - started)
