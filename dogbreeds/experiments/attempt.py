"""One attempt, from its settings to its recorded result."""

import functools
import logging
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dogbreeds.data.corrections import describe, open_corrected
from dogbreeds.data.dataset import Dataset, Split
from dogbreeds.evaluation import verdict
from dogbreeds.evaluation.metrics import PairedOutcome, score
from dogbreeds.evaluation.results import Epoch, Predictions, Range, ReferenceResult, ZeroShotBaseline
from dogbreeds.evaluation.verdict import Setting, Verdict
from dogbreeds.experiments import automatic_settings, network_pool, recording, resume, trial
from dogbreeds.experiments.initial_loss import finish_preflight
from dogbreeds.experiments.isolation import process_state_restored
from dogbreeds.experiments.parents import check_saved_parent
from dogbreeds.experiments.prepare import PreparedRun, prepare
from dogbreeds.experiments.range_test import run_range_test
from dogbreeds.experiments.reference import measure_reference
from dogbreeds.experiments.refit import Refit, refit
from dogbreeds.experiments.result import Ending, PrunedResult, Result, Skipped
from dogbreeds.experiments.run import Run
from dogbreeds.experiments.trainer import trainer
from dogbreeds.experiments.training_inputs import TrainingInputs
from dogbreeds.features.cache import FeatureCache
from dogbreeds.models.precision import probability_tolerance
from dogbreeds.reports import curves
from dogbreeds.tracking.records import RANKING_METRIC, SWEEP_RUN_ENV, Pruned, Record, RunOrigin, short
from dogbreeds.tracking.tracking import Tracker
from dogbreeds.training.checkpoint import Checkpoints
from dogbreeds.training.loop import predict
from dogbreeds.training.phase import LrRange, Training
from dogbreeds.training.rows import Rows
from dogbreeds.training.state import History

log = logging.getLogger(__name__)


def execute(run: Run, origin: RunOrigin, dataset: Dataset | None = None) -> Ending:
    """Run an attempt and record it, resuming it if it was interrupted.

    A sweep skips attempts that have finished. So does a command that had to wait for another one with the same run.
    Process-wide state is restored afterwards, also after an error or an interruption: see `isolation`.

    Args:
        run: settings of the attempt.
        origin: what the run was composed from.
        dataset: data to train on; None opens that of the settings.

    Raises:
        MissingFileError, UserError: if a file is missing, or if settings, weights, pixels or data do not fit.
        KeyboardInterrupt: after SIGINT or SIGTERM, once the checkpoint is written.
    """
    with process_state_restored():
        try:
            return _skip_or_run(run, origin, dataset, time.perf_counter())
        except Pruned as pruned:
            return PrunedResult(pruned.best)
        finally:
            FeatureCache.release()


def _skip_or_run(run: Run, origin: RunOrigin, dataset: Dataset | None, started: float) -> Result | Range | Skipped:
    # Errors that need no TensorFlow are raised before it is imported.
    run.baseline.weights_file()
    check_saved_parent(run)
    dataset = open_corrected(run.data, dataset)
    run, assembly = automatic_settings.resolve(run, dataset)
    identity = run.identity(dataset.fingerprint)
    origin = replace(origin, key=run.key, identity=identity)
    checkpoints = Checkpoints(Path(run.checkpoint_dir).expanduser() / identity)
    with checkpoints.locked() as lock:
        prior = run.tracking.prior_runs(run.key, identity, lock.dead_processes)
        lock.dead_processes.clear()
        skips_finished = SWEEP_RUN_ENV in os.environ or (lock.waited and prior.newest_is_finished)
        if prior.finished is not None and skips_finished and not run.rerun:
            return _skip(run, prior.finished, origin)
        unfinished = resume.unfinished_record(run, prior, checkpoints)
        prepared = prepare(run, dataset, checkpoints, unfinished, started, assembly)
        with run.tracking.open(origin, unfinished) as tracker:
            result = _execute(prepared, tracker)
        network_pool.keep(prepared.pooled)
        checkpoints.remove()
        return result


def _skip(run: Run, record: Record, origin: RunOrigin) -> Skipped:
    """Take over the result of a finished run as the result of a sweep's job."""
    objective = record.metrics.get("suggested/lr" if isinstance(run.phase, LrRange) else RANKING_METRIC, 0.0)
    verdict_note = f", verdict {record.tags['verdict']}" if "verdict" in record.tags else ""
    log.info(
        "skipped: run %s '%s' has finished already%s (rerun=true runs it again)",
        short(record.run_id),
        record.name,
        verdict_note,
    )
    run.tracking.reuse(record, origin)
    accuracies = run.tracking.history(record.run_id, "val/accuracy")
    trial.current_trial().finish(accuracies, record.metrics.get("seconds/total", 0.0))
    return Skipped(record.run_id, objective)


def _execute(prepared: PreparedRun, tracker: Tracker) -> Result | Range:
    recording.record_setup(prepared, tracker)
    inputs = TrainingInputs(prepared.run, prepared.dataset, prepared.network)
    inputs.train(0)
    finish_preflight(prepared, inputs, tracker)
    if isinstance(prepared.run.phase, LrRange):
        return run_range_test(prepared, prepared.run.phase, inputs, tracker)
    return _train(prepared, prepared.run.phase, inputs, tracker)


# --- training -----------------------------------------------------------------


def _train(prepared: PreparedRun, phase: Training, inputs: TrainingInputs, tracker: Tracker) -> Result:
    val = inputs.rows(prepared.dataset.val)
    feature_seconds = time.perf_counter() - prepared.started
    run = prepared.run
    setting = Setting(
        len(prepared.dataset.class_names),
        run.optimizer.lr,
        prepared.native,
        settings=run.parameters(),
        finetune=tracker.finetune_overrides,
        n_train=len(inputs.train(0)),
    )
    history = _fit_or_resume(prepared, phase, inputs, val, setting, tracker)
    predictions = _predict_with_best_epoch(prepared, history, inputs, val, tracker)
    pairs = _compare_with_parent(prepared, predictions)
    if predictions:
        _record_curves(history, tracker)
    refitted = refit(prepared, history, inputs, val, tracker)
    test = score(predictions["test"].logits, predictions["test"].labels) if "test" in predictions else None
    reference = measure_reference(prepared, inputs, predictions)
    judged = _judge(history, pairs, reference, setting)
    baseline = _measure_baseline(prepared, tested=test is not None)
    result = Result(
        run_id=tracker.run_id,
        folder=tracker.folder,
        history=history,
        predictions=predictions,
        test=test,
        baseline=baseline,
        verdict=judged,
        feature_seconds=feature_seconds,
        seconds=time.perf_counter() - prepared.started,
        reference=reference,
        refitted_test=refitted.test if refitted else None,
    )
    _record(prepared, result, pairs, refitted, tracker)
    return result


def _fit_or_resume(
    prepared: PreparedRun, phase: Training, inputs: TrainingInputs, val: Rows, setting: Setting, tracker: Tracker
) -> History:
    """Train to the end, from the newest checkpoint if there is one.

    Raises:
        Pruned: if a search prunes the attempt.
    """
    run = prepared.run
    current = trial.current_trial()

    def on_epoch(epoch: Epoch) -> None:
        tracker.metrics(epoch.metrics(), epoch.number)
        log.info(recording.epoch_line(epoch, run.num_epochs))

    def stop(epochs: Sequence[Epoch]) -> str | None:
        if run.stop_on_collapse and verdict.has_collapsed(epochs, setting.n_train):
            return "stop_on_collapse"
        reason = current.prune_reason(epochs, setting, last=len(epochs) == run.num_epochs)
        return f"{resume.PRUNED_PREFIX}{reason}" if reason else None

    tracker.tags(current.tags)
    state = resume.load_checkpoint(prepared, phase, tracker, stop)
    seconds_before = sum(epoch.seconds for epoch in state.history.epochs) if state else 0.0
    train = trainer(prepared, phase, inputs)
    history = train(
        val=val,
        on_epoch=on_epoch,
        stop=stop,
        resume_from=state,
        save=functools.partial(resume.save_state, prepared),
        class_weights=inputs.class_weights(),
    )
    pruned = history.stop_reason.startswith(resume.PRUNED_PREFIX)
    prune_reason = history.stop_reason.removeprefix(resume.PRUNED_PREFIX) if pruned else None
    accuracies = [epoch.val.accuracy.value for epoch in history.epochs]
    current.finish(accuracies, seconds_before + time.perf_counter() - prepared.started, prune_reason)
    if prune_reason is not None:
        network_pool.keep(prepared.pooled)
        raise _record_pruning(prune_reason, history, run.num_epochs, tracker)
    if history.diverged:
        resume.archive_checkpoint(prepared.checkpoints, tracker)
    return history


def _predict_with_best_epoch(
    prepared: PreparedRun, history: History, inputs: TrainingInputs, val: Rows, tracker: Tracker
) -> dict[str, Predictions]:
    """Predict validation and, if there is one, the test split, and record the predictions; empty without a best epoch.

    After `fit` the network has the best epoch's weights, and `history` has its validation logits.
    """
    if history.best is None or history.best_logits is None:
        return {}
    dataset = prepared.dataset
    predictions = {"val": Predictions(_ids(dataset.val, val), val.labels, history.best_logits, dataset.class_names)}
    if dataset.test is not None:
        test = inputs.rows(dataset.test)
        logits = predict(prepared.network, test)
        predictions["test"] = Predictions(_ids(dataset.test, test), test.labels, logits, dataset.class_names)
    for split, of_split in predictions.items():
        tracker.predictions(split, of_split)
    return predictions


def _compare_with_parent(prepared: PreparedRun, predictions: dict[str, Predictions]) -> dict[str, PairedOutcome]:
    """Compare a fine-tune's predictions with its parent's, image by image; empty for other phases."""
    parent = prepared.parent
    if parent is None:
        return {}
    return {split: ours.compare_with(parent.predictions[split], split) for split, ours in predictions.items()}


def _judge(history: History, pairs: dict[str, PairedOutcome], reference: ReferenceResult, setting: Setting) -> Verdict:
    # The best epoch was selected on the validation split, so only the test split is an unbiased comparison.
    pair = pairs.get("test", pairs.get("val"))
    diverged = history.stop_reason if history.diverged else ""
    compared = reference.deciding
    no_reference = "" if compared else reference.description
    facts = replace(
        setting,
        pair=pair,
        diverged=diverged,
        reference=compared,
        training=reference.training,
        no_reference=no_reference,
    )
    return verdict.judge(history.judged, facts)


def _measure_baseline(prepared: PreparedRun, tested: bool) -> ZeroShotBaseline:
    """Measure the zero-training baseline on validation, and on test if `tested`; fine-tunes inherit it."""
    dataset = prepared.dataset
    network = prepared.baseline_network
    if network is None:
        return prepared.baseline
    inputs = TrainingInputs(prepared.run, dataset, network)
    splits = {"val": dataset.val}
    if tested and dataset.test is not None:
        splits["test"] = dataset.test
    rows = {name: inputs.rows(split) for name, split in splits.items()}
    return replace(
        prepared.baseline,
        accuracies={
            name: score(predict(network, of_split), of_split.labels).accuracy for name, of_split in rows.items()
        },
    )


def _record(
    prepared: PreparedRun, result: Result, pairs: dict[str, PairedOutcome], refitted: Refit | None, tracker: Tracker
) -> None:
    """Record and log a finished attempt."""
    tracker.metrics(
        recording.final_metrics(result)
        | result.baseline.metrics()
        | result.reference.metrics()
        | recording.paired_metrics(pairs)
        | (refitted.metrics() if refitted else {})
    )
    tracker.tags(
        {
            "verdict": result.verdict.name,
            "verdict.reason": result.verdict.reason,
            "verdict.advice": result.verdict.advice,
        }
        | result.baseline.tags()
        | result.reference.tags()
    )
    corrections = describe(prepared.dataset.num_excluded, prepared.dataset.num_relabelled)
    tracker.describe(f"{result.verdict}{corrections and f' Data: {corrections}.'}")
    # Metrics come before the model: a sweep's jobs rank by them to decide whose model is saved.
    best = result.history.best
    if best is not None:
        run = prepared.run
        network = refitted.network if refitted else prepared.network
        tracker.model(
            lambda: network.full_model(prepared.dataset.class_names, run.data.resize),
            accuracy=best.val.accuracy.value,
            tolerance=probability_tolerance(
                run.features.dtype if network.uses_cache else "float32", run.features.precision
            ),
        )
        if network.suffix is None:
            tracker.head(prepared.network.head)
    for line in recording.summary_lines(result, tracker):
        log.info(line)


def _record_curves(history: History, tracker: Tracker) -> None:
    best = history.best
    if best is not None:
        tracker.figure(lambda: curves.learning_curves(history.epochs, best.number, tracker.name), "curves.png")


def _record_pruning(reason: str, history: History, num_epochs: int, tracker: Tracker) -> Pruned:
    """Record that a search has pruned the attempt, and return the exception to raise."""
    message = f"pruned after epoch {len(history.epochs)} of {num_epochs}: {reason}"
    tracker.tags({"pruned": reason})
    tracker.describe(f"{message}. Run by itself, the attempt resumes from its checkpoint.")
    log.info(message)
    return Pruned(history.best.val.accuracy.value if history.best else 0.0)


def _ids(split: Split, rows: Rows) -> list[str]:
    # Validation and test rows are indices into the source. (Training rows of an augmented copy are not.)
    return [split.source.ids[row] for row in rows.indices]
