"""Disk space of a local MLflow store: what each run keeps, and how to get it back.

Runs that were deleted in MLflow stay in the database, with all their files, until they are deleted for good.
"""

import contextlib
import shutil
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from urllib.request import url2pathname

from dogbreeds.core.files import remove
from dogbreeds.core.process import PROCESS_TAGS
from dogbreeds.tracking.lifecycle import is_process_gone
from dogbreeds.tracking.mlflow_backend import Mlflow
from dogbreeds.tracking.records import MODEL_FOLDER, Record, record_of
from dogbreeds.tracking.run_model import remove_run_model

if TYPE_CHECKING:
    from mlflow.entities import Run as MlflowRun

_SQLITE = "sqlite:///"
# Without these nobody can tell whether a process still works on a run.
_TAGS_OF_OURS = {*PROCESS_TAGS, "heartbeat"}


@dataclass(frozen=True)
class RunOnDisk:
    """A run with its files.

    Attributes:
        record: the run.
        folder: its artifacts; None if they are not on this machine.
        deleted: whether it was deleted in MLflow, from where it can be restored.
        running: whether a process may still be working on it.
        ended: end time in seconds since 1970; its start time if it has not ended.
        network_bytes: size of its saved network.
        other_bytes: size of its other artifacts.
    """

    record: Record
    folder: Path | None
    deleted: bool
    running: bool
    ended: float
    network_bytes: int
    other_bytes: int


def database(tracking: Mlflow) -> Path | None:
    """Return the file of a local store; None for a server, another database, or a store that does not exist yet."""
    if not tracking.uri.startswith(_SQLITE):
        return None
    file = Path(tracking.uri.removeprefix(_SQLITE))
    return file if file.is_file() else None


def runs_on_disk(tracking: Mlflow) -> list[RunOnDisk]:
    """List the runs of all experiments of a store, deleted ones too, the newest first."""
    from mlflow.entities import ViewType

    client = tracking.connect()[0]
    experiments = [found.experiment_id for found in client.search_experiments(view_type=ViewType.ALL)]
    runs: list[RunOnDisk] = []
    token = None
    while True:
        page = client.search_runs(experiments, run_view_type=ViewType.ALL, max_results=1000, page_token=token)
        runs += map(_on_disk, page)
        token = page.token
        if not token:
            return sorted(runs, key=lambda run: -run.record.started)


def _on_disk(run: "MlflowRun") -> RunOnDisk:
    uri = urlsplit(run.info.artifact_uri or "")
    folder = Path(url2pathname(uri.path)) if uri.scheme in ("", "file") else None
    # MLflow's own layout: nothing outside a folder of the run's name is ever removed.
    if folder is not None and run.info.run_id not in folder.parts:
        folder = None
    network_bytes = folder_size(folder / MODEL_FOLDER) if folder else 0
    tags = run.data.tags
    return RunOnDisk(
        record=record_of(run),
        folder=folder,
        deleted=run.info.lifecycle_stage == "deleted",
        running=run.info.status == "RUNNING" and (not _TAGS_OF_OURS.issubset(tags) or not is_process_gone(tags)),
        ended=(run.info.end_time or run.info.start_time) / 1000,
        network_bytes=network_bytes,
        other_bytes=folder_size(folder) - network_bytes if folder else 0,
    )


def folder_size(folder: Path) -> int:
    """Return the size of all files below a folder in bytes; 0 if it does not exist."""
    total = 0
    for file in folder.rglob("*"):
        # Another process may remove it meanwhile.
        with contextlib.suppress(FileNotFoundError):
            total += 0 if file.is_dir() else file.lstat().st_size
    return total


def registered_run_ids(tracking: Mlflow) -> set[str]:
    """Return the runs that registered models were made from."""
    return {version.run_id for version in tracking.connect()[0].search_model_versions("")}


def remove_network(tracking: Mlflow, run: RunOnDisk) -> bool:
    """Remove a run's saved network, and say so in its tags. Its metrics and predictions stay."""
    if run.folder is None:
        return False
    # The tag comes first: without it, other commands would look for the file.
    client = tracking.connect()[0]
    client.set_tag(run.record.run_id, "model", "removed: its space was cleared")
    remove_run_model(client, run.record.experiment_id, run.record.run_id)
    remove(run.folder / MODEL_FOLDER)
    return True


def delete_for_good(tracking: Mlflow, run: RunOnDisk) -> bool:
    """Delete a run that was deleted in MLflow from the database, and its files; do nothing if it was restored."""
    import mlflow

    client = tracking.connect()[0]
    if client.get_run(run.record.run_id).info.lifecycle_stage != "deleted":
        return False
    remove_run_model(client, run.record.experiment_id, run.record.run_id)
    # As `mlflow gc` does, which would delete experiments that nobody named, too.
    store = mlflow.MlflowClient(tracking.uri)._tracking_client.store
    if run.folder is not None:
        shutil.rmtree(run.folder, ignore_errors=True)
        # The folder above is the run's own.
        with contextlib.suppress(OSError):
            run.folder.parent.rmdir()
    with tracking.user_errors():
        store._hard_delete_run(run.record.run_id)
    return True


def compact(tracking: Mlflow) -> None:
    """Return the space of what was deleted from a local database to the disk, unless another process is writing."""
    file = database(tracking)
    if file is not None:
        with contextlib.suppress(sqlite3.OperationalError), contextlib.closing(sqlite3.connect(file)) as connection:
            connection.execute("VACUUM")
