"""MLflow's page: the saved view it opens with, links to it, and a run's network as a logged model."""

import base64
import json
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dogbreeds.core.errors import UserError
from dogbreeds.experiments.run import Run
from dogbreeds.tracking.local_store import file_store_note
from dogbreeds.tracking.mlflow_backend import Mlflow
from dogbreeds.tracking.records import RunOrigin
from dogbreeds.tracking.saved_view import main_view_tag
from tests.tiny_network import save_tiny


def unpacked(state: str) -> dict[str, Any]:
    """Unpack a state as MLflow's page does."""
    return json.loads(zlib.decompress(base64.b64decode(state.removeprefix("deflate;"))))


@pytest.fixture
def tracking(composed: Callable[..., Run]) -> Mlflow:
    tracking = composed("tracking.system_metrics_seconds=0", "tracking.model=all").tracking
    assert isinstance(tracking, Mlflow)
    return tracking


def record_run(tracking: Mlflow, folder: Path, name: str, accuracies: tuple[float, float]) -> str:
    """Record a run with a network, and return its id."""
    network = folder / "network.keras"
    save_tiny(network, 2)
    import keras

    validation, test = accuracies
    with tracking.open(RunOrigin("seed: 0\n", (), name, folder)) as tracker:
        tracker.parameters({"phase": "Frozen", "head": "MLP", "optimizer.lr": 1e-3})
        tracker.dataset("dogs", "f" * 64, {"train": 8, "val": 4})
        tracker.metrics({"val/accuracy": 0.1}, 1)
        tracker.metrics({"best/val_accuracy": validation, "test/accuracy": test, "seconds/total": 1.0})
        tracker.model(lambda: keras.models.load_model(network), validation, 1e-4)
        return tracker.run_id


def test_main_view_lists_training_runs_best_first_with_the_columns_to_compare_and_three_charts() -> None:
    name, value = main_view_tag()
    # MLflow's limit of a tag's length.
    assert (name, len(value) < 5000) == ("mlflow.sharedViewState.dogbreeds", True)
    envelope = json.loads(value)
    assert {type(envelope[key]) for key in ("name", "state")} == {str}
    assert {type(envelope[key]) for key in ("createdAt", "updatedAt")} == {int}
    state = unpacked(envelope["state"])
    assert (state["orderByKey"], state["orderByAsc"]) == ("metrics.`best/val_accuracy`", False)
    assert state["columnOrder"] == state["selectedColumns"] == [
        "tags.`verdict`",
        "metrics.`best/val_accuracy`",
        "metrics.`test/accuracy`",
        "metrics.`reference/val_accuracy`",
        "params.`head`",
        "params.`optimizer`",
        "params.`optimizer.lr`",
        "params.`unfreeze.layers_trained`",
        "metrics.`seconds/total`",
    ]  # fmt: skip
    curves, rate, depth = state["compareRunCharts"]
    assert (curves["type"], curves["metricKey"]) == ("LINE", "val/accuracy")
    for chart, param in ((rate, "optimizer.lr"), (depth, "unfreeze.layers_trained")):
        assert (chart["type"], chart["xaxis"], chart["yaxis"]["key"]) == (
            "SCATTER",
            {"key": param, "type": "PARAM"},
            "best/val_accuracy",
        )
    sections = {section["uuid"]: section["display"] for section in state["compareRunSections"]}
    assert {sections[chart["metricSectionId"]] for chart in state["compareRunCharts"]} == {True}


def test_new_experiment_opens_on_the_training_pages_with_the_view_and_its_filter_leaves_out_sweeps(
    tracking: Mlflow, tmp_path: Path
) -> None:
    client, experiment_id = tracking.connect()
    tags = client.get_experiment(experiment_id).tags
    name, value = main_view_tag()
    assert (tags[name], tags["mlflow.experimentKind"]) == (value, "custom_model_development")
    with tracking.open(RunOrigin("seed: 0\n", ("seed=0,1",), "sweep seed=0,1", tmp_path)):
        pass
    with tracking.open(RunOrigin("seed: 0\n", ("seed=0",), "job", tmp_path)) as tracker:
        tracker.parameters({"phase": "Frozen"})
    condition = unpacked(json.loads(value)["state"])["searchFilter"]
    assert [run.info.run_name for run in client.search_runs([experiment_id], condition)] == ["job"]
    client.set_experiment_tag(experiment_id, name, "of an older version")
    page = "http://dogbreeds.localhost:5000/#/experiments/1/runs?viewStateShareKey=dogbreeds&"
    assert tracking.save_main_view() == f"{page}workflowType=machine_learning"
    assert client.get_experiment(experiment_id).tags[name] == value


def test_link_of_a_sweep_opens_a_view_of_its_runs_and_of_those_it_reused(tracking: Mlflow, tmp_path: Path) -> None:
    client, experiment_id = tracking.connect()
    ids = [client.create_run(experiment_id).info.run_id for _ in range(3)]
    url = tracking.sweep_link("b" * 32, ids[:2]).url
    assert url.endswith("?viewStateShareKey=dogbreeds-bbbbbbbb&workflowType=machine_learning&compareRunsMode=CHART")
    state = unpacked(client.get_experiment(experiment_id).tags["mlflow.sharedViewState.dogbreeds-bbbbbbbb"])
    found = client.search_runs([experiment_id], state["searchFilter"])
    assert {run.info.run_id for run in found} == set(ids[:2])
    many = [f"{number:032x}" for number in range(2000)]
    tracking.sweep_link("b" * 32, many)
    state = unpacked(client.get_experiment(experiment_id).tags["mlflow.sharedViewState.dogbreeds-bbbbbbbb"])
    assert state["searchFilter"] == f"tags.`mlflow.parentRunId` = '{'b' * 32}'"


@pytest.mark.slow
def test_one_search_finds_the_best_model_of_a_data_set(tracking: Mlflow, tmp_path: Path) -> None:
    client, experiment_id = tracking.connect()
    runs = [record_run(tracking, tmp_path, f"lr=0.{n}", (0.5, test)) for n, test in enumerate((0.7, 0.9, 0.8))]
    order = [{"field_name": "metrics.test/accuracy", "dataset_name": "dogs", "ascending": False}]
    models = client.search_logged_models([experiment_id], order_by=order)
    assert [model.source_run_id for model in models] == [runs[1], runs[2], runs[0]]
    best = models[0]
    assert (best.params["head"], str(best.status), best.name) == ("MLP", "READY", "lr=0_1")
    assert best.tags["network"] == f"runs:/{runs[1]}/model/model.keras"
    measured = {(metric.key, metric.value, metric.dataset_name) for metric in best.metrics}
    assert measured == {("test/accuracy", 0.9, "dogs"), ("best/val_accuracy", 0.5, "dogs")}
    # The run's own metrics are not recorded twice.
    assert len(client.get_metric_history(runs[1], "test/accuracy")) == 1
    assert client.get_run(runs[1]).outputs.model_outputs[0].model_id == best.model_id


def test_file_store_is_answered_with_the_command_that_migrates_it(tracking: Mlflow, tmp_path: Path) -> None:
    folder = tmp_path / "old runs"
    (folder / "0").mkdir(parents=True)
    (folder / "0/meta.yaml").touch()
    for uri in (f"file:{folder}", f"file://{folder}", str(folder)):
        with pytest.raises(UserError) as raised:
            replace(tracking, uri=uri)
        command = f"mlflow migrate-filestore --source '{folder}' --target 'sqlite:///{folder}/mlflow.db'"
        assert command in str(raised.value)
        assert f"tracking.uri=sqlite:///{folder}/mlflow.db" in str(raised.value)
    # Beside a database: the runs of the file store are not among those that are shown.
    note = file_store_note(f"sqlite:///{folder}/mlflow.db")
    assert f"mlflow migrate-filestore --source '{folder}' --target 'sqlite:///{folder}/migrated.db'" in note
    assert not file_store_note(f"sqlite:///{tmp_path}/mlflow.db")
