"""Prior runs, resumed runs and orphaned runs, in a real SQLite store."""

import logging
import os
import signal
import sqlite3
import time
from dataclasses import replace
from pathlib import Path

import mlflow
import psutil
import pytest

from dogbreeds.core import signals
from dogbreeds.core.errors import UserError
from dogbreeds.core.process import process_tags
from dogbreeds.tracking import lifecycle
from dogbreeds.tracking.records import PriorRuns, RunOrigin


def origin(folder: Path, identity: str = "i", key: str = "k") -> RunOrigin:
    return RunOrigin("seed: 0\n", (), "an attempt", folder, key=key, identity=identity)


@pytest.mark.parametrize(
    ("tags", "silent_seconds", "status"),
    [
        # The process exists; it is only busy.
        ({}, 3600, "RUNNING"),
        # No such process exists.
        ({"process": "4194304"}, 0, "KILLED"),
        # Another process has its id: it started at another time.
        ({"process.started": "-1000.0"}, 0, "KILLED"),
        # The machine was rebooted.
        ({"host.boot": "an earlier one"}, 0, "KILLED"),
        # On another machine, which sends heartbeats.
        ({"host": "elsewhere"}, 0, "RUNNING"),
        # On another machine, whose heartbeats have stopped.
        ({"host": "elsewhere"}, 3600, "KILLED"),
    ],
)
def test_prior_runs_closes_runs_whose_process_is_gone(
    composed, tags: dict[str, str], silent_seconds: float, status: str
) -> None:
    tracking = composed().tracking
    client, experiment = tracking.connect()
    run_id = client.create_run(
        experiment, tags=process_tags() | {"heartbeat": str(time.time() - silent_seconds)} | tags
    ).info.run_id
    assert tracking.prior_runs("k", "i") == PriorRuns()
    assert client.get_run(run_id).info.status == status


def test_prior_runs_leaves_a_run_without_heartbeat_tag_running(composed) -> None:
    tracking = composed().tracking
    client, experiment = tracking.connect()
    run_id = client.create_run(experiment, tags={"host": "elsewhere"}).info.run_id
    assert tracking.prior_runs("k", "i") == PriorRuns()
    assert client.get_run(run_id).info.status == "RUNNING"


@pytest.mark.parametrize("seconds", [-3600, 3600])
def test_prior_runs_closes_no_run_when_the_clock_is_set(
    composed, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    """psutil derives a process's start time from the boot time, which moves with the clock."""
    tracking = composed().tracking
    client, experiment = tracking.connect()
    run_id = client.create_run(experiment, tags=process_tags() | {"heartbeat": str(time.time())}).info.run_id
    before, moved = psutil.Process().create_time(), psutil.boot_time() + seconds
    monkeypatch.setattr(psutil._psplatform, "boot_time", lambda: moved)
    # Older versions of psutil read this.
    monkeypatch.setattr(psutil._psplatform, "BOOT_TIME", moved, raising=False)
    assert psutil.Process().create_time() == pytest.approx(before + seconds, abs=1)
    assert tracking.prior_runs("k", "i") == PriorRuns()
    assert client.get_run(run_id).info.status == "RUNNING"


def test_close_orphaned_runs_leaves_a_run_that_another_process_resumes_meanwhile(
    composed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracking = composed().tracking
    client, experiment = tracking.connect()
    run_id = client.create_run(
        experiment, tags=process_tags() | {"heartbeat": "0", "process.started": "-1000.0"}
    ).info.run_id
    search_runs = mlflow.MlflowClient.search_runs

    def resume_after_search(*arguments, **named):
        found = search_runs(*arguments, **named)
        lifecycle.resume_run(client, run_id, origin(tmp_path), None)
        return found

    with monkeypatch.context() as patched:
        patched.setattr(mlflow.MlflowClient, "search_runs", resume_after_search)
        lifecycle.close_orphaned_runs(client, experiment)
    assert client.get_run(run_id).info.status == "RUNNING"
    client.set_tag(run_id, "process.started", "-1000.0")
    lifecycle.close_orphaned_runs(client, experiment)
    assert client.get_run(run_id).info.status == "KILLED"


@pytest.mark.parametrize("last_call", ["create_run", "log_artifact"])
def test_open_records_the_config_on_resume_if_a_kill_prevented_it(
    composed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last_call: str
) -> None:
    tracking = composed().tracking
    client, _ = tracking.connect()
    method = getattr(mlflow.MlflowClient, last_call)

    def exit_after_call(*arguments, **named):
        method(*arguments, **named)
        raise SystemExit

    with monkeypatch.context() as patched:
        patched.setattr(mlflow.MlflowClient, last_call, exit_after_call)
        with (
            pytest.raises(SystemExit),
            tracking.open(replace(origin(tmp_path), overrides=("seed=0", "data.classes=3"))),
        ):
            pass
    run = client.search_runs(["1"])[0]
    assert (run.info.status, "overrides" in run.data.params) == ("RUNNING", False)
    client.set_tag(run.info.run_id, "process.started", "-1000.0")
    with tracking.open(
        replace(origin(tmp_path), overrides=("data.classes=3", "seed=0")), tracking.prior_runs("k", "i").unfinished
    ) as tracker:
        assert tracker.run_id == run.info.run_id
    assert client.get_run(run.info.run_id).data.params["overrides"] == "data.classes=3 seed=0"
    assert tracking.config(run.info.run_id) == "seed: 0\n"


def test_prior_runs_returns_finished_unfinished_and_other_runs(composed, tmp_path: Path) -> None:
    tracking = composed().tracking
    client, _ = tracking.connect()
    assert tracking.prior_runs("k", "i") == PriorRuns()
    with pytest.raises(KeyboardInterrupt), tracking.open(origin(tmp_path)) as tracker:
        first = tracker.run_id
        raise KeyboardInterrupt
    assert tracking.prior_runs("k", "i").unfinished.run_id == first
    assert tracking.prior_runs("k", "i").finished is None
    assert tracking.prior_runs("k", "other images") == PriorRuns(
        others=(first[: len(tracking.prior_runs("k", "other images").others[0])],)
    )
    assert tracking.prior_runs("other settings", "i") == PriorRuns()
    with tracking.open(origin(tmp_path), tracking.prior_runs("k", "i").unfinished) as tracker:
        assert tracker.run_id == first
        assert client.get_run(first).info.status == "RUNNING"
    found = tracking.prior_runs("k", "i")
    assert (found.finished.run_id, found.unfinished, found.others) == (first, None, ())
    assert found.finished.tags["resumed"] == "1"


def test_tracker_records_everything_once_when_a_run_is_resumed(composed, tmp_path: Path) -> None:
    tracking = composed().tracking
    client, _ = tracking.connect()
    with pytest.raises(RuntimeError), tracking.open(origin(tmp_path)) as tracker:
        tracker.parameters({"seed": 0, "features.dir": "here"})
        tracker.metrics({"preflight/raw": 0.1})
        for epoch in (1, 2):
            tracker.metrics({"val/accuracy": epoch / 10, "lr": 1e-3}, epoch)
        raise RuntimeError("bug")
    before = tracking.prior_runs("k", "i").unfinished
    assert before.status == "FAILED"
    with tracking.open(origin(tmp_path), before) as tracker:
        # Settings outside the key may differ. MLflow refuses to change a parameter, so the first value stays.
        tracker.parameters({"seed": 0, "features.dir": "there", "more": 1})
        tracker.metrics({"preflight/raw": 0.1})
        for epoch in (1, 2, 3):
            tracker.metrics({"val/accuracy": epoch / 10, "lr": 1e-3}, epoch)
        tracker.metrics({"val/accuracy": 0.3}, 3)
    record = client.get_run(before.run_id)
    assert record.info.status == "FINISHED"
    assert [(point.step, point.value) for point in client.get_metric_history(before.run_id, "val/accuracy")] == [
        (1, 0.1),
        (2, 0.2),
        (3, 0.3),
    ]
    assert len(client.get_metric_history(before.run_id, "preflight/raw")) == 1
    assert {name: record.data.params[name] for name in ("seed", "features.dir", "more")} == {
        "seed": "0",
        "features.dir": "here",
        "more": "1",
    }


# --- interruptions and locks of a local store ---------------------------------


@pytest.mark.parametrize("method", ["create_run", "set_tag"])
def test_interruption_within_a_call_of_the_store_ends_the_run_as_killed(
    composed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    tracking = composed("tracking.system_metrics_seconds=0").tracking
    tracking.connect()
    real = getattr(mlflow.MlflowClient, method)
    completed = []

    def interrupted(*arguments, **named):
        monkeypatch.undo()
        os.kill(os.getpid(), signal.SIGINT)
        result = real(*arguments, **named)
        completed.append(method)
        return result

    monkeypatch.setattr(mlflow.MlflowClient, method, interrupted)
    with pytest.raises(KeyboardInterrupt), signals.handled(), tracking.open(origin(tmp_path)) as tracker:
        tracker.describe("opened")
    assert completed == [method]
    client, experiment = tracking.connect()
    (run,) = client.search_runs([experiment])
    assert run.info.status == "KILLED"


def test_database_that_another_process_locks_is_an_error_without_a_traceback_in_the_log(
    composed, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from mlflow.store.db import utils

    tracking = composed().tracking
    client, experiment = tracking.connect()
    # MLflow would wait for 20 seconds.
    text = utils.sql.text
    monkeypatch.setattr(utils.sql, "text", lambda statement: text(statement.replace("20000", "10")))
    writer = sqlite3.connect(tracking.uri.removeprefix("sqlite:///"), isolation_level=None)
    try:
        writer.execute("BEGIN EXCLUSIVE")
        with pytest.raises(UserError, match=r"is locked.*run the same command again"):
            client.create_run(experiment)
    finally:
        writer.close()
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert client.search_runs([experiment]) == []
