"""What keeps disk space: which kind each file is of, and that nothing else is removed."""

import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from dogbreeds import cache as cache_command
from dogbreeds.core.errors import UserError
from dogbreeds.core.process import process_tags
from dogbreeds.experiments import disk_space
from dogbreeds.experiments.disk_space import KINDS, Item
from dogbreeds.features.cache import FeatureCache
from dogbreeds.tracking import disk_use
from dogbreeds.tracking.disk_use import RunOnDisk
from dogbreeds.tracking.mlflow_backend import Mlflow
from dogbreeds.tracking.records import Record, short
from dogbreeds.training.checkpoint import Checkpoints


def run_on_disk(run_id: str, status: str, identity: str, deleted: bool = False, **tags: str) -> RunOnDisk:
    record = Record(run_id, "a run", 0.0, status, {}, {}, {"identity": identity} | tags)
    return RunOnDisk(record, None, deleted, running=False, ended=0.0, network_bytes=0, other_bytes=0)


def kinds(items: list[Item]) -> dict[str, str]:
    return {item.name: item.kind for item in items}


# --- checkpoints --------------------------------------------------------------


def test_checkpoints_are_of_unfinished_runs_unless_a_record_says_otherwise(tmp_path: Path) -> None:
    names = ("killed", "pruned", "resumed", "finished", "removed", "again", "unknown")
    for name in names:
        Checkpoints(tmp_path / name).save({"epoch": 1}, {"weights": np.zeros(1000)})
    Checkpoints(tmp_path / "nan").save({"epoch": 1}, {"weights": np.zeros(1000)})
    Checkpoints(tmp_path / "nan").archive_newest("diverged-abc.npz")
    runs = [
        run_on_disk("1", "KILLED", "killed"),
        run_on_disk("2", "KILLED", "pruned", pruned="collapsed: it fell"),
        run_on_disk("3", "KILLED", "resumed", pruned="no: resumed"),
        run_on_disk("4", "FINISHED", "finished"),
        run_on_disk("5", "KILLED", "removed", deleted=True),
        # The newest come first: started again after it had finished, and interrupted.
        run_on_disk("6", "FAILED", "again"),
        run_on_disk("7", "FINISHED", "again"),
        run_on_disk("abc", "FINISHED", "nan"),
    ]
    items = list(disk_space.checkpoint_items(tmp_path, runs))
    assert kinds(items) == {
        "killed": "unfinished",
        "pruned": "pruned",
        "resumed": "unfinished",
        "finished": "leftover",
        "removed": "leftover",
        "again": "unfinished",
        "unknown": "unfinished",
        "diverged-abc.npz": "diverged",
    }
    assert all(item.size_bytes > 8000 for item in items)
    assert all(item.remove() for item in items if item.kind != "unfinished")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "killed", "resumed", "unknown"]


def test_checkpoints_of_a_run_that_is_being_worked_on_are_not_removed(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "a")
    checkpoints.save({"epoch": 1}, {})
    (item,) = disk_space.checkpoint_items(tmp_path, [])
    with checkpoints.locked():
        assert not item.remove()
    assert checkpoints.newest is not None
    assert item.remove()
    assert list(tmp_path.iterdir()) == []


def test_killed_process_in_a_lock_file_is_still_there_after_a_removal(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "a")
    checkpoints.save({"epoch": 1}, {})
    (tmp_path / "a.lock").write_text("host boot 1 2.0\n")
    assert checkpoints.remove_unless_in_use()
    with checkpoints.locked() as lock:
        assert lock.dead_processes == ["host boot 1 2.0"]


# --- cached arrays ------------------------------------------------------------


def test_cached_arrays_in_use_are_not_removed(tmp_path: Path) -> None:
    def produce(rows: np.ndarray, start: int, notes: dict):
        yield len(rows)

    cache = FeatureCache(tmp_path, 10**9)
    for kind in ("photos", "features", "preflight"):
        cache.get_or_compute(kind, {"size": 64, "resize": "pad"}, (10, 3), "float32", produce)
    items = list(disk_space.cached_items(cache))
    assert sorted(item.kind for item in items) == ["features", "features", "images"]
    assert [item.remove() for item in items] == [False] * 3
    FeatureCache.release()
    assert [item.remove() for item in items if item.kind == "images"] == [True]
    assert sorted(item.name.split("-")[0] for item in disk_space.cached_items(cache)) == ["features", "preflight"]


# --- recorded runs ------------------------------------------------------------


@pytest.fixture
def tracking(composed) -> Mlflow:
    return composed().tracking


@pytest.fixture
def recorded(tracking: Mlflow) -> Callable[..., str]:
    """A function that records a run with a saved network of 1,000 bytes and another artifact of 100; returns its id."""

    def record(accuracy: float, status: str = "FINISHED", data: str = "shapes", **tags: str) -> str:
        client, experiment = tracking.connect()
        run_id = client.create_run(experiment, tags=tags).info.run_id
        client.log_param(run_id, "data.name", data)
        client.log_metric(run_id, "best/val_accuracy", accuracy)
        folder = Path(client.get_run(run_id).info.artifact_uri.removeprefix("file://"))
        (folder / "model").mkdir(parents=True)
        (folder / "model/model.keras").write_bytes(bytes(1000))
        (folder / "curves.png").write_bytes(bytes(100))
        client.set_tag(run_id, "model", "kept")
        if status != "RUNNING":
            client.set_terminated(run_id, status)
        # Start times have a resolution of a millisecond.
        time.sleep(0.002)
        return run_id

    return record


def test_networks_and_deleted_runs_are_removed_and_nothing_that_is_needed(
    tracking: Mlflow, recorded: Callable[..., str]
) -> None:
    best, worse, registered = recorded(0.9), recorded(0.3), recorded(0.2)
    best_elsewhere, interrupted = recorded(0.1, data="letters"), recorded(0.5, "KILLED")
    sweep = recorded(0.0, "RUNNING", **process_tags())
    job = recorded(0.2, **{"mlflow.parentRunId": sweep})
    client, _ = tracking.connect()
    client.create_registered_model("dogs")
    client.create_model_version("dogs", client.get_run(registered).info.artifact_uri, registered)
    deleted, deleted_in_use, newest = recorded(0.8), recorded(0.7, "RUNNING", **process_tags()), recorded(0.1)
    for run_id in (deleted, deleted_in_use):
        client.delete_run(run_id)
    of_another_tool = recorded(0.7, "RUNNING", host="elsewhere")
    client.delete_run(of_another_tool)
    restored = recorded(0.1)
    client.delete_run(restored)
    runs = disk_use.runs_on_disk(tracking)
    client.restore_run(restored)
    items = list(disk_space.run_items(tracking, runs))
    assert {(item.kind, item.name, item.size_bytes) for item in items} == {
        ("networks", short(worse), 1000),
        ("deleted_runs", short(deleted), 1100),
        ("deleted_runs", short(restored), 1100),
    }
    assert [item.name for item in items if not item.remove()] == [short(restored)]
    disk_use.compact(tracking)
    after = {run.record.run_id: run for run in disk_use.runs_on_disk(tracking)}
    with_network = {run_id for run_id, run in after.items() if run.network_bytes}
    needed = {best, registered, best_elsewhere, interrupted, sweep, job, newest}
    assert set(after) == {*needed, worse, deleted_in_use, of_another_tool, restored}
    assert with_network == set(after) - {worse}
    assert after[worse].record.tags["model"].startswith("removed: ")
    assert after[worse].other_bytes == 100
    assert not (Path(tracking.artifacts) / deleted).exists()
    with sqlite3.connect(tracking.uri.removeprefix("sqlite:///")) as database:
        rows = database.execute("SELECT count(*) FROM metrics WHERE run_uuid = ?", (deleted,)).fetchone()
    assert rows == (0,)


# --- the command --------------------------------------------------------------


@pytest.mark.parametrize(
    ("clear", "chosen"),
    [
        (None, ()),
        (False, ()),
        ("leftover", ("leftover",)),
        (["features", "deleted_runs"], ("features", "deleted_runs")),
        (list(KINDS), tuple(KINDS)),
    ],
)
def test_clear_takes_a_kind_or_a_list(clear: object, chosen: tuple[str, ...]) -> None:
    assert cache_command._kinds(clear) == chosen


@pytest.mark.parametrize("clear", ["all", ["leftover", "x"], [], 1])
def test_clear_refuses_what_is_no_kind(clear: object) -> None:
    with pytest.raises(UserError, match=r"^clear was .*Type clear=true or "):
        cache_command._kinds(clear)


@pytest.mark.parametrize("confirm", [False, True])
def test_clear_removes_only_if_confirmed(confirm: bool, tracking: Mlflow, capsys: pytest.CaptureFixture[str]) -> None:
    removed: list[str] = []

    def item(name: str, removable: bool) -> Item:
        return Item("leftover", name, 3_000_000, time.time(), "run x", lambda: bool(removed.append(name)) or removable)

    cache_command._clear([item("first", True), item("second", False)], cast(Mlflow, None), confirm)
    printed = capsys.readouterr().out
    if confirm:
        assert removed == ["first", "second"]
        assert printed == "1 items removed, 3 MB; 1 are in use\n"
    else:
        assert removed == []
        assert [line.split()[0] for line in printed.splitlines()] == ["first", "second", "2"]
        assert "confirm=true" in printed


@pytest.mark.long
@pytest.mark.own_cache
def test_cache_command_lists_checkpoints_and_runs_and_clears_what_is_named(command, tmp_path: Path) -> None:
    small = ("data.classes=3", "phase.epochs=1", "tracking.system_metrics_seconds=0")
    assert command("train", *small).returncode == 0
    unknown = tmp_path / "home/multirun/checkpoints/0123/00000001.npz"
    unknown.parent.mkdir(parents=True)
    unknown.write_bytes(bytes(2_000_000))
    arrays, checkpoints, runs, clearable = command("cache").stdout.split("\n\n")
    assert arrays.splitlines()[-1].startswith("7 cached arrays")
    assert checkpoints.splitlines()[0].split()[:3] == ["0123", "2", "MB"]
    assert [line.split("  ")[0] for line in runs.splitlines()[:3]] == ["database", "saved networks", "other artifacts"]
    assert runs.splitlines()[-1].startswith("1 recorded runs, ")
    assert [line.split()[0] for line in clearable.splitlines()[:-1]] == [
        "clear=images",
        "clear=features",
        "clear=unfinished",
    ]
    assert "Nothing was removed" in command("cache", "clear=unfinished").stdout
    assert unknown.exists()
    old = command("cache", "clear=unfinished", "older_than_days=1", "confirm=true")
    assert old.stdout == "0 items removed, 0 B\n"
    assert command("cache", "clear=unfinished", "confirm=true").stdout == "1 items removed, 2 MB\n"
    assert not unknown.parent.exists()
    images = command("cache", "clear=images", "confirm=true")
    assert images.stdout.startswith("3 items removed, ")
