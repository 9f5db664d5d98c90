"""A real tracking server on a real PostgreSQL, which goes away and comes back."""

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
from tests.said import listen, rest, until

SMALL = ("data.breeds=6", "tracking.system_metrics_seconds=1", "phase.patience_epochs=null")
AWAY, BACK = "does not answer (", "answers again, after "
LINE = re.compile(
    r"epoch +(\d+)/\d+  train +[\d.]+ %  loss ([\d.]+)   val +([\d.]+) %  top-5 +[\d.]+ %  loss ([\d.]+) "
)


def free_port() -> int:
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        return place.getsockname()[1]


class Postgres:
    """A cluster of its own in a folder, on loopback; a root user has it run by another, as PostgreSQL demands."""

    def __init__(self, programs: Path, folder: Path):
        self.programs, self.folder, self.port = programs, folder, free_port()
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
            # Not a pipe: the server inherits it and stays
            stderr=subprocess.DEVNULL,
            timeout=120,
        )

    def start(self) -> None:
        self._run("pg_ctl", "-D", str(self.folder / "data"), "-w", "start")

    def stop(self) -> None:
        # A test may have ended in between
        self._run("pg_ctl", "-D", str(self.folder / "data"), "-m", "immediate", "-w", "stop", check=False)


class Server:
    """MLflow's server in processes of its own."""

    def __init__(self, store: str, folder: Path):
        self.store, self.folder, self.port = store, folder, free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        places = ("--backend-store-uri", self.store, "--artifacts-destination", str(self.folder / "artifacts"))
        with (self.folder / "server.log").open("ab") as file:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "mlflow",
                    "server",
                    *places,
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
        until(self.answers, started)

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
    # Not in pytest's, which are closed to other users
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
    """It is started once for all, which takes half a minute on a busy machine, and again where a test has left it away."""
    if running.process is None:
        running.start()
    return running


def recorded(uri: str, experiment: str) -> "tuple[mlflow.MlflowClient, list, list]":
    """The runs of sweeps, and those of attempts."""
    client = mlflow.MlflowClient(uri)
    found = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    above = [run for run in found if run.info.run_name.startswith("sweep ")]
    return client, above, [run for run in found if run not in above]


def curve(client: "mlflow.MlflowClient", run_id: str, name: str) -> list[tuple[int, float]]:
    return sorted((point.step, point.value) for point in client.get_metric_history(run_id, name))


def numbers(lines: list[str]) -> dict[int, tuple[float, ...]]:
    """What a job said of each epoch: loss, validation accuracy in %, validation loss."""
    return {int(found[1]): tuple(map(float, found.groups()[1:])) for line in lines if (found := LINE.search(line))}


def assert_as_said(
    client: "mlflow.MlflowClient", run_id: str, lines: list[str], unsaid: frozenset[int] = frozenset()
) -> None:
    """Every epoch is recorded once, with the numbers of the job's own lines; also those that a job was killed before it could say."""
    said = numbers(lines)
    curves = [curve(client, run_id, name) for name in ("train/loss", "val/accuracy", "val/loss")]
    for points in curves:
        assert [step for step, _ in points] == sorted({*said, *unsaid})
    for (step, loss), (_, accuracy), (_, val_loss) in zip(*curves, strict=True):
        if step in said:
            assert (round(loss, 3), round(100 * accuracy, 1), round(val_loss, 3)) == pytest.approx(
                said[step], abs=1.01e-3
            )


@pytest.mark.slow
def test_a_sweep_side_by_side_loses_nothing_when_the_server_is_killed(
    server: Server, begun, command, tmp_path: Path
) -> None:
    settings = (f"tracking.uri={server.uri}", 'tracking.experiment="it\'s a sweep"', *SMALL, "phase.epochs=150")
    sweep = ("--multirun", "optimizer.lr=1e-3,3e-3", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    with begun("train", *sweep, *settings) as process:
        lines = listen(process, "/150  train ", 60)
        server.kill()
        lines += listen(process, AWAY)
        # Nobody waits
        lines += listen(process, "/150  train ", 20)
        server.start()
        more, errors = rest(process)
    lines += more
    assert process.returncode == 0, (errors, lines[-30:])
    assert any(BACK in line for line in lines)
    client, above, jobs = recorded(server.uri, "it's a sweep")
    assert [run.info.status for run in above] == ["FINISHED"]
    assert [run.info.status for run in jobs] == ["FINISHED"] * 2
    assert {run.data.tags["mlflow.parentRunId"] for run in jobs} == {above[0].info.run_id}
    for run in jobs:
        number = next(line.split()[0] for line in lines if f"run {short(run.info.run_id)}" in line)
        assert_as_said(client, run.info.run_id, [line for line in lines if line.startswith(f"{number} ")])
        steps = [step for step, _ in curve(client, run.info.run_id, "system/cpu_utilization_percentage")]
        assert steps == list(range(len(steps))) != []
        places = (
            "predictions/val.npz",
            "predictions/test.npz",
            "curves.png",
            "config/config.yaml",
            "head/head.weights.h5",
        )
        for place in places:
            assert Path(client.download_artifacts(run.info.run_id, place, str(tmp_path))).stat().st_size > 0
    best = max(run.data.metrics["best/val_accuracy"] for run in jobs)
    assert above[0].data.metrics["best/val_accuracy"] == best
    assert [item.path for item in client.list_artifacts(above[0].info.run_id) if not item.is_dir] == ["curves.png"]
    kept = [run for run in jobs if client.list_artifacts(run.info.run_id, "model")]
    # Of worse jobs they are removed through the server
    assert [run.data.tags.get("model") for run in kept] == ["kept"] * len(kept)
    assert best in [run.data.metrics["best/val_accuracy"] for run in kept]

    place = settings[:2]
    shown = command("table", *place)
    assert shown.returncode == 0, shown.stderr
    one, other = (run.info.run_id for run in jobs)
    compared = command("compare", f"first={one}", f"second={other}", *place)
    assert compared.returncode == 0, compared.stderr
    assert short(one) in compared.stdout
    # The second takes the place of the first
    for _ in range(2):
        evaluated = command("evaluate", f"run={kept[0].info.run_id}", *place)
        assert evaluated.returncode == 0, evaluated.stderr
    assert client.list_artifacts(kept[0].info.run_id, "evaluation") != []


@pytest.mark.slow
def test_a_database_that_is_restarted_loses_nothing(server: Server, postgres: Postgres, begun) -> None:
    with begun(
        "train", f"tracking.uri={server.uri}", "tracking.experiment=database", *SMALL, "phase.epochs=200"
    ) as process:
        lines = listen(process, "/200  train ", 20)
        postgres.stop()
        lines += listen(process, AWAY)
        postgres.start()
        more, errors = rest(process)
    lines += more
    assert process.returncode == 0, (errors, lines[-30:])
    assert sum(AWAY in line for line in lines) == sum(BACK in line for line in lines) == 1
    client, _, jobs = recorded(server.uri, "database")
    assert [run.info.status for run in jobs] == ["FINISHED"]
    assert_as_said(client, jobs[0].info.run_id, lines)


@pytest.mark.slow
def test_what_a_process_could_not_deliver_is_delivered_by_the_next(server: Server, begun, command) -> None:
    """One is killed while the server is away, one runs out of patience at the end, one before it has begun."""
    settings = (
        f"tracking.uri={server.uri}",
        "tracking.experiment=patience",
        *SMALL,
        "phase.epochs=300",
        "tracking.patience_minutes=0.1",
    )
    with begun("train", *settings) as process:
        lines = listen(process, "/300  train ", 10)
        server.kill()
        lines += listen(process, AWAY)
        process.kill()
        lines += rest(process)[0]
    assert max(numbers(lines)) < 300
    early = command("train", *settings)
    assert early.returncode == 1
    assert "epoch" not in early.stdout
    server.start()
    with begun("train", *settings) as process:
        again = listen(process, "/300  train ", 2)
        server.kill()
        more, errors = rest(process)
        again += more
    assert process.returncode == 1
    for said in (early.stderr, errors):
        assert re.fullmatch(
            rf"error: The tracking server at {server.uri} does not answer \(.*Connection refused\), and was waited for"
            r" 0\.1 minutes\. tracking\.uri "
            r"must be .*; nothing that was trained is lost\. Start it and run the same command again, .* or type"
            r" tracking=none\.",
            # The first is Hydra's
            said.splitlines()[-1],
        )
    server.start()
    last = command("train", *settings)
    assert last.returncode == 0, last.stderr
    assert "going on after epoch 300 of 300" in last.stdout
    client, _, jobs = recorded(server.uri, "patience")
    assert [run.info.status for run in jobs] == ["FINISHED"]
    assert [step for step, _ in curve(client, jobs[0].info.run_id, "val/loss")] == list(range(1, 301))
    # An epoch is written down before it is said: the one after the last that was said may have been, when the process was killed.
    assert_as_said(client, jobs[0].info.run_id, lines + again, frozenset({max(numbers(lines)) + 1}))


@pytest.mark.own_cache
@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"), [pytest.param(signal.SIGINT, 130, marks=pytest.mark.long), (signal.SIGTERM, 143)]
)
def test_a_signal_ends_a_command_that_waits(server: Server, begun, command, number: int, code: int) -> None:
    settings = (f"tracking.uri={server.uri}", f"tracking.experiment=signal {code}", *SMALL, "phase.epochs=100")
    with begun("train", *settings) as process:
        listen(process, "/100  train ", 5)
        server.kill()
        # What follows is to be uploaded
        listen(process, "features of test: ")
        time.sleep(2)
        process.send_signal(number)
        # Of the ten minutes that it would wait
        errors = rest(process, 120)[1]
    assert process.returncode == code
    assert errors == "interrupted: the same command goes on from here\n"
    server.start()
    done = command("train", *settings)
    assert done.returncode == 0, done.stderr
    client, _, jobs = recorded(server.uri, f"signal {code}")
    assert [run.info.status for run in jobs] == ["FINISHED"]
    assert [step for step, _ in curve(client, jobs[0].info.run_id, "val/loss")] == list(range(1, 101))
