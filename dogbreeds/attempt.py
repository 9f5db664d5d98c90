"""One attempt, from its run to what it measured."""

import logging
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dogbreeds import curves
from dogbreeds.data import Dataset, Split
from dogbreeds.features import Photos, View, compute
from dogbreeds.fit import Epoch, Outcome, Rows, fit, predict
from dogbreeds.kept import Store
from dogbreeds.metrics import Scores, score
from dogbreeds.network import Network, assemble
from dogbreeds.phase import Finetune
from dogbreeds.run import Run
from dogbreeds.terminal import hushed
from dogbreeds.tracking import Composition, Parent, Tracker

log = logging.getLogger(__name__)

_BATCHNORM = {"frozen": "stay frozen", "affine": "keep their statistics and train gamma and beta", "trainable": "train, statistics too"}


@dataclass(frozen=True)
class Result:
    """What an attempt measured."""

    outcome: Outcome
    test: Scores | None
    feature_seconds: float
    seconds: float

    @property
    def objective(self) -> float:
        """The best validation accuracy, for sweepers; 0 where no epoch was finished."""
        return self.outcome.best.val.accuracy.value if self.outcome.best else 0.0


def execute(run: Run, composition: Composition) -> Result:
    """Runs an attempt and records it.

    Raises:
        Missing, Refused: where something the user named is not there or does not fit.
    """
    try:
        return _execute(run, composition)
    finally:
        Store.release()


def _execute(run: Run, composition: Composition) -> Result:
    started = time.perf_counter()
    dataset = run.data.open()  # what can be refused without TensorFlow is refused before it is imported
    run.model.weights_file()
    for note in dataset.notes:
        log.warning(note)
    log.info(_headline(run, dataset))

    with hushed():
        import keras
        import tensorflow as tf

        tf.config.list_physical_devices()  # looks for GPUs now, while remarks on their absence are held back
    logging.getLogger("tensorflow").setLevel(logging.ERROR)  # it warns of retracing, which a sweep's jobs are meant to do
    keras.backend.clear_session()  # jobs of a sweep share a process
    keras.config.set_dtype_policy("float32")
    keras.utils.set_random_seed(run.seed)
    backbone = run.model.build(run.seed)
    plan = run.unfreeze.plan(backbone.blocks)
    classes = len(dataset.class_names)
    network = assemble(backbone, run.preprocessing, plan, lambda features: run.head.build(features, classes, _head_seed(run.seed)))
    facts = {"model.fingerprint": backbone.fingerprint, "data.fingerprint": dataset.fingerprint}
    parent = _go_on_from_parent(run, run.phase, facts, network) if isinstance(run.phase, Finetune) else None
    with run.tracking.open(composition) as tracker:
        _describe(run, dataset, network, facts, tracker)
        if parent is not None:
            tracker.tags({"parent": parent.run_id})
            tracker.metrics({"parent/val_accuracy": parent.accuracy})
            log.info("going on from run %s, %.1f %% on validation", parent.run_id[:8], 100 * parent.accuracy)
        shown = _Shown(run, dataset, network)
        shown.train(0)
        val = shown.rows(dataset.val)
        feature_seconds = time.perf_counter() - started

        def on_epoch(epoch: Epoch) -> None:
            tracker.metrics(epoch.metrics(), epoch.number)
            log.info(_epoch_line(epoch, run.phase.epochs))

        outcome = fit(network, shown.train, val, run.phase, run.optimizer, run.schedule, run.seed, on_epoch)
        test = None
        if outcome.best is not None and outcome.best_logits is not None:
            if dataset.test is not None:
                rows = shown.rows(dataset.test)
                logits = predict(network, rows)
                test = score(logits, rows.labels)
                tracker.predictions("test", _ids(dataset.test, rows), rows.labels, logits)
            tracker.predictions("val", _ids(dataset.val, val), val.labels, outcome.best_logits)
            best, head = outcome.best, network.head if network.suffix is None else None
            tracker.picture(lambda: curves.draw(outcome.epochs, best.number, composition.name), "curves.png")
            tracker.model(lambda: network.whole(dataset.class_names, run.data.resize), head, best.val.accuracy.value)
        result = Result(outcome, test, feature_seconds, time.perf_counter() - started)
        tracker.metrics(_final_metrics(result))
        for line in _summary(result, tracker):
            log.info(line)
    return result


class _Shown:
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


def _ids(split: Split, rows: Rows) -> list[str]:
    return [split.source.ids[row] for row in rows.rows]  # only the training rows of a view are numbered otherwise


def _head_seed(seed: int) -> int:
    return int(np.random.SeedSequence([seed, 1]).generate_state(1)[0] >> 2)


def _headline(run: Run, dataset: Dataset) -> str:
    sizes = ", ".join(f"{len(split.rows):,} {name}" for name, split in dataset.splits.items())
    return f"{run.model.architecture} at {run.model.image_size} px on {dataset.name}: {len(dataset.class_names)} breeds, {sizes} photos"


def _go_on_from_parent(run: Run, phase: Finetune, facts: dict[str, str], network: Network) -> Parent:
    """Gives the head the weights of the frozen attempt that the phase names, or that matches."""
    head = {name: value for name, value in run.parameters().items() if name.split(".")[0] == "head"}
    pixels = {"preprocessing.mode": run.preprocessing.mode, "data.resize": run.data.resize, "model.image_size": run.model.image_size}
    with tempfile.TemporaryDirectory() as folder:
        parent = run.tracking.parent(phase.parent, facts | head | pixels, run.seed, Path(folder))
        network.head.load_weights(parent.head)
    return parent


def _describe(run: Run, dataset: Dataset, network: Network, facts: dict[str, str], tracker: Tracker) -> None:
    plan, counts = network.plan, network.parameters()
    log.info(
        "training the head (%s) and of the backbone %s: %s of %s parameters%s",
        type(run.head).__name__,
        plan.summary,
        f"{counts['trainable']:,}",
        f"{counts['total']:,}",
        f"; {network.batchnorms} BatchNorm layers {_BATCHNORM[plan.batchnorm]}" if network.batchnorms else "",
    )
    tracker.parameters(
        run.parameters()
        | {f"parameters.{name}": count for name, count in counts.items()}
        | {f"data.photos.{name}": len(split.rows) for name, split in dataset.splits.items()}
        | {"data.name": dataset.name, "data.classes": len(dataset.class_names), "key": run.key, **facts}
        | {"unfreeze.layers_asked": plan.asked, "unfreeze.layers_trained": plan.layers, "unfreeze.plan": plan.summary}
    )
    tracker.dataset(dataset)


def _epoch_line(epoch: Epoch, epochs: int) -> str:
    return (
        f"epoch {epoch.number:>{len(str(epochs))}}/{epochs}  train {100 * epoch.train_accuracy:5.1f} %  loss {epoch.train_loss:.3f}   "
        f"val {100 * epoch.val.accuracy.value:5.1f} %  top-5 {100 * epoch.val.top5.value:5.1f} %  loss {epoch.val.loss:.3f}   "
        f"lr {epoch.lr:.2g}  {epoch.seconds:.1f} s"
    )


def _final_metrics(result: Result) -> dict[str, float]:
    outcome = result.outcome
    final = {"seconds/total": result.seconds, "seconds/features": result.feature_seconds, "epochs": len(outcome.epochs)}
    if outcome.best is None:
        return final
    low, high = outcome.best.val.accuracy.interval
    final |= {f"best/{name.replace('/', '_')}": value for name, value in outcome.best.metrics().items()}
    final |= {f"last/{name.replace('/', '_')}": value for name, value in outcome.epochs[-1].metrics().items() if name.startswith("val")}
    final |= {"best/epoch": outcome.best.number, "best/val_accuracy_low": low, "best/val_accuracy_high": high}
    if result.test is not None:
        final |= {"test/accuracy": result.test.accuracy.value, "test/top5_accuracy": result.test.top5.value, "test/loss": result.test.loss}
    return final


def _summary(result: Result, tracker: Tracker) -> list[str]:
    outcome = result.outcome
    lines = [f"stopped: {outcome.ended}"] if outcome.ended else []
    shown = [("best", outcome.best), ("last", outcome.epochs[-1] if outcome.epochs else None)]
    lines += [
        f"{name:5} validation {epoch.val.accuracy}, top-5 {100 * epoch.val.top5.value:.1f} %, epoch {epoch.number}"
        for name, epoch in shown
        if epoch is not None
    ]
    if result.test is not None:
        lines.append(f"test  {' ' * 10} {result.test.accuracy}, top-5 {100 * result.test.top5.value:.1f} %, weights of the best epoch")
    lines.append(f"time  {result.seconds:.1f} s, of which {result.feature_seconds:.1f} s before the first epoch")
    lines.append(f"run   {tracker.where()}")
    return lines
