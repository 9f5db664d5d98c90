"""A run's saved network as a logged model of MLflow, which has its metrics by data set: one search finds the best."""

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from dogbreeds.tracking.records import MODEL_FILE, MODEL_FOLDER

if TYPE_CHECKING:
    import mlflow
    from mlflow.entities import Dataset, Metric
    from mlflow.entities import Run as MlflowRun

# Value of the tag that tells these models from those that `export` logs for serving.
_KIND_TAG = ("dogbreeds", "network")
# Parameters of the run that the model has too.
_PARAMS = (
    "model.architecture",
    "phase",
    "head",
    "optimizer",
    "optimizer.lr",
    "unfreeze.layers_trained",
    "preprocessing.mode",
    "seed",
)
# First parts of the names of metrics that the saved network has.
_METRICS = ("best/", "test/", "reference/")
# MLflow refuses these in a name.
_FORBIDDEN = re.compile(r"[/:.%\"']")


def log_run_model(
    client: "mlflow.MlflowClient",
    run: "MlflowRun",
    params: Mapping[str, str],
    dataset: "Dataset | None",
    metrics: "Iterable[Metric]",
) -> None:
    """Log a run's saved network as a model, with the metrics of its best epoch. The file stays among the artifacts.

    Args:
        client: client of the store.
        run: the run, whose network is saved.
        params: its parameters by name.
        dataset: data set that the metrics were measured on.
        metrics: the run's last metrics.
    """
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus, Metric

    run_id = run.info.run_id
    # A run that was interrupted here and resumed has one already.
    remove_run_model(client, run.info.experiment_id, run_id)
    model = client.create_logged_model(
        run.info.experiment_id,
        name=_FORBIDDEN.sub("_", run.info.run_name),
        source_run_id=run_id,
        tags={_KIND_TAG[0]: _KIND_TAG[1], "run": run_id, "network": f"runs:/{run_id}/{MODEL_FOLDER}/{MODEL_FILE}"},
        params={name: params[name] for name in _PARAMS if name in params},
    )
    linked = [
        Metric(
            metric.key,
            metric.value,
            metric.timestamp,
            metric.step,
            model_id=model.model_id,
            dataset_name=dataset.name if dataset else None,
            dataset_digest=dataset.digest if dataset else None,
            run_id=run_id,
        )
        for metric in metrics
        if metric.key.startswith(_METRICS)
    ]
    client.log_batch(run_id, metrics=linked)
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
    client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)


def remove_run_model(client: "mlflow.MlflowClient", experiment_id: str, run_id: str) -> None:
    """Remove the logged model of a run whose saved network is removed."""
    name, value = _KIND_TAG
    for model in client.search_logged_models(
        [experiment_id], f"source_run_id = '{run_id}' AND tags.{name} = '{value}'"
    ):
        client.delete_logged_model(model.model_id)
