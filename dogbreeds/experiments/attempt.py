"""One attempt, from its run to what it measured."""

import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np

from dogbreeds.core import signals
from dogbreeds.data.dataset import Split
from dogbreeds.evaluation import verdict
from dogbreeds.evaluation.metrics import score
from dogbreeds.evaluation.results import Epoch, Predictions, Range, ZeroShotBaseline
from dogbreeds.evaluation.verdict import Setting
from dogbreeds.experiments import trial
from dogbreeds.experiments.prepare import _prepare, _Prepared
from dogbreeds.experiments.recording import _describe, _epoch_line, _final_metrics, _paired_metrics, _summary
from dogbreeds.experiments.result import PrunedResult, Result, Skipped
from dogbreeds.experiments.run import Run
from dogbreeds.experiments.training_inputs import TrainingInputs
from dogbreeds.features.cache import FeatureCache
from dogbreeds.reports import curves
from dogbreeds.tracking.records import RANKING, SWEEP, PriorRuns, Pruned, Record, RunOrigin, short
from dogbreeds.tracking.tracking import Tracker
from dogbreeds.training import preflight
from dogbreeds.training.checkpoint import Checkpoints
from dogbreeds.training.loop import Rows, fit, predict
from dogbreeds.training.lr_range import range_test
from dogbreeds.training.phase import LrRange, Training
from dogbreeds.training.state import History, TrainingState

log = logging.getLogger(__name__)

# Begins why training ended where a search gave it up
_PRUNED = "pruned: "


def execute(run: Run, composition: RunOrigin) -> Result | Range | Skipped | PrunedResult:
    """Runs an attempt and records it, or goes on with it where it was cut off; in a sweep, what has finished is not run again.

    Raises:
        Missing, Refused: where something the user named is not there or does not fit.
    """
    with signals.job():
        try:
            return _run(run, composition, time.perf_counter())
        except Pruned as pruned:
            return PrunedResult(pruned.best)
        finally:
            FeatureCache.release()


def _run(run: Run, composition: RunOrigin, started: float) -> Result | Range | Skipped:
    run.baseline.weights_file()
    # What can be refused without TensorFlow is refused before it is imported
    dataset = run.data.open()
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
    shown = TrainingInputs(prepared.run, prepared.dataset, prepared.network)
    shown.train(0)
    _tag_preflight(prepared, shown, tracker)
    if isinstance(prepared.run.phase, LrRange):
        return _range_test(prepared, prepared.run.phase, shown, tracker)
    return _train(prepared, prepared.run.phase, shown, tracker)


def _done(run: Run, record: Record, composition: RunOrigin) -> Skipped:
    """Says that a job of a sweep was finished before."""
    objective = record.metrics.get("suggested/lr" if isinstance(run.phase, LrRange) else RANKING, 0.0)
    verdict_said = f", {record.tags['verdict']}" if "verdict" in record.tags else ""
    log.info("already there: run %s '%s'%s; rerun=true runs it again", short(record.run_id), record.name, verdict_said)
    run.tracking.reuse(record, composition)
    trial.current().ended(run.tracking.history(record.run_id, "val/accuracy"), record.metrics.get("seconds/total", 0.0))
    return Skipped(record.run_id, objective)


def _unfinished(run: Run, known: PriorRuns, checkpoints: Checkpoints) -> Record | None:
    """The recorded attempt to go on with, if any; says what is passed over."""
    if run.rerun or (known.finished is not None and known.unfinished is None):
        # Of a run that had all but ended
        checkpoints.remove()
        return None
    if known.others and known.unfinished is None:
        log.warning(
            "run %s has the same settings, but its photos, class names or weights were others: its results are not"
            " used, all is computed anew",
            known.others[0],
        )
    record = known.unfinished
    if record is not None and "val/accuracy" in record.metrics and checkpoints.newest is None:
        log.warning("run %s was cut off and its checkpoints are gone: the attempt begins anew", short(record.run_id))
        return None
    return record


def _train(prepared: _Prepared, phase: Training, shown: TrainingInputs, tracker: Tracker) -> Result:
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

    def save(progress: TrainingState) -> None:
        about, arrays = progress.packed()
        prepared.checkpoints.save(about | _setting(prepared), arrays)

    tracker.tags(searched.tags)
    before = _resumed(prepared, phase, tracker, stop)
    seconds_before = sum(epoch.seconds for epoch in before.outcome.epochs) if before else 0.0
    outcome = fit(
        network,
        shown.train,
        val,
        phase,
        run.optimizer,
        run.schedule,
        run.seed,
        on_epoch,
        stop,
        before,
        save,
        run.checkpoint_steps,
    )
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
            said["test"] = Predictions(
                _ids(dataset.test, rows), rows.labels, predict(network, rows), dataset.class_names
            )
            test = score(said["test"].logits, rows.labels)
        for split, predictions in said.items():
            tracker.predictions(split, predictions)
            if prepared.parent is not None:
                pairs[split] = predictions.beside(prepared.parent.predictions[split], split)
        best = outcome.best
        tracker.picture(lambda: curves.draw(outcome.epochs, best.number, tracker.name), "curves.png")
    # The best epoch was chosen on val, so that only test is a fair judge of it, where there is one.
    pair = pairs.get("test", pairs.get("val"))
    judged = verdict.judge(
        outcome.epochs, replace(setting, pair=pair, diverged=outcome.ended if outcome.diverged else "")
    )
    untrained = _measure_untrained(prepared, test is not None)
    result = Result(
        tracker.run_id, outcome, test, untrained, judged, feature_seconds, time.perf_counter() - prepared.started
    )
    tracker.metrics(_final_metrics(result) | untrained.metrics() | _paired_metrics(pairs))
    tracker.tags(
        {"verdict": judged.name, "verdict.reason": judged.reason, "verdict.advice": judged.advice} | untrained.tags()
    )
    tracker.describe(str(judged))
    # After the metrics, by which a sweep's jobs find out whose network is the best
    if outcome.best is not None:
        tracker.model(lambda: network.whole(dataset.class_names, run.data.resize), outcome.best.val.accuracy.value)
        if network.suffix is None:
            tracker.head(network.head)
    for line in _summary(result, tracker):
        log.info(line)
    return result


def _measure_untrained(prepared: _Prepared, tested: bool) -> ZeroShotBaseline:
    """The zero-training baseline on validation, and where the attempt was tested, on test; what a fine-tune inherits was measured before."""
    dataset, network = prepared.dataset, prepared.untrained_network
    if network is None:
        return prepared.untrained
    shown, splits = TrainingInputs(prepared.run, dataset, network), {"val": dataset.val}
    if tested and dataset.test is not None:
        splits["test"] = dataset.test
    rows = {name: shown.rows(split) for name, split in splits.items()}
    return replace(
        prepared.untrained,
        accuracies={name: score(predict(network, those), those.labels).accuracy for name, those in rows.items()},
    )


def _given_up(why: str, outcome: History, phase: Training, tracker: Tracker) -> Pruned:
    """Records that a search has pruned an attempt."""
    said = f"pruned after epoch {len(outcome.epochs)} of {phase.epochs}: {why}"
    tracker.tags({"pruned": why})
    tracker.describe(f"{said}. Asked for by itself, it goes on from there.")
    log.info(said)
    return Pruned(outcome.best.val.accuracy.value if outcome.best else 0.0)


def _resumed(
    prepared: _Prepared, phase: Training, tracker: Tracker, stop: Callable[[Sequence[Epoch]], str | None]
) -> TrainingState | None:
    """How far an earlier process came; what it did not record any more is recorded now. What one search gave up, another may go on with."""
    kept = prepared.checkpoints.load()
    if kept is None:
        return None
    different = [name for name, value in _setting(prepared).items() if kept[0].get(name) != value]
    if different:
        log.warning(
            "the checkpoint that is there is of %s: this attempt begins anew",
            " and ".join(f"another {name}" for name in different),
        )
        return None
    progress = TrainingState.unpacked(*kept)
    for epoch in progress.outcome.epochs:
        tracker.metrics(epoch.metrics(), epoch.number)
    if progress.outcome.ended.startswith(_PRUNED):
        tracker.tags({"pruned": "no: gone on with"})
        progress.outcome.ended = stop(progress.outcome.epochs) or ""
    log.info(
        "going on after epoch %d of %d%s; rerun=true begins anew",
        progress.epoch,
        phase.epochs,
        f" and step {progress.step}" * (progress.step > 0),
    )
    return progress


def _setting(prepared: _Prepared) -> dict[str, str | None]:
    """What a checkpoint must have in common with the attempt that goes on from it, beside the identity."""
    versions = {package: version(package) for package in ("keras", "tensorflow")}
    return {
        "parent": prepared.parent.run_id if prepared.parent else None,
        "strategy": prepared.network.replicas.said,
    } | versions


def _keep_checkpoint(checkpoints: Checkpoints, tracker: Tracker) -> None:
    """Of training that diverged: its last good state stays."""
    kept = checkpoints.set_aside(f"diverged-{tracker.run_id or checkpoints.folder.name}.npz")
    if kept is None:
        log.info("no epoch was finished before: there is no checkpoint to keep")
        return
    tracker.tags({"checkpoint": str(kept)})
    log.info("the last state in which all was finite is kept: %s", kept)


def _range_test(prepared: _Prepared, phase: LrRange, shown: TrainingInputs, tracker: Tracker) -> Range:
    run = prepared.run
    found = range_test(prepared.network, shown.train(0), phase, run.optimizer, run.seed)
    tracker.series({"lr": found.lrs, "train/loss": found.losses})
    tracker.picture(lambda: curves.lr_range(found, tracker.name), "lr_range.png")
    if found.suggestion is None and found.falling:
        log.info(
            "the loss still falls at lr %.1g, where the test ends: type phase.max_lr=%.0g",
            found.lrs[-1],
            100 * found.lrs[-1],
        )
    elif found.suggestion is None:
        log.info(
            "the loss never fell: no rate between %.1g and %.1g learns; look at preprocessing and head",
            found.lrs[0],
            found.lrs[-1],
        )
    else:
        tracker.metrics({"suggested/lr": found.suggestion})
        log.info(
            "the loss is lowest at lr %.2g and rises beyond: type optimizer.lr=%.1g",
            10 * found.suggestion,
            found.suggestion,
        )
    log.info("time  %.1f s", time.perf_counter() - prepared.started)
    log.info("run   %s", tracker.where())
    return found


def _ids(split: Split, rows: Rows) -> list[str]:
    # Only the training rows of a view are numbered otherwise
    return [split.source.ids[row] for row in rows.rows]


def _tag_preflight(prepared: _Prepared, shown: TrainingInputs, tracker: Tracker) -> None:
    """Records what the preflight found, once the last of its checks can be made."""
    if prepared.run.preflight.action == "none":
        tracker.tags({"preflight": "not checked"})
        return
    findings = [*prepared.findings, *_check_initial_loss(prepared, shown, tracker)]
    tracker.tags({"preflight": " ".join(finding.said for finding in findings)[:4000] or "passed"})


def _check_initial_loss(prepared: _Prepared, shown: TrainingInputs, tracker: Tracker) -> list[preflight.Finding]:
    rows = shown.train(0)
    some = np.linspace(0, len(rows) - 1, min(prepared.run.preflight.photos, len(rows))).astype(int)
    part = Rows(rows.array, rows.rows[some], rows.labels[some], rows.shown)
    loss = score(predict(prepared.network, part), part.labels).loss
    tracker.metrics({"preflight/initial_loss": loss})
    findings = preflight.initial_loss(loss, len(prepared.dataset.class_names), prepared.parent is None)
    prepared.run.preflight.report(findings)
    return findings
