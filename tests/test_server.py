"""Outages of a real tracking server on a real PostgreSQL database."""

import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest

from dogbreeds.tracking.records import short
from tests.process_output import read_to_end, read_until, wait_until

SMALL = ("data.classes=6", "tracking.system_metrics_seconds=1", "phase.patience_epochs=null")
# Log lines of an outage and of its end.
OUTAGE, RECOVERY = "does not answer (", "answers again, after "
EPOCH_LINE = re.compile(r"epoch +(\d+)/\d+  train +[\d.]+ %  val +([\d.]+) %  loss ([\d.]+)/([\d.]+) ")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Postgres:
    """PostgreSQL server on loopback, with its data in a folder. Root has another user run it, since it refuses root."""

    def __init__(self, programs: Path, folder: Path):
        self.programs = programs
        self.folder = folder
        self.port = free_port()
        self.user = next(
            (name for name in ("postgres", "nobody") if name in {entry.pw_name for entry in pwd.getpwall()}), None
        )
        self.user = self.user if os.getuid() == 0 else None
        if self.user is not None:
            shutil.chown(folder, self.user)
        self._run("initdb", "-D", str(folder / "data"), "-U", "postgres", "--auth=trust", "-E", "UTF8", "--no-sync")
        with (folder / "data/postgresql.conf").open("a") as file:
            file.write(
                f"listen_addresses = '127.0.0.1'\nport = {self.port}\nunix_socket_directories = '{folder}'\nfsync ="
                " off\n"
            )
        self.start()
        self.uri = f"postgresql+psycopg2://postgres@127.0.0.1:{self.port}/postgres"

    def _run(self, program: str, *arguments: str, check: bool = True) -> None:
        subprocess.run(
            [str(self.programs / program), *arguments],
            user=self.user,
            cwd=self.folder,
            check=check,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            # Not a pipe: the server would inherit it and hold it open.
            stderr=subprocess.DEVNULL,
            timeout=120,
        )

    def start(self) -> None:
        self._run("pg_ctl", "-D", str(self.folder / "data"), "-w", "start")

    def stop(self) -> None:
        # Without a check: a failed test may have left it stopped.
        self._run("pg_ctl", "-D", str(self.folder / "data"), "-m", "immediate", "-w", "stop", check=False)


class Server:
    """MLflow's tracking server, in its own process group."""

    def __init__(self, store: str, folder: Path):
        self.store = store
        self.folder = folder
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        locations = ("--backend-store-uri", self.store, "--artifacts-destination", str(self.folder / "artifacts"))
        with (self.folder / "server.log").open("ab") as file:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "mlflow",
                    "server",
                    *locations,
                    "--host",
                    "127.0.0.1",
                    "--port",
                    str(self.port),
                    "--workers",
                    "1",
                ],
                cwd=self.folder,
                env=os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        started = self.process
        wait_until(self.answers, started)

    def answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=5) as answer:
                return answer.status == 200
        except (urllib.error.URLError, OSError):
            return False

    def kill(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    pytest.importorskip("psycopg2", reason="psycopg2 is not installed: pip install 'dogbreeds[server]'")
    found = [Path(path).resolve() for path in [shutil.which("initdb")] if path is not None]
    found += sorted(
        Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]), reverse=True
    )
    if not found:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    # Not in pytest's folder, which other users cannot read.
    with tempfile.TemporaryDirectory(prefix="postgres-") as folder:
        cluster = Postgres(found[0].parent, Path(folder))
        yield cluster
        cluster.stop()


@pytest.fixture(scope="module")
def running(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(postgres.uri, tmp_path_factory.mktemp("server"))
    yield server
    server.kill()


@pytest.fixture
def server(running: Server) -> Server:
    """Start the shared server again if a test has killed it: a start takes half a minute on a busy machine."""
    if running.process is None:
        running.start()
    return running


def recorded_runs(uri: str, experiment: str) -> "tuple[mlflow.MlflowClient, list, list]":
    """Return a client, the runs of sweeps, and all other runs."""
    client = mlflow.MlflowClient(uri)
    found = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    sweeps = [run for run in found if run.info.run_name.startswith("sweep ")]
    return client, sweeps, [run for run in found if run not in sweeps]


def metric_curve(client: "mlflow.MlflowClient", run_id: str, name: str) -> list[tuple[int, float]]:
    """Return a metric's steps and values, in the order of steps."""
    return sorted((point.step, point.value) for point in client.get_metric_history(run_id, name))


def printed_epochs(lines: list[str]) -> dict[int, tuple[float, ...]]:
    """Return what a job printed, by epoch: loss, validation accuracy in %, validation loss."""
    return {
        int(found[1]): tuple(map(float, found.groups()[1:])) for line in lines if (found := EPOCH_LINE.search(line))
    }


def assert_recorded_as_printed(
    client: "mlflow.MlflowClient", run_id: str, lines: list[str], unprinted: frozenset[int] = frozenset()
) -> None:
    """Check that every epoch is recorded once, with the numbers that the job printed.

    Args:
        client: client of the store.
        run_id: the job's run.
        lines: the job's output.
        unprinted: epochs that are recorded although the job was killed before it printed them.
    """
    printed = printed_epochs(lines)
    curves = [metric_curve(client, run_id, name) for name in ("train/loss", "val/accuracy", "val/loss")]
    for points in curves:
        assert [step for step, _ in points] == sorted({*printed, *unprinted})
    for (step, loss), (_, accuracy), (_, val_loss) in zip(*curves, strict=True):
        if step in printed:
            assert (round(100 * accuracy, 1), round(loss, 3), round(val_loss, 3)) == pytest.approx(
                printed[step], abs=1.01e-3
            )


@pytest.mark.long
def test_a_parallel_sweep_loses_nothing_when_the_server_is_killed(
    server: Server, start_command, command, tmp_path: Path
) -> None:
    settings = (f"tracking.uri={server.uri}", 'tracking.experiment="it\'s a sweep"', *SMALL, "phase.epochs=150")
    sweep = ("--multirun", "optimizer.lr=1e-3,3e-3", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    with start_command("train", *sweep, *settings) as process:
        lines = read_until(process, "/150  train ", 60)
        server.kill()
        lines += read_until(process, OUTAGE)
        # Training does not wait for the server.
        lines += read_until(process, "/150  train ", 20)
        server.start()
        more, errors = read_to_end(process)
    lines += more
    assert process.returncode == 0, (errors, lines[-30:])
    assert any(RECOVERY in line for line in lines)
    client, sweeps, jobs = recorded_runs(server.uri, "it's a sweep")
    assert [run.info.status for run in sweeps] == ["FINISHED"]
    assert [run.info.status for run in jobs] == ["FINISHED"] * 2
    assert {run.data.tags["mlflow.parentRunId"] for run in jobs} == {sweeps[0].info.run_id}
    for run in jobs:
        number = next(line.split()[0] for line in lines if f"run   {short(run.info.run_id)} " in line)
        assert_recorded_as_printed(client, run.info.run_id, [line for line in lines if line.startswith(f"{number} ")])
        steps = [step for step, _ in metric_curve(client, run.info.run_id, "system/cpu_utilization_percentage")]
        assert steps == list(range(len(steps))) != []
        artifact_paths = (
            "predictions/val.npz",
            "predictions/test.npz",
            "curves.png",
            "config/config.yaml",
            "head/head.weights.h5",
        )
        for artifact_path in artifact_paths:
            assert Path(client.download_artifacts(run.info.run_id, artifact_path, str(tmp_path))).stat().st_size > 0
    best = max(run.data.metrics["best/val_accuracy"] for run in jobs)
    assert sweeps[0].data.metrics["best/val_accuracy"] == best
    assert [item.path for item in client.list_artifacts(sweeps[0].info.run_id) if not item.is_dir] == [
        "curves.png",
        "sweep.html",
        "sweep.png",
    ]
    with_network = [run for run in jobs if client.list_artifacts(run.info.run_id, "model")]
    # The networks of worse jobs were removed through the server.
    assert [run.data.tags.get("model") for run in with_network] == ["kept"] * len(with_network)
    assert best in [run.data.metrics["best/val_accuracy"] for run in with_network]

    store = settings[:2]
    table = command("table", *store)
    assert table.returncode == 0, table.stderr
    first, second = (run.info.run_id for run in jobs)
    compared = command("compare", f"first={first}", f"second={second}", *store)
    assert compared.returncode == 0, compared.stderr
    assert short(first) in compared.stdout
    # The second evaluation replaces the first.
    for _ in range(2):
        evaluated = command("evaluate", f"run={with_network[0].info.run_id}", *store)
        assert evaluated.returncode == 0, evaluated.stderr
    assert client.list_artifacts(with_network[0].info.run_id, "evaluation") != []


@pytest.mark.slow
def test_a_run_loses_nothing_when_the_database_is_restarted(server: Server, postgres: Postgres, start_command) -> None:
    with start_command(
        "train", f"tracking.uri={server.uri}", "tracking.experiment=database", *SMALL, "phase.epochs=200"
    ) as process:
        lines = read_until(process, "/200  train ", 20)
        postgres.stop()
        lines += read_until(process, OUTAGE)
        postgres.start()
        more, errors = read_to_end(process)
    lines += more
    assert process.returncode == 0, (errors, lines[-30:])
    assert sum(OUTAGE in line for line in lines) == sum(RECOVERY in line for line in lines) == 1
    client, _, jobs = recorded_runs(server.uri, "database")
    assert [run.info.status for run in jobs] == ["FINISHED"]
    assert_recorded_as_printed(client, jobs[0].info.run_id, lines)


@pytest.mark.long
def test_a_resumed_run_records_what_an_earlier_process_could_not_deliver(
    server: Server, start_command, command
) -> None:
    """One process is killed during an outage, one times out before it starts training, one after its last epoch."""
    settings = (
        f"tracking.uri={server.uri}",
        "tracking.experiment=patience",
        *SMALL,
        "phase.epochs=300",
        "tracking.patience_minutes=0.1",
    )
    with start_command("train", *settings) as process:
        lines = read_until(process, "/300  train ", 10)
        server.kill()
        lines += read_until(process, OUTAGE)
        process.kill()
        lines += read_to_end(process)[0]
    assert max(printed_epochs(lines)) < 300
    early = command("train", *settings)
    assert early.returncode == 1
    assert not printed_epochs(early.stdout.splitlines())
    server.start()
    with start_command("train", *settings) as process:
        again = read_until(process, "/300  train ", 2)
        server.kill()
        more, errors = read_to_end(process)
        again += more
    assert process.returncode == 1
    for output in (early.stderr, errors):
        # The last line: Hydra may print one before it.
        assert re.fullmatch(
            rf"error: The tracking server at {server.uri} does not answer \(.*Connection refused; waited 0\.1"
            r" minutes\)\. tracking\.uri must be .*; .* lost\. Start it and run the same command again, .* or type"
            r" tracking=none\.",
            output.splitlines()[-1],
        )
    server.start()
    last = command("train", *settings)
    assert last.returncode == 0, last.stderr
    assert "Resuming from checkpoint: epoch 300/300 done" in last.stdout
    client, _, jobs = recorded_runs(server.uri, "patience")
    assert [run.info.status for run in jobs] == ["FINISHED"]
    assert [step for step, _ in metric_curve(client, jobs[0].info.run_id, "val/loss")] == list(range(1, 301))
    # An epoch is recorded before it is printed: the killed process may have recorded one more than it printed.
    assert_recorded_as_printed(client, jobs[0].info.run_id, lines + again, frozenset({max(printed_epochs(lines)) + 1}))


@pytest.mark.own_cache
@pytest.mark.long
@pytest.mark.parametrize(
    ("number", "code"), [pytest.param(signal.SIGINT, 130, marks=pytest.mark.long), (signal.SIGTERM, 143)]
)
def test_a_signal_ends_a_command_that_waits_for_the_server(
    server: Server, start_command, command, number: int, code: int
) -> None:
    settings = (f"tracking.uri={server.uri}", f"tracking.experiment=signal {code}", *SMALL, "phase.epochs=100")
    with start_command("train", *settings) as process:
        read_until(process, "/100  train ", 5)
        server.kill()
        # The predictions that follow are uploaded, for which the command waits.
        read_until(process, "features of test: ")
        time.sleep(2)
        process.send_signal(number)
        # Well before the ten minutes of its patience.
        errors = read_to_end(process, 120)[1]
    assert process.returncode == code
    assert re.fullmatch(r"interrupted\b.*\bsame command\b.*\n", errors)
    server.start()
    done = command("train", *settings)
    assert done.returncode == 0, done.stderr
    client, _, jobs = recorded_runs(server.uri, f"signal {code}")
    assert [run.info.status for run in jobs] == ["FINISHED"]
    assert [step for step, _ in metric_curve(client, jobs[0].info.run_id, "val/loss")] == list(range(1, 101))
