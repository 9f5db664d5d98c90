"""Hydra's launchers: equal results, no lost attempts, and the resources that jobs ask for."""

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

from dogbreeds.core.errors import UserError
from dogbreeds.core.paths import config_folder, home
from dogbreeds.experiments import launcher
from tests.process_output import read_until, wait_until

# Pytest resets the warning filter that `launcher` sets.
pytestmark = pytest.mark.filterwarnings(r"ignore:\s*'hydra/launcher/")

SMALL = ("data.classes=6", "phase.epochs=3", "tracking.system_metrics_seconds=0")
LONG = (
    "data.classes=40",
    "phase.epochs=4000",
    "phase.patience_epochs=null",
    "tracking.system_metrics_seconds=0",
    "tracking.model=none",
)
LAUNCHERS = {
    "basic": ("hydra/launcher=basic",),
    "joblib": ("hydra/launcher=joblib",),
    "ray": ("hydra/launcher=ray", "hydra.launcher.ray.init.num_cpus=2"),
    "submitit_local": ("hydra/launcher=submitit_local",),
}


def config(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        return compose("train", list(overrides), return_hydra_config=True)


def runs(place: Path) -> tuple[mlflow.MlflowClient, list, list]:
    """Return a client, the sweeps' runs and the runs of their jobs."""
    client = mlflow.MlflowClient(f"sqlite:///{place}/mlruns/mlflow.db")
    found = client.search_runs(["1"])
    sweeps = [run for run in found if run.info.run_name.startswith("sweep ")]
    return client, sweeps, [run for run in found if run not in sweeps]


def trained(place: Path) -> dict[str, list[int]]:
    """Return the numbers of each job's logged epochs, in order, of all processes that worked on it."""
    logs = {log.parent.name: log.read_text() for log in place.glob("multirun/*/*/*/train.log")}
    return {
        job: [int(number) for number in re.findall(r"epoch +(\d+)/\d+  train ", text)] for job, text in logs.items()
    }


@pytest.mark.parametrize("name", [name for name in LAUNCHERS if name != "basic"])
def test_prepare_launcher_names_the_extra_that_installs_a_launcher(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(UserError) as caught:
        launcher.prepare_launcher(config(f"hydra/launcher={name}"))
    extra = name.removesuffix("_local")
    assert str(caught.value).endswith(f"Type pip install 'dogbreeds[{extra}]'.")


def test_prepare_launcher_names_the_extra_where_no_plugin_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = config("hydra/launcher=joblib")
    monkeypatch.delitem(sys.modules, "hydra_plugins.hydra_joblib_launcher", raising=False)
    # As if no package had the namespace.
    monkeypatch.setitem(sys.modules, "hydra_plugins", None)
    with pytest.raises(UserError, match=r"Type pip install 'dogbreeds\[joblib\]'\.$"):
        launcher.prepare_launcher(sweep)


def test_prepare_launcher_rejects_slurm_where_it_is_not_available(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        UserError, match=r"^hydra/launcher=submitit_slurm was given, .*srun.* or type hydra/launcher=joblib "
    ):
        launcher.prepare_launcher(config("hydra/launcher=submitit_slurm"))


def test_pass_environment_adds_variables_and_folders_to_each_jobs_config(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    place = tmp_path / "Bärli's, a=home"
    place.mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DOGBREEDS_HOME", place.name)
    monkeypatch.setenv("DOGBREEDS_SWEEP_RUN", "12e4")
    monkeypatch.delenv("DOGBREEDS_CACHE", raising=False)
    sweep = config("hydra.sweep.dir=swept")
    sweep.hydra.overrides.hydra = ["hydra.sweep.dir=swept"]
    launcher.pass_environment(sweep)
    # `load_sweep_config` composes a job's config from these overrides.
    job = config(*sweep.hydra.overrides.hydra)
    # The tests' own runtime is a variable too.
    variables = {"DOGBREEDS_HOME": str(place), "DOGBREEDS_SWEEP_RUN": "12e4", "DOGBREEDS_RUNTIME": "tensorflow"}
    assert job.hydra.job.env_set == {**variables, "DOGBREEDS_TRIAL": ""}
    assert job.hydra.sweep.dir == str(tmp_path / "swept")


@pytest.mark.long
def test_ray_launcher_rejects_an_address_where_nothing_listens(command) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        rejected = command(
            "train", "--multirun", "seed=0,1", "hydra/launcher=ray", f"hydra.launcher.ray.init.address={address}"
        )
    assert rejected.returncode == 1
    assert rejected.stderr.startswith(
        f"error: Ray at {address} cannot be used ([Errno 111] Connection refused). The address must be local, "
    )
    assert rejected.stderr.endswith("Type hydra.launcher.ray.init.address=local.\n")


@pytest.mark.slow
def test_slurm_launcher_requests_the_resources_of_its_preset(command, tmp_path: Path) -> None:
    """Slurm's commands are fakes: srun does nothing, and sbatch saves the script that it gets and rejects it."""
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "srun").write_text("#!/bin/sh\n")
    (tools / "sbatch").write_text(
        f'#!/bin/sh\ncp "$1" {tmp_path}/sbatch.sh\necho "sbatch: error: invalid partition specified: nowhere"'
        " >&2\nexit 1\n"
    )
    for tool in tools.iterdir():
        tool.chmod(0o755)
    options = (
        "hydra/launcher=submitit_slurm",
        "hydra.launcher.partition=nowhere",
        "hydra.launcher.array_parallelism=2",
    )
    rejected = command("train", "--multirun", "seed=0,1,2", *SMALL, *options, PATH=f"{tools}:{os.environ['PATH']}")
    assert rejected.returncode == 1
    assert "error: Slurm rejected the jobs (sbatch: error: invalid partition specified: nowhere). " in rejected.stderr
    assert "Type hydra.launcher.partition=<name> " in rejected.stderr
    assert "scancel --name=dogbreeds ends its jobs" in rejected.stdout
    lines = (tmp_path / "sbatch.sh").read_text().splitlines()
    flags = dict(
        line.removeprefix("#SBATCH --").split("=", 1) for line in lines if line.startswith("#SBATCH --") and "=" in line
    )
    expected = {
        "array": "0-2%2",
        "time": "240",
        "cpus-per-task": "4",
        "mem": "8GB",
        "gpus-per-node": "1",
        "partition": "nowhere",
    }
    assert {name: flags.get(name) for name in expected} == expected
    assert flags["signal"] == "USR2@120"
    assert flags["job-name"] == "dogbreeds"
    assert "#SBATCH --open-mode=append" in lines


@pytest.mark.parametrize(
    ("launchers", "sweeps"),
    [
        pytest.param(["basic", "submitit_local"], ["frozen"], marks=pytest.mark.slow, id="one"),
        # Fine-tunes need a frozen run that has finished, so they are a sweep of their own.
        pytest.param(
            list(LAUNCHERS),
            ["torch_pixels,lr_collapse,frozen", "finetune_50,finetune_20"],
            marks=pytest.mark.long,
            id="all",
        ),
    ],
)
def test_every_launcher_gives_the_same_metrics(
    launchers: list[str], sweeps: list[str], command, ray_environment, make_home, tmp_path: Path
) -> None:
    measured = {}
    num_attempts = ",".join(sweeps).count(",") + 1
    for name in launchers:
        place = make_home(tmp_path / name)
        for attempts in sweeps:
            done = command(
                "train",
                "--multirun",
                f"attempt={attempts}",
                *SMALL,
                *LAUNCHERS[name],
                DOGBREEDS_HOME=str(place),
                **ray_environment,
            )
            assert done.returncode == 0, done.stderr
        _, sweep_runs, jobs = runs(place)
        assert {run.data.tags["mlflow.parentRunId"] for run in jobs} == {run.info.run_id for run in sweep_runs}
        assert [run.info.status for run in [*sweep_runs, *jobs]] == ["FINISHED"] * (num_attempts + len(sweeps))
        measured[name] = {
            run.data.tags["choice.attempt"]: {
                key: value for key, value in run.data.metrics.items() if "seconds" not in key
            }
            for run in jobs
        }
        assert len(measured[name]) == num_attempts
    for name in launchers:
        assert measured[name] == measured["basic"], name


@pytest.mark.own_cache
@pytest.mark.long
@pytest.mark.parametrize("attempts", [4, 32])
def test_ray_launcher_resumes_the_job_of_a_killed_worker(
    attempts: int, start_command, ray_environment, tmp_path: Path
) -> None:
    rates = ",".join(f"{number}e-4" for number in range(1, attempts // 2 + 1))
    sweep = ("--multirun", f"optimizer.lr={rates}", "seed=0,1", *SMALL, "tracking.model=none", *LAUNCHERS["ray"])
    with start_command("train", *sweep, **ray_environment) as process:
        place = tmp_path / "home"
        lines: list[str] = []
        kills = 0
        interrupted: set[str] = set()
        for line in process.stdout:
            lines.append(line)
            if not interrupted and len(lines) > 2 * attempts and re.match(r"#\d+ epoch 2/3", line):
                running = next(
                    (run.data.tags["process"] for run in runs(place)[2] if run.info.status == "RUNNING"), None
                )
                if running is not None:
                    worker = psutil.Process(int(running))
                    worker.kill()
                    worker.wait(60)
                    # A worker that has just finished its job interrupts none.
                    kills += 1
                    left = (
                        run
                        for run in runs(place)[2]
                        if run.data.tags["process"] == running and run.info.status != "FINISHED"
                    )
                    interrupted = {run.info.run_id for run in left}
        errors = process.stderr.read()
    assert process.returncode == 0, errors
    assert interrupted
    client, sweeps, jobs = runs(place)
    assert [run.info.status for run in sweeps] == ["FINISHED"]
    assert [run.info.status for run in jobs] == ["FINISHED"] * attempts
    assert {run.data.tags["mlflow.parentRunId"] for run in jobs} == {sweeps[0].info.run_id}
    for run in jobs:
        assert [point.step for point in client.get_metric_history(run.info.run_id, "val/accuracy")] == [1, 2, 3]
    assert {run.info.run_id: run.data.tags["resumed"] for run in jobs if "resumed" in run.data.tags} == dict.fromkeys(
        interrupted, "1"
    )
    logs = [log.read_text() for log in place.glob("multirun/*/*/*/train.log")]
    assert sum(log.count("features of train: 120 in") for log in logs) == 1
    epochs = sum(map(len, trained(place).values()))
    # A kill may come after an epoch's checkpoint and before its log line.
    assert attempts * 3 - kills <= epochs <= attempts * 3
    own = [line for line in lines if not line.startswith("\t#")]
    # Every line arrives: Ray drops no equal ones.
    assert sum(bool(re.match(r"#\d+ epoch ", line)) for line in own) >= attempts * 3 - 4
    assert not any("pid=" in line or "\x1b" in line for line in lines)


@pytest.mark.own_cache
@pytest.mark.long
def test_jobs_on_a_running_ray_cluster_are_nested_and_use_the_sweeps_folders(
    command, ray_environment, tmp_path: Path
) -> None:
    """The cluster's workers have an environment and a working folder of their own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (tmp_path / "away").mkdir()
    environment = (
        {name: value for name, value in os.environ.items() if not name.startswith("DOGBREEDS_")}
        | ray_environment
        | {"PYTHONPATH": str(home())}
    )
    ray_start = [
        sys.executable,
        "-m",
        "ray.scripts.scripts",
        "start",
        "--head",
        "--block",
        f"--port={port}",
        "--num-cpus=2",
        "--include-dashboard=false",
    ]
    cluster = subprocess.Popen(
        ray_start,
        cwd=tmp_path / "away",
        env=environment | {"RAY_USAGE_STATS_ENABLED": "0"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until(lambda: socket.socket().connect_ex(("127.0.0.1", port)) == 0, cluster)
        time.sleep(5)
        address = f"hydra.launcher.ray.init.address=127.0.0.1:{port}"
        done = command(
            "train",
            "--multirun",
            "seed=0,1",
            *SMALL,
            "tracking.model=none",
            "hydra/launcher=ray",
            address,
            **ray_environment,
        )
        assert done.returncode == 0, done.stderr
    finally:
        processes = [cluster, *psutil.Process(cluster.pid).children(recursive=True)]
        cluster.terminate()
        cluster.wait(60)
        for process in processes[1:]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
    _, sweeps, jobs = runs(tmp_path / "home")
    assert [run.info.status for run in jobs] == ["FINISHED", "FINISHED"]
    assert {run.data.tags["mlflow.parentRunId"] for run in jobs} == {sweeps[0].info.run_id}
    folders = {Path(run.data.tags["hydra.folder"]) for run in jobs}
    assert {folder.parent for folder in folders} == {Path(sweeps[0].data.tags["hydra.folder"])}
    assert list((tmp_path / "away").iterdir()) == []
    assert (tmp_path / "cache").is_dir()


@pytest.mark.long
@pytest.mark.parametrize("name", ["submitit_local", "ray"])
def test_sigterm_ends_jobs_cleanly_and_leaves_no_process(
    name: str, start_command, ray_environment, tmp_path: Path
) -> None:
    place = tmp_path / "home"
    with start_command("train", "--multirun", "seed=0,1", *LONG, *LAUNCHERS[name], **ray_environment) as process:
        wait_until(lambda: sum(len(epochs) > 1 for epochs in trained(place).values()) == 2, process)
        children = psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        _, errors = process.communicate(timeout=900)
    assert process.returncode == 143
    assert errors.splitlines()[-1] == "interrupted: run the same command again to resume"
    assert psutil.wait_procs(children, timeout=60)[1] == []
    _, sweeps, jobs = runs(place)
    assert [run.info.status for run in [*sweeps, *jobs]] == ["KILLED"] * 3
    # Each job has its two newest checkpoints.
    assert len(list(place.glob("multirun/checkpoints/*/*.npz"))) == 4


def _is_submitit_job(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return "submitit.core._submit" in process.cmdline() and "submitit.local._local" in process.parent().cmdline()
    return False


@pytest.mark.long
def test_job_resumes_after_its_scheduler_ended_it(start_command, tmp_path: Path) -> None:
    """As on Slurm: submitit gets a signal shortly before a job's time is over, and submits the job again."""
    place = tmp_path / "home"
    with start_command("train", "--multirun", "seed=0", *LONG, *LAUNCHERS["submitit_local"]) as process:
        wait_until(lambda: len(trained(place).get("0", [])) > 1, process)
        (job,) = (child for child in psutil.Process(process.pid).children(recursive=True) if _is_submitit_job(child))
        job.send_signal(signal.SIGUSR2)
        wait_until(
            lambda: any(
                "Resuming from checkpoint" in log.read_text() for log in place.glob("multirun/*/*/*/train.log")
            ),
            process,
        )
        _, _, jobs = runs(place)
        job_log = next(place.glob("multirun/*/*/0/train.log"))
        before = int(re.findall(r"Resuming from checkpoint: epoch (\d+)/4000 done", job_log.read_text())[0])
        assert before > 1
        wait_until(lambda: trained(place)["0"][-1] > before, process)
        process.terminate()
        process.communicate(timeout=900)
    epochs = trained(place)["0"]
    # No epoch is trained twice.
    assert epochs == sorted(set(epochs))
    assert len(jobs) == 1
    recorded = {
        point.step
        for point in mlflow.MlflowClient(f"sqlite:///{place}/mlruns/mlflow.db").get_metric_history(
            jobs[0].info.run_id, "val/loss"
        )
    }
    # This includes an epoch that has a checkpoint, but was interrupted before its log line.
    assert recorded >= set(range(1, before + 1))
    assert jobs[0].data.tags["resumed"] == "1"


@pytest.mark.long
def test_run_of_a_lost_machine_resumes_at_once(start_command, command_environment, make_home, tmp_path: Path) -> None:
    """The run's last heartbeat is recent, and its process is on another host, where it cannot be checked."""
    on_other_host = ["unshare", "--uts", "sh", "-c", 'hostname elsewhere; exec "$0" "$@"']
    if subprocess.run([*on_other_host, "true"], capture_output=True, check=False).returncode:
        pytest.skip("a machine's name cannot be set for one process here")
    place = make_home(tmp_path / "home")
    other_command = [*on_other_host, sys.executable, "-m", "dogbreeds.train", *LONG]
    with subprocess.Popen(
        other_command, cwd=tmp_path, env=command_environment(), stdout=subprocess.PIPE, text=True
    ) as other:
        epochs = [
            line for line, _ in zip(iter(other.stdout.readline, ""), range(60), strict=False) if "/4000  train " in line
        ]
        other.kill()
    assert epochs
    _, _, jobs = runs(place)
    assert [(run.info.status, run.data.tags["host"]) for run in jobs if run.info.status == "RUNNING"] == [
        ("RUNNING", "elsewhere")
    ]
    with start_command("train", *LONG) as process:
        lines = read_until(process, "/4000  train ")
        process.kill()
    assert any(" as KILLED: its process on elsewhere no longer exists" in line for line in lines)
    assert any(line.startswith("Resuming from checkpoint: epoch ") for line in lines)
