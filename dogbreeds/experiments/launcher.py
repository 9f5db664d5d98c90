"""Hydra's launchers, which run the jobs of a sweep in parallel or on other machines.

Checks that a launcher can work before any job starts, passes the environment on to jobs, cancels remote jobs, and
explains why a job was lost.
"""

import contextlib
import importlib.util
import logging
import os
import shutil
import socket
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from hydra.types import RunMode

from dogbreeds.core import signals
from dogbreeds.core.console import prefix_log_lines
from dogbreeds.core.countdown import Countdown
from dogbreeds.core.errors import UserError
from dogbreeds.core.paths import home
from dogbreeds.core.text import shorten
from dogbreeds.experiments import hydra_plugin
from dogbreeds.experiments.plugins import import_plugins, named_plugins

if TYPE_CHECKING:
    from omegaconf import DictConfig

log = logging.getLogger(__name__)

# The presets in conf/hydra/launcher/ have the names of the plugins' own options, so that Hydra checks them with the
# plugins' types. Hydra warns that it will stop doing so in a later version.
warnings.filterwarnings(
    "ignore", message=r"\s*'hydra/launcher/\w+' is validated against ConfigStore schema", category=UserWarning
)

# Extra of this package that installs each plugin.
_EXTRAS = {"hydra_joblib_launcher": "joblib", "hydra_ray_launcher": "ray", "hydra_submitit_launcher": "submitit"}
# Settings of a Ray that is started here; a running cluster has its own.
_LOCAL_RAY_SETTINGS = ("num_cpus", "num_gpus", "object_store_memory")
_CONNECT_TIMEOUT_SECONDS = 10.0
# Ray reads these variables when it is imported. Its defaults would start log lines with a process id, colour them even
# in files, print only one of several equal lines, and send usage statistics.
_RAY_ENVIRONMENT = {
    "RAY_DEDUP_LOGS": "0",
    "RAY_COLOR_PREFIX": "0",
    "RAY_DISABLE_WORKER_LOG_PREFIX": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}


def prepare_launcher(config: "DictConfig") -> None:
    """Check that the chosen launcher can work; start Ray, or connect to its cluster.

    Args:
        config: config of the sweep, with Hydra's part.

    Raises:
        UserError: if something is not installed or does not answer.
    """
    target = config.hydra.launcher._target_
    option = config.hydra.runtime.choices["hydra/launcher"]
    package = target.split(".")[1] if target.startswith("hydra_plugins.") else None
    if package in _EXTRAS and not _is_installed(package):
        raise UserError(
            f"hydra/launcher={option} was given, and it is not installed. Jobs in parallel or on other machines need"
            f" it. Type pip install 'dogbreeds[{_EXTRAS[package]}]'."
        )
    if target.endswith(".RayLauncher"):
        _connect_to_ray(config.hydra.launcher.ray.init)
    elif target.endswith(".SlurmLauncher") and shutil.which("srun") is None:
        raise UserError(
            f"hydra/launcher={option} was given, and Slurm is not available here: its command srun was not found. The"
            " sweep must start on a machine that can submit jobs. Run it there, or type hydra/launcher=joblib to use"
            " this machine."
        )
    if package == "hydra_submitit_launcher":
        log.info(
            "The log of each job is %s/<job number>/%s.log.",
            Path(config.hydra.sweep.dir).absolute(),
            config.hydra.job.name,
        )
    if target.endswith(".SlurmLauncher"):
        log.info(
            "Ctrl-C ends this command only; scancel --name=%s ends its jobs. The same command resumes them.",
            config.hydra.launcher.name,
        )


def pass_environment(config: "DictConfig") -> None:
    """Add to every job's config what a process on another machine cannot know.

    These are the DOGBREEDS_ environment variables, which include the id of the sweep's run, and the sweep's folder. A
    worker of a running cluster has an environment of its own.

    Args:
        config: config of the sweep, with Hydra's part; changed in place.
    """
    from hydra.core.override_parser.types import Quote, QuotedString
    from omegaconf import read_write

    variables = {name: value for name, value in os.environ.items() if name.startswith("DOGBREEDS_")}
    variables["DOGBREEDS_HOME"] = str(home().absolute())
    settings = {f"hydra.job.env_set.{name}": value for name, value in variables.items()}
    settings["hydra.sweep.dir"] = str(Path(config.hydra.sweep.dir).absolute())
    with read_write(config.hydra.overrides):
        # Every launcher calls `load_sweep_config`, which composes each job's config from these overrides.
        config.hydra.overrides.hydra += [
            f"++{key}={QuotedString(value, Quote.single).with_quotes()}" for key, value in settings.items()
        ]


def enter_job() -> None:
    """Set up a job that a launcher runs in another process: log lines start with its number, relative paths work."""
    hydra_config = HydraConfig.get()
    if hydra_config.mode == RunMode.MULTIRUN and not hydra_config.launcher._target_.endswith(".BasicLauncher"):
        prefix_log_lines(hydra_config.job.num)
        # Another machine may not have the folder in which the command was typed.
        with contextlib.suppress(OSError):
            os.chdir(hydra_config.runtime.cwd)


class LauncherCallback(Callback):
    """Prepares sweeper and launcher. Hydra calls it before it creates them, as set in `conf/extract.yaml`."""

    _countdown: Countdown | None = None

    def on_multirun_start(self, config: "DictConfig", **_: Any) -> None:
        hydra_plugin.register()
        try:
            _check_sweep(config.hydra.overrides.task)
            # A plugin with an error would fail each job by itself.
            import_plugins(named_plugins(config))
            prepare_launcher(config)
            self.begin(config)
            self._countdown = _countdown(config)
        except UserError as error:
            # Hydra turns any other exception of a callback into a warning.
            sys.exit(f"error: {error}")
        pass_environment(config)

    def on_job_end(self, config: "DictConfig", job_return: JobReturn, **_: Any) -> None:
        if self._countdown is not None:
            self._countdown.advance()

    def begin(self, config: "DictConfig") -> None:
        """Do what is due once per sweep, after the launcher is prepared and before the first job."""


def _countdown(config: "DictConfig") -> Countdown | None:
    """Return the countdown of a sweep whose jobs run in this process one after another; None for another sweep."""
    hydra = config.hydra
    if not (hydra.sweeper._target_.endswith(".BasicSweeper") and hydra.launcher._target_.endswith(".BasicLauncher")):
        return None
    batches = BasicSweeper.split_arguments(_parsed(hydra.overrides.task), None)
    return Countdown("jobs", sum(map(len, batches)))


def _parsed(overrides: Sequence[str]) -> list[Override]:
    running = GlobalHydra.instance()
    # A glob(…) is looked up among the configs of the running command.
    parser = OverridesParser.create(running.config_loader() if running.is_initialized() else None)
    return parser.parse_overrides(list(overrides))


def _check_sweep(overrides: Sequence[str]) -> None:
    """Raise `UserError` if a setting has no value to sweep over: Hydra would run no job, and end well."""
    for override in _parsed(overrides):
        if override.is_discrete_sweep() and next(iter(override.sweep_iterator()), None) is None:
            raise UserError(
                f"{override.input_line} has no values, so the sweep has no jobs. A sweep needs one value or more of"
                " each setting. Type 'seed=range(0,3)', for example, or leave it out."
            )


def _is_installed(plugin: str) -> bool:
    # Without any plugin the namespace itself is missing, and looking for a module in it would raise an error.
    names = ("hydra_plugins", f"hydra_plugins.{plugin}")
    return all(importlib.util.find_spec(name) is not None for name in names)


def _connect_to_ray(init: "DictConfig") -> None:
    """Start Ray, or connect to its cluster.

    Raises:
        UserError: if that fails.
    """
    from omegaconf import OmegaConf

    settings: dict[str, Any] = OmegaConf.to_container(init, resolve=True)  # type: ignore[assignment]
    if settings["address"] != "local":
        settings = {name: value for name, value in settings.items() if name not in _LOCAL_RAY_SETTINGS}
    os.environ |= {name: os.environ.get(name, value) for name, value in _RAY_ENVIRONMENT.items()}
    import ray

    try:
        _check_address(settings["address"])
        ray.init(**settings)
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(
            f"Ray at {settings['address']} cannot be used ({shorten(str(error), 200)}). The address must be"
            " local, for a Ray that lives as long as the sweep, auto, for the cluster of this machine, or the address"
            " that ray start printed. Type hydra.launcher.ray.init.address=local."
        ) from error
    # Ray has replaced the handler of SIGTERM.
    signals.install_handlers()
    signals.set_remote_cancel(_cancel_ray_tasks)


def _check_address(address: str | None) -> None:
    """Raise `OSError` if nothing listens at an address. Ray itself would keep trying for more than five minutes."""
    host, _, port = (address or "").rpartition("://")[2].rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_TIMEOUT_SECONDS).close()


def _cancel_ray_tasks(seconds: float) -> None:
    """Cancel the tasks that Ray runs or has queued for this command, on any machine, and wait for their end.

    Args:
        seconds: longest time to wait.
    """
    import ray

    # The launcher does not expose its tasks.
    from ray._private.worker import global_worker

    if not ray.is_initialized():
        return
    tasks: list[Any] = [
        ray.ObjectRef(bytes.fromhex(name.decode())) for name in global_worker.core_worker.get_all_reference_counts()
    ]
    for task in tasks:
        ray.cancel(task, recursive=False)
    ray.wait(tasks, num_returns=len(tasks), timeout=seconds)


def lost_job_errors() -> tuple[type[Exception], ...]:
    """Return the exceptions that launchers raise for a lost job, of the launchers that have been imported."""
    names = {
        "ray.exceptions": "RayError",
        "submitit.core.utils": "UncompletedJobError",
        "joblib.externals.loky.process_executor": "TerminatedWorkerError",
    }
    return tuple(getattr(sys.modules[module], name) for module, name in names.items() if module in sys.modules)


def lost_job_message(error: Exception) -> str:
    """Explain to the user why a job was lost, and what to type.

    Args:
        error: one of `lost_job_errors`.
    """
    first_line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    reason = shorten(first_line, 200)
    if reason.startswith("sbatch: "):
        return (
            f"Slurm rejected the jobs ({reason}). They must ask for resources that the cluster has. Type"
            " hydra.launcher.partition=<name> or hydra.launcher.gpus_per_node=0, or change another setting of"
            " conf/hydra/launcher/submitit_slurm.yaml that differs on your cluster."
        )
    return (
        f"A job was lost ({reason}): its process was killed, ran out of memory or time, or its machine failed. The"
        " results so far are saved. Type the same command again to resume, with fewer parallel jobs if memory is short."
    )
