"""Writes a run to MLflow: parameters, metrics, tags, predictions, figures, and the trained network."""

import json
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dogbreeds.core.console import Link
from dogbreeds.core.text import mask_passwords
from dogbreeds.evaluation.results import Predictions
from dogbreeds.tracking.prediction_files import write_predictions
from dogbreeds.tracking.records import (
    HEAD_WEIGHTS,
    MODEL_FILE,
    MODEL_FOLDER,
    PREDICTIONS_FOLDER,
    RANKING_METRIC,
    REFITTED_PREDICTIONS_FOLDER,
    param_text,
    short,
)
from dogbreeds.tracking.run_model import log_run_model, remove_run_model
from dogbreeds.tracking.saved_network import (
    HEAD_DIGEST_TAG,
    MODEL_DIGEST_TAG,
    TOLERANCE_TAG,
    save_network,
    save_weights,
)
from dogbreeds.tracking.tracking import Tracker

if TYPE_CHECKING:
    import keras
    import mlflow
    from matplotlib.figure import Figure
    from mlflow.entities import Dataset as MlflowDataset
    from mlflow.entities import Metric
    from mlflow.entities import Run as MlflowRun

# MLflow's limit of parameters in one call.
_PARAMS_PER_CALL = 100


class MlflowTracker(Tracker):
    """Records one run in MLflow. What an earlier process recorded of the run is not recorded again.

    Args:
        client: client of the store.
        run: the run, as recorded so far.
        experiment: name of its experiment.
        save_models: which trained networks are saved: "best" of the sweep, "all" or "none".
        link: to the run's page.
    """

    finetune_overrides = "phase=finetune"

    def __init__(self, client: "mlflow.MlflowClient", run: "MlflowRun", experiment: str, save_models: str, link: Link):
        super().__init__(run.info.run_name, run.info.run_id)
        self._client = client
        self._run = run
        self._experiment = experiment
        self._save_models = save_models
        self._link = link
        names = [name for name in run.data.metrics if not name.startswith("system/")]
        self._logged: dict[tuple[str, int], Metric] = {
            (name, point.step): point for name in names for point in client.get_metric_history(self.run_id, name)
        }
        self._params = dict(run.data.params)
        self._dataset: MlflowDataset | None = None

    def parameters(self, values: dict[str, Any]) -> None:
        from mlflow.entities import Param

        texts = {name: mask_passwords(param_text(value)) for name, value in values.items()}
        params = [Param(name, value) for name, value in texts.items() if name not in self._run.data.params]
        self._params = texts | self._params
        for start in range(0, len(params), _PARAMS_PER_CALL):
            self._client.background.log_batch(self.run_id, params=params[start : start + _PARAMS_PER_CALL])

    def metrics(self, values: dict[str, float], step: int = 0) -> None:
        self._log_metrics((name, value, step) for name, value in values.items())

    def series(self, values: dict[str, Sequence[float]]) -> None:
        self._log_metrics(
            (name, value, step) for name, points in values.items() for step, value in enumerate(points, 1)
        )

    def _log_metrics(self, values: Iterable[tuple[str, float, int]]) -> None:
        """Record triples of name, value and step, except those that are recorded already."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        new = {
            (name, step): Metric(name, value, now, step)
            for name, value, step in values
            if np.isfinite(value) and (name, step) not in self._logged
        }
        self._logged |= new
        self._client.queue_metrics(self.run_id, list(new.values()))

    def tags(self, values: dict[str, str]) -> None:
        from mlflow.entities import RunTag

        if values:
            self._client.background.log_batch(self.run_id, tags=[RunTag(name, value) for name, value in values.items()])

    def describe(self, text: str) -> None:
        self._client.background.set_tag(self.run_id, "mlflow.note.content", text)

    def dataset(self, name: str, fingerprint: str, sizes: dict[str, int]) -> None:
        from mlflow.entities import Dataset as MlflowDataset
        from mlflow.entities import DatasetInput

        source = json.dumps({"name": name})
        self._dataset = MlflowDataset(name, fingerprint[:36], "local", source, profile=json.dumps(sizes))
        self._client.queue_inputs(self.run_id, [DatasetInput(self._dataset, [])])

    def figure(self, draw: "Callable[[], Figure]", name: str) -> None:
        self._client.log_figure(self.run_id, draw(), name)

    def predictions(self, split: str, predictions: Predictions) -> None:
        self._log_predictions(split, predictions, PREDICTIONS_FOLDER)

    def refitted_predictions(self, split: str, predictions: Predictions) -> None:
        self._log_predictions(split, predictions, REFITTED_PREDICTIONS_FOLDER)

    def _log_predictions(self, split: str, predictions: Predictions, artifact_path: str) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = write_predictions(Path(folder), split, predictions)
            self._client.log_artifact(self.run_id, str(path), artifact_path)

    def model(self, build: "Callable[[], keras.Model]", accuracy: float, tolerance: float) -> None:
        if self._save_models == "none":
            return
        if self._save_models == "best" and not self._is_best_of_sweep(accuracy):
            return
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / MODEL_FILE
            tags = {MODEL_DIGEST_TAG: save_network(build(), path), TOLERANCE_TAG: f"{tolerance:g}"}
            self._client.log_artifacts(self.run_id, folder, MODEL_FOLDER)
        # The model's metrics are those of the run, which names the data set.
        self._client.flush()
        log_run_model(self._client, self._run, self._params, self._dataset, self._logged.values())
        self.tags({"model": "kept"} | tags)

    def head(self, head: "keras.Model") -> None:
        if self._save_models == "none":
            return
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / Path(HEAD_WEIGHTS).name
            tags = {HEAD_DIGEST_TAG: save_weights(head, path)}
            self._client.log_artifact(self.run_id, str(path), str(Path(HEAD_WEIGHTS).parent))
        self.tags({"head": "kept"} | tags)

    def _is_best_of_sweep(self, accuracy: float) -> bool:
        """Whether this run is more accurate than all other jobs of its sweep. If it is, their networks are removed."""
        sweep_run_id = self._run.data.tags.get("mlflow.parentRunId")
        if sweep_run_id is None:
            return True
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        jobs = self._client.search_runs(
            [self._run.info.experiment_id],
            f"tags.`mlflow.parentRunId` = '{sweep_run_id}' and tags.model = 'kept'",
            max_results=1000,
        )
        # This run may be among them: resumed after it was interrupted right after saving its network.
        others = [job for job in jobs if job.info.run_id != self.run_id]
        if any(other.data.metrics.get(RANKING_METRIC, 0.0) >= accuracy for other in others):
            return False
        for other in others:
            self._client.wrap(get_artifact_repository(other.info.artifact_uri)).delete_artifacts(MODEL_FOLDER)
            remove_run_model(self._client, other.info.experiment_id, other.info.run_id)
            self._client.set_tag(other.info.run_id, "model", "removed: another job of the sweep did better")
        return True

    def location(self) -> str:
        return f"{short(self.run_id)} '{self._run.info.run_name}', MLflow experiment '{self._experiment}'"

    def link(self) -> Link:
        return self._link


def add_files(
    client: "mlflow.MlflowClient", run_id: str, folder: Path, artifact_path: str, metrics: dict[str, float]
) -> None:
    """Add a folder's files and metrics to a finished run. Files of an earlier call with the same path are replaced.

    Args:
        client: client of the store.
        run_id: the run.
        folder: folder with the files.
        artifact_path: folder among the run's artifacts.
        metrics: values by name; those that are not finite are skipped.
    """
    client.log_artifacts(run_id, str(folder), artifact_path)
    _remove_stale_artifacts(client, run_id, folder, artifact_path)
    for name, value in metrics.items():
        if np.isfinite(value):
            client.log_metric(run_id, name, value)


def _remove_stale_artifacts(client: "mlflow.MlflowClient", run_id: str, folder: Path, artifact_path: str) -> None:
    """Remove artifacts that are not in the folder. Called after the upload, so that an interruption loses none."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    repository = client.wrap(get_artifact_repository(client.get_run(run_id).info.artifact_uri))
    folders = [artifact_path]
    while folders:
        for item in repository.list_artifacts(folders.pop()):
            if not (folder / Path(item.path).relative_to(artifact_path)).exists():
                repository.delete_artifacts(item.path)
            elif item.is_dir:
                folders.append(item.path)
