"""Registered versions and their alias, in a real store, also after an interruption."""

from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest

from dogbreeds import export
from dogbreeds.core.errors import UserError
from dogbreeds.evaluation.results import Predictions
from dogbreeds.tracking import registry
from dogbreeds.tracking.mlflow_backend import Mlflow
from dogbreeds.tracking.records import Record, RunOrigin, short


@pytest.fixture
def tracking(composed) -> Mlflow:
    return composed().tracking


def finished_run(tracking: Mlflow) -> tuple[Record, str]:
    """Return a finished run, and the id of a model logged with it."""
    client, experiment_id = tracking.connect()
    run_id = client.create_run(experiment_id).info.run_id
    for key, value in {"data.name": "shapes", "data.classes": "3", "model.architecture": "EfficientNetB0"}.items():
        client.log_param(run_id, key, value)
    client.set_terminated(run_id)
    return (
        tracking.record(run_id),
        mlflow.initialize_logged_model("dogbreeds", run_id, experiment_id=experiment_id).model_id,
    )


def promote(tracking: Mlflow, name: str = "dogs", **arguments: Any) -> registry.Version:
    return registry.promote(tracking, name, "champion", **arguments)


def test_promote_moves_the_alias_to_the_promoted_version(tracking: Mlflow) -> None:
    assert registry.version_by_alias(tracking, "dogs", "champion") is None
    first, first_model = finished_run(tracking)
    second, second_model = finished_run(tracking)
    first_version = registry.Version("dogs", "1", first.run_id)
    second_version = registry.Version("dogs", "2", second.run_id)
    promoted = promote(tracking, before=None, record=first, model_id=first_model, tags={"pair": "none"})
    assert promoted == first_version
    assert registry.version_by_alias(tracking, "dogs", "champion") == first_version
    assert registry.version_by_alias(tracking, "dogs", "challenger") is None
    promote(tracking, before=first_version, record=second, model_id=second_model, tags={"pair": "+1"})
    assert registry.version_by_alias(tracking, "dogs", "champion") == second_version
    assert tracking.connect()[0].get_model_version("dogs", "2").tags == {"pair": "+1"}


def test_registering_moves_the_alias_only_to_a_run_that_beats_the_current_one(tracking: Mlflow, tmp_path: Path) -> None:
    settings = export.Settings(
        run="latest", formats=("keras",), images=5, images_from=None, output=None, register="dogs", alias="champion",
        alpha=0.01,
    )  # fmt: skip

    def register(correct: int) -> tuple[str, str]:
        """Register a run that predicts so many of 20 test images correctly; return its id and the message."""
        predicted = (np.arange(20) >= correct).astype(int)
        predictions = Predictions([f"test/{number}" for number in range(20)], np.zeros(20, int), np.eye(2)[predicted])
        with tracking.open(RunOrigin("seed: 0\n", (), "an attempt", tmp_path)) as tracker:
            tracker.parameters({"data.name": "shapes", "data.classes": 2, "model.architecture": "Tiny"})
            tracker.predictions("test", predictions)
            tracker.tags({"verdict": "learned"})
        record = tracking.record(tracker.run_id)
        model = mlflow.initialize_logged_model("dogbreeds", record.run_id, experiment_id=record.experiment_id).model_id
        return record.run_id, export._register("dogs", settings, tracking, record, model)

    first, message = register(6)
    assert message == f"dogs@champion now points to version 1, run {short(first)}: there was no version before."
    with pytest.raises(UserError, match="was not registered: compared with dogs@champion"):
        register(11)
    assert registry.version_by_alias(tracking, "dogs", "champion") == registry.Version("dogs", "1", first)
    better, message = register(16)
    assert f"compared with version 1, run {short(first)}, it has +50.0 points on test" in message
    assert registry.version_by_alias(tracking, "dogs", "champion") == registry.Version("dogs", "2", better)


def test_texts_of_the_registry_name_the_data_set_and_no_dogs(tracking: Mlflow) -> None:
    record, model = finished_run(tracking)
    promote(tracking, "shapes", before=None, record=record, model_id=model, tags={})
    client = tracking.connect()[0]
    texts = [client.get_registered_model("shapes").description, client.get_model_version("shapes", "1").description]
    assert all("shapes" in text and "dog" not in text for text in texts), texts
    assert "3 classes" in texts[1]


def test_promote_reuses_the_version_of_a_name_with_an_apostrophe(tracking: Mlflow) -> None:
    record, model = finished_run(tracking)
    assert registry.version_by_alias(tracking, "Ada's dogs", "champion") is None
    # The second call reuses the version that the first created.
    for _ in range(2):
        before = registry.version_by_alias(tracking, "Ada's dogs", "champion")
        promote(tracking, "Ada's dogs", before=before, record=record, model_id=model, tags={})
    expected = registry.Version("Ada's dogs", "1", record.run_id)
    assert registry.version_by_alias(tracking, "Ada's dogs", "champion") == expected


@pytest.mark.parametrize(
    "interrupted_call", ["create_model_version", "set_model_version_tag", "set_registered_model_alias"]
)
def test_promote_leaves_the_alias_when_interrupted_and_completes_when_repeated(
    tracking: Mlflow, monkeypatch: pytest.MonkeyPatch, interrupted_call: str
) -> None:
    first, first_model = finished_run(tracking)
    second, second_model = finished_run(tracking)
    first_version = registry.Version("dogs", "1", first.run_id)
    second_version = registry.Version("dogs", "2", second.run_id)
    promote(tracking, before=None, record=first, model_id=first_model, tags={})

    def interrupt(*arguments: Any, **named: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(mlflow.MlflowClient, interrupted_call, interrupt)
        with pytest.raises(KeyboardInterrupt):
            promote(tracking, before=first_version, record=second, model_id=second_model, tags={"pair": "+1"})
    assert registry.version_by_alias(tracking, "dogs", "champion") == first_version
    promote(tracking, before=first_version, record=second, model_id=second_model, tags={"pair": "+1"})
    assert registry.version_by_alias(tracking, "dogs", "champion") == second_version
    assert len(tracking.connect()[0].search_model_versions("name = 'dogs'")) == 2


def test_add_files_removes_files_of_an_earlier_export(tracking: Mlflow, tmp_path) -> None:
    record, _ = finished_run(tracking)
    for name in ("old.onnx", "new.onnx"):
        folder = tmp_path / name
        (folder / "deep").mkdir(parents=True)
        (folder / "deep" / name).write_text(name)
        tracking.add_files(record.run_id, folder, registry.EXPORT_FOLDER, {})
    client, _ = tracking.connect()
    assert [file.path for file in client.list_artifacts(record.run_id, "exported/deep")] == ["exported/deep/new.onnx"]
    assert tracking.record(record.run_id).status == "FINISHED"
