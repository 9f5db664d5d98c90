"""MLflow as the way to record: a run begun or resumed, what is known of an attempt, and the results that a sweep takes over."""

import contextlib
import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dogbreeds.core.spec import number, one_of
from dogbreeds.tracking.lifecycle import begin, choices, close_orphaned_runs, ended, go_on, system_metrics
from dogbreeds.tracking.records import REUSED, SWEEP, PriorRuns, Record, RunOrigin, short

if TYPE_CHECKING:
    pass


from dogbreeds.tracking.reader import MlflowReader
from dogbreeds.tracking.records import record_of
from dogbreeds.tracking.tracking import Tracker
from dogbreeds.tracking.writer import MlflowTracker, add_files


@dataclass(frozen=True, kw_only=True)
class Mlflow(MlflowReader):
    """MLflow: a local SQLite store, or any address."""

    model: str = one_of("best", "all", "none")
    system_metrics_seconds: float = number(at_least=0, example=10)

    @contextlib.contextmanager
    def open(self, composition: RunOrigin, unfinished: Record | None = None) -> Iterator[Tracker]:
        client, experiment_id = self.connect()
        above = os.environ.get(SWEEP)
        run = (
            begin(client, experiment_id, composition, above)
            if unfinished is None
            else go_on(client, unfinished.run_id, composition, above)
        )
        sampled = system_metrics(
            client, run.info.run_id, self._address, self.system_metrics_seconds, unfinished is not None
        )
        with ended(client, run.info.run_id), sampled:
            yield MlflowTracker(client, run, self.experiment, self.model)

    def known(self, key: str, identity: str, gone: Collection[str] = ()) -> PriorRuns:
        client, experiment_id = self.connect()
        close_orphaned_runs(client, experiment_id, gone)
        same = [record_of(run) for run in client.search_runs([experiment_id], f"tags.key = '{key}'", max_results=1000)]
        finished = [
            record
            for record in same
            if record.status == "FINISHED" and record.tags["identity"] == identity and not self._lacks(record)
        ]
        unfinished = [
            record for record in same if record.status in ("KILLED", "FAILED") and record.tags["identity"] == identity
        ]
        others = tuple(short(record.run_id) for record in same if record.tags["identity"] != identity)
        return PriorRuns(next(iter(finished), None), next(iter(unfinished), None), others)

    def _lacks(self, record: Record) -> bool:
        """Whether a frozen attempt did not keep the head that a fine-tune would go on from, and should have."""
        frozen = (record.params.get("phase"), record.params.get("unfreeze")) == ("Frozen", "Nothing")
        return self.model != "none" and frozen and record.tags.get("head") != "kept"

    def reuse(self, record: Record, composition: RunOrigin) -> None:
        for name, value in choices(composition).items():
            # It may have been run under no attempt's name
            if name not in record.tags:
                self._client().set_tag(record.run_id, name, value)
        above = os.environ.get(SWEEP)
        if above is not None and record.tags.get("mlflow.parentRunId") != above:
            self._client().set_tag(above, f"{REUSED}{record.run_id}", record.name)

    def add(self, run_id: str, folder: Path, place: str, metrics: dict[str, float]) -> None:
        """Adds a folder's files and numbers to a run that has finished, in the place of those of an earlier folder."""
        add_files(self._client(), run_id, folder, place, metrics)

    def note(self, run_id: str, name: str, text: str, metrics: dict[str, float]) -> None:
        """Adds a text and numbers to a run."""
        client = self._client()
        client.log_text(run_id, text, name)
        for metric, value in metrics.items():
            client.log_metric(run_id, metric, value)
