"""Sweeps that are cut off and run again, one job after the other and side by side; signals."""

import os
import random
import signal
import time
from pathlib import Path

import mlflow
import psutil
import pytest

from dogbreeds.tracking.records import short
from tests.said import listen, rest

pytestmark = [pytest.mark.slow, pytest.mark.own_cache]

EPOCHS = 3
SMALL = ("data.breeds=6", f"phase.epochs={EPOCHS}", "tracking.system_metrics_seconds=0", "tracking.model=none")
# Rates, of two seeds each
TWELVE, SIX, FOUR = "1e-3,2e-3,3e-3,4e-3,5e-3,6e-3", "1e-3,2e-3,3e-3", "1e-3,2e-3"


def joblib(jobs: int) -> tuple[str, ...]:
    return ("hydra/launcher=joblib", f"hydra.launcher.n_jobs={jobs}")


def runs(tmp_path: Path):
    """The sweep's run and those of its jobs."""
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/home/mlruns/mlflow.db")
    found = client.search_runs(["1"])
    above = [run for run in found if run.info.run_name.startswith("sweep ")]
    return client, above, [run for run in found if run not in above]


def epochs(lines: list[str]) -> int:
    return sum("/3  train " in line for line in lines)


@pytest.mark.parametrize(
    ("rates", "at_once", "kills"),
    [(SIX, 1, 2), (FOUR, 2, 1), *(pytest.param(TWELVE, at_once, 3, marks=pytest.mark.long) for at_once in (1, 4))],
    ids=["six", "four, two at once", "twelve", "twelve, four at once"],
)
def test_a_sweep_that_is_killed_computes_each_job_once(
    rates: str, at_once: int, kills: int, begun, tmp_path: Path
) -> None:
    sweep = ("--multirun", f"optimizer.lr={rates}", "seed=0,1", *SMALL, *(joblib(at_once) if at_once > 1 else ()))
    jobs_in_all, moments = 2 * (rates.count(",") + 1), random.Random(7)
    said: list[str] = []
    for number in range(kills):
        with begun("train", *sweep) as process:
            # In the end one has finished: of so many side by side, when one more has begun.
            enough = at_once * EPOCHS + 1 - epochs(said) if number == kills - 1 else 0
            said += listen(process, "/3  train ", max(moments.randint(2, 8), enough))
            time.sleep(moments.random() / 4)
            os.killpg(process.pid, signal.SIGKILL)
            # What was on its way
            said += rest(process)[0]
    with begun("train", *sweep) as process:
        last, errors = rest(process)
    assert process.returncode == 0, errors
    client, above, jobs = runs(tmp_path)
    # One sweep, gone on with each time
    assert [run.info.status for run in above] == ["FINISHED"]
    assert above[0].data.tags["resumed"] == str(kills)
    assert [run.info.status for run in jobs] == ["FINISHED"] * jobs_in_all
    assert len({(run.data.params["optimizer.lr"], run.data.params["seed"]) for run in jobs}) == jobs_in_all
    assert {run.data.tags["mlflow.parentRunId"] for run in jobs} == {above[0].info.run_id}
    for run in jobs:
        for name in ("train/loss", "val/accuracy", "lr"):
            assert [point.step for point in client.get_metric_history(run.info.run_id, name)] == [1, 2, 3]
    already = sum("already there: run " in line for line in last)
    assert 0 < already < jobs_in_all
    # No epoch is ever trained twice: each is written down before it is said. What was said last in a process may be lost with it.
    assert jobs_in_all * EPOCHS - kills * at_once <= epochs(said) + epochs(last) <= jobs_in_all * EPOCHS
    assert sum("features of train: 120 in" in line for line in said + last) == 1


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_run_as_killed_and_the_same_command_goes_on(
    begun, command, tmp_path: Path, number: int, code: int
) -> None:
    settings = (
        "data.breeds=40",
        "phase.epochs=400",
        "phase.patience_epochs=null",
        "tracking.system_metrics_seconds=0",
        "tracking.model=none",
    )
    with begun("train", *settings) as process:
        said = listen(process, "/400  train ", 3)
        process.send_signal(number)
        more, errors = rest(process)
    assert process.returncode == code
    assert errors.splitlines() == ["interrupted: the same command goes on from here"]
    client, _, jobs = runs(tmp_path)
    assert [run.info.status for run in jobs] == ["KILLED"]
    done = len(client.get_metric_history(jobs[0].info.run_id, "val/loss"))
    lines = sum("/400  train " in line for line in [*said, *more])
    with begun("train", *settings) as process:
        again = listen(process, "/400  train ")
        process.send_signal(number)
        rest(process)
    kept = int(next(line for line in again if line.startswith("going on after epoch ")).split()[4])
    # An epoch is kept, recorded and said in this order, and the signal may come in between
    assert 3 <= lines <= done <= kept <= lines + 1
    assert again[-1].startswith(f"epoch {kept + 1:>3}/400")


def test_sigterm_reaches_jobs_side_by_side(begun, tmp_path: Path) -> None:
    long = (
        "--multirun",
        "seed=0,1",
        "data.breeds=40",
        "phase.epochs=4000",
        "phase.patience_epochs=null",
        "tracking.model=none",
    )
    with begun("train", *long, *joblib(4)) as process:
        twice = set()
        for line in process.stdout:
            twice |= {line.split()[0]} if "epoch    2/4000  train " in line else set()
            if len(twice) == 2:
                break
        workers = psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        rest(process)
    assert process.returncode == 143
    assert psutil.wait_procs(workers, timeout=30)[1] == []
    _, above, jobs = runs(tmp_path)
    assert [run.info.status for run in above] == ["KILLED"]
    assert [run.info.status for run in jobs] == ["KILLED", "KILLED"]
    # Both have the last two
    assert len(list((tmp_path / "home/multirun/checkpoints").glob("*/*.npz"))) == 4


@pytest.mark.long
def test_rerun_runs_again_what_has_finished(command, tmp_path: Path) -> None:
    two = ("--multirun", "seed=0,1", *SMALL)
    assert command("train", *two).returncode == 0
    again = command("train", *two)
    assert again.returncode == 0
    assert [line.split("'")[0].split(" ")[:3] for line in again.stdout.splitlines() if "already there" in line] == [
        ["already", "there:", "run"]
    ] * 2
    assert epochs(again.stdout.splitlines()) == 0
    forced = command("train", *two, "rerun=true")
    assert epochs(forced.stdout.splitlines()) == 2 * EPOCHS
    client, above, jobs = runs(tmp_path)
    assert (len(above), len(jobs)) == (2, 4)
    wider = command("train", "--multirun", "seed=0,1,2", *SMALL)
    assert epochs(wider.stdout.splitlines()) == EPOCHS
    _, above, jobs = runs(tmp_path)
    assert (len(above), len(jobs)) == (3, 5)
    widest = next(run for run in above if "seed=0,1,2" in run.info.run_name)
    # The sweep knows of the results that it took over
    assert sum(tag.startswith("reused.") for tag in widest.data.tags) == 2
    best = max(client.get_run(run.info.run_id).data.metrics["best/val_accuracy"] for run in jobs)
    assert widest.data.metrics["best/val_accuracy"] == best


def test_a_run_of_a_process_that_is_gone_is_closed_by_the_next(begun, command, tmp_path: Path) -> None:
    long = ("data.breeds=40", "phase.epochs=4000", "phase.patience_epochs=null", "tracking.model=none")
    with begun("train", *long) as process:
        listen(process, "/4000  train ")
        process.kill()
    _, _, jobs = runs(tmp_path)
    assert [run.info.status for run in jobs] == ["RUNNING"]
    other = command("train", *SMALL)
    assert other.returncode == 0
    assert f"run {short(jobs[0].info.run_id)}" in other.stdout
    assert "was cut off: its process on " in other.stdout
    _, _, jobs = runs(tmp_path)
    assert sorted(run.info.status for run in jobs) == ["FINISHED", "KILLED"]
