"""Command `python -m dogbreeds.ui`: MLflow's page of the recorded runs, on the view that compares them."""

import os
import socket
import sys
from dataclasses import dataclass, replace

import hydra
from omegaconf import DictConfig

from dogbreeds import cli
from dogbreeds.core.errors import UserError
from dogbreeds.core.paths import config_folder
from dogbreeds.core.spec import Spec, integer
from dogbreeds.experiments.recorded_runs import mlflow_tracking
from dogbreeds.tracking.local_store import file_store_note
from dogbreeds.tracking.mlflow_backend import Mlflow

_HOST = "127.0.0.1"
# The names of this machine that a browser may use: what `tracking.ui` names, and those of tunnels and of habit.
_NAMES = ("dogbreeds.localhost", "localhost", _HOST)
# One person needs one worker and none of MLflow's background jobs: 0.5 GB of memory in the place of 1.9.
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    # MLflow's own imports warn of what will change in their libraries.
    "PYTHONWARNINGS": "ignore",
}


@dataclass(frozen=True, kw_only=True)
class Settings(Spec):
    """Settings of the command.

    Attributes:
        port: port of this machine that a local store is shown on.
    """

    group = ""
    port: int = integer(at_least=1, at_most=65_535, example=5001)


@hydra.main(version_base="1.3", config_path=str(config_folder()), config_name="ui")
@cli.standalone
def task(config: DictConfig) -> None:
    """Save the view and print its address. For a local store, become the server that shows it."""
    port = Settings(port=config.port).port
    tracking = mlflow_tracking(config, "The page shows the runs in MLflow.")
    is_local = not tracking.uri.startswith(("http://", "https://"))
    if is_local:
        _check_port(port)
        tracking = replace(tracking, ui=f"http://{_NAMES[0]}:{port}")
        if note := file_store_note(tracking.uri):
            print(note)
    address = tracking.save_main_view()
    print(f"runs    {address}\ncurves  {address}&compareRunsMode=CHART")
    if is_local:
        print("Ctrl-C ends the page.", flush=True)
        _become_server(tracking, port)


def _check_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, port))
        except OSError as error:
            raise UserError(
                f"port={port} cannot be used ({error.strerror}). It must be a free port of this machine. Type"
                f" port={port % 65_535 + 1}, or make ui PORT={port % 65_535 + 1}."
            ) from error


def _become_server(tracking: Mlflow, port: int) -> None:
    """Replace this process by MLflow's server, which then gets its signals."""
    hosts = [f"{name}:{port}" for name in _NAMES]
    command = [
        *(sys.executable, "-m", "mlflow", "server"),
        *("--host", _HOST, "--port", str(port), "--workers", "1"),
        # MLflow refuses names that it is not told of.
        *("--allowed-hosts", ",".join(hosts)),
        *("--cors-allowed-origins", ",".join(f"http://{host}" for host in hosts)),
        *("--uvicorn-opts", "--log-level warning"),
        *("--backend-store-uri", tracking.uri),
    ]
    os.execve(sys.executable, command, os.environ | _ENVIRONMENT)


if __name__ == "__main__":
    cli.main(task, "ui")
