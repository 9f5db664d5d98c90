"""A run's life in MLflow: it is begun or gone on with, shows that somebody works on it, and is ended, by another process if its own is gone."""

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
from dogbreeds.core.paths import home
from dogbreeds.core.process import began, boot, owner, spelled
from dogbreeds.core.text import masked
from dogbreeds.tracking.records import Pruned, RunOrigin, short

if TYPE_CHECKING:
    import mlflow
    from mlflow.entities import Run as MlflowRun

log = logging.getLogger(__name__)

CONFIG = "config/config.yaml"
_PACKAGES = ("tensorflow", "keras", "hydra-core", "mlflow", "numpy", "tensorflow-datasets")
_HEARTBEAT_SECONDS, _LOST_SECONDS = 30.0, 600.0
# After a heartbeat that did not arrive: once the server is back, other machines must not take the run for lost
_MISSED_SECONDS = 2.0


def begin(client: "mlflow.MlflowClient", experiment_id: str, composition: RunOrigin, above: str | None) -> "MlflowRun":
    """Makes a run and records what it was started with.

    Args:
        above: the sweep's run.
    """
    commit, dirty = _git()
    tags = {
        "mlflow.runName": masked(composition.name),
        "mlflow.source.name": "dogbreeds.train",
        "mlflow.source.type": "LOCAL",
        "git.commit": commit,
        "git.dirty": dirty,
        "python": platform.python_version(),
        "key": composition.key,
        "identity": composition.identity,
    }
    tags |= _whereabouts(composition, above) | choices(composition)
    if commit != "none":
        tags["mlflow.source.git.commit"] = commit
    tags |= {f"version.{package}": version(package) for package in _PACKAGES}
    with signals.deferred():
        run_id = client.create_run_once(experiment_id, tags).info.run_id
        try:
            _keep_config(client, run_id, composition)
        except UserError:
            client.set_terminated(run_id, "FAILED")
            raise
    return client.get_run(run_id)


def go_on(client: "mlflow.MlflowClient", run_id: str, composition: RunOrigin, above: str | None) -> "MlflowRun":
    """Opens a run again that was cut off."""
    from mlflow.entities import RunTag

    run = client.get_run(run_id)
    before = run.data.tags
    new = {name: value for name, value in choices(composition).items() if name not in before}
    new |= _whereabouts(composition, above) | {"resumed": str(int(before.get("resumed", 0)) + 1)}
    # At once, and before the status: another process would take it for one whose process is gone.
    client.log_batch(run_id, tags=[RunTag(name, value) for name, value in new.items()])
    if "overrides" not in run.data.params:
        _keep_config(client, run_id, composition)
    client.update_run(run_id, status="RUNNING")
    return client.get_run(run_id)


def _keep_config(client: "mlflow.MlflowClient", run_id: str, composition: RunOrigin) -> None:
    """Records what a run was started with. The parameter comes last: where it is missing, a process was killed in between."""
    overrides = [masked(override) for override in composition.overrides]
    client.log_text(run_id, masked(composition.yaml), CONFIG)
    client.log_text(run_id, "".join(f"{override}\n" for override in overrides), "config/overrides.txt")
    client.log_param(run_id, "overrides", " ".join(overrides)[:6000] or "none")


def choices(composition: RunOrigin) -> dict[str, str]:
    """By which names a run is looked for."""
    tags = {f"choice.{group}": option for group, option in composition.choices.items()}
    return tags | ({"attempt.changed": " ".join(composition.changed)} if composition.changed else {})


def _whereabouts(composition: RunOrigin, above: str | None) -> dict[str, str]:
    """Which process is at work on a run, and for which sweep."""
    tags = owner() | {"heartbeat": str(time.time()), "hydra.folder": str(composition.folder)}
    return tags | ({"mlflow.parentRunId": above} if above is not None else {})


def close_orphaned_runs(client: "mlflow.MlflowClient", experiment_id: str, gone: Collection[str] = ()) -> None:
    """Ends, as KILLED, runs that nobody works on any more: after a SIGKILL, or on a machine that was lost.

    Args:
        gone: processes that are known to be no more, as `record.spelled` has them.
    """
    running = client.search_runs(
        [experiment_id], "attributes.status = 'RUNNING' and tags.heartbeat != ''", max_results=1000
    )
    # After an outage of the server, too: a beat that was missed comes soon
    if any(_is_silent(run.data.tags) for run in running):
        time.sleep(2 * _MISSED_SECONDS)
    for run in running:
        # Once more, as it is now: since they were listed it may have beaten again, or another process may have gone on with it.
        if _is_nobodys(run, gone) and _is_nobodys(client.get_run(run.info.run_id), gone):
            log.info(
                "run %s '%s' was cut off: its process on %s is gone",
                short(run.info.run_id),
                run.info.run_name,
                run.data.tags["host"],
            )
            client.set_terminated(run.info.run_id, "KILLED")


def _is_nobodys(run: "MlflowRun", gone: Collection[str]) -> bool:
    return run.info.status == "RUNNING" and (spelled(run.data.tags) in gone or _is_gone(run.data.tags))


def _is_silent(tags: Mapping[str, str]) -> bool:
    """Whether a process on another machine has not been heard of for so long that it is taken for lost."""
    return tags["host"] != platform.node() and time.time() - float(tags["heartbeat"]) > _LOST_SECONDS


def _is_gone(tags: Mapping[str, str]) -> bool:
    """Whether a run's process is no more; one on another machine is taken for lost when its heartbeat has stopped."""
    if tags["host"] != platform.node():
        return _is_silent(tags)
    if tags.get("host.boot") != boot():
        return True
    try:
        number = int(tags["process"])
        return (
            psutil.Process(number).status() == psutil.STATUS_ZOMBIE
            or abs(began(number) - float(tags["process.started"])) > 1
        )
    except psutil.NoSuchProcess:
        return True


@contextlib.contextmanager
def heartbeat(client: "mlflow.MlflowClient", run_id: str) -> Iterator[None]:
    """Shows that somebody works on a run while the body runs."""
    over = threading.Event()

    def beat() -> None:
        pause = _HEARTBEAT_SECONDS
        while not over.wait(pause):
            pause = _MISSED_SECONDS
            # The body meets the same trouble, and says so
            with contextlib.suppress(UserError):
                client.once.set_tag(run_id, "heartbeat", str(time.time()))
                pause = _HEARTBEAT_SECONDS

    heart = threading.Thread(target=beat, name="heartbeat", daemon=True)
    heart.start()
    try:
        yield
    finally:
        over.set()
        # A server that is away may keep it waiting
        heart.join(_MISSED_SECONDS)


@contextlib.contextmanager
def ended(client: "mlflow.MlflowClient", run_id: str) -> Iterator[None]:
    """Ends a run with how its body ended; what a search gives up has not finished."""
    given_up = None
    try:
        with heartbeat(client, run_id):
            try:
                yield
            except Pruned as pruned:
                given_up = pruned
            client.settle()
    except BaseException as error:
        client.hurry()
        # What ended the body says more
        with signals.deferred(), contextlib.suppress(UserError):
            client.set_terminated(run_id, "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        raise
    with signals.deferred():
        client.set_terminated(run_id, "FINISHED" if given_up is None else "KILLED")
    if given_up is not None:
        raise given_up


@contextlib.contextmanager
def system_metrics(
    client: "mlflow.MlflowClient", run_id: str, uri: str, seconds: float, goes_on: bool
) -> Iterator[None]:
    """Processor, memory and disk use, sampled; 0 seconds turns it off."""
    if not seconds:
        yield
        return
    from mlflow.entities import Metric
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    class Monitor(SystemMetricsMonitor):
        """MLflow's asks the server before each sample whether the run goes on, and stops for good when there is no answer."""

        def monitor(self) -> None:
            while not self._shutdown_event.wait(self.sampling_interval):
                self.collect_metrics()
                # The body meets the same trouble, and says so
                with contextlib.suppress(UserError):
                    self.publish_metrics(self.aggregate_metrics())

        def publish_metrics(self, metrics: dict[str, float]) -> None:
            now, step = int(time.time() * 1000), self._logging_step
            client.keep_metrics(
                run_id, [Metric(f"{self._metrics_prefix}{name}", value, now, step) for name, value in metrics.items()]
            )
            self._logging_step += 1
            for monitor in self.monitors:
                monitor.clear_metrics()

    monitor = Monitor(run_id, sampling_interval=seconds, resume_logging=goes_on, tracking_uri=uri)
    monitor.start()
    try:
        yield
    finally:
        monitor.finish()


def _git() -> tuple[str, str]:
    """The checkout's commit and whether it has changes, or `none` twice."""
    try:
        answers = [
            subprocess.run(
                ["git", "-C", str(home()), *command], capture_output=True, text=True, check=True, timeout=10
            ).stdout.strip()
            for command in (("rev-parse", "HEAD"), ("status", "--porcelain"))
        ]
    except (OSError, subprocess.SubprocessError):
        return "none", "none"
    return answers[0], str(bool(answers[1])).lower()
