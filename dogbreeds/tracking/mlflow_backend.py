"""The option `tracking=mlflow`: record runs, find prior runs, and reuse finished results."""

import contextlib
import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dogbreeds.core import signals
from dogbreeds.core.console import Link
from dogbreeds.core.spec import number, one_of
from dogbreeds.tracking.lifecycle import (
    choice_tags,
    close_orphaned_runs,
    end_run_on_exit,
    resume_run,
    start_run,
    system_metrics,
)
from dogbreeds.tracking.reader import MlflowReader
from dogbreeds.tracking.records import REUSED_TAG_PREFIX, SWEEP_RUN_ENV, PriorRuns, Record, RunOrigin, record_of, short
from dogbreeds.tracking.saved_view import save_sweep_view
from dogbreeds.tracking.tracking import Tracker
from dogbreeds.tracking.ui_address import runs_page, ui_base
from dogbreeds.tracking.writer import MlflowTracker, add_files


@dataclass(frozen=True, kw_only=True)
class Mlflow(MlflowReader):
    """Record in MLflow: a local SQLite file, or a server.

    Attributes:
        model: which trained networks are saved: of a sweep the best, all, or none.
        system_metrics_seconds: seconds between samples of processor and memory use; 0 turns them off.
    """

    model: str = one_of("best", "all", "none")
    system_metrics_seconds: float = number(at_least=0, at_most=86_400, example=10)

    @property
    def saves_networks(self) -> bool:
        return self.model != "none"

    @contextlib.contextmanager
    def open(
        self, origin: RunOrigin, unfinished: Record | None = None, parent_run_id: str | None = None
    ) -> Iterator[Tracker]:
        """Open a tracker for one run, as every `Tracking` does.

        Args:
            origin, unfinished: as there.
            parent_run_id: run that it is nested below; None for that of the sweep, if there is one.
        """
        client, experiment_id = self.connect()
        sweep_run_id = parent_run_id or os.environ.get(SWEEP_RUN_ENV)
        with contextlib.ExitStack() as stack:
            # A signal is raised at the end of the block, where it ends the run.
            with signals.deferred():
                if unfinished is None:
                    run = start_run(client, experiment_id, origin, sweep_run_id)
                else:
                    run = resume_run(client, unfinished.run_id, origin, sweep_run_id)
                run_id = run.info.run_id
                stack.enter_context(end_run_on_exit(client, run_id))
            resumed = unfinished is not None
            stack.enter_context(system_metrics(client, run_id, self._address, self.system_metrics_seconds, resumed))
            yield MlflowTracker(client, run, self.experiment, self.model, self.run_link(record_of(run)))

    def prior_runs(self, key: str, identity: str, dead_processes: Collection[str] = ()) -> PriorRuns:
        client, experiment_id = self.connect()
        close_orphaned_runs(client, experiment_id, dead_processes)
        # The newest first.
        same_key = [
            record_of(run) for run in client.search_runs([experiment_id], f"tags.key = '{key}'", max_results=1000)
        ]
        same = [record for record in same_key if record.tags["identity"] == identity]
        finished = [record for record in same if record.status == "FINISHED" and not self._lacks_head(record)]
        unfinished = [record for record in same if record.status in ("KILLED", "FAILED")]
        others = tuple(short(record.run_id) for record in same_key if record.tags["identity"] != identity)
        return PriorRuns(next(iter(finished), None), next(iter(unfinished), None), others)

    def _lacks_head(self, record: Record) -> bool:
        """Whether a frozen run saved no head for fine-tunes to start from, though this config asks for one."""
        frozen = (record.params.get("phase"), record.params.get("unfreeze")) == ("Frozen", "Nothing")
        return self.model != "none" and frozen and record.tags.get("head") != "kept"

    def reuse(self, record: Record, origin: RunOrigin) -> None:
        for name, value in choice_tags(origin).items():
            # The recorded run may have been started without naming an attempt.
            if name not in record.tags:
                self._client().set_tag(record.run_id, name, value)
        sweep_run_id = os.environ.get(SWEEP_RUN_ENV)
        if sweep_run_id is not None and record.tags.get("mlflow.parentRunId") != sweep_run_id:
            self._client().set_tag(sweep_run_id, f"{REUSED_TAG_PREFIX}{record.run_id}", record.name)

    def sweep_link(self, sweep_run_id: str, run_ids: Sequence[str]) -> Link:
        """Save a view of a sweep's runs, and return a link to MLflow's page that compares them.

        Args:
            sweep_run_id: the sweep's own run.
            run_ids: runs of its jobs.
        """
        client, experiment_id = self.connect()
        view = save_sweep_view(client, experiment_id, sweep_run_id, run_ids)
        page = runs_page(ui_base(self.uri, self.ui), experiment_id, view, charts=True)
        return Link(page, page.partition("&")[0])

    def add_files(self, run_id: str, folder: Path, artifact_path: str, metrics: dict[str, float]) -> None:
        """Add files and metrics to a finished run. Files of an earlier call with the same path are replaced.

        Args:
            run_id: the run.
            folder: folder with the files.
            artifact_path: folder among the run's artifacts.
            metrics: values by name.
        """
        add_files(self._client(), run_id, folder, artifact_path, metrics)

    def add_text(self, run_id: str, artifact_path: str, text: str, metrics: dict[str, float]) -> None:
        """Add a text file and metrics to a run.

        Args:
            run_id: the run.
            artifact_path: file among the run's artifacts.
            text: content of the file.
            metrics: values by name.
        """
        client = self._client()
        client.log_text(run_id, text, artifact_path)
        for name, value in metrics.items():
            client.log_metric(run_id, name, value)
