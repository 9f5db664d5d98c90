"""Command `python -m dogbreeds.train`, as a user runs it."""

import mlflow
import pytest

pytestmark = pytest.mark.slow


def recorded_runs(tmp_path):
    """Return a client and all runs, the oldest first."""
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/home/mlruns/mlflow.db")
    return client, client.search_runs(["1"], order_by=["attributes.start_time ASC"])


@pytest.mark.long
def test_learning_rate_sweep_collapses_and_learns(fresh_command, tmp_path) -> None:
    done = fresh_command("train", "--multirun", "optimizer.lr=1e-2,1e-3")
    assert done.returncode == 0, done.stderr
    client, (parent, collapsed, learned) = recorded_runs(tmp_path)
    assert {record.info.status for record in (parent, collapsed, learned)} == {"FINISHED"}
    assert {record.data.tags["mlflow.parentRunId"] for record in (collapsed, learned)} == {parent.info.run_id}
    high = [point.value for point in client.get_metric_history(collapsed.info.run_id, "val/accuracy")]
    assert high.index(max(high)) <= 1
    assert high[-1] < max(high) / 3
    assert learned.data.metrics["last/val_accuracy"] >= 0.7
    assert "Traceback" not in done.stderr
    # Runs are in DOGBREEDS_HOME, not in the folder in which the command was typed.
    assert not (tmp_path / "multirun").exists()


def test_failed_job_does_not_stop_the_other_jobs_of_a_sweep(command, tmp_path) -> None:
    done = command("train", "--multirun", "optimizer.lr=abc,1e-3", "data.classes=5", "phase.epochs=2")
    assert done.returncode == 1
    assert (
        "error: optimizer.lr was 'abc'. It must be a finite number above 0. Type optimizer.lr=0.001, for example."
        in done.stderr
    )
    _, (parent, job) = recorded_runs(tmp_path)
    assert (parent.info.status, job.info.status) == ("FAILED", "FINISHED")
