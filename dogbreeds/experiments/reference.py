"""The reference probe of a run: fitted on the features that its head trains on, or taken from a fine-tune's parent."""

import functools
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dogbreeds.evaluation.metrics import Proportion, Reference
from dogbreeds.evaluation.reference_probe import ReferenceProbe, fit_probe
from dogbreeds.evaluation.results import Predictions, ReferenceResult
from dogbreeds.experiments.prepare import PreparedRun
from dogbreeds.experiments.training_inputs import TrainingInputs
from dogbreeds.features.memmap import open_readonly
from dogbreeds.tracking.records import Parent
from dogbreeds.training.loop import predict
from dogbreeds.training.rows import Rows


class _Fit(NamedTuple):
    """What a probe depends on. Arrays are bytes, which can be compared and hashed.

    Attributes:
        file: the file of the cached features.
        changed: its inode and the time of its last change.
        indices: [n] int64, its rows that are the training images.
        labels: [n] int32, class of each.
        classes: number of classes.
        class_weights: [classes] float32, weight of each class; empty if all are 1.
    """

    file: Path
    changed: tuple[int, int]
    indices: bytes
    labels: bytes
    classes: int
    class_weights: bytes


def measure_reference(
    prepared: PreparedRun, inputs: TrainingInputs, predictions: dict[str, Predictions]
) -> ReferenceResult:
    """Fit the reference probe on the features of the training images, and compare the run with it, image by image.

    The images are the plain ones, also if the run trains on augmented copies, since those that both predict are plain.
    They get the class weights that they have in the run's loss.

    Args:
        prepared: run that was trained.
        inputs: of its network.
        predictions: of the best epoch's weights, by split; empty without a best epoch.
    """
    if prepared.parent is not None:
        return _inherit(prepared.parent, predictions)
    reason = inputs.reason_for_no_probe()
    if reason or not predictions:
        return ReferenceResult(reason or "no epoch was finished")
    started = time.perf_counter()
    train = inputs.plain_train()
    classes = len(prepared.dataset.class_names)
    probe = _probe(train, classes, inputs.class_weights())
    comparisons = {}
    for split, ours in predictions.items():
        rows = inputs.rows(prepared.dataset.splits[split])
        probe_correct = probe.logits(rows.array, rows.indices).argmax(axis=1) == rows.labels
        run_correct = ours.logits.argmax(axis=1) == ours.labels
        comparisons[split] = Reference.of(probe_correct, run_correct, split)
    training = None
    if len(probe.left_out):
        seen = Rows(train.array, train.indices[probe.left_out], train.labels[probe.left_out])
        run_correct = predict(prepared.network, seen).argmax(axis=1) == seen.labels
        training = Reference.of(probe.left_out_scores.argmax(axis=1) == seen.labels, run_correct, "train")
    seconds = time.perf_counter() - started
    return ReferenceResult(probe.method, comparisons, training, probe.facts, seconds)


def _inherit(parent: Parent, predictions: dict[str, Predictions]) -> ReferenceResult:
    """Return what the probe reached on a fine-tune's parent, which had the same images; only accuracies were recorded.

    An earlier version recorded none.
    """
    comparisons = {}
    for split, ours in predictions.items():
        accuracy = parent.reference.get(f"reference/{split}_accuracy")
        if accuracy is not None:
            n = len(ours.labels)
            correct = int((ours.logits.argmax(axis=1) == ours.labels).sum())
            comparisons[split] = Reference(Proportion(round(accuracy * n), n), Proportion(correct, n))
    return ReferenceResult(parent.reference_description or "the parent run recorded none", comparisons)


def _probe(train: Rows, classes: int, class_weights: np.ndarray | None) -> ReferenceProbe:
    """Fit the probe, or return the one that an earlier run of this process has fitted on the same features."""
    file = getattr(train.array, "filename", None)
    if file is None:
        return fit_probe(train.array, train.labels, classes, train.indices, class_weights)
    state = Path(file).stat()
    fit = _Fit(
        file=Path(file),
        changed=(state.st_ino, state.st_mtime_ns),
        indices=train.indices.astype(np.int64).tobytes(),
        labels=train.labels.astype(np.int32).tobytes(),
        classes=classes,
        class_weights=b"" if class_weights is None else class_weights.astype(np.float32).tobytes(),
    )
    return _fit(fit)


# Jobs of a sweep share their features, or alternate between few of them.
@functools.lru_cache(maxsize=4)
def _fit(fit: _Fit) -> ReferenceProbe:
    features = open_readonly(fit.file)
    weights = np.frombuffer(fit.class_weights, np.float32) if fit.class_weights else None
    labels = np.frombuffer(fit.labels, np.int32)
    return fit_probe(features, labels, fit.classes, np.frombuffer(fit.indices, np.int64), weights)
