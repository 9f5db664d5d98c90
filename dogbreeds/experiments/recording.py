"""The parameters, metrics and log lines of an attempt."""

import logging
from importlib.metadata import version

from dogbreeds.evaluation.metrics import PairedOutcome, Scores
from dogbreeds.evaluation.results import Epoch
from dogbreeds.experiments.prepare import PreparedRun
from dogbreeds.experiments.result import Result
from dogbreeds.models.runtime import TENSORFLOW
from dogbreeds.tracking.records import short
from dogbreeds.tracking.tracking import Tracker

log = logging.getLogger(__name__)

_BATCHNORM = {
    "frozen": "stay frozen",
    "affine": "keep their statistics and train gamma and beta",
    "trainable": "train, including their statistics",
}


def record_setup(prepared: PreparedRun, tracker: Tracker) -> None:
    """Log and record what is about to be trained, and on which data.

    Args:
        prepared: run that is about to train.
        tracker: of the run.
    """
    run = prepared.run
    dataset = prepared.dataset
    network = prepared.network
    parent = prepared.parent
    plan = network.plan
    counts = network.parameter_counts()
    batchnorms = network.num_unfrozen_batchnorms
    sizes = {name: len(split.rows) for name, split in dataset.splits.items()}
    log.info(
        "training the head (%s)%s: %s of %s parameters%s",
        type(run.head).__name__,
        f" and {plan.summary}" if plan.num_layers else ", on a frozen backbone",
        f"{counts['trainable']:,}",
        f"{counts['total']:,}",
        f"; {batchnorms} BatchNorm layers {_BATCHNORM[plan.batchnorm]}" if batchnorms else "",
    )
    tracker.parameters(
        run.parameters()
        | {f"parameters.{name}": count for name, count in counts.items()}
        | {f"data.images.{name}": size for name, size in sizes.items()}
        | {"data.name": dataset.name, "data.classes": len(dataset.class_names), "key": run.key, **prepared.facts}
        | {"unfreeze.layers_asked": plan.num_requested, "unfreeze.layers_trained": plan.num_layers}
        | {"unfreeze.plan": plan.summary}
        | ({"data.num_excluded": dataset.num_excluded} if dataset.num_excluded else {})
        | ({"data.num_relabelled": dataset.num_relabelled} if dataset.num_relabelled else {})
    )
    if run.features.runtime != TENSORFLOW:
        tracker.tags({f"version.{run.features.runtime}": version(run.features.runtime)})
    tracker.dataset(dataset.name, dataset.fingerprint, sizes)
    if prepared.pixel_fit is not None:
        tracker.metrics({f"preflight/{name}": value for name, value in prepared.pixel_fit.metrics().items()})
    if parent is not None:
        tracker.tags({"parent": parent.run_id})
        tracker.metrics({"parent/val_accuracy": parent.accuracy})
        # The best frozen run is the parent whatever its verdict: what is wrong with it should be seen.
        verdict = f", verdict {parent.verdict.replace('_', ' ')}" if parent.verdict not in ("", "learned") else ""
        log.info(
            "fine-tuning from run %s, %.1f %% on validation%s", short(parent.run_id), 100 * parent.accuracy, verdict
        )


def epoch_line(epoch: Epoch, epochs: int) -> str:
    """Format an epoch's scores as one log line, short enough for 80 columns: the losses are those of train and val.

    Args:
        epoch: completed epoch.
        epochs: number of epochs that the run may take.
    """
    if epoch.strength is not None:
        rate = f"C {epoch.strength:.2g}"
    elif epoch.lr is not None:
        rate = f"lr {epoch.lr:.2g}"
    else:
        rate = _soup(epoch)
    return (
        f"epoch {epoch.number:>{len(str(epochs))}}/{epochs}  train {100 * epoch.train_accuracy:5.1f} %  val"
        f" {100 * epoch.val.accuracy.value:5.1f} %  loss {_short(epoch.train_loss)}/{_short(epoch.val.loss)}"
        f"  {rate}  {_short(epoch.seconds, decimals=1)} s"
    )


def _short(value: float, decimals: int = 3) -> str:
    """Format a number with as many decimals as five characters hold."""
    texts = (f"{value:.{kept}f}" for kept in range(decimals, -1, -1))
    return next((text for text in texts if len(text) <= 5), f"{value:.0e}")


def _top5(scores: Scores) -> str:
    """Format the top-5 accuracy; empty with so few classes that there is none."""
    return f", top-5 {100 * scores.top5.value:.1f} %" if scores.top5 is not None else ""


def _alternative(epoch: Epoch) -> str:
    """Format what tells an alternative from the others: strength of regularisation, or what a soup is made of."""
    if epoch.strength is not None:
        return f", C {epoch.strength:g}"
    return f", {_soup(epoch)}" if epoch.members is not None else ""


def _soup(epoch: Epoch) -> str:
    share = f", {100 * epoch.soup_share:.0f} % of it" if epoch.soup_share not in (None, 1) else ""
    return f"soup of {epoch.members}{share}"


def final_metrics(result: Result) -> dict[str, float]:
    """Return the metrics of a finished attempt: time, verdict, best and last epoch, and test scores."""
    history = result.history
    metrics = {
        "seconds/total": result.seconds,
        "seconds/features": result.feature_seconds,
        "epochs": len(history.epochs),
    }
    metrics |= {f"verdict/{name}": value for name, value in result.verdict.numbers.items()}
    if history.best is None:
        return metrics
    low, high = history.best.val.accuracy.interval
    metrics |= {f"best/{name.replace('/', '_')}": value for name, value in history.best.metrics().items()}
    metrics |= {
        f"last/{name.replace('/', '_')}": value
        for name, value in history.epochs[-1].metrics().items()
        if name.startswith("val")
    }
    metrics |= {"best/epoch": history.best.number, "best/val_accuracy_low": low, "best/val_accuracy_high": high}
    if result.test is not None:
        metrics |= {
            "test/accuracy": result.test.accuracy.value,
            "test/loss": result.test.loss,
            "test/balanced_accuracy": result.test.balanced_accuracy,
            "test/macro_f1": result.test.macro_f1,
        }
        if result.test.top5 is not None:
            metrics["test/top5_accuracy"] = result.test.top5.value
    return metrics


def paired_metrics(pairs: dict[str, PairedOutcome]) -> dict[str, float]:
    """Return the metrics of a fine-tune's paired comparison with its parent.

    Args:
        pairs: paired comparison of each split.
    """
    return {f"parent/{split}_{name}": value for split, pair in pairs.items() for name, value in pair.metrics().items()}


def run_lines(tracker: Tracker) -> list[str]:
    """Say where a run is recorded, and where its page is, if it has one."""
    link = tracker.link()
    return [f"run   {tracker.location()}", *([link.line("open")] if link else [])]


def summary_lines(result: Result, tracker: Tracker) -> list[str]:
    """Format a finished attempt as the last lines of its log; the verdict comes last.

    Args:
        result: of the attempt.
        tracker: of the run, which names the place of the record.
    """
    history = result.history
    lines = [f"stopped: {history.stop_reason}"] if history.stop_reason else []
    best_and_last = [("best", history.best), ("last", history.epochs[-1] if history.epochs else None)]
    lines += [
        f"{name}  val  {epoch.val.accuracy}{_top5(epoch.val)}, epoch {epoch.number}{_alternative(epoch)}"
        for name, epoch in best_and_last
        # The last alternative only shows that the best one is behind it.
        if epoch is not None and (name == "best" or not epoch.is_alternative)
    ]
    if result.test is not None:
        lines.append(f"best  test {result.test.accuracy}{_top5(result.test)}")
    if result.refitted_test is not None:
        lines.append(f"saved network, fitted to train and val: test {result.refitted_test.accuracy}")
    lines += result.baseline.lines()
    lines += result.reference.lines()
    lines.append(f"time  {result.seconds:.1f} s, of which {result.feature_seconds:.1f} s before the first epoch")
    lines += run_lines(tracker)
    lines.append(f"{result.verdict}")
    return lines
