"""Resuming an attempt: which recorded run it resumes, and from which checkpoint."""

import logging
from collections.abc import Callable, Sequence
from importlib.metadata import version

from dogbreeds.evaluation.results import Epoch
from dogbreeds.experiments.prepare import PreparedRun
from dogbreeds.experiments.run import Run
from dogbreeds.tracking.records import PriorRuns, Record, short
from dogbreeds.tracking.tracking import Tracker
from dogbreeds.training.checkpoint import Checkpoints
from dogbreeds.training.phase import Training
from dogbreeds.training.state import TrainingState

log = logging.getLogger(__name__)

# Prefix of the file name of an archived checkpoint.
ARCHIVE_PREFIX = "diverged-"
# Prefix of the stop reason of a pruned attempt. Checkpoints contain it.
PRUNED_PREFIX = "pruned: "
# Beginning of the tag `pruned` of a run that was resumed after a search had pruned it. It is stored.
NOT_PRUNED = "no:"


def unfinished_record(run: Run, prior: PriorRuns, checkpoints: Checkpoints) -> Record | None:
    """Return the recorded run to resume, if any; warn about runs whose results cannot be reused."""
    if run.rerun or (prior.finished is not None and prior.unfinished is None):
        # After a finished run, a checkpoint can only be a leftover of a process that ended before removing it.
        checkpoints.remove()
        return None
    if prior.others and prior.unfinished is None:
        log.warning(
            "run %s has the same settings but other images, class names or weights: its results are not reused,"
            " everything is computed again",
            prior.others[0],
        )
    record = prior.unfinished
    if record is not None and "val/accuracy" in record.metrics and checkpoints.newest is None:
        log.warning("run %s was interrupted and its checkpoints are missing: starting over", short(record.run_id))
        return None
    return record


def load_checkpoint(
    prepared: PreparedRun, phase: Training, tracker: Tracker, stop: Callable[[Sequence[Epoch]], str | None]
) -> TrainingState | None:
    """Load the newest checkpoint to resume from; None if there is none, or if it belongs to another setting.

    Metrics that the interrupted process had not recorded yet are recorded. An attempt that one search has pruned
    resumes, unless the current trial prunes it too.
    """
    state = stored_state(prepared)
    if state is None:
        return None
    for epoch in state.history.epochs:
        tracker.metrics(epoch.metrics(), epoch.number)
    if state.history.stop_reason.startswith(PRUNED_PREFIX):
        tracker.tags({"pruned": f"{NOT_PRUNED} resumed"})
        state.history.stop_reason = stop(state.history.epochs) or ""
    log.info(
        "Resuming from checkpoint: epoch %d/%d done%s (rerun=true starts over)",
        state.epoch,
        prepared.run.num_epochs,
        f", {state.step} steps into the next" if state.step else "",
    )
    return state


def stored_state(prepared: PreparedRun) -> TrainingState | None:
    """Return the state of the newest checkpoint; None if there is none, or if it belongs to another setting."""
    stored = prepared.checkpoints.load()
    if stored is None:
        return None
    metadata, arrays = stored
    different = [name for name, value in _checkpoint_setting(prepared).items() if metadata.get(name) != value]
    if different:
        log.warning("the checkpoint was written with a different %s: starting over", " and ".join(different))
        return None
    return TrainingState.from_checkpoint(metadata, arrays)


def save_state(prepared: PreparedRun, state: TrainingState) -> None:
    """Write a checkpoint that `stored_state` returns in a process with the same setting."""
    metadata, arrays = state.to_checkpoint()
    prepared.checkpoints.save(metadata | _checkpoint_setting(prepared), arrays)


def _checkpoint_setting(prepared: PreparedRun) -> dict[str, str | None]:
    """Return what must match, besides the run's identity, for a checkpoint to be resumed."""
    versions = {package: version(package) for package in ("keras", "tensorflow")}
    return {
        "parent": prepared.parent.run_id if prepared.parent else None,
        "strategy": prepared.network.replicas.description,
    } | versions


def archive_checkpoint(checkpoints: Checkpoints, tracker: Tracker) -> None:
    """Save the last checkpoint of an attempt that diverged, and tag the run with its file."""
    file = checkpoints.archive_newest(f"{ARCHIVE_PREFIX}{tracker.run_id or checkpoints.folder.name}.npz")
    if file is None:
        log.info("diverged before the first checkpoint: there is no finite state to save")
        return
    tracker.tags({"checkpoint": str(file)})
    log.info("the last checkpoint with finite values is saved as %s", file)
