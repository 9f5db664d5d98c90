"""What keeps disk space, in items of the kinds that can be cleared: cached arrays, checkpoints, recorded runs."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dogbreeds.experiments.resume import ARCHIVE_PREFIX, NOT_PRUNED
from dogbreeds.features.cache import FeatureCache
from dogbreeds.tracking import disk_use
from dogbreeds.tracking.disk_use import RunOnDisk
from dogbreeds.tracking.mlflow_backend import Mlflow
from dogbreeds.tracking.records import RANKING_METRIC, short
from dogbreeds.training.checkpoint import Checkpoints, StoredCheckpoints, stored_checkpoints

# What is lost with each kind. Those of the first group are computed again when a run needs them.
CACHED_KINDS = {
    "images": "decoded images; a run with another backbone or cut decodes them again",
    "features": "outputs of frozen backbones; computed again when a run needs them",
}
CHECKPOINT_KINDS = {
    "leftover": "checkpoints of runs that have finished or were deleted; nothing needs them",
    "diverged": "last checkpoints of runs that diverged; no run resumes from them",
    "pruned": "checkpoints of trials that a search pruned; run by themselves, these start over",
    "unfinished": "checkpoints of interrupted runs; these start over",
}
RUN_KINDS = {
    "networks": "saved networks, except the newest, each data set's best and registered ones; no predict or export",
    "deleted_runs": "runs that were deleted in MLflow, with all their files; they cannot be restored",
}
KINDS = CACHED_KINDS | CHECKPOINT_KINDS | RUN_KINDS


@dataclass(frozen=True)
class Item:
    """Something on disk that can be removed.

    Attributes:
        kind: one of `KINDS`.
        name: what it is called on disk or in MLflow.
        size_bytes: its size.
        last_used: in seconds since the epoch.
        description: a few words, such as which run it belongs to.
        remove: removes it unless a process uses it; returns whether it was removed.
    """

    kind: str
    name: str
    size_bytes: int
    last_used: float
    description: str
    remove: Callable[[], bool]


def cached_items(cache: FeatureCache) -> Iterator[Item]:
    """Yield the cached arrays, the most recently used first."""
    for info in cache.entries():
        kind = "images" if info.name.lstrip(".").startswith("photos-") else "features"
        description = "{:,} of {:,} rows".format(*info.unfinished) if info.unfinished is not None else ""

        def remove(name: str = info.name) -> bool:
            return cache.remove(name)

        yield Item(kind, info.name, info.size_bytes, info.last_used, description, remove)


def checkpoint_items(folder: Path, runs: Sequence[RunOnDisk]) -> Iterator[Item]:
    """Yield the checkpoints, the newest first.

    Args:
        folder: `checkpoint_dir`.
        runs: all recorded runs. A checkpoint that none of them explains counts as one of an unfinished run.
    """
    for stored in stored_checkpoints(folder):
        kind, description = _classify(stored, runs)
        yield Item(
            kind, stored.path.name, stored.size_bytes, stored.last_written, description, _checkpoint_remover(stored)
        )


def _checkpoint_remover(stored: StoredCheckpoints) -> Callable[[], bool]:
    def remove_archive() -> bool:
        stored.path.unlink(missing_ok=True)
        return True

    return Checkpoints(stored.path).remove_unless_in_use if stored.path.is_dir() else remove_archive


def _classify(stored: StoredCheckpoints, runs: Sequence[RunOnDisk]) -> tuple[str, str]:
    """Return a checkpoint's kind, and which run it belongs to."""
    if stored.path.is_file():
        run_id = stored.path.stem.removeprefix(ARCHIVE_PREFIX)
        return "diverged", next((_describe(run) for run in runs if run.record.run_id == run_id), "no recorded run")
    same = [run for run in runs if run.record.tags.get("identity") == stored.path.name]
    if not same:
        return "unfinished", "no recorded run"
    unfinished = [run for run in same if not run.deleted and run.record.status != "FINISHED"]
    if not unfinished:
        return "leftover", _describe(same[0])
    pruned = unfinished[0].record.tags.get("pruned", NOT_PRUNED)
    return "unfinished" if pruned.startswith(NOT_PRUNED) else "pruned", _describe(unfinished[0])


def run_items(tracking: Mlflow, runs: Sequence[RunOnDisk]) -> Iterator[Item]:
    """Yield the recorded runs that can be deleted for good, and the saved networks that can be removed."""
    needed = _runs_that_keep_their_network(tracking, runs)
    running = {run.record.run_id for run in runs if run.running}
    for run in runs:
        record = run.record
        if run.running or record.tags.get("mlflow.parentRunId") in running:
            continue

        def delete(run: RunOnDisk = run) -> bool:
            return disk_use.delete_for_good(tracking, run)

        def remove_network(run: RunOnDisk = run) -> bool:
            return disk_use.remove_network(tracking, run)

        if run.deleted:
            size_bytes = run.network_bytes + run.other_bytes
            yield Item("deleted_runs", short(record.run_id), size_bytes, run.ended, record.name, delete)
        elif run.network_bytes and record.status == "FINISHED" and record.run_id not in needed:
            yield Item("networks", short(record.run_id), run.network_bytes, run.ended, record.name, remove_network)


def _runs_that_keep_their_network(tracking: Mlflow, runs: Sequence[RunOnDisk]) -> set[str]:
    """Return the newest run, the best one of each model and data set, and those of registered models."""
    finished = [run.record for run in runs if run.network_bytes and not run.deleted and run.record.status == "FINISHED"]
    best: dict[tuple[str | None, str | None], tuple[float, str]] = {}
    for record in finished:
        group = record.params.get("model.architecture"), record.params.get("data.name")
        score = record.metrics.get(RANKING_METRIC, 0.0), record.run_id
        best[group] = max(best.get(group, score), score)
    return {
        *(record.run_id for record in finished[:1]),
        *(run_id for _, run_id in best.values()),
        *disk_use.registered_run_ids(tracking),
    }


def _describe(run: RunOnDisk) -> str:
    return f"run {short(run.record.run_id)} '{run.record.name}'{', deleted in MLflow' if run.deleted else ''}"
