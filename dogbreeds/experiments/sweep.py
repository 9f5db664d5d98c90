"""A sweep as one MLflow run, with the runs of its jobs nested below it. Hydra calls it, as set in `conf/train.yaml`."""

import contextlib
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dogbreeds.core import signals
from dogbreeds.core.text import digest
from dogbreeds.experiments.compose import build_spec, job_config
from dogbreeds.experiments.launcher import LauncherCallback
from dogbreeds.experiments.plugins import named_plugins, sources_digest
from dogbreeds.experiments.run_name import SWEPT_ENV, sweep_name, swept_keys
from dogbreeds.tracking.lifecycle import close_orphaned_runs, find_ended_run, heartbeat, resume_or_start_run
from dogbreeds.tracking.mlflow_backend import Mlflow
from dogbreeds.tracking.records import RANKING_METRIC, REUSED_TAG_PREFIX, SWEEP_RUN_ENV, RunOrigin

if TYPE_CHECKING:
    import mlflow
    from mlflow.entities import Run as MlflowRun
    from omegaconf import DictConfig

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _OpenSweep:
    """The sweep's run while it is open.

    Attributes:
        tracking: where it is recorded.
        client: client of the store.
        run_id: MLflow run of the sweep.
        heartbeat: stack that ends the run's heartbeat when it is closed.
    """

    tracking: Mlflow
    client: "mlflow.MlflowClient"
    run_id: str
    heartbeat: contextlib.ExitStack


class Sweep(LauncherCallback):
    """One MLflow run above the jobs of a sweep.

    It also initialises the store, once and before any job: jobs would race to do so.
    """

    _current: _OpenSweep | None = None

    def begin(self, config: "DictConfig") -> None:
        plugins = named_plugins(config)
        own_config = job_config(config)
        tracking = build_spec(own_config, "tracking", plugins)
        overrides = tuple(config.hydra.overrides.task)
        os.environ[SWEPT_ENV] = " ".join(swept_keys(overrides))
        origin = sweep_origin(own_config, overrides, Path(config.hydra.sweep.dir), plugins)
        log.info(origin.name)
        if isinstance(tracking, Mlflow):
            Sweep.open(tracking, origin)

    @classmethod
    def open(cls, tracking: Mlflow, origin: RunOrigin) -> str:
        """Open the sweep's run: the runs that follow are nested below it until `close`.

        Args:
            tracking: where runs are recorded.
            origin: what the sweep was composed from. A run of the same identity is resumed; an empty identity starts a
                new one.

        Returns:
            Id of the sweep's run.
        """
        client, experiment_id = tracking.connect()
        ended = find_ended_run(client, experiment_id, origin)
        # A signal is raised at the end of the block, when `close` finds the run.
        with signals.deferred():
            run_id = resume_or_start_run(client, ended, origin, experiment_id, None)
            stack = contextlib.ExitStack()
            stack.enter_context(heartbeat(client, run_id))
            os.environ[SWEEP_RUN_ENV] = run_id
            cls._current = _OpenSweep(tracking, client, run_id, stack)
        return run_id

    @classmethod
    def close(cls, status: str) -> None:
        """End the sweep's run, if one is open.

        Args:
            status: MLflow's status. FINISHED becomes FAILED if a job has failed.
        """
        os.environ.pop(SWEPT_ENV, None)
        if cls._current is None:
            return
        sweep, cls._current = cls._current, None
        os.environ.pop(SWEEP_RUN_ENV)
        if status != "FINISHED":
            sweep.client.begin_shutdown()
        failed = True
        try:
            failed = cls._summarise(sweep)
        finally:
            sweep.heartbeat.close()
            sweep.client.set_terminated(sweep.run_id, "FAILED" if failed and status == "FINISHED" else status)

    @classmethod
    def _summarise(cls, sweep: _OpenSweep) -> bool:
        """Record the best job's metric and the page that compares the jobs; return whether a job has failed."""
        client = sweep.client
        run = client.get_run(sweep.run_id)
        close_orphaned_runs(client, run.info.experiment_id)
        jobs = cls._jobs(client, run)
        measured = [job for job in jobs if RANKING_METRIC in job.data.metrics]
        if measured:
            best = max(reversed(measured), key=lambda job: job.data.metrics[RANKING_METRIC])
            # A resumed sweep whose jobs had all finished has recorded the same value already.
            if run.data.metrics.get(RANKING_METRIC) != best.data.metrics[RANKING_METRIC]:
                client.log_metric(sweep.run_id, RANKING_METRIC, best.data.metrics[RANKING_METRIC])
            client.set_tag(sweep.run_id, "best_run", best.info.run_id)
            # Imports much, for which the first line of a command need not wait.
            from dogbreeds.experiments import sweep_page

            sweep_page.record_page(sweep.tracking, run, measured)
            log.info(sweep.tracking.sweep_link(sweep.run_id, [job.info.run_id for job in measured]).line("open"))
        return any(job.info.status == "FAILED" for job in jobs)

    @staticmethod
    def _jobs(client: "mlflow.MlflowClient", run: "MlflowRun") -> "list[MlflowRun]":
        """Return the runs of a sweep's jobs: those nested below its run, and those whose results it reused."""
        condition = f"tags.`mlflow.parentRunId` = '{run.info.run_id}'"
        nested = client.search_runs([run.info.experiment_id], condition, max_results=1000)
        reused = [tag for tag in run.data.tags if tag.startswith(REUSED_TAG_PREFIX)]
        return [*nested, *(client.get_run(tag.removeprefix(REUSED_TAG_PREFIX)) for tag in reused)]


def sweep_origin(
    config: "DictConfig", overrides: Sequence[str], folder: Path | None, plugins: Sequence[str] = ()
) -> RunOrigin:
    """Describe what a sweep was composed from. The same sweep has the same identity, unless `rerun` is set.

    Args:
        config: config of its jobs, without the settings that differ among them.
        overrides: as they were typed.
        folder: folder of Hydra's own files; None without one.
        plugins: modules of plugins, whose source is part of the identity.
    """
    from omegaconf import OmegaConf

    yaml = OmegaConf.to_yaml(config)
    identity = "" if config.rerun else digest(f"{yaml}{tuple(overrides)}{sources_digest(plugins)}".encode())
    name = sweep_name(overrides, swept_keys(overrides))
    return RunOrigin(yaml, tuple(overrides), name, folder, identity=identity)
