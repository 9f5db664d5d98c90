"""What an attempt's record says."""

import logging

from dogbreeds.evaluation.metrics import PairedOutcome
from dogbreeds.evaluation.results import Epoch
from dogbreeds.experiments.prepare import _Prepared
from dogbreeds.experiments.result import Result
from dogbreeds.tracking.records import short
from dogbreeds.tracking.tracking import Tracker

log = logging.getLogger(__name__)

_BATCHNORM = {
    "frozen": "stay frozen",
    "affine": "keep their statistics and train gamma and beta",
    "trainable": "train, statistics too",
}


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
    tracker.dataset(
        dataset.name, dataset.fingerprint, {name: len(split.rows) for name, split in dataset.splits.items()}
    )
    if prepared.fit is not None:
        tracker.metrics({f"preflight/{mode}": distance for mode, distance in prepared.fit.distances.items()})
    if parent is not None:
        tracker.tags({"parent": parent.run_id})
        tracker.metrics({"parent/val_accuracy": parent.accuracy})
        log.info("going on from run %s, %.1f %% on validation", short(parent.run_id), 100 * parent.accuracy)


def _epoch_line(epoch: Epoch, epochs: int) -> str:
    return (
        f"epoch {epoch.number:>{len(str(epochs))}}/{epochs}  train {100 * epoch.train_accuracy:5.1f} %  loss"
        f" {epoch.train_loss:.3f}   val {100 * epoch.val.accuracy.value:5.1f} %  top-5"
        f" {100 * epoch.val.top5.value:5.1f} %  loss {epoch.val.loss:.3f}   lr {epoch.lr:.2g}  {epoch.seconds:.1f} s"
    )


def _final_metrics(result: Result) -> dict[str, float]:
    outcome = result.outcome
    final = {"seconds/total": result.seconds, "seconds/features": result.feature_seconds, "epochs": len(outcome.epochs)}
    final |= {f"verdict/{name}": value for name, value in result.verdict.numbers.items()}
    if outcome.best is None:
        return final
    low, high = outcome.best.val.accuracy.interval
    final |= {f"best/{name.replace('/', '_')}": value for name, value in outcome.best.metrics().items()}
    final |= {
        f"last/{name.replace('/', '_')}": value
        for name, value in outcome.epochs[-1].metrics().items()
        if name.startswith("val")
    }
    final |= {"best/epoch": outcome.best.number, "best/val_accuracy_low": low, "best/val_accuracy_high": high}
    if result.test is not None:
        final |= {
            "test/accuracy": result.test.accuracy.value,
            "test/top5_accuracy": result.test.top5.value,
            "test/loss": result.test.loss,
        }
    return final


def _paired_metrics(pairs: dict[str, PairedOutcome]) -> dict[str, float]:
    return {
        f"parent/{split}_{name}": value
        for split, pair in pairs.items()
        for name, value in {
            "difference": pair.difference,
            "p_value": pair.p_value,
            "gained": pair.gained,
            "lost": pair.lost,
        }.items()
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
        lines.append(
            f"test  {' ' * 10} {result.test.accuracy}, top-5 {100 * result.test.top5.value:.1f} %, weights of the best"
            " epoch"
        )
    lines += result.untrained.lines()
    lines.append(f"time  {result.seconds:.1f} s, of which {result.feature_seconds:.1f} s before the first epoch")
    lines.append(f"run   {tracker.where()}")
    lines.append(f"{result.verdict}")
    return lines
