"""A sweep as one MLflow run, with its jobs nested below it. Hydra calls it, as `conf/train.yaml` says."""

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dogbreeds.core.text import digest
from dogbreeds.experiments.compose import part
from dogbreeds.experiments.launcher import Launched
from dogbreeds.reports import curves
from dogbreeds.tracking.lifecycle import begin, close_orphaned_runs, go_on, heartbeat
from dogbreeds.tracking.mlflow_backend import Mlflow
from dogbreeds.tracking.records import RANKING, REUSED, SWEEP, RunOrigin

if TYPE_CHECKING:
    import mlflow
    from omegaconf import DictConfig


class Sweep(Launched):
    """One MLflow run above the jobs of a sweep. Hydra calls it; it also initialises the store once, before jobs could race to do so."""

    _open: "tuple[Mlflow, mlflow.MlflowClient, str, contextlib.ExitStack] | None" = None

    def begin(self, config: "DictConfig") -> None:
        from omegaconf import OmegaConf

        shown = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
        tracking = part(shown, "tracking")
        if not isinstance(tracking, Mlflow):
            return
        overrides = tuple(config.hydra.overrides.task)
        name = f"sweep {' '.join(overrides)}"[:250]
        yaml = OmegaConf.to_yaml(shown)
        identity = "" if shown.rerun else digest(f"{yaml}{overrides}".encode())
        Sweep.open(tracking, RunOrigin(yaml, overrides, name, Path(config.hydra.sweep.dir), identity=identity))

    @classmethod
    def open(cls, tracking: Mlflow, composition: RunOrigin) -> str:
        """Begins a run above those that follow, until `close`, or opens that of the same sweep again; gives its id."""
        client, experiment_id = tracking.connect()
        close_orphaned_runs(client, experiment_id)
        same = (
            client.search_runs([experiment_id], f"tags.identity = '{composition.identity}'")
            if composition.identity
            else []
        )
        before = [run for run in same if run.info.status != "RUNNING"]
        run = (
            go_on(client, before[0].info.run_id, composition, None)
            if before
            else begin(client, experiment_id, composition, None)
        )
        run_id, alive = run.info.run_id, contextlib.ExitStack()
        alive.enter_context(heartbeat(client, run_id))
        os.environ[SWEEP] = run_id
        cls._open = tracking, client, run_id, alive
        return run_id

    @classmethod
    def close(cls, status: str) -> None:
        """Ends the sweep's run, if one is open."""
        if cls._open is None:
            return
        (tracking, client, run_id, alive), cls._open = cls._open, None
        os.environ.pop(SWEEP)
        if status != "FINISHED":
            client.hurry()
        failed = True
        try:
            failed = cls._sum_up(tracking, client, run_id)
        finally:
            alive.close()
            client.set_terminated(run_id, "FAILED" if failed and status == "FINISHED" else status)

    @staticmethod
    def _sum_up(tracking: Mlflow, client: "mlflow.MlflowClient", run_id: str) -> bool:
        """Records what the best job measured, and all curves; gives whether a job has failed."""
        run = client.get_run(run_id)
        close_orphaned_runs(client, run.info.experiment_id)
        jobs = client.search_runs([run.info.experiment_id], f"tags.`mlflow.parentRunId` = '{run_id}'", max_results=1000)
        jobs += [client.get_run(tag.removeprefix(REUSED)) for tag in run.data.tags if tag.startswith(REUSED)]
        # MLflow gives the newest first
        measured = [job for job in reversed(jobs) if RANKING in job.data.metrics]
        names = distinct([job.data.params["overrides"] for job in measured])
        histories = {
            name: [tracking.history(job.info.run_id, "val/accuracy")] for name, job in zip(names, measured, strict=True)
        }
        if histories:
            best = max(measured, key=lambda job: job.data.metrics[RANKING])
            # It may have been opened again for nothing
            if run.data.metrics.get(RANKING) != best.data.metrics[RANKING]:
                client.log_metric(run_id, RANKING, best.data.metrics[RANKING])
            client.set_tag(run_id, "best_run", best.info.run_id)
            client.log_figure(
                run_id, curves.compare(histories, "validation accuracy of the sweep's jobs"), "curves.png"
            )
        return any(job.info.status == "FAILED" for job in jobs)


def distinct(overrides: Sequence[str]) -> list[str]:
    """What each job's overrides have that not all have."""
    words = [text.split() for text in overrides]
    shared = set.intersection(*map(set, words)) if len(words) > 1 else set()
    return [
        " ".join(word for word in those if word not in shared) or text
        for those, text in zip(words, overrides, strict=True)
    ]
