"""Records of attempts that were cut off, in a real SQLite store."""

import time
from dataclasses import replace
from pathlib import Path

import mlflow
import psutil
import pytest

from dogbreeds.core.process import owner
from dogbreeds.tracking import lifecycle
from dogbreeds.tracking.records import PriorRuns, RunOrigin


def composition(folder: Path, identity: str = "i", key: str = "k") -> RunOrigin:
    return RunOrigin("seed: 0\n", (), "an attempt", folder, key=key, identity=identity)


@pytest.mark.parametrize(
    ("tags", "silent_seconds", "status"),
    [
        # The process is there, and busy
        ({}, 3600, "RUNNING"),
        # There is no such process
        ({"process": "4194304"}, 0, "KILLED"),
        # Another process has got its number
        ({"process.started": "-1000.0"}, 0, "KILLED"),
        # The machine was started again
        ({"host.boot": "an earlier one"}, 0, "KILLED"),
        ({"host": "elsewhere"}, 0, "RUNNING"),
        # Its machine was lost
        ({"host": "elsewhere"}, 3600, "KILLED"),
    ],
)
def test_runs_that_nobody_works_on_are_closed(
    composed, tags: dict[str, str], silent_seconds: float, status: str
) -> None:
    tracking = composed().tracking
    client, experiment = tracking.connect()
    run_id = client.create_run(
        experiment, tags=owner() | {"heartbeat": str(time.time() - silent_seconds)} | tags
    ).info.run_id
    assert tracking.known("k", "i") == PriorRuns()
    assert client.get_run(run_id).info.status == status


def test_a_run_that_is_not_one_of_ours_is_left_alone(composed) -> None:
    tracking = composed().tracking
    client, experiment = tracking.connect()
    run_id = client.create_run(experiment, tags={"host": "elsewhere"}).info.run_id
    assert tracking.known("k", "i") == PriorRuns()
    assert client.get_run(run_id).info.status == "RUNNING"


@pytest.mark.parametrize("seconds", [-3600, 3600])
def test_a_clock_that_is_set_ends_no_run(composed, monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """psutil tells when a process began by when the machine did, which moves with the clock."""
    tracking = composed().tracking
    client, experiment = tracking.connect()
    run_id = client.create_run(experiment, tags=owner() | {"heartbeat": str(time.time())}).info.run_id
    before, moved = psutil.Process().create_time(), psutil.boot_time() + seconds
    monkeypatch.setattr(psutil._psplatform, "boot_time", lambda: moved)
    # Of an older psutil
    monkeypatch.setattr(psutil._psplatform, "BOOT_TIME", moved, raising=False)
    assert psutil.Process().create_time() == pytest.approx(before + seconds, abs=1)
    assert tracking.known("k", "i") == PriorRuns()
    assert client.get_run(run_id).info.status == "RUNNING"


def test_a_run_that_another_process_goes_on_with_meanwhile_is_left_to_it(
    composed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracking = composed().tracking
    client, experiment = tracking.connect()
    run_id = client.create_run(experiment, tags=owner() | {"heartbeat": "0", "process.started": "-1000.0"}).info.run_id
    real = mlflow.MlflowClient.search_runs

    def overtaken(*arguments, **named):
        found = real(*arguments, **named)
        lifecycle.go_on(client, run_id, composition(tmp_path), None)
        return found

    with monkeypatch.context() as patched:
        patched.setattr(mlflow.MlflowClient, "search_runs", overtaken)
        lifecycle.close_orphaned_runs(client, experiment)
    assert client.get_run(run_id).info.status == "RUNNING"
    client.set_tag(run_id, "process.started", "-1000.0")
    lifecycle.close_orphaned_runs(client, experiment)
    assert client.get_run(run_id).info.status == "KILLED"


@pytest.mark.parametrize("last", ["create_run", "log_artifact"])
def test_a_run_whose_process_was_killed_before_it_said_what_it_was_started_with_says_so_later(
    composed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: str
) -> None:
    tracking = composed().tracking
    client, _ = tracking.connect()
    real = getattr(mlflow.MlflowClient, last)

    def killed(*arguments, **named):
        real(*arguments, **named)
        raise SystemExit

    with monkeypatch.context() as patched:
        patched.setattr(mlflow.MlflowClient, last, killed)
        with (
            pytest.raises(SystemExit),
            tracking.open(replace(composition(tmp_path), overrides=("seed=0", "data.breeds=3"))),
        ):
            pass
    run = client.search_runs(["1"])[0]
    assert (run.info.status, "overrides" in run.data.params) == ("RUNNING", False)
    client.set_tag(run.info.run_id, "process.started", "-1000.0")
    with tracking.open(
        replace(composition(tmp_path), overrides=("data.breeds=3", "seed=0")), tracking.known("k", "i").unfinished
    ) as tracker:
        assert tracker.run_id == run.info.run_id
    assert client.get_run(run.info.run_id).data.params["overrides"] == "data.breeds=3 seed=0"
    assert tracking.config(run.info.run_id) == "seed: 0\n"


def test_what_is_known_of_an_attempt(composed, tmp_path: Path) -> None:
    tracking = composed().tracking
    client, _ = tracking.connect()
    assert tracking.known("k", "i") == PriorRuns()
    with pytest.raises(KeyboardInterrupt), tracking.open(composition(tmp_path)) as tracker:
        first = tracker.run_id
        raise KeyboardInterrupt
    assert tracking.known("k", "i").unfinished.run_id == first
    assert tracking.known("k", "i").finished is None
    assert tracking.known("k", "other photos") == PriorRuns(
        others=(first[: len(tracking.known("k", "other photos").others[0])],)
    )
    assert tracking.known("other settings", "i") == PriorRuns()
    with tracking.open(composition(tmp_path), tracking.known("k", "i").unfinished) as tracker:
        assert tracker.run_id == first
        assert client.get_run(first).info.status == "RUNNING"
    found = tracking.known("k", "i")
    assert (found.finished.run_id, found.unfinished, found.others) == (first, None, ())
    assert found.finished.tags["resumed"] == "1"


def test_a_record_that_is_gone_on_with_holds_everything_once(composed, tmp_path: Path) -> None:
    tracking = composed().tracking
    client, _ = tracking.connect()
    with pytest.raises(RuntimeError), tracking.open(composition(tmp_path)) as tracker:
        tracker.parameters({"seed": 0, "features.dir": "here"})
        tracker.metrics({"preflight/raw": 0.1})
        for epoch in (1, 2):
            tracker.metrics({"val/accuracy": epoch / 10, "lr": 1e-3}, epoch)
        raise RuntimeError("bug")
    before = tracking.known("k", "i").unfinished
    assert before.status == "FAILED"
    with tracking.open(composition(tmp_path), before) as tracker:
        # MLflow refuses to change one: what decides nothing may differ
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
