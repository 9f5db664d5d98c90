"""Start commands as processes that are forked from a server, so that they need not import TensorFlow.

Importing TensorFlow and MLflow takes more processor time than most of the commands that tests run. One server imports
them once per test run, and forks for each command before TensorFlow has started any threads. A forked process is like
any other: it has a session, environment, working folder, output and standard error of its own, and its module runs to
the interpreter's end as with `python -m`.

python tests/prefork.py <file descriptor of a listening socket>   # the server; it imports at the first request
python tests/prefork.py -m <module> <arguments>                   # a command with this process' streams and folder
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

# What the commands import. The commands themselves are not listed: each is run as the main module.
_IMPORTS = (
    "tensorflow",
    "keras",
    "mlflow",
    "mlflow.store.tracking.sqlalchemy_store",
    "mlflow.store.artifact.local_artifact_repo",
    "matplotlib.pyplot",
    "scipy.stats",
    "pandas",
    "PIL.Image",
    "hydra",
    "dogbreeds.experiments.attempt",
)
_MAX_REQUEST_BYTES = 1 << 20
# Interval at which the server checks whether its parent still exists.
_POLL_SECONDS = 10.0
# Environment variable with the path of the server's socket.
ADDRESS_ENV = "PREFORK_ADDRESS"


class Process:
    """A command in a process that the server forks, with the interface of `subprocess.Popen` with text pipes.

    Args:
        address: path of the server's socket.
        module: module to run, as with `python -m`.
        arguments: command-line arguments.
        cwd: working folder.
        environment: all environment variables.
        stdin: bytes on its standard input.
    """

    def __init__(
        self,
        address: str,
        module: str,
        arguments: tuple[str, ...],
        cwd: Path,
        environment: dict[str, str],
        stdin: bytes = b"",
    ):
        self.args = [module, *arguments]
        self.returncode: int | None = None
        stdout_read, stdout_write = os.pipe()
        stderr_read, stderr_write = os.pipe()
        with tempfile.TemporaryFile() as file:
            file.write(stdin)
            file.seek(0)
            descriptors = [file.fileno(), stdout_write, stderr_write]
            self._connection = _request(address, module, arguments, cwd, environment, descriptors)
        os.close(stdout_write)
        os.close(stderr_write)
        self.stdout: IO[str] = open(stdout_read)  # noqa: SIM115
        self.stderr: IO[str] = open(stderr_read)  # noqa: SIM115
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
        """Wait for the process to end, and return the rest of its output and of its standard error."""
        with ThreadPoolExecutor(2) as pool:
            futures = [pool.submit(stream.read) for stream in (self.stdout, self.stderr)]
            try:
                self.wait(timeout)
            except subprocess.TimeoutExpired:
                self._kill_group()
                raise
            output, errors = (future.result() for future in futures)
        return output, errors

    def _kill_group(self) -> None:
        """Kill the process with its children, which hold its pipes open."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.wait()
        self.stdout.close()
        self.stderr.close()
        self._connection.close()


def _request(
    address: str, module: str, arguments: tuple[str, ...], cwd: Path, environment: dict[str, str], streams: list[int]
) -> socket.socket:
    """Ask the server for a process, and return the connection on which it reports the pid and the exit code."""
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(address)
    request = {"module": module, "arguments": arguments, "cwd": str(cwd), "environment": environment}
    socket.send_fds(connection, [json.dumps(request).encode()], streams)
    return connection


def run_here(module: str, *arguments: str) -> int:
    """Run a module with this process' streams, folder and environment, and return its exit code.

    SIGTERM kills the module's process and its children.
    """
    connection = _request(os.environ[ADDRESS_ENV], module, arguments, Path.cwd(), dict(os.environ), [0, 1, 2])
    with connection, connection.makefile() as answers:
        pid = int(answers.readline())
        signal.signal(signal.SIGTERM, lambda *_: os.killpg(pid, signal.SIGKILL))
        return int(answers.readline())


def start_server(address: Path, log: Path) -> "subprocess.Popen[bytes]":
    """Start the server. It ends when the process that started it does.

    Args:
        address: path of its socket.
        log: file for its output and standard error.
    """
    with socket.socket(socket.AF_UNIX) as server, log.open("w") as output:
        # The socket exists when this function returns, so clients can connect at once.
        server.bind(str(address))
        server.listen(64)
        script = [sys.executable, __file__, str(server.fileno())]
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
        return subprocess.Popen(
            script, env=environment, pass_fds=[server.fileno()], stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )


def serve(server: socket.socket) -> None:
    """Fork for each request, for ever; return only in a forked process that is to run a command."""
    first, parent = True, os.getppid()
    server.settimeout(_POLL_SECONDS)
    while True:
        try:
            connection, _ = server.accept()
        except TimeoutError:
            if os.getppid() != parent:
                sys.exit()
            continue
        connection.setblocking(True)
        if first:
            _import_modules()
            first = False
        _reap_children()
        if os.fork() == 0:
            server.close()
            _fork_and_report(connection)
            return
        connection.close()


def _import_modules() -> None:
    os.environ |= {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_LOGGING_LEVEL": "WARNING",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    }
    for name in _IMPORTS:
        importlib.import_module(name)
    gc.collect()
    # An attempt that imports TensorFlow itself does the same.
    gc.freeze()


def _reap_children() -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _fork_and_report(connection: socket.socket) -> None:
    """Fork the command's process, and return in it. The other process reports its pid and exit code, and exits."""
    request, files, *_ = socket.recv_fds(connection, _MAX_REQUEST_BYTES, 3)
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        connection.close()
        os.close(read)
        os.setsid()
        # The pid is reported only once the session exists, so that the client can kill the whole group.
        os.write(write, b".")
        os.close(write)
        _set_up_process(json.loads(request), files)
        return
    os.close(write)
    os.read(read, 1)
    for file in files:
        os.close(file)
    _report(connection, pid)


def _report(connection: socket.socket, pid: int) -> NoReturn:
    # The client may have closed the connection.
    with contextlib.suppress(OSError):
        connection.sendall(f"{pid}\n".encode())
    _, status = os.waitpid(pid, 0)
    with contextlib.suppress(OSError):
        connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
    os._exit(0)


def _set_up_process(request: dict, files: list[int]) -> None:
    """Take over the request's standard streams, environment, working folder and arguments."""
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["cwd"])
    sys.argv = [request["module"], *request["arguments"]]
    sys.path[0] = request["cwd"]
    sys.path[1:1] = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry not in sys.path]


if __name__ == "__main__":
    if sys.argv[1] == "-m":
        sys.exit(run_here(*sys.argv[2:]))
    serve(socket.socket(fileno=int(sys.argv[1])))
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
