"""A run of the phase `lr_range`: the learning-rate range test, recorded, with what to type after it."""

import logging
import time

from dogbreeds.evaluation.results import Range
from dogbreeds.experiments.prepare import PreparedRun
from dogbreeds.experiments.recording import run_lines
from dogbreeds.experiments.training_inputs import TrainingInputs
from dogbreeds.reports import curves
from dogbreeds.tracking.tracking import Tracker
from dogbreeds.training.lr_range import range_test
from dogbreeds.training.phase import LrRange

log = logging.getLogger(__name__)


def run_range_test(prepared: PreparedRun, phase: LrRange, inputs: TrainingInputs, tracker: Tracker) -> Range:
    """Run the learning-rate range test, and record and log its suggestion."""
    run = prepared.run
    measured = range_test(
        prepared.network,
        inputs.train(0),
        phase,
        run.optimizer,
        run.seed,
        inputs.class_weights(),
        run.precision,
    )
    tracker.series({"lr": measured.lrs, "train/loss": measured.losses})
    tracker.figure(lambda: curves.lr_range_curve(measured, tracker.name), "lr_range.png")
    if measured.suggestion is None and measured.falling:
        log.info(
            "the loss is still falling at lr %.1g, where the test ends: type phase.max_lr=%.0g",
            measured.lrs[-1],
            100 * measured.lrs[-1],
        )
    elif measured.suggestion is None:
        log.info(
            "the loss never fell: no learning rate between %.1g and %.1g trains; check preprocessing and head",
            measured.lrs[0],
            measured.lrs[-1],
        )
    else:
        tracker.metrics({"suggested/lr": measured.suggestion})
        log.info(
            "the loss is lowest at lr %.2g and rises above it: type optimizer.lr=%.1g",
            10 * measured.suggestion,
            measured.suggestion,
        )
    log.info("time  %.1f s", time.perf_counter() - prepared.started)
    for line in run_lines(tracker):
        log.info(line)
    return measured
