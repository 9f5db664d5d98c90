"""Lifecycle of an MLflow run: start, resume, heartbeat, end; and the closing of runs whose process is gone."""

import contextlib
import logging
import platform
import subprocess
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING

import psutil

from dogbreeds.core import signals
from dogbreeds.core.errors import UserError
from dogbreeds.core.paths import checkout
from dogbreeds.core.process import boot_id, format_process, process_tags, start_time
from dogbreeds.core.text import mask_passwords
from dogbreeds.tracking.records import Pruned, RunOrigin, short

if TYPE_CHECKING:
    import mlflow
    from mlflow.entities import Run as MlflowRun

log = logging.getLogger(__name__)

# Artifact paths of a run.
CONFIG_FILE = "config/config.yaml"
_OVERRIDES_FILE = "config/overrides.txt"
# Recorded as tags `version.<package>`.
_PACKAGES = ("tensorflow", "keras", "hydra-core", "mlflow", "numpy", "tensorflow-datasets")
_HEARTBEAT_SECONDS = 30.0
# After a heartbeat that failed. Once the server is back, the next must arrive before other machines close the run.
_HEARTBEAT_RETRY_SECONDS = 2.0
# A run on another machine whose last heartbeat is older is closed.
_HEARTBEAT_TIMEOUT_SECONDS = 600.0
# MLflow's limits of a parameter's and a tag's length.
_MAX_PARAM_LENGTH = 6000
_MAX_TAG_LENGTH = 5000


# --- start and resume ---------------------------------------------------------


def start_run(
    client: "mlflow.MlflowClient", experiment_id: str, origin: RunOrigin, sweep_run_id: str | None
) -> "MlflowRun":
    """Create a run and record what it was composed from.

    Args:
        client: client of the store.
        experiment_id: experiment of the run.
        origin: what the run was composed from.
        sweep_run_id: run of the sweep that this run is a job of; None outside a sweep.

    Raises:
        UserError: the store failed. A run that was created already ends as FAILED.
    """
    commit, dirty = _git_state()
    tags = {
        "mlflow.runName": mask_passwords(origin.name),
        "mlflow.source.name": "dogbreeds.train",
        "mlflow.source.type": "LOCAL",
        "git.commit": commit,
        "git.dirty": dirty,
        "python": platform.python_version(),
        "key": origin.key,
        "identity": origin.identity,
        "overrides": mask_passwords(" ".join(origin.overrides))[:_MAX_TAG_LENGTH],
    }
    tags |= _process_and_sweep_tags(origin, sweep_run_id) | choice_tags(origin)
    if commit != "none":
        tags["mlflow.source.git.commit"] = commit
    tags |= {f"version.{package}": version(package) for package in _PACKAGES}
    with signals.deferred():
        run_id = client.create_run_once(experiment_id, tags).info.run_id
        try:
            _log_config(client, run_id, origin)
            return client.get_run(run_id)
        except UserError:
            client.set_terminated(run_id, "FAILED")
            raise


def resume_run(client: "mlflow.MlflowClient", run_id: str, origin: RunOrigin, sweep_run_id: str | None) -> "MlflowRun":
    """Reopen an interrupted run in this process.

    Args:
        client: client of the store.
        run_id: the interrupted run.
        origin: what the resuming command was composed from.
        sweep_run_id: run of the sweep that the run is a job of from now on; None outside a sweep.
    """
    from mlflow.entities import RunTag

    run = client.get_run(run_id)
    recorded = run.data.tags
    tags = {name: value for name, value in choice_tags(origin).items() if name not in recorded}
    tags |= _process_and_sweep_tags(origin, sweep_run_id) | {"resumed": str(int(recorded.get("resumed", 0)) + 1)}
    # All tags in one call, and before the status: a RUNNING run that names the old process would be closed as orphaned.
    client.log_batch(run_id, tags=[RunTag(name, value) for name, value in tags.items()])
    if "overrides" not in run.data.params:
        _log_config(client, run_id, origin)
    client.update_run(run_id, status="RUNNING")
    return client.get_run(run_id)


def resume_or_start_run(
    client: "mlflow.MlflowClient", ended: str | None, origin: RunOrigin, experiment_id: str, sweep_run_id: str | None
) -> str:
    """Reopen the run that `find_ended_run` found, or create one; return its id. The rest is as of `start_run`."""
    if ended is not None:
        return str(resume_run(client, ended, origin, sweep_run_id).info.run_id)
    return str(start_run(client, experiment_id, origin, sweep_run_id).info.run_id)


def find_ended_run(client: "mlflow.MlflowClient", experiment_id: str, origin: RunOrigin) -> str | None:
    """Return the id of the newest run of the same identity that has ended; None if there is none, or no identity.

    Runs whose process is gone are closed first.
    """
    close_orphaned_runs(client, experiment_id)
    same = client.search_runs([experiment_id], f"tags.identity = '{origin.identity}'") if origin.identity else []
    return next((str(run.info.run_id) for run in same if run.info.status != "RUNNING"), None)


def _log_config(client: "mlflow.MlflowClient", run_id: str, origin: RunOrigin) -> None:
    """Record the config and the overrides. The parameter comes last, so that it is missing after a kill in between."""
    overrides = [mask_passwords(override) for override in origin.overrides]
    client.log_text(run_id, mask_passwords(origin.yaml), CONFIG_FILE)
    client.log_text(run_id, "".join(f"{override}\n" for override in overrides), _OVERRIDES_FILE)
    client.log_param(run_id, "overrides", " ".join(overrides)[:_MAX_PARAM_LENGTH] or "none")


def choice_tags(origin: RunOrigin) -> dict[str, str]:
    """Return the tags that runs are searched by: the chosen option of each group, and changes to a named attempt."""
    tags = {f"choice.{group}": option for group, option in origin.choices.items()}
    return tags | ({"attempt.changed": " ".join(origin.changed)} if origin.changed else {})


def _process_and_sweep_tags(origin: RunOrigin, sweep_run_id: str | None) -> dict[str, str]:
    tags = process_tags() | {"heartbeat": str(time.time())}
    if origin.folder is not None:
        tags["hydra.folder"] = str(origin.folder)
    return tags | ({"mlflow.parentRunId": sweep_run_id} if sweep_run_id is not None else {})


def _git_state() -> tuple[str, str]:
    """Return the checkout's commit and whether it has changes ("true" or "false"), or "none" twice without one."""
    root = checkout()
    if root is None:
        return "none", "none"
    try:
        answers = [
            subprocess.run(
                ["git", "-C", str(root), *command], capture_output=True, text=True, check=True, timeout=10
            ).stdout.strip()
            for command in (("rev-parse", "HEAD"), ("status", "--porcelain"))
        ]
    except (OSError, subprocess.SubprocessError):
        return "none", "none"
    commit, changes = answers
    return commit, str(bool(changes)).lower()


# --- orphaned runs ------------------------------------------------------------


def close_orphaned_runs(
    client: "mlflow.MlflowClient", experiment_id: str, dead_processes: Collection[str] = ()
) -> None:
    """End runs as KILLED whose process no longer exists: after a SIGKILL, or on a machine that was lost.

    Args:
        client: client of the store.
        experiment_id: experiment of the runs.
        dead_processes: processes that are known to be gone, formatted by `process.format_process`.
    """
    running = client.search_runs(
        [experiment_id], "attributes.status = 'RUNNING' and tags.heartbeat != ''", max_results=1000
    )
    # After an outage of the server a live process repeats its missed heartbeat within seconds: wait for it.
    if any(_is_remote_and_silent(run.data.tags) for run in running):
        time.sleep(2 * _HEARTBEAT_RETRY_SECONDS)
    for run in running:
        # Look again before closing: since the search the run may have sent a heartbeat, or have been resumed.
        if _is_orphaned(run, dead_processes) and _is_orphaned(client.get_run(run.info.run_id), dead_processes):
            log.info(
                "closing run %s '%s' as KILLED: its process on %s no longer exists",
                short(run.info.run_id),
                run.info.run_name,
                run.data.tags["host"],
            )
            client.set_terminated(run.info.run_id, "KILLED")


def _is_orphaned(run: "MlflowRun", dead_processes: Collection[str]) -> bool:
    tags = run.data.tags
    return run.info.status == "RUNNING" and (format_process(tags) in dead_processes or is_process_gone(tags))


def _is_remote_and_silent(tags: Mapping[str, str]) -> bool:
    """Whether a run belongs to another machine, and its last heartbeat is too old."""
    if tags["host"] == platform.node():
        return False
    return time.time() - float(tags["heartbeat"]) > _HEARTBEAT_TIMEOUT_SECONDS


def is_process_gone(tags: Mapping[str, str]) -> bool:
    """Whether a run's process no longer exists. On another machine only the heartbeat can tell."""
    if tags["host"] != platform.node():
        return _is_remote_and_silent(tags)
    if tags.get("host.boot") != boot_id():
        return True
    try:
        pid = int(tags["process"])
        return (
            psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
            or abs(start_time(pid) - float(tags["process.started"])) > 1
        )
    except psutil.NoSuchProcess:
        return True


# --- while a run is open ------------------------------------------------------


@contextlib.contextmanager
def heartbeat(client: "mlflow.MlflowClient", run_id: str) -> Iterator[None]:
    """Record regularly that a process works on a run, while the body runs."""
    stopped = threading.Event()

    def beat() -> None:
        pause = _HEARTBEAT_SECONDS
        while not stopped.wait(pause):
            pause = _HEARTBEAT_RETRY_SECONDS
            # The body makes calls of its own: it meets the same error and raises it.
            with contextlib.suppress(UserError):
                client.without_retry.set_tag(run_id, "heartbeat", str(time.time()))
                pause = _HEARTBEAT_SECONDS

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        # With a limit: a call to a server that is away blocks the thread.
        thread.join(_HEARTBEAT_RETRY_SECONDS)


@contextlib.contextmanager
def end_run_on_exit(client: "mlflow.MlflowClient", run_id: str) -> Iterator[None]:
    """Send heartbeats while the body runs, then end the run.

    The status is FINISHED, KILLED if the run was interrupted or pruned, or FAILED after any other error.
    """
    pruned = None
    ended = False
    try:
        with heartbeat(client, run_id):
            try:
                yield
            except Pruned as error:
                pruned = error
            client.flush()
        with signals.deferred():
            client.set_terminated(run_id, "FINISHED" if pruned is None else "KILLED")
            ended = True
    except BaseException as error:
        if not ended:
            client.begin_shutdown()
            # The body's error matters more than one of the store.
            with signals.deferred(), contextlib.suppress(UserError):
                client.set_terminated(run_id, "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        raise
    if pruned is not None:
        raise pruned


@contextlib.contextmanager
def system_metrics(
    client: "mlflow.MlflowClient", run_id: str, uri: str, seconds: float, resumed: bool
) -> Iterator[None]:
    """Record processor, memory and disk use while the body runs.

    Args:
        client: client of the store.
        run_id: run to record them in.
        uri: MLflow's tracking URI.
        seconds: seconds between samples; 0 turns them off.
        resumed: whether the run has earlier samples, whose steps are counted on.
    """
    if not seconds:
        yield
        return
    from mlflow.entities import Metric
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    class Monitor(SystemMetricsMonitor):
        """MLflow's monitor, made to survive an outage.

        MLflow's own asks the server before each sample whether the run is still open, and stops for good without an
        answer.
        """

        def monitor(self) -> None:
            while not self._shutdown_event.wait(self.sampling_interval):
                self.collect_metrics()
                # The body makes calls of its own: it meets the same error and raises it.
                with contextlib.suppress(UserError):
                    self.publish_metrics(self.aggregate_metrics())

        def publish_metrics(self, metrics: dict[str, float]) -> None:
            now = int(time.time() * 1000)
            step = self._logging_step
            client.queue_metrics(
                run_id, [Metric(f"{self._metrics_prefix}{name}", value, now, step) for name, value in metrics.items()]
            )
            self._logging_step += 1
            for monitor in self.monitors:
                monitor.clear_metrics()

    # It reads the store itself.
    with signals.deferred():
        monitor = Monitor(run_id, sampling_interval=seconds, resume_logging=resumed, tracking_uri=uri)
    monitor.start()
    try:
        yield
    finally:
        monitor.finish()
