"""Hydra's launchers, which run the jobs of a sweep side by side or on other machines: what must be there before, what each job must be told, how
jobs are ended, and what to say of one that was lost."""

import contextlib
import importlib.util
import logging
import os
import shutil
import socket
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode

from dogbreeds.core import signals
from dogbreeds.core.console import alongside
from dogbreeds.core.errors import UserError
from dogbreeds.core.paths import home

if TYPE_CHECKING:
    from omegaconf import DictConfig

log = logging.getLogger(__name__)

# conf/hydra/launcher/ gives the plugins' options our values, under the names that they are known by. Hydra checks them with the plugins' types, which
# is meant so, and warns that it will not for ever.
warnings.filterwarnings(
    "ignore", message=r"\s*'hydra/launcher/\w+' is validated against ConfigStore schema", category=UserWarning
)

_EXTRAS = {"hydra_joblib_launcher": "joblib", "hydra_ray_launcher": "ray", "hydra_submitit_launcher": "submitit"}
# Of a Ray that is started here; a cluster has its own
_OF_ITS_OWN = ("num_cpus", "num_gpus", "object_store_memory")
_ANSWER_SECONDS = 10.0
# Ray reads these when it is imported. Its lines would else begin with a process' number, in colours even in a file; of lines that are alike it
# shows one; and it reports its use to its makers.
_QUIET = {
    "RAY_DEDUP_LOGS": "0",
    "RAY_COLOR_PREFIX": "0",
    "RAY_DISABLE_WORKER_LOG_PREFIX": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}


def ready(config: "DictConfig") -> None:
    """Makes sure that the chosen launcher can do its work; Ray is started, or its cluster connected to.

    Args:
        config: the sweep's, with Hydra's part.

    Raises:
        UserError: where something is not installed or does not answer.
    """
    target, option = config.hydra.launcher._target_, config.hydra.runtime.choices["hydra/launcher"]
    package = target.split(".")[1] if target.startswith("hydra_plugins.") else None
    if package in _EXTRAS and importlib.util.find_spec(f"hydra_plugins.{package}") is None:
        raise UserError(
            f"hydra/launcher={option} was asked for and is not installed. Jobs side by side or elsewhere need it. "
            f"Type pip install 'dogbreeds[{_EXTRAS[package]}]'."
        )
    if target.endswith(".RayLauncher"):
        _connect(config.hydra.launcher.ray.init)
    elif target.endswith(".SlurmLauncher") and shutil.which("srun") is None:
        raise UserError(
            f"hydra/launcher={option} was asked for, and there is no Slurm here: its command srun is not found. Such a"
            " sweep starts on a machine from which jobs can be submitted. Go there, or type hydra/launcher=joblib to"
            " use this one."
        )
    if package == "hydra_submitit_launcher":
        log.info(
            "What each job says is in %s/<its number>/%s.log.",
            Path(config.hydra.sweep.dir).absolute(),
            config.hydra.job.name,
        )
    if target.endswith(".SlurmLauncher"):
        log.info(
            "Ctrl-C ends this command alone; scancel --name=%s ends its jobs. The same command takes up what they did.",
            config.hydra.launcher.name,
        )


def tell(config: "DictConfig") -> None:
    """Puts into the config of every job what a process that was not started by this one would not know: our environment variables, among them the
    id of the sweep's run, and the sweep's folder.

    A worker of a cluster that is running already has an environment of its own.
    """
    from hydra.core.override_parser.types import Quote, QuotedString
    from omegaconf import read_write

    known = {name: value for name, value in os.environ.items() if name.startswith("DOGBREEDS_")} | {
        "DOGBREEDS_HOME": str(home().absolute())
    }
    told = {f"hydra.job.env_set.{name}": value for name, value in known.items()} | {
        "hydra.sweep.dir": str(Path(config.hydra.sweep.dir).absolute())
    }
    with read_write(config.hydra.overrides):
        # `load_sweep_config` composes each job's config from these, whichever launcher calls it.
        config.hydra.overrides.hydra += [
            f"++{key}={QuotedString(value, Quote.single).with_quotes()}" for key, value in told.items()
        ]


def arrive() -> None:
    """In a job that a launcher has brought to another process: its lines begin with its number, and paths that were typed where they were typed."""
    here = HydraConfig.get()
    if here.mode == RunMode.MULTIRUN and not here.launcher._target_.endswith(".BasicLauncher"):
        alongside(here.job.num)
        # Of another machine, which has no such folder
        with contextlib.suppress(OSError):
            os.chdir(here.runtime.cwd)


class Launched(Callback):
    """Hydra calls it before the first job of a sweep, as `conf/extract.yaml` says."""

    def on_multirun_start(self, config: "DictConfig", **_: Any) -> None:
        try:
            ready(config)
            self.begin(config)
        except UserError as error:
            # Hydra would make a warning of any other exception
            sys.exit(f"error: {error}")
        tell(config)

    def begin(self, config: "DictConfig") -> None:
        """What is done once before the jobs are, and after it is known that they can be."""


def _connect(init: "DictConfig") -> None:
    from omegaconf import OmegaConf

    settings: dict[str, Any] = OmegaConf.to_container(init, resolve=True)  # type: ignore[assignment]
    if settings["address"] != "local":
        settings = {name: value for name, value in settings.items() if name not in _OF_ITS_OWN}
    os.environ |= {name: os.environ.get(name, value) for name, value in _QUIET.items()}
    import ray

    try:
        _knock(settings["address"])
        ray.init(**settings)
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(
            f"Ray at {settings['address']} cannot be used ({' '.join(str(error).split())[:200]}). It must be local, for"
            " one that lives as long as the sweep, auto, for a cluster that this machine is part of, or the address"
            " that ray start printed. Type hydra.launcher.ray.init.address=local."
        ) from error
    # Again: Ray has taken SIGTERM for itself
    signals.handle()
    signals.elsewhere(_cancel)


def _knock(address: str | None) -> None:
    """Raises `OSError` where nobody listens at an address: Ray itself would try for more than five minutes."""
    host, _, port = (address or "").rpartition("://")[2].rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_SECONDS).close()


def _cancel(seconds: float) -> None:
    """Ends what Ray runs or has queued for this command, wherever it is, and waits for it."""
    import ray

    # The launcher keeps its tasks to itself
    from ray._private.worker import global_worker

    if not ray.is_initialized():
        return
    tasks: list[Any] = [
        ray.ObjectRef(bytes.fromhex(name.decode())) for name in global_worker.core_worker.get_all_reference_counts()
    ]
    for task in tasks:
        ray.cancel(task, recursive=False)
    ray.wait(tasks, num_returns=len(tasks), timeout=seconds)


def lost() -> tuple[type[Exception], ...]:
    """What a launcher raises where a job did not come back: of those launchers that are in use."""
    names = {
        "ray.exceptions": "RayError",
        "submitit.core.utils": "UncompletedJobError",
        "joblib.externals.loky.process_executor": "TerminatedWorkerError",
    }
    return tuple(getattr(sys.modules[module], name) for module, name in names.items() if module in sys.modules)


def said(error: Exception) -> str:
    """The sentences for a job that did not come back."""
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__).rstrip(".")
    if first.startswith("sbatch: "):
        return (
            f"Slurm did not take the jobs ({first[:200]}). What they ask for must be something that it has. Type"
            " hydra.launcher.partition=<name>, hydra.launcher.gpus_per_node=0, or what else"
            " conf/hydra/launcher/submitit_slurm.yaml asks for and your cluster calls otherwise."
        )
    return (
        f"A job was lost ({first[:200]}). Its process must live until the job has ended: it was killed, ran out of"
        " memory or time, or its machine is gone. Type the same command again, which keeps what is done and goes on;"
        " with fewer jobs at a time if memory is short."
    )
