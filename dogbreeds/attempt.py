"""One attempt, from its run to what it measured."""

import logging
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dogbreeds import curves, preflight, verdict
from dogbreeds.data import Dataset, Split
from dogbreeds.fit import Epoch, Outcome, Rows, fit, predict
from dogbreeds.kept import Store
from dogbreeds.lr_range import Range, range_test
from dogbreeds.memory import Fit
from dogbreeds.metrics import Pair, Scores, score
from dogbreeds.network import Network, assemble
from dogbreeds.phase import Finetune, LrRange, Training
from dogbreeds.run import Run
from dogbreeds.shown import Shown
from dogbreeds.terminal import hushed
from dogbreeds.tracking import Composition, Parent, Predictions, Tracker, short
from dogbreeds.verdict import Setting, Verdict

log = logging.getLogger(__name__)

_BATCHNORM = {"frozen": "stay frozen", "affine": "keep their statistics and train gamma and beta", "trainable": "train, statistics too"}


@dataclass(frozen=True)
class Result:
    """What an attempt measured."""

    outcome: Outcome
    test: Scores | None
    verdict: Verdict
    feature_seconds: float
    seconds: float

    @property
    def objective(self) -> float:
        """The best validation accuracy, for sweepers; 0 where no epoch was finished."""
        return self.outcome.best.val.accuracy.value if self.outcome.best else 0.0


@dataclass(frozen=True)
class _Prepared:
    """All that is there before the first step."""

    run: Run
    dataset: Dataset
    network: Network
    facts: dict[str, str]
    parent: Parent | None
    fit: Fit | None
    findings: list[preflight.Finding]
    started: float

    @property
    def native(self) -> bool | None:
        """Whether the pixels are the backbone's own; None where that cannot be told."""
        if self.fit is None or not self.fit.remembers:
            return None
        return not any(finding.check == "pixels" and finding.clear for finding in self.findings)


def execute(run: Run, composition: Composition) -> Result | Range:
    """Runs an attempt and records it.

    Raises:
        Missing, Refused: where something the user named is not there or does not fit.
    """
    try:
        prepared = _prepare(run)
        with run.tracking.open(composition) as tracker:
            _describe(prepared, tracker)
            shown = Shown(run, prepared.dataset, prepared.network)
            shown.train(0)
            _tag_preflight(prepared, shown, tracker)
            if isinstance(run.phase, LrRange):
                return _range_test(prepared, run.phase, shown, tracker)
            return _train(prepared, run.phase, shown, tracker)
    finally:
        Store.release()


def _prepare(run: Run) -> _Prepared:
    """Opens the data and builds the network; what can be refused before anything is spent is refused here, the cheapest first."""
    started = time.perf_counter()
    dataset = run.data.open()  # what can be refused without TensorFlow is refused before it is imported
    run.model.weights_file()
    for note in dataset.notes:
        log.warning(note)
    log.info(_headline(run, dataset))
    findings = run.preflight.check_data(dataset)
    run.preflight.report(findings)

    with hushed():
        import keras
        import tensorflow as tf

        tf.config.list_physical_devices()  # looks for GPUs now, while remarks on their absence are held back
    logging.getLogger("tensorflow").setLevel(logging.ERROR)  # it warns of retracing, which a sweep's jobs are meant to do
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
    network = assemble(backbone, run.preprocessing, plan, lambda features: run.head.build(features, classes, _head_seed(run.seed)))
    facts = {"model.fingerprint": backbone.fingerprint, "data.fingerprint": dataset.fingerprint}
    parent = _go_on_from_parent(run, run.phase, facts, network) if isinstance(run.phase, Finetune) else None
    return _Prepared(run, dataset, network, facts, parent, fit, findings, started)


def _train(prepared: _Prepared, phase: Training, shown: Shown, tracker: Tracker) -> Result:
    run, dataset, network = prepared.run, prepared.dataset, prepared.network
    val = shown.rows(dataset.val)
    feature_seconds = time.perf_counter() - prepared.started
    so_far: list[Epoch] = []

    def on_epoch(epoch: Epoch) -> str | None:
        so_far.append(epoch)
        tracker.metrics(epoch.metrics(), epoch.number)
        log.info(_epoch_line(epoch, phase.epochs))
        return "stop_on_collapse" if run.stop_on_collapse and verdict.has_collapsed(so_far) else None

    outcome = fit(network, shown.train, val, phase, run.optimizer, run.schedule, run.seed, on_epoch)
    test, pairs = None, {}
    if outcome.best is not None and outcome.best_logits is not None:
        said = {"val": Predictions(_ids(dataset.val, val), val.labels, outcome.best_logits)}
        if dataset.test is not None:
            rows = shown.rows(dataset.test)
            said["test"] = Predictions(_ids(dataset.test, rows), rows.labels, predict(network, rows))
            test = score(said["test"].logits, rows.labels)
        for split, predictions in said.items():
            tracker.predictions(split, predictions)
            if prepared.parent is not None:
                pairs[split] = predictions.beside(prepared.parent.predictions[split], split)
        best = outcome.best
        tracker.picture(lambda: curves.draw(outcome.epochs, best.number, tracker.name), "curves.png")
        tracker.model(lambda: network.whole(dataset.class_names, run.data.resize), best.val.accuracy.value)
        if network.suffix is None:
            tracker.head(network.head)
    # The best epoch was chosen on val, so that only test is a fair judge of it, where there is one.
    pair = pairs.get("test", pairs.get("val"))
    setting = Setting(len(dataset.class_names), run.optimizer.lr, prepared.native, pair, outcome.ended if outcome.diverged else "")
    judged = verdict.judge(outcome.epochs, setting)
    result = Result(outcome, test, judged, feature_seconds, time.perf_counter() - prepared.started)
    tracker.metrics(_final_metrics(result) | _paired_metrics(pairs))
    tracker.tags({"verdict": judged.name, "verdict.reason": judged.reason, "verdict.advice": judged.advice})
    tracker.describe(str(judged))
    for line in _summary(result, tracker):
        log.info(line)
    return result


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


def _go_on_from_parent(run: Run, phase: Finetune, facts: dict[str, str], network: Network) -> Parent:
    """Gives the head the weights of the frozen attempt that the phase names, or that matches."""
    head = {name: value for name, value in run.parameters().items() if name.split(".")[0] == "head"}
    pixels = {"preprocessing.mode": run.preprocessing.mode, "data.resize": run.data.resize, "model.image_size": run.model.image_size}
    with tempfile.TemporaryDirectory() as folder:
        parent = run.tracking.parent(phase.parent, facts | head | pixels, run.seed, Path(folder))
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
    lines.append(f"time  {result.seconds:.1f} s, of which {result.feature_seconds:.1f} s before the first epoch")
    lines.append(f"run   {tracker.where()}")
    lines.append(f"{result.verdict}")
    return lines
