"""Commands in processes of their own that need not import TensorFlow: forks of one that has.

Importing TensorFlow and MLflow takes more processor time than most commands that tests run, so one server imports them, once for a test run, and
forks for each command before anything of TensorFlow has begun. What is forked is a process like any other: a session, environment, folder, output
and standard error of its own, its module run as `python -m` runs it, to the interpreter's own end.

python tests/prefork.py <number of a file that is a listening socket>      # the server; it imports when it is asked for the first time
"""

import contextlib
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, NoReturn

# What commands import sooner or later. The commands themselves are not among it: each is run as the main module.
_IMPORTED = (
    "tensorflow", "keras", "mlflow", "mlflow.store.tracking.sqlalchemy_store", "mlflow.store.artifact.local_artifact_repo", "matplotlib.pyplot",
    "scipy.stats", "pandas", "PIL.Image", "hydra", "dogbreeds.experiments.attempt",
)  # fmt: skip
# Bytes
_LARGEST_REQUEST = 1 << 20
# Between two looks whether anybody may still ask
_LOOK_SECONDS = 10.0
ADDRESS = "PREFORK_ADDRESS"


class Process:
    """A command in a process that the server has forked, in the manner of `subprocess.Popen` with pipes of text.

    Args:
        address: the server's.
        module: what `python -m` would run.
        arguments: of the command line.
        cwd: the folder it is typed in.
        environment: all of it.
        given: what is on its standard input.
    """

    def __init__(
        self,
        address: str,
        module: str,
        arguments: tuple[str, ...],
        cwd: Path,
        environment: dict[str, str],
        given: bytes = b"",
    ):
        self.args, self.returncode = [module, *arguments], None
        (out, out_end), (errors, errors_end) = os.pipe(), os.pipe()
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.connect(address)
        asked = {"module": module, "arguments": arguments, "cwd": str(cwd), "environment": environment}
        with tempfile.TemporaryFile() as stdin:
            stdin.write(given)
            stdin.seek(0)
            socket.send_fds(self._connection, [json.dumps(asked).encode()], [stdin.fileno(), out_end, errors_end])
        os.close(out_end)
        os.close(errors_end)
        self.stdout: IO[str] = open(out)  # noqa: SIM115
        self.stderr: IO[str] = open(errors)  # noqa: SIM115
        self._answers = self._connection.makefile()
        self.pid = int(self._answers.readline())
        self._ended = threading.Event()
        threading.Thread(target=self._await_end, daemon=True).start()

    def _await_end(self) -> None:
        with contextlib.suppress(ValueError, OSError):
            self.returncode = int(self._answers.readline())
        self._ended.set()

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if not self._ended.wait(timeout):
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        assert self.returncode is not None, "the server that forked it has ended"
        return self.returncode

    def send_signal(self, number: int) -> None:
        if not self._ended.is_set():
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """All that it still says, once it has ended."""
        with ThreadPoolExecutor(2) as beside:
            read = [beside.submit(stream.read) for stream in (self.stdout, self.stderr)]
            try:
                self.wait(timeout)
            except subprocess.TimeoutExpired:
                self._kill_all()
                raise
            output, errors = (each.result() for each in read)
        return output, errors

    def _kill_all(self) -> None:
        """With all that hold its output open."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.wait()
        self.stdout.close()
        self.stderr.close()
        self._connection.close()


def begin(address: Path, log: Path) -> "subprocess.Popen[bytes]":
    """Begins the server, which answers at an address and ends with the process that began it."""
    with socket.socket(socket.AF_UNIX) as server, log.open("w") as said:
        # Here, so that who asks at once finds it
        server.bind(str(address))
        server.listen(64)
        script = [sys.executable, __file__, str(server.fileno())]
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
        return subprocess.Popen(
            script, env=environment, pass_fds=[server.fileno()], stdin=subprocess.DEVNULL, stdout=said, stderr=said
        )


def serve(server: socket.socket) -> None:
    """Forks for each request until it is ended; returns in a process that is to run a command."""
    first, parent = True, os.getppid()
    server.settimeout(_LOOK_SECONDS)
    while True:
        try:
            connection, _ = server.accept()
        except TimeoutError:
            if os.getppid() != parent:
                sys.exit()
            continue
        connection.setblocking(True)
        if first:
            _import()
            first = False
        _reap()
        if os.fork() == 0:
            server.close()
            _fork_and_report(connection)
            return
        connection.close()


def _import() -> None:
    os.environ |= {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_LOGGING_LEVEL": "WARNING",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    }
    for name in _IMPORTED:
        importlib.import_module(name)
    gc.collect()
    # As an attempt does that has imported TensorFlow by itself
    gc.freeze()


def _reap() -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _fork_and_report(connection: socket.socket) -> None:
    """Returns in the command's process; the one that waits for its end says which it is and how it ended, and goes."""
    request, files, *_ = socket.recv_fds(connection, _LARGEST_REQUEST, 3)
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        connection.close()
        os.close(read)
        os.setsid()
        # From now on it can be ended with all its processes
        os.write(write, b".")
        os.close(write)
        _become(json.loads(request), files)
        return
    os.close(write)
    os.read(read, 1)
    for file in files:
        os.close(file)
    _report(connection, pid)


def _report(connection: socket.socket, pid: int) -> NoReturn:
    # Who asked may have gone
    with contextlib.suppress(OSError):
        connection.sendall(f"{pid}\n".encode())
    _, status = os.waitpid(pid, 0)
    with contextlib.suppress(OSError):
        connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
    os._exit(0)


def _become(asked: dict, files: list[int]) -> None:
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(asked["environment"])
    os.chdir(asked["cwd"])
    sys.argv = [asked["module"], *asked["arguments"]]
    sys.path[0] = asked["cwd"]


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
