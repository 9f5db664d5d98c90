"""Records a run in MLflow."""

import json
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dogbreeds.core.text import masked
from dogbreeds.evaluation.results import Predictions
from dogbreeds.tracking.records import RANKING, short

if TYPE_CHECKING:
    import keras
    import mlflow
    from matplotlib.figure import Figure
    from mlflow.entities import Run as MlflowRun


from dogbreeds.tracking.records import HEAD, MODEL_FILE, MODEL_FOLDER, PREDICTIONS, plain
from dogbreeds.tracking.tracking import Tracker

# MLflow's limit of one call
_PARAMETERS_AT_ONCE = 100


class MlflowTracker(Tracker):
    """Records one run in MLflow.

    Args:
        client: of the store.
        run: as it is recorded so far.
        experiment: its experiment's name.
        keep: which trained networks are kept, as `tracking.model` has it.
    """

    def __init__(self, client: "mlflow.MlflowClient", run: "MlflowRun", experiment: str, keep: str):
        super().__init__(run.info.run_name, run.info.run_id)
        self._client, self._run, self._experiment, self._keep = client, run, experiment, keep
        # What an earlier process has recorded of this run is not recorded twice.
        names = [name for name in run.data.metrics if not name.startswith("system/")]
        self._logged = {(name, point.step) for name in names for point in client.get_metric_history(self.run_id, name)}

    def parameters(self, values: dict[str, Any]) -> None:
        from mlflow.entities import Param

        params = [
            Param(name, masked(plain(value))) for name, value in values.items() if name not in self._run.data.params
        ]
        for start in range(0, len(params), _PARAMETERS_AT_ONCE):
            self._client.kept.log_batch(self.run_id, params=params[start : start + _PARAMETERS_AT_ONCE])

    def metrics(self, values: dict[str, float], step: int = 0) -> None:
        self._log((name, value, step) for name, value in values.items())

    def series(self, values: dict[str, Sequence[float]]) -> None:
        self._log((name, value, step) for name, those in values.items() for step, value in enumerate(those, 1))

    def _log(self, values: Iterable[tuple[str, float, int]]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        new = [
            (name, value, step)
            for name, value, step in values
            if np.isfinite(value) and (name, step) not in self._logged
        ]
        self._logged |= {(name, step) for name, _, step in new}
        self._client.keep_metrics(self.run_id, [Metric(name, value, now, step) for name, value, step in new])

    def tags(self, values: dict[str, str]) -> None:
        from mlflow.entities import RunTag

        if values:
            self._client.kept.log_batch(self.run_id, tags=[RunTag(name, value) for name, value in values.items()])

    def describe(self, text: str) -> None:
        self._client.kept.set_tag(self.run_id, "mlflow.note.content", text)

    def dataset(self, name: str, fingerprint: str, sizes: dict[str, int]) -> None:
        from mlflow.entities import Dataset as MlflowDataset
        from mlflow.entities import DatasetInput

        about = MlflowDataset(name, fingerprint[:36], "local", json.dumps({"name": name}), profile=json.dumps(sizes))
        self._client.keep_inputs(self.run_id, [DatasetInput(about, [])])

    def picture(self, draw: "Callable[[], Figure]", name: str) -> None:
        self._client.log_figure(self.run_id, draw(), name)

    def predictions(self, split: str, said: Predictions) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"{split}.npz"
            names = np.asarray(said.class_names, dtype=np.str_)
            np.savez_compressed(
                path, ids=np.asarray(said.ids), labels=said.labels, logits=said.logits, class_names=names
            )
            self._client.log_artifact(self.run_id, str(path), PREDICTIONS)

    def model(self, whole: "Callable[[], keras.Model]", accuracy: float) -> None:
        if self._keep == "none":
            return
        if self._keep == "best" and not self._beats_its_sweep(accuracy):
            return
        with tempfile.TemporaryDirectory() as folder:
            whole().save(Path(folder) / MODEL_FILE)
            self._client.log_artifacts(self.run_id, folder, MODEL_FOLDER)
        self.tags({"model": "kept"})

    def head(self, head: "keras.Model") -> None:
        if self._keep == "none":
            return
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / Path(HEAD).name
            head.save_weights(path)
            self._client.log_artifact(self.run_id, str(path), str(Path(HEAD).parent))
        self.tags({"head": "kept"})

    def _beats_its_sweep(self, accuracy: float) -> bool:
        """Whether no other job of the sweep has done as well; the models of those that did worse are removed."""
        parent = self._run.data.tags.get("mlflow.parentRunId")
        if parent is None:
            return True
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        jobs = self._client.search_runs(
            [self._run.info.experiment_id],
            f"tags.`mlflow.parentRunId` = '{parent}' and tags.model = 'kept'",
            max_results=1000,
        )
        # This one may have been cut off right after keeping its own
        others = [job for job in jobs if job.info.run_id != self.run_id]
        if any(other.data.metrics.get(RANKING, 0.0) >= accuracy for other in others):
            return False
        for other in others:
            self._client.calls(get_artifact_repository(other.info.artifact_uri)).delete_artifacts(MODEL_FOLDER)
            self._client.set_tag(other.info.run_id, "model", "removed: another job of the sweep did better")
        return True

    def where(self) -> str:
        return f"MLflow experiment '{self._experiment}', run {short(self.run_id)} '{self._run.info.run_name}'"


def add_files(client: "mlflow.MlflowClient", run_id: str, folder: Path, place: str, metrics: dict[str, float]) -> None:
    """Adds a folder's files and numbers to a run that has finished, in the place of those of an earlier folder."""
    client.log_artifacts(run_id, str(folder), place)
    _remove_left_over(client, run_id, folder, place)
    for name, value in metrics.items():
        if np.isfinite(value):
            client.log_metric(run_id, name, value)


def _remove_left_over(client: "mlflow.MlflowClient", run_id: str, folder: Path, place: str) -> None:
    """Removes artifacts that an earlier folder had and this one has not; after the new ones are there, whatever cuts this off."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    repository = client.calls(get_artifact_repository(client.get_run(run_id).info.artifact_uri))
    left = [place]
    while left:
        for item in repository.list_artifacts(left.pop()):
            if not (folder / Path(item.path).relative_to(place)).exists():
                repository.delete_artifacts(item.path)
            elif item.is_dir:
                left.append(item.path)
