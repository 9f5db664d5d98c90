"""Sweeps that are interrupted and resumed, with jobs one after the other and in parallel; signals."""

import os
import random
import re
import signal
import time
from pathlib import Path

import mlflow
import psutil
import pytest

from dogbreeds.tracking.records import short
from tests.process_output import read_to_end, read_until, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.own_cache]

EPOCHS = 3
SMALL = ("data.classes=6", f"phase.epochs={EPOCHS}", "tracking.system_metrics_seconds=0", "tracking.model=none")
# Learning rates; each is run with two seeds.
TWELVE, SIX, FOUR = "1e-3,2e-3,3e-3,4e-3,5e-3,6e-3", "1e-3,2e-3,3e-3", "1e-3,2e-3"


def joblib(jobs: int) -> tuple[str, ...]:
    return ("hydra/launcher=joblib", f"hydra.launcher.n_jobs={jobs}")


def runs(tmp_path: Path):
    """Return a client, the sweeps' runs and the runs of their jobs."""
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/home/mlruns/mlflow.db")
    found = client.search_runs(["1"])
    sweeps = [run for run in found if run.info.run_name.startswith("sweep ")]
    return client, sweeps, [run for run in found if run not in sweeps]


def count_epochs(lines: list[str]) -> int:
    return sum("/3  train " in line for line in lines)


@pytest.mark.parametrize(
    ("rates", "n_jobs", "kills"),
    [
        (FOUR, 1, 1),
        pytest.param(FOUR, 2, 1, marks=pytest.mark.long),
        pytest.param(SIX, 1, 2, marks=pytest.mark.long),
        *(pytest.param(TWELVE, n_jobs, 3, marks=pytest.mark.long) for n_jobs in (1, 4)),
    ],
    ids=["four", "four, two at once", "six", "twelve", "twelve, four at once"],
)
def test_sweep_resumes_after_kills_and_computes_each_job_once(
    rates: str, n_jobs: int, kills: int, start_command, tmp_path: Path
) -> None:
    sweep = ("--multirun", f"optimizer.lr={rates}", "seed=0,1", *SMALL, *(joblib(n_jobs) if n_jobs > 1 else ()))
    num_jobs = 2 * (rates.count(",") + 1)
    rng = random.Random(7)
    lines: list[str] = []
    for number in range(kills):
        with start_command("train", *sweep) as process:
            # Before the last kill at least one job must have finished: n parallel jobs have n * EPOCHS epochs in all,
            # and one more epoch is from a job that started after another had ended.
            enough = n_jobs * EPOCHS + 1 - count_epochs(lines) if number == kills - 1 else 0
            lines += read_until(process, "/3  train ", max(rng.randint(2, 8), enough))
            time.sleep(rng.random() / 4)
            os.killpg(process.pid, signal.SIGKILL)
            # Lines that were still in the pipe.
            lines += read_to_end(process)[0]
    with start_command("train", *sweep) as process:
        last, errors = read_to_end(process)
    assert process.returncode == 0, errors
    client, sweeps, jobs = runs(tmp_path)
    # One sweep, resumed after each kill.
    assert [run.info.status for run in sweeps] == ["FINISHED"]
    assert sweeps[0].data.tags["resumed"] == str(kills)
    assert [run.info.status for run in jobs] == ["FINISHED"] * num_jobs
    assert len({(run.data.params["optimizer.lr"], run.data.params["seed"]) for run in jobs}) == num_jobs
    assert {run.data.tags["mlflow.parentRunId"] for run in jobs} == {sweeps[0].info.run_id}
    # A name begins with what the sweep varies, also in a process of its own.
    varied = {f"lr={run.data.params['optimizer.lr']} seed={run.data.params['seed']}" for run in jobs}
    names = [run.info.run_name.split() for run in jobs]
    assert {f"lr={float(lr.removeprefix('lr='))} {seed}" for lr, seed, *_ in names} == varied
    assert {" ".join(name[2:4]) for name in names} == {"miniature frozen"}
    assert {run.data.tags["overrides"] for run in jobs} == {run.data.params["overrides"] for run in jobs}
    for run in jobs:
        for name in ("train/loss", "val/accuracy", "lr"):
            assert [point.step for point in client.get_metric_history(run.info.run_id, name)] == [1, 2, 3]
    skipped = sum("skipped: run " in line for line in last)
    assert 0 < skipped < num_jobs
    # No epoch is trained twice, since its checkpoint is written before its log line. A kill may lose the line between.
    logged = count_epochs(lines) + count_epochs(last)
    assert num_jobs * EPOCHS - kills * n_jobs <= logged <= num_jobs * EPOCHS
    assert sum("features of train: 120 in" in line for line in lines + last) == 1


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.long)]
)
def test_train_is_killed_by_a_signal_and_resumes_with_the_same_command(
    start_command, command, tmp_path: Path, number: int, code: int
) -> None:
    settings = (
        "data.classes=40",
        "phase.epochs=400",
        "phase.patience_epochs=null",
        "tracking.system_metrics_seconds=0",
        "tracking.model=none",
    )
    with start_command("train", *settings) as process:
        lines = read_until(process, "/400  train ", 3)
        process.send_signal(number)
        more, errors = read_to_end(process)
    assert process.returncode == code
    assert errors.splitlines() == ["interrupted: run the same command again to resume"]
    client, _, jobs = runs(tmp_path)
    assert [run.info.status for run in jobs] == ["KILLED"]
    recorded = len(client.get_metric_history(jobs[0].info.run_id, "val/loss"))
    logged = sum("/400  train " in line for line in [*lines, *more])
    with start_command("train", *settings) as process:
        again = read_until(process, "/400  train ")
        process.send_signal(number)
        read_to_end(process)
    resuming = next(line for line in again if line.startswith("Resuming from checkpoint: epoch "))
    checkpointed = int(re.findall(r"epoch (\d+)/400 done", resuming)[0])
    # An epoch's checkpoint, metrics and log line are written in this order, and the signal may come in between.
    assert 3 <= logged <= recorded <= checkpointed <= logged + 1
    assert again[-1].startswith(f"epoch {checkpointed + 1:>3}/400")


@pytest.mark.long
def test_sigterm_ends_parallel_jobs(start_command, tmp_path: Path) -> None:
    long = (
        "--multirun",
        "seed=0,1",
        "data.classes=40",
        "phase.epochs=4000",
        "phase.patience_epochs=null",
        "tracking.model=none",
    )
    with start_command("train", *long, *joblib(4)) as process:
        jobs_with_two_epochs = set()
        for line in process.stdout:
            jobs_with_two_epochs |= {line.split()[0]} if "epoch    2/4000  train " in line else set()
            if len(jobs_with_two_epochs) == 2:
                break
        workers = psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        read_to_end(process)
    assert process.returncode == 143
    assert psutil.wait_procs(workers, timeout=30)[1] == []
    _, sweeps, jobs = runs(tmp_path)
    assert [run.info.status for run in sweeps] == ["KILLED"]
    assert [run.info.status for run in jobs] == ["KILLED", "KILLED"]
    # Each job has its two newest checkpoints.
    assert len(list((tmp_path / "home/multirun/checkpoints").glob("*/*.npz"))) == 4


def test_second_of_two_identical_trainings_waits_and_takes_the_first_ones_result(
    start_command, command, tmp_path: Path
) -> None:
    with start_command("train", *SMALL) as first:
        wait_until(lambda: any((tmp_path / "home/multirun/checkpoints").glob("*.lock")), first)
        second = command("train", *SMALL)
        output, errors = first.communicate(600)
    assert (first.returncode, second.returncode) == (0, 0), errors + second.stderr
    lines = second.stdout.splitlines()
    assert [line for line in lines if line.startswith("waiting for process ")]
    assert [line for line in lines if line.startswith("skipped: run ") and "rerun=true" in line]
    assert (count_epochs(output.splitlines()), count_epochs(lines)) == (EPOCHS, 0)
    assert len(runs(tmp_path)[2]) == 1


@pytest.mark.long
def test_sweep_skips_finished_jobs_unless_rerun(command, tmp_path: Path) -> None:
    two = ("--multirun", "seed=0,1", *SMALL)
    assert command("train", *two).returncode == 0
    again = command("train", *two)
    assert again.returncode == 0
    assert sum("skipped: run " in line for line in again.stdout.splitlines()) == 2
    assert count_epochs(again.stdout.splitlines()) == 0
    forced = command("train", *two, "rerun=true")
    assert count_epochs(forced.stdout.splitlines()) == 2 * EPOCHS
    client, sweeps, jobs = runs(tmp_path)
    assert (len(sweeps), len(jobs)) == (2, 4)
    wider = command("train", "--multirun", "seed=0,1,2", *SMALL)
    assert count_epochs(wider.stdout.splitlines()) == EPOCHS
    _, sweeps, jobs = runs(tmp_path)
    assert (len(sweeps), len(jobs)) == (3, 5)
    widest = next(run for run in sweeps if "seed=0,1,2" in run.info.run_name)
    # The sweep's run names the results that it took over.
    assert sum(tag.startswith("reused.") for tag in widest.data.tags) == 2
    best = max(client.get_run(run.info.run_id).data.metrics["best/val_accuracy"] for run in jobs)
    assert widest.data.metrics["best/val_accuracy"] == best


def test_next_run_closes_the_run_of_a_killed_process(start_command, command, tmp_path: Path) -> None:
    long = ("data.classes=40", "phase.epochs=4000", "phase.patience_epochs=null", "tracking.model=none")
    with start_command("train", *long) as process:
        read_until(process, "/4000  train ")
        process.kill()
    _, _, jobs = runs(tmp_path)
    assert [run.info.status for run in jobs] == ["RUNNING"]
    other = command("train", *SMALL)
    assert other.returncode == 0
    assert f"run {short(jobs[0].info.run_id)}" in other.stdout
    assert " as KILLED: its process on " in other.stdout
    _, _, jobs = runs(tmp_path)
    assert sorted(run.info.status for run in jobs) == ["FINISHED", "KILLED"]
