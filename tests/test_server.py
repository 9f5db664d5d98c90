"""A real tracking server on a real PostgreSQL, which goes away and comes back."""

import itertools
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import mlflow
import numpy as np
import pytest

pytestmark = pytest.mark.slow

SMALL = ("data.breeds=6", "tracking.system_metrics_seconds=1", "phase.patience_epochs=null")
AWAY, BACK = "does not answer", "answers again, after "


def free_port() -> int:
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        return place.getsockname()[1]


def until(holds: Callable[[], object], what: str, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"waited for {what}"
        time.sleep(0.2)


class Postgres:
    """A cluster of its own in a folder, on loopback; a root user has it run by another, as PostgreSQL demands."""

    def __init__(self, programs: Path, folder: Path):
        self.programs, self.folder, self.port = programs, folder, free_port()
        self.user = next((name for name in ("postgres", "nobody") if name in {entry.pw_name for entry in pwd.getpwall()}), None)
        self.user = self.user if os.getuid() == 0 else None
        folder.mkdir()
        if self.user is not None:
            shutil.chown(folder, self.user)
            for above in folder.parents:  # pytest's folders are closed to others
                if above.is_relative_to(os.environ.get("PYTEST_DEBUG_TEMPROOT", "/tmp")) and above.stat().st_uid == 0 and above != Path("/tmp"):
                    above.chmod(above.stat().st_mode | 0o711)
        self._run("initdb", "-D", str(folder / "data"), "-U", "postgres", "--auth=trust", "-E", "UTF8", "--no-sync")
        with (folder / "data/postgresql.conf").open("a") as file:
            file.write(f"listen_addresses = '127.0.0.1'\nport = {self.port}\nunix_socket_directories = '{folder}'\nfsync = off\n")
        self.start()
        self._run("createdb", "-h", "127.0.0.1", "-p", str(self.port), "-U", "postgres", "mlflow")
        self.uri = f"postgresql://postgres@127.0.0.1:{self.port}/mlflow"

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [str(self.programs / program), *arguments],
            user=self.user,
            cwd=self.folder,
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,  # not a pipe: the server inherits it and stays
            timeout=120,
        )

    def start(self) -> None:
        self._run("pg_ctl", "-D", str(self.folder / "data"), "-w", "start")

    def stop(self) -> None:
        self._run("pg_ctl", "-D", str(self.folder / "data"), "-m", "immediate", "-w", "stop")


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
                [sys.executable, "-m", "mlflow", "server", *places, "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"],
                cwd=self.folder,
                env=os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true"},
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        until(self.answers, "the server to start")

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


@pytest.fixture
def postgres(tmp_path: Path) -> Iterator[Postgres]:
    pytest.importorskip("psycopg2", reason="psycopg2 is not installed: pip install 'dogbreeds[server]'")
    found = shutil.which("initdb")
    packaged = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if found is None and not packaged:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    cluster = Postgres(Path(found).parent if found else packaged[-1].parent, tmp_path / "postgres")
    yield cluster
    cluster.stop()


@pytest.fixture
def server(postgres: Postgres, tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "server").mkdir()
    server = Server(postgres.uri, tmp_path / "server")
    yield server
    server.kill()


def listen(process: "subprocess.Popen[str]", said: str, times: int = 1) -> list[str]:
    """What a command says until it has said something so many times, or has ended."""
    lines = []
    for line in process.stdout or ():
        lines.append(line)
        times -= said in line
        if times <= 0:
            break
    return lines


def ended(process: "subprocess.Popen[str]", before: list[str]) -> tuple[list[str], str]:
    output, errors = process.communicate(timeout=280)
    return [*(line.rstrip("\n") for line in before), *output.splitlines()], errors


def recorded(uri: str) -> "tuple[mlflow.MlflowClient, list, list]":
    """The runs of sweeps, and those of attempts."""
    client = mlflow.MlflowClient(uri)
    found = client.search_runs([client.get_experiment_by_name("dogbreeds").experiment_id])
    above = [run for run in found if run.info.run_name.startswith("sweep ")]
    return client, above, [run for run in found if run not in above]


def curve(client: "mlflow.MlflowClient", run_id: str, name: str) -> list[tuple[int, float]]:
    return sorted((point.step, point.value) for point in client.get_metric_history(run_id, name))


def test_it_starts(server: Server, command, tmp_path: Path) -> None:
    done = command("train", *SMALL, "phase.epochs=3", f"tracking.uri={server.uri}")
    print(done.stdout, done.stderr)
    print((server.folder / "server.log").read_text()[-3000:])
    client, above, jobs = recorded(server.uri)
    print(jobs)
    assert done.returncode == 0
