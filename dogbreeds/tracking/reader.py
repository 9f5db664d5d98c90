"""Reads recorded runs from MLflow: parameters, metrics, predictions, networks; and finds the parent of a fine-tune."""

import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dogbreeds.core.console import Link
from dogbreeds.core.errors import UserError
from dogbreeds.core.text import mask_passwords, printable, shorten
from dogbreeds.evaluation.results import Predictions
from dogbreeds.tracking.connection import MlflowStore
from dogbreeds.tracking.lifecycle import CONFIG_FILE
from dogbreeds.tracking.prediction_files import read_predictions
from dogbreeds.tracking.records import (
    HEAD_WEIGHTS,
    MODEL_FILE,
    MODEL_FOLDER,
    PREDICTIONS_FOLDER,
    RANKING_METRIC,
    REFITTED_PREDICTIONS_FOLDER,
    REFITTED_TAG,
    Parent,
    Record,
    check_parent,
    describe_differences,
    differing,
    param_text,
    record_of,
    short,
)
from dogbreeds.tracking.saved_network import HEAD_DIGEST_TAG, MODEL_DIGEST_TAG, check_digest
from dogbreeds.tracking.ui_address import run_link, run_page, ui_base

if TYPE_CHECKING:
    from mlflow.entities import Run as MlflowRun

_FINISHED_FROZEN_RUNS = "params.phase = 'Frozen' and params.unfreeze = 'Nothing' and attributes.status = 'FINISHED'"


@dataclass(frozen=True, kw_only=True)
class MlflowReader(MlflowStore):
    """Reads the runs of an MLflow experiment."""

    def records(self, condition: str = "") -> list[Record]:
        """Return the experiment's finished runs that have a verdict, the newest first.

        Args:
            condition: further condition in MLflow's search syntax.
        """
        return self._search(
            f"attributes.status = 'FINISHED' and tags.verdict != ''{f' and {condition}' if condition else ''}"
        )

    def _search(self, condition: str) -> list[Record]:
        """Return all of the experiment's runs that fulfil a condition in MLflow's syntax, the newest first."""
        client, experiment_id = self._find_experiment()
        if experiment_id is None:
            return []
        found: list[Record] = []
        token = None
        while True:
            page = client.search_runs([experiment_id], condition, max_results=1000, page_token=token)
            found += map(record_of, page)
            token = page.token
            if not token:
                return found

    def newest_run(self, identity: str) -> Record | None:
        return next(iter(self._search(f"tags.identity = '{identity}'")), None)

    def record(self, run_id: str) -> Record:
        """Return the run with this id."""
        return record_of(self._client().get_run(run_id))

    def runs_with_prefix(self, prefix: str) -> list[Record]:
        """Return the experiment's runs whose ids start with a prefix, whatever their status."""
        return [record for record in self._search("") if record.run_id.startswith(prefix)]

    def find_any_run(self, prefix: str) -> Record:
        """Return the run of any experiment, by any program, whose id starts with a prefix, whatever its status.

        Raises:
            UserError: no run has such an id, or several have.
        """
        client = self._client()
        experiments = [experiment.experiment_id for experiment in client.search_experiments()]
        found = []
        if prefix.isalnum() and experiments:
            found = client.search_runs(experiments, f"attributes.run_id LIKE '{prefix}%'", max_results=4)
        if len(found) == 1:
            return record_of(found[0])
        listed = found or (client.search_runs(experiments, max_results=4) if experiments else [])
        ids = ", ".join(short(run.info.run_id) for run in listed)
        hint = f"; {'it matches' if found else 'the newest are'} {ids}" if ids else ""
        raise UserError(
            f"run={printable(prefix)} names {'several runs' if found else 'no run'} of {mask_passwords(self.uri)}. It"
            f" must be the beginning of one run's id{hint}. Type run=<id> tracking.uri=<address of its store>."
        )

    def points(self, record: Record) -> dict[str, list[tuple[int, float]]]:
        """Return step and value of each point of a run's metrics, apart from those of the machine."""
        client = self._client()
        return {
            metric: [(point.step, point.value) for point in client.get_metric_history(record.run_id, metric)]
            for metric in record.metrics
            if not metric.startswith("system/")
        }

    def run_url(self, record: Record, ui: str | None = None) -> str:
        """Return the URL of a run's page in MLflow's UI.

        Args:
            record: the run.
            ui: address of the UI of a local store; None for the setting. A server's own address is used instead.

        Raises:
            UserError: `ui` is no address.
        """
        return run_page(ui_base(self.uri, ui or self.ui), record.experiment_id, record.run_id)

    def run_link(self, record: Record) -> Link:
        """Return a link to a run's page in MLflow's UI."""
        return run_link(ui_base(self.uri, self.ui), record.experiment_id, record.run_id)

    def config(self, run_id: str) -> str:
        """Return the composed config of a run, as YAML."""
        with tempfile.TemporaryDirectory() as folder:
            return self._download(run_id, CONFIG_FILE, Path(folder), "config").read_text(errors="replace")

    def download_network(self, run_id: str, folder: Path) -> Path:
        """Download a run's trained network, which must have been saved, and check that it is the one that was.

        Args:
            run_id: the run.
            folder: folder that it is downloaded to.

        Returns:
            Its `.keras` file.

        Raises:
            UserError: it cannot be downloaded, or is another file than the one that was saved.
        """
        artifact_path = f"{MODEL_FOLDER}/{MODEL_FILE}"
        file = self._download(run_id, artifact_path, folder, "network")
        check_digest(file, run_id, self.record(run_id).tags, MODEL_DIGEST_TAG, artifact_path)
        return file

    def _download(self, run_id: str, artifact_path: str, folder: Path, what: str) -> Path:
        try:
            return Path(self._client().download_artifacts(run_id, artifact_path, str(folder)))
        except UserError as error:
            # During an outage nobody knows whether the artifact exists.
            if error.__cause__ is None:
                raise
            raise UserError(
                f"The {what} of run {short(run_id)} cannot be downloaded"
                f" ({shorten(str(error.__cause__), 160)}). It must be among the run's artifacts, as"
                f" {artifact_path}. Restore the file, or name another run."
            ) from error

    def history(self, run_id: str, metric: str) -> list[float]:
        points = self._client().get_metric_history(run_id, metric)
        return [point.value for point in sorted(points, key=lambda point: point.step)]

    def find_parent(self, run_id: str | None, must_match: dict[str, Any], seed: int, folder: Path) -> Parent:
        best = self._find_parent(run_id, must_match, seed)
        head = self._download(best.info.run_id, HEAD_WEIGHTS, folder, "head")
        check_digest(head, best.info.run_id, best.data.tags, HEAD_DIGEST_TAG, HEAD_WEIGHTS)
        predictions = self.predictions(best.info.run_id)
        return Parent(
            run_id=best.info.run_id,
            head=head,
            accuracy=best.data.metrics[RANKING_METRIC],
            predictions=predictions,
            baseline={name: value for name, value in best.data.metrics.items() if name.startswith("baseline/")},
            baseline_description=best.data.tags.get("baseline", ""),
            reference={name: value for name, value in best.data.metrics.items() if name.startswith("reference/")},
            reference_description=best.data.tags.get("reference", ""),
            verdict=best.data.tags.get("verdict", ""),
        )

    def parent_params(self, run_id: str | None, must_match: dict[str, Any], seed: int) -> dict[str, str]:
        return record_of(self._find_parent(run_id, must_match, seed)).params

    def _find_parent(self, run_id: str | None, must_match: dict[str, Any], seed: int) -> "MlflowRun":
        client, experiment_id = self.connect()
        frozen = client.search_runs([experiment_id], _FINISHED_FROZEN_RUNS, max_results=5000)
        expected = {name: param_text(value) for name, value in must_match.items()}
        if run_id is not None:
            matching = [self._named_parent(frozen, run_id, expected)]
        else:
            matching = [run for run in frozen if not differing(run.data.params, expected)]
        return self._best_parent(frozen, matching, expected, seed)

    def _named_parent(self, frozen: "list[MlflowRun]", prefix: str, expected: dict[str, str]) -> "MlflowRun":
        """Return the frozen run whose id starts with a prefix; refuse it if its parameters differ."""
        named = [run for run in frozen if run.info.run_id.startswith(prefix)]
        if len(named) != 1:
            raise UserError(
                f"phase.parent={prefix} matches {len(named)} finished frozen runs of experiment '{self.experiment}'. It"
                " must match one: by its run id, or a prefix of it. Type phase.parent=null to use the best run that"
                " matches."
            )
        (run,) = named
        check_parent(short(run.info.run_id), run.data.params, expected)
        return run

    def _best_parent(
        self, frozen: "list[MlflowRun]", matching: "list[MlflowRun]", expected: dict[str, str], seed: int
    ) -> "MlflowRun":
        """Return the most accurate of the matching runs that saved its head, of the same seed if possible.

        Ties go to the lower loss: which run started last is chance where jobs run in parallel.
        """
        with_head = [run for run in matching if run.data.tags.get("head") == "kept"]
        if not with_head:
            raise UserError(
                f"No finished frozen run of experiment '{self.experiment}' {_lacking(frozen, matching, expected)}."
                " phase=finetune starts from the best weights of one with the same model, pixels, head and data. Type"
                " the same command with phase=frozen unfreeze=none first, without tracking.model=none."
            )

        def rank(run: "MlflowRun") -> tuple[bool, float, float]:
            metrics = run.data.metrics
            same_seed = run.data.params.get("seed") == str(seed)
            return same_seed, metrics[RANKING_METRIC], -metrics.get("best/val_loss", math.inf)

        return max(with_head, key=rank)

    def predictions(self, run_id: str) -> "dict[str, Predictions]":
        """Return the predictions of a run's best weights, by split; empty if it finished no epoch."""
        return self._predictions(run_id, PREDICTIONS_FOLDER)

    def network_predictions(self, record: Record) -> "dict[str, Predictions]":
        """Return what a run recorded that its saved network predicts, by split.

        That is what its best weights predict, unless the network was fitted again. That one was fitted to validation
        images too, so only those of the test split are recorded.
        """
        folder = REFITTED_PREDICTIONS_FOLDER if REFITTED_TAG in record.tags else PREDICTIONS_FOLDER
        return self._predictions(record.run_id, folder)

    def _predictions(self, run_id: str, artifact_path: str) -> "dict[str, Predictions]":
        client = self._client()
        with tempfile.TemporaryDirectory() as folder:
            if not client.list_artifacts(run_id, artifact_path):
                return {}
            downloaded = Path(client.download_artifacts(run_id, artifact_path, folder))
            return read_predictions(downloaded, short(run_id))


def _lacking(frozen: "list[MlflowRun]", matching: "list[MlflowRun]", expected: dict[str, str]) -> str:
    """Say what no frozen run has: a saved head, or the same settings, of which those of the nearest run are named."""
    if matching:
        return "that matches has saved its head"
    if not frozen:
        return "was found"
    nearest = min(frozen, key=lambda run: len(differing(run.data.params, expected)))
    described = describe_differences(nearest.data.params, expected)
    return f"matches: of the nearest, {short(nearest.info.run_id)}, {described}"
