"""Sweeps by every launcher: the same numbers, none lost, and what the launchers are asked for."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import mlflow
import psutil
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from dogbreeds import launcher
from dogbreeds.spec import Refused, home
from tests.said import listen, until

pytestmark = pytest.mark.filterwarnings(r"ignore:\s*'hydra/launcher/")  # pytest undoes the filter that `launcher` sets

SMALL = ("data.breeds=6", "phase.epochs=3", "tracking.system_metrics_seconds=0")
LONG = ("data.breeds=40", "phase.epochs=4000", "phase.patience_epochs=null", "tracking.system_metrics_seconds=0", "tracking.model=none")
LAUNCHERS = {
    "basic": ("hydra/launcher=basic",),
    "joblib": ("hydra/launcher=joblib",),
    "ray": ("hydra/launcher=ray", "hydra.launcher.ray.init.num_cpus=2"),
    "submitit_local": ("hydra/launcher=submitit_local",),
}


def config(*overrides: str) -> DictConfig:
    with initialize_config_dir(str((home() / "conf").absolute()), version_base="1.3"):
        return compose("train", list(overrides), return_hydra_config=True)


def runs(place: Path) -> tuple[mlflow.MlflowClient, list, list]:
    """A client, the sweeps' runs and those of their jobs."""
    client = mlflow.MlflowClient(f"sqlite:///{place}/mlruns/mlflow.db")
    found = client.search_runs(["1"])
    above = [run for run in found if run.info.run_name.startswith("sweep ")]
    return client, above, [run for run in found if run not in above]


def trained(place: Path) -> dict[str, list[int]]:
    """The epochs that were trained, in the order in which they were, by job; whichever processes did it."""
    said = {log.parent.name: log.read_text() for log in place.glob("multirun/*/*/*/train.log")}
    return {job: [int(number) for number in re.findall(r"epoch +(\d+)/\d+  train ", text)] for job, text in said.items()}


@pytest.mark.parametrize("name", [name for name in LAUNCHERS if name != "basic"])
def test_what_is_not_installed_is_named_with_the_extra_that_brings_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(Refused) as caught:
        launcher.ready(config(f"hydra/launcher={name}"))
    extra = name.removesuffix("_local")
    assert str(caught.value).endswith(f"Type pip install 'dogbreeds[{extra}]'.")


def test_slurm_that_is_not_there_is_refused_before_anything_is_begun(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Refused, match=r"there is no Slurm here: .* Go there, or type hydra/launcher=joblib to use this one\."):
        launcher.ready(config("hydra/launcher=submitit_slurm"))


def test_each_jobs_config_carries_what_another_machine_cannot_know(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    place = tmp_path / "Bärli's, a=home"
    place.mkdir()
    (place / "conf").symlink_to(home() / "conf")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DOGBREEDS_HOME", place.name)
    monkeypatch.setenv("DOGBREEDS_SWEEP_RUN", "12e4")
    monkeypatch.delenv("DOGBREEDS_CACHE", raising=False)
    sweep = config("hydra.sweep.dir=swept")
    sweep.hydra.overrides.hydra = ["hydra.sweep.dir=swept"]
    launcher.tell(sweep)
    job = config(*sweep.hydra.overrides.hydra)  # as `load_sweep_config` composes it
    assert job.hydra.job.env_set == {"DOGBREEDS_HOME": str(place), "DOGBREEDS_SWEEP_RUN": "12e4", "DOGBREEDS_TRIAL": ""}
    assert job.hydra.sweep.dir == str(tmp_path / "swept")


@pytest.mark.slow
def test_a_cluster_where_nobody_answers_is_refused(command) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        refused = command("train", "--multirun", "seed=0,1", "hydra/launcher=ray", f"hydra.launcher.ray.init.address={address}")
    assert refused.returncode == 1
    assert refused.stderr.startswith(f"error: Ray at {address} cannot be used ([Errno 111] Connection refused). It must be local, ")
    assert refused.stderr.endswith("Type hydra.launcher.ray.init.address=local.\n")


@pytest.mark.slow
def test_what_slurm_is_asked_for(command, tmp_path: Path) -> None:
    """The commands that submitit calls are stand-ins: one keeps what it was given, and refuses it as Slurm does."""
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "srun").write_text("#!/bin/sh\n")
    (tools / "sbatch").write_text(
        f'#!/bin/sh\ncp "$1" {tmp_path}/sbatch.sh\necho "sbatch: error: invalid partition specified: nowhere" >&2\nexit 1\n'
    )
    for tool in tools.iterdir():
        tool.chmod(0o755)
    asked = ("hydra/launcher=submitit_slurm", "hydra.launcher.partition=nowhere", "hydra.launcher.array_parallelism=2")
    refused = command("train", "--multirun", "seed=0,1,2", *SMALL, *asked, PATH=f"{tools}:{os.environ['PATH']}")
    assert refused.returncode == 1
    assert "error: Slurm did not take the jobs (sbatch: error: invalid partition specified: nowhere). " in refused.stderr
    assert "scancel --name=dogbreeds ends its jobs" in refused.stdout
    lines = (tmp_path / "sbatch.sh").read_text().splitlines()
    flags = dict(line.removeprefix("#SBATCH --").split("=", 1) for line in lines if line.startswith("#SBATCH --") and "=" in line)
    expected = {"array": "0-2%2", "time": "240", "cpus-per-task": "4", "mem": "8GB", "gpus-per-node": "1", "partition": "nowhere"}
    assert {name: flags.get(name) for name in expected} == expected
    assert flags["signal"] == "USR2@120"
    assert flags["job-name"] == "dogbreeds"
    assert "#SBATCH --open-mode=append" in lines


@pytest.mark.parametrize(
    ("launchers", "sweeps"),
    [
        pytest.param(["basic", "joblib", "submitit_local"], ["frozen"], marks=pytest.mark.slow, id="one"),
        # The latter go on from a frozen one that has finished.
        pytest.param(list(LAUNCHERS), ["torch_pixels,lr_collapse,frozen", "finetune_50,finetune_20"], marks=pytest.mark.long, id="all"),
    ],
)
def test_the_guide_s_attempts_measure_the_same_by_every_launcher(
    launchers: list[str], sweeps: list[str], command, of_ray, made_home, tmp_path: Path
) -> None:
    measured, count = {}, ",".join(sweeps).count(",") + 1
    for name in launchers:
        place = made_home(tmp_path / name)
        for attempts in sweeps:
            done = command("train", "--multirun", f"attempt={attempts}", *SMALL, *LAUNCHERS[name], DOGBREEDS_HOME=str(place), **of_ray)
            assert done.returncode == 0, done.stderr
        _, above, jobs = runs(place)
        assert {run.data.tags["mlflow.parentRunId"] for run in jobs} == {run.info.run_id for run in above}
        assert [run.info.status for run in [*above, *jobs]] == ["FINISHED"] * (count + len(sweeps))
        measured[name] = {
            run.data.tags["choice.attempt"]: {key: value for key, value in run.data.metrics.items() if "seconds" not in key} for run in jobs
        }
        assert len(measured[name]) == count
    for name in launchers:
        assert measured[name] == measured["basic"], name


@pytest.mark.own_cache
@pytest.mark.parametrize("attempts", [pytest.param(6, marks=pytest.mark.slow), pytest.param(32, marks=pytest.mark.long)])
def test_no_attempt_is_lost_with_a_worker(attempts: int, begun, of_ray, tmp_path: Path) -> None:
    rates = ",".join(f"{number}e-4" for number in range(1, attempts // 2 + 1))
    sweep = ("--multirun", f"optimizer.lr={rates}", "seed=0,1", *SMALL, "tracking.model=none", *LAUNCHERS["ray"])
    with begun("train", *sweep, **of_ray) as process:
        place = tmp_path / "home"
        lines, kills, cut_off = [], 0, set[str]()
        for line in process.stdout:
            lines.append(line)
            if not cut_off and len(lines) > 2 * attempts and re.match(r"#\d+ epoch 2/3", line):
                running = next((run.data.tags["process"] for run in runs(place)[2] if run.info.status == "RUNNING"), None)
                if running is not None:
                    worker = psutil.Process(int(running))
                    worker.kill()
                    worker.wait(60)
                    kills += 1  # of one that has just finished its job nothing is cut off
                    left = (run for run in runs(place)[2] if run.data.tags["process"] == running and run.info.status != "FINISHED")
                    cut_off = {run.info.run_id for run in left}
        errors = process.stderr.read()
    assert process.returncode == 0, errors
    assert cut_off
    client, above, jobs = runs(place)
    assert [run.info.status for run in above] == ["FINISHED"]
    assert [run.info.status for run in jobs] == ["FINISHED"] * attempts
    assert {run.data.tags["mlflow.parentRunId"] for run in jobs} == {above[0].info.run_id}
    for run in jobs:
        assert [point.step for point in client.get_metric_history(run.info.run_id, "val/accuracy")] == [1, 2, 3]
    assert {run.info.run_id: run.data.tags["resumed"] for run in jobs if "resumed" in run.data.tags} == dict.fromkeys(cut_off, "1")
    logs = [log.read_text() for log in place.glob("multirun/*/*/*/train.log")]
    assert sum(log.count("features of train: 120 in") for log in logs) == 1
    epochs = sum(map(len, trained(place).values()))
    assert attempts * 3 - kills <= epochs <= attempts * 3  # one may have been written down and not said any more
    own = [line for line in lines if not line.startswith("\t#")]
    assert sum(bool(re.match(r"#\d+ epoch ", line)) for line in own) >= attempts * 3 - 4  # each line is shown: Ray swallows none that are alike
    assert not any("pid=" in line or "\x1b" in line for line in lines)


@pytest.mark.own_cache
@pytest.mark.long
def test_jobs_on_a_cluster_that_ran_before_are_nested_and_find_the_sweeps_folders(command, of_ray, tmp_path: Path) -> None:
    """Its workers have an environment and a folder of their own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (tmp_path / "away").mkdir()
    own = {name: value for name, value in os.environ.items() if not name.startswith("DOGBREEDS_")} | of_ray | {"PYTHONPATH": str(home())}
    ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", f"--port={port}", "--num-cpus=2", "--include-dashboard=false"]
    cluster = subprocess.Popen(
        ray, cwd=tmp_path / "away", env=own | {"RAY_USAGE_STATS_ENABLED": "0"}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        until(lambda: socket.socket().connect_ex(("127.0.0.1", port)) == 0, cluster)
        time.sleep(5)
        address = f"hydra.launcher.ray.init.address=127.0.0.1:{port}"
        done = command("train", "--multirun", "seed=0,1", *SMALL, "tracking.model=none", "hydra/launcher=ray", address, **of_ray)
        assert done.returncode == 0, done.stderr
    finally:
        processes = [cluster, *psutil.Process(cluster.pid).children(recursive=True)]
        cluster.terminate()
        cluster.wait(60)
        for process in processes[1:]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
    _, above, jobs = runs(tmp_path / "home")
    assert [run.info.status for run in jobs] == ["FINISHED", "FINISHED"]
    assert {run.data.tags["mlflow.parentRunId"] for run in jobs} == {above[0].info.run_id}
    folders = {Path(run.data.tags["hydra.folder"]) for run in jobs}
    assert {folder.parent for folder in folders} == {Path(above[0].data.tags["hydra.folder"])}
    assert list((tmp_path / "away").iterdir()) == []
    assert (tmp_path / "cache").is_dir()


@pytest.mark.long
@pytest.mark.parametrize("name", ["submitit_local", "ray"])
def test_sigterm_ends_jobs_in_order_and_leaves_no_process(name: str, begun, of_ray, tmp_path: Path) -> None:
    place = tmp_path / "home"
    with begun("train", "--multirun", "seed=0,1", *LONG, *LAUNCHERS[name], **of_ray) as process:
        until(lambda: sum(len(epochs) > 1 for epochs in trained(place).values()) == 2, process)
        children = psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        _, errors = process.communicate(timeout=900)
    assert process.returncode == 143
    assert errors.splitlines()[-1] == "interrupted: the same command goes on from here"
    assert psutil.wait_procs(children, timeout=60)[1] == []
    _, above, jobs = runs(place)
    assert [run.info.status for run in [*above, *jobs]] == ["KILLED"] * 3
    assert len(list(place.glob("multirun/checkpoints/*/*.npz"))) == 4  # both have the last two


def _is_of_submitit(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return "submitit.core._submit" in process.cmdline() and "submitit.local._local" in process.parent().cmdline()
    return False


@pytest.mark.slow
def test_a_job_that_its_scheduler_ends_goes_on_where_it_was(begun, tmp_path: Path) -> None:
    """As on Slurm, where it is put into the queue again: the signal that submitit is sent shortly before a job's time is over."""
    place = tmp_path / "home"
    with begun("train", "--multirun", "seed=0", *LONG, *LAUNCHERS["submitit_local"]) as process:
        until(lambda: len(trained(place).get("0", [])) > 1, process)
        (job,) = (child for child in psutil.Process(process.pid).children(recursive=True) if _is_of_submitit(child))
        job.send_signal(signal.SIGUSR2)
        until(lambda: any("going on after epoch" in log.read_text() for log in place.glob("multirun/*/*/*/train.log")), process)
        _, _, jobs = runs(place)
        said = next(place.glob("multirun/*/*/0/train.log"))
        before = int(re.findall(r"going on after epoch (\d+) of", said.read_text())[0])
        assert before > 1
        until(lambda: trained(place)["0"][-1] > before, process)
        process.terminate()
        process.communicate(timeout=900)
    epochs = trained(place)["0"]
    assert epochs == sorted(set(epochs))  # none twice
    assert len(jobs) == 1
    recorded = {
        point.step for point in mlflow.MlflowClient(f"sqlite:///{place}/mlruns/mlflow.db").get_metric_history(jobs[0].info.run_id, "val/loss")
    }
    assert recorded >= set(range(1, before + 1))  # also one that was kept, and cut off before it was said
    assert jobs[0].data.tags["resumed"] == "1"


@pytest.mark.slow
def test_a_run_whose_machine_was_lost_is_gone_on_with_at_once(begun, at_home, made_home, tmp_path: Path) -> None:
    """A machine of another name, killed: its heartbeat was seconds ago, and nobody here can see its processes."""
    apart = ["unshare", "--uts", "sh", "-c", 'hostname elsewhere; exec "$0" "$@"']
    if subprocess.run([*apart, "true"], capture_output=True, check=False).returncode:
        pytest.skip("a machine's name cannot be set for one process here")
    place = made_home(tmp_path / "home")
    elsewhere = [*apart, sys.executable, "-m", "dogbreeds.train", *LONG]
    with subprocess.Popen(elsewhere, cwd=tmp_path, env=at_home(), stdout=subprocess.PIPE, text=True) as other:
        seen = [line for line, _ in zip(iter(other.stdout.readline, ""), range(60), strict=False) if "/4000  train " in line]
        other.kill()
    assert seen
    _, _, jobs = runs(place)
    assert [(run.info.status, run.data.tags["host"]) for run in jobs if run.info.status == "RUNNING"] == [("RUNNING", "elsewhere")]
    with begun("train", *LONG) as process:
        lines = listen(process, "/4000  train ")
        process.kill()
    assert any("was cut off: its process on elsewhere is gone" in line for line in lines)
    assert any(line.startswith("going on after epoch ") for line in lines)
