"""One attempt, from its run to what it measured."""

import gc
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np

from dogbreeds import curves, interruption, preflight, trial, verdict
from dogbreeds.baseline import Nothing, Untrained
from dogbreeds.checkpoint import Checkpoints
from dogbreeds.data import Dataset, Split
from dogbreeds.fit import Epoch, Outcome, Progress, Rows, fit, predict
from dogbreeds.kept import Store
from dogbreeds.lr_range import Range, range_test
from dogbreeds.memory import Fit
from dogbreeds.metrics import Pair, Scores, score
from dogbreeds.model import Backbone
from dogbreeds.network import Network, assemble
from dogbreeds.phase import Finetune, LrRange, Training
from dogbreeds.record import RANKING, SWEEP, Composition, Known, Parent, Predictions, Pruned, Record, short
from dogbreeds.run import Run
from dogbreeds.shown import Shown
from dogbreeds.terminal import hushed
from dogbreeds.tracking import Tracker
from dogbreeds.verdict import Setting, Verdict

log = logging.getLogger(__name__)

_PRUNED = "pruned: "  # begins why training ended where a search gave it up
_BATCHNORM = {"frozen": "stay frozen", "affine": "keep their statistics and train gamma and beta", "trainable": "train, statistics too"}


@dataclass(frozen=True)
class Result:
    """What an attempt measured, and the id that it is recorded under."""

    run_id: str
    outcome: Outcome
    test: Scores | None
    untrained: Untrained
    verdict: Verdict
    feature_seconds: float
    seconds: float

    @property
    def objective(self) -> float:
        """The best validation accuracy, for sweepers; 0 where no epoch was finished."""
        return self.outcome.best.val.accuracy.value if self.outcome.best else 0.0


@dataclass(frozen=True)
class Done:
    """An attempt of a sweep that was finished before.

    Attributes:
        run_id: what it is recorded under.
        objective: its best validation accuracy, or the rate that it suggested; 0 where there is none.
    """

    run_id: str
    objective: float


@dataclass(frozen=True)
class _Prepared:
    """All that is there before the first step."""

    run: Run
    dataset: Dataset
    checkpoints: Checkpoints
    network: Network
    facts: dict[str, str]
    parent: Parent | None
    untrained: Untrained
    fit: Fit | None
    findings: list[preflight.Finding]
    started: float

    @property
    def native(self) -> bool | None:
        """Whether the pixels are the backbone's own; None where that cannot be told."""
        if self.fit is None or not self.fit.remembers:
            return None
        return not any(finding.check == "pixels" and finding.clear for finding in self.findings)


@dataclass(frozen=True)
class GivenUp:
    """An attempt that a search has pruned. Asked for by itself, it goes on from its checkpoint.

    Attributes:
        objective: its best validation accuracy so far.
    """

    objective: float


def execute(run: Run, composition: Composition) -> Result | Range | Done | GivenUp:
    """Runs an attempt and records it, or goes on with it where it was cut off; in a sweep, what has finished is not run again.

    Raises:
        Missing, Refused: where something the user named is not there or does not fit.
    """
    with interruption.job():
        try:
            return _run(run, composition, time.perf_counter())
        except Pruned as pruned:
            return GivenUp(pruned.best)
        finally:
            Store.release()


def _run(run: Run, composition: Composition, started: float) -> Result | Range | Done:
    run.baseline.weights_file()
    dataset = run.data.open()  # what can be refused without TensorFlow is refused before it is imported
    identity = run.identity(dataset.fingerprint)
    composition = replace(composition, key=run.key, identity=identity)
    checkpoints = Checkpoints(Path(run.checkpoint_dir).expanduser() / identity)
    with checkpoints.locked() as gone:
        known = run.tracking.known(run.key, identity, gone)
        gone.clear()
        if known.finished is not None and SWEEP in os.environ and not run.rerun:
            return _done(run, known.finished, composition)
        unfinished = _unfinished(run, known, checkpoints)
        prepared = _prepare(run, dataset, checkpoints, unfinished, started)
        with run.tracking.open(composition, unfinished) as tracker:
            result = _execute(prepared, tracker)
        checkpoints.remove()
        return result


def _execute(prepared: _Prepared, tracker: Tracker) -> Result | Range:
    _describe(prepared, tracker)
    shown = Shown(prepared.run, prepared.dataset, prepared.network)
    shown.train(0)
    _tag_preflight(prepared, shown, tracker)
    if isinstance(prepared.run.phase, LrRange):
        return _range_test(prepared, prepared.run.phase, shown, tracker)
    return _train(prepared, prepared.run.phase, shown, tracker)


def _done(run: Run, record: Record, composition: Composition) -> Done:
    """Says that a job of a sweep was finished before."""
    objective = record.metrics.get("suggested/lr" if isinstance(run.phase, LrRange) else RANKING, 0.0)
    verdict_said = f", {record.tags['verdict']}" if "verdict" in record.tags else ""
    log.info("already there: run %s '%s'%s; rerun=true runs it again", short(record.run_id), record.name, verdict_said)
    run.tracking.reuse(record, composition)
    trial.current().ended(run.tracking.history(record.run_id, "val/accuracy"), record.metrics.get("seconds/total", 0.0))
    return Done(record.run_id, objective)


def _unfinished(run: Run, known: Known, checkpoints: Checkpoints) -> Record | None:
    """The recorded attempt to go on with, if any; says what is passed over."""
    if run.rerun or (known.finished is not None and known.unfinished is None):
        checkpoints.remove()  # of a run that had all but ended
        return None
    if known.others and known.unfinished is None:
        log.warning(
            "run %s has the same settings, but its photos, class names or weights were others: its results are not used, all is computed anew",
            known.others[0],
        )
    record = known.unfinished
    if record is not None and "val/accuracy" in record.metrics and checkpoints.newest is None:
        log.warning("run %s was cut off and its checkpoints are gone: the attempt begins anew", short(record.run_id))
        return None
    return record


def _prepare(run: Run, dataset: Dataset, checkpoints: Checkpoints, unfinished: Record | None, started: float) -> _Prepared:
    backbone, network, fit, findings = assembled(run, dataset)
    facts = {"model.fingerprint": backbone.fingerprint, "data.fingerprint": dataset.fingerprint}
    parent = None
    if isinstance(run.phase, Finetune):
        wanted = run.phase.parent if unfinished is None else unfinished.tags.get("parent", run.phase.parent)
        parent = _go_on_from_parent(run, wanted, facts, network)
    untrained = untrained_of(run, backbone, network, parent, dataset.class_names)
    return _Prepared(run, dataset, checkpoints, network, facts, parent, untrained, fit, findings, started)


def assembled(run: Run, dataset: Dataset) -> tuple[Backbone, Network, Fit | None, list[preflight.Finding]]:
    """The backbone, the network on it with a new head, and what the preflight found; what can be refused before anything is spent is refused
    here, the cheapest first."""
    for note in dataset.notes:
        log.warning(note)
    log.info(_headline(run, dataset))
    findings = run.preflight.check_data(dataset)
    run.preflight.report(findings)

    first = "tensorflow" not in sys.modules
    with hushed():
        import keras
        import tensorflow as tf

        for gpu in tf.config.list_physical_devices("GPU"):  # looked for now, while remarks on their absence are held back
            tf.config.experimental.set_memory_growth(gpu, True)  # other jobs may share it
    if first:
        gc.freeze()  # what has been imported stays: looking for garbage among it took most of the time before a further job's first epoch
    replicas = run.strategy.build()  # before TensorFlow begins to use the devices
    keras.backend.clear_session()  # jobs of a sweep share a process
    keras.config.set_dtype_policy("float32")
    keras.utils.set_random_seed(run.seed)
    backbone = run.model.build(run.seed)
    fit = run.preflight.fit(backbone, dataset, run.data, run.features.store())
    if fit is not None:
        log.info(preflight.said(fit, run.preprocessing.mode))
        mismatches = preflight.judge(fit, run.preprocessing.mode, run.model.pixels)
        run.preflight.report(mismatches)
        findings += mismatches
    plan = run.unfreeze.plan(backbone.blocks)
    classes = len(dataset.class_names)
    keras.utils.set_random_seed(run.seed)  # again: whether the backbone was built just now or in an earlier job makes no difference
    network = assemble(backbone, run.preprocessing, plan, lambda features: run.head.build(features, classes, _head_seed(run.seed)), replicas)
    return backbone, network, fit, findings


def untrained_of(run: Run, backbone: Backbone, network: Network, parent: Parent | None, class_names: Sequence[str]) -> Untrained:
    """The zero-training baseline, yet to be measured, or a fine-tune's, which its frozen attempt has measured."""
    if parent is not None:
        return run.baseline.inherit(parent, class_names)
    wanted = run.baseline if isinstance(run.phase, Training) else Nothing()  # a range test has no result that could be held against it
    return wanted.build(run.model, backbone, run.preprocessing, network, class_names)


def _train(prepared: _Prepared, phase: Training, shown: Shown, tracker: Tracker) -> Result:
    run, dataset, network = prepared.run, prepared.dataset, prepared.network
    val = shown.rows(dataset.val)
    feature_seconds = time.perf_counter() - prepared.started
    searched, setting = trial.current(), Setting(len(dataset.class_names), run.optimizer.lr, prepared.native)

    def on_epoch(epoch: Epoch) -> None:
        tracker.metrics(epoch.metrics(), epoch.number)
        log.info(_epoch_line(epoch, phase.epochs))

    def stop(epochs: Sequence[Epoch]) -> str | None:
        if run.stop_on_collapse and verdict.has_collapsed(epochs):
            return "stop_on_collapse"
        hopeless = searched.judged(epochs, setting, len(epochs) == phase.epochs)
        return f"{_PRUNED}{hopeless}" if hopeless else None

    def save(progress: Progress) -> None:
        about, arrays = progress.packed()
        prepared.checkpoints.save(about | _setting(prepared), arrays)

    tracker.tags(searched.tags)
    before = _resumed(prepared, phase, tracker, stop)
    seconds_before = sum(epoch.seconds for epoch in before.outcome.epochs) if before else 0.0
    outcome = fit(network, shown.train, val, phase, run.optimizer, run.schedule, run.seed, on_epoch, stop, before, save, run.checkpoint_steps)
    pruned = outcome.ended.removeprefix(_PRUNED) if outcome.ended.startswith(_PRUNED) else None
    accuracies = [epoch.val.accuracy.value for epoch in outcome.epochs]
    searched.ended(accuracies, seconds_before + time.perf_counter() - prepared.started, pruned)
    if pruned is not None:
        raise _given_up(pruned, outcome, phase, tracker)
    if outcome.diverged:
        _keep_checkpoint(prepared.checkpoints, tracker)
    test, pairs = None, {}
    if outcome.best is not None and outcome.best_logits is not None:
        said = {"val": Predictions(_ids(dataset.val, val), val.labels, outcome.best_logits, dataset.class_names)}
        if dataset.test is not None:
            rows = shown.rows(dataset.test)
            said["test"] = Predictions(_ids(dataset.test, rows), rows.labels, predict(network, rows), dataset.class_names)
            test = score(said["test"].logits, rows.labels)
        for split, predictions in said.items():
            tracker.predictions(split, predictions)
            if prepared.parent is not None:
                pairs[split] = predictions.beside(prepared.parent.predictions[split], split)
        best = outcome.best
        tracker.picture(lambda: curves.draw(outcome.epochs, best.number, tracker.name), "curves.png")
    # The best epoch was chosen on val, so that only test is a fair judge of it, where there is one.
    pair = pairs.get("test", pairs.get("val"))
    judged = verdict.judge(outcome.epochs, replace(setting, pair=pair, diverged=outcome.ended if outcome.diverged else ""))
    untrained = _measure_untrained(prepared, test is not None)
    result = Result(tracker.run_id, outcome, test, untrained, judged, feature_seconds, time.perf_counter() - prepared.started)
    tracker.metrics(_final_metrics(result) | untrained.metrics() | _paired_metrics(pairs))
    tracker.tags({"verdict": judged.name, "verdict.reason": judged.reason, "verdict.advice": judged.advice} | untrained.tags())
    tracker.describe(str(judged))
    if outcome.best is not None:  # after the metrics, by which a sweep's jobs find out whose network is the best
        tracker.model(lambda: network.whole(dataset.class_names, run.data.resize), outcome.best.val.accuracy.value)
        if network.suffix is None:
            tracker.head(network.head)
    for line in _summary(result, tracker):
        log.info(line)
    return result


def _measure_untrained(prepared: _Prepared, tested: bool) -> Untrained:
    """The zero-training baseline on validation, and where the attempt was tested, on test; what a fine-tune inherits was measured before."""
    dataset, network = prepared.dataset, prepared.untrained.network
    if network is None:
        return prepared.untrained
    shown, splits = Shown(prepared.run, dataset, network), {"val": dataset.val}
    if tested and dataset.test is not None:
        splits["test"] = dataset.test
    rows = {name: shown.rows(split) for name, split in splits.items()}
    return replace(prepared.untrained, accuracies={name: score(predict(network, those), those.labels).accuracy for name, those in rows.items()})


def _given_up(why: str, outcome: Outcome, phase: Training, tracker: Tracker) -> Pruned:
    """Records that a search has pruned an attempt."""
    said = f"pruned after epoch {len(outcome.epochs)} of {phase.epochs}: {why}"
    tracker.tags({"pruned": why})
    tracker.describe(f"{said}. Asked for by itself, it goes on from there.")
    log.info(said)
    return Pruned(outcome.best.val.accuracy.value if outcome.best else 0.0)


def _resumed(prepared: _Prepared, phase: Training, tracker: Tracker, stop: Callable[[Sequence[Epoch]], str | None]) -> Progress | None:
    """How far an earlier process came; what it did not record any more is recorded now. What one search gave up, another may go on with."""
    kept = prepared.checkpoints.load()
    if kept is None:
        return None
    different = [name for name, value in _setting(prepared).items() if kept[0].get(name) != value]
    if different:
        log.warning("the checkpoint that is there is of %s: this attempt begins anew", " and ".join(f"another {name}" for name in different))
        return None
    progress = Progress.unpacked(*kept)
    for epoch in progress.outcome.epochs:
        tracker.metrics(epoch.metrics(), epoch.number)
    if progress.outcome.ended.startswith(_PRUNED):
        tracker.tags({"pruned": "no: gone on with"})
        progress.outcome.ended = stop(progress.outcome.epochs) or ""
    log.info(
        "going on after epoch %d of %d%s; rerun=true begins anew", progress.epoch, phase.epochs, f" and step {progress.step}" * (progress.step > 0)
    )
    return progress


def _setting(prepared: _Prepared) -> dict[str, str | None]:
    """What a checkpoint must have in common with the attempt that goes on from it, beside the identity."""
    versions = {package: version(package) for package in ("keras", "tensorflow")}
    return {"parent": prepared.parent.run_id if prepared.parent else None, "strategy": prepared.network.replicas.said} | versions


def _keep_checkpoint(checkpoints: Checkpoints, tracker: Tracker) -> None:
    """Of training that diverged: its last good state stays."""
    kept = checkpoints.set_aside(f"diverged-{tracker.run_id or checkpoints.folder.name}.npz")
    if kept is None:
        log.info("no epoch was finished before: there is no checkpoint to keep")
        return
    tracker.tags({"checkpoint": str(kept)})
    log.info("the last state in which all was finite is kept: %s", kept)


def _range_test(prepared: _Prepared, phase: LrRange, shown: Shown, tracker: Tracker) -> Range:
    run = prepared.run
    found = range_test(prepared.network, shown.train(0), phase, run.optimizer, run.seed)
    tracker.series({"lr": found.lrs, "train/loss": found.losses})
    tracker.picture(lambda: curves.lr_range(found, tracker.name), "lr_range.png")
    if found.suggestion is None and found.falling:
        log.info("the loss still falls at lr %.1g, where the test ends: type phase.max_lr=%.0g", found.lrs[-1], 100 * found.lrs[-1])
    elif found.suggestion is None:
        log.info("the loss never fell: no rate between %.1g and %.1g learns; look at preprocessing and head", found.lrs[0], found.lrs[-1])
    else:
        tracker.metrics({"suggested/lr": found.suggestion})
        log.info("the loss is lowest at lr %.2g and rises beyond: type optimizer.lr=%.1g", 10 * found.suggestion, found.suggestion)
    log.info("time  %.1f s", time.perf_counter() - prepared.started)
    log.info("run   %s", tracker.where())
    return found


def _ids(split: Split, rows: Rows) -> list[str]:
    return [split.source.ids[row] for row in rows.rows]  # only the training rows of a view are numbered otherwise


def _head_seed(seed: int) -> int:
    return int(np.random.SeedSequence([seed, 1]).generate_state(1)[0] >> 2)


def _headline(run: Run, dataset: Dataset) -> str:
    sizes = ", ".join(f"{len(split.rows):,} {name}" for name, split in dataset.splits.items())
    return f"{run.model.architecture} at {run.model.image_size} px on {dataset.name}: {len(dataset.class_names)} breeds, {sizes} photos"


def _go_on_from_parent(run: Run, wanted: str | None, facts: dict[str, str], network: Network) -> Parent:
    """Gives the head the weights of the frozen attempt that is wanted, or that matches."""
    head = {name: value for name, value in run.parameters().items() if name.split(".")[0] == "head"}
    pixels = {"preprocessing.mode": run.preprocessing.mode, "data.resize": run.data.resize, "model.image_size": run.model.image_size}
    with tempfile.TemporaryDirectory() as folder:
        parent = run.tracking.parent(wanted, facts | head | pixels, run.seed, Path(folder))
        network.head.load_weights(parent.head)
    return parent


def _describe(prepared: _Prepared, tracker: Tracker) -> None:
    """Says and records what is about to be trained, on what."""
    run, dataset, network, parent = prepared.run, prepared.dataset, prepared.network, prepared.parent
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
        | {"data.name": dataset.name, "data.classes": len(dataset.class_names), "key": run.key, **prepared.facts}
        | {"unfreeze.layers_asked": plan.asked, "unfreeze.layers_trained": plan.layers, "unfreeze.plan": plan.summary}
    )
    tracker.dataset(dataset)
    if prepared.fit is not None:
        tracker.metrics({f"preflight/{mode}": distance for mode, distance in prepared.fit.distances.items()})
    if parent is not None:
        tracker.tags({"parent": parent.run_id})
        tracker.metrics({"parent/val_accuracy": parent.accuracy})
        log.info("going on from run %s, %.1f %% on validation", short(parent.run_id), 100 * parent.accuracy)


def _tag_preflight(prepared: _Prepared, shown: Shown, tracker: Tracker) -> None:
    """Records what the preflight found, once the last of its checks can be made."""
    if prepared.run.preflight.action == "none":
        tracker.tags({"preflight": "not checked"})
        return
    findings = [*prepared.findings, *_check_initial_loss(prepared, shown, tracker)]
    tracker.tags({"preflight": " ".join(finding.said for finding in findings)[:4000] or "passed"})


def _check_initial_loss(prepared: _Prepared, shown: Shown, tracker: Tracker) -> list[preflight.Finding]:
    rows = shown.train(0)
    some = np.linspace(0, len(rows) - 1, min(prepared.run.preflight.photos, len(rows))).astype(int)
    part = Rows(rows.array, rows.rows[some], rows.labels[some], rows.shown)
    loss = score(predict(prepared.network, part), part.labels).loss
    tracker.metrics({"preflight/initial_loss": loss})
    findings = preflight.initial_loss(loss, len(prepared.dataset.class_names), prepared.parent is None)
    prepared.run.preflight.report(findings)
    return findings


def _epoch_line(epoch: Epoch, epochs: int) -> str:
    return (
        f"epoch {epoch.number:>{len(str(epochs))}}/{epochs}  train {100 * epoch.train_accuracy:5.1f} %  loss {epoch.train_loss:.3f}   "
        f"val {100 * epoch.val.accuracy.value:5.1f} %  top-5 {100 * epoch.val.top5.value:5.1f} %  loss {epoch.val.loss:.3f}   "
        f"lr {epoch.lr:.2g}  {epoch.seconds:.1f} s"
    )


def _final_metrics(result: Result) -> dict[str, float]:
    outcome = result.outcome
    final = {"seconds/total": result.seconds, "seconds/features": result.feature_seconds, "epochs": len(outcome.epochs)}
    final |= {f"verdict/{name}": value for name, value in result.verdict.numbers.items()}
    if outcome.best is None:
        return final
    low, high = outcome.best.val.accuracy.interval
    final |= {f"best/{name.replace('/', '_')}": value for name, value in outcome.best.metrics().items()}
    final |= {f"last/{name.replace('/', '_')}": value for name, value in outcome.epochs[-1].metrics().items() if name.startswith("val")}
    final |= {"best/epoch": outcome.best.number, "best/val_accuracy_low": low, "best/val_accuracy_high": high}
    if result.test is not None:
        final |= {"test/accuracy": result.test.accuracy.value, "test/top5_accuracy": result.test.top5.value, "test/loss": result.test.loss}
    return final


def _paired_metrics(pairs: dict[str, Pair]) -> dict[str, float]:
    return {
        f"parent/{split}_{name}": value
        for split, pair in pairs.items()
        for name, value in {"difference": pair.difference, "p_value": pair.p_value, "gained": pair.gained, "lost": pair.lost}.items()
    }


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
    lines += result.untrained.lines()
    lines.append(f"time  {result.seconds:.1f} s, of which {result.feature_seconds:.1f} s before the first epoch")
    lines.append(f"run   {tracker.where()}")
    lines.append(f"{result.verdict}")
    return lines
