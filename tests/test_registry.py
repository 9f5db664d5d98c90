"""Versions and their alias in a real store, whatever cuts it off."""

from typing import Any

import pytest

from dogbreeds.tracking import registry
from dogbreeds.tracking.mlflow_backend import Mlflow
from dogbreeds.tracking.records import Record


@pytest.fixture
def tracking(composed) -> Mlflow:
    return composed().tracking


def trained(tracking: Mlflow) -> tuple[Record, str]:
    """A finished run, and the id of a model logged with it."""
    import mlflow

    client, experiment_id = tracking.connect()
    run_id = client.create_run(experiment_id).info.run_id
    client.set_terminated(run_id)
    return (
        tracking.record(run_id),
        mlflow.initialize_logged_model("dogbreeds", run_id, experiment_id=experiment_id).model_id,
    )


def test_an_alias_moves_to_the_last_that_was_crowned(tracking: Mlflow) -> None:
    assert registry.champion(tracking, "dogs", "champion") is None
    (first, one), (second, two) = trained(tracking), trained(tracking)
    assert registry.promote(tracking, "dogs", "champion", None, first, one, {"pair": "none"}) == registry.Version(
        "dogs", "1", first.run_id
    )
    assert registry.champion(tracking, "dogs", "champion") == registry.Version("dogs", "1", first.run_id)
    assert registry.champion(tracking, "dogs", "challenger") is None
    registry.promote(
        tracking, "dogs", "champion", registry.Version("dogs", "1", first.run_id), second, two, {"pair": "+1"}
    )
    assert registry.champion(tracking, "dogs", "champion") == registry.Version("dogs", "2", second.run_id)
    assert tracking.connect()[0].get_model_version("dogs", "2").tags == {"pair": "+1"}


def test_a_name_with_an_apostrophe_is_found_again(tracking: Mlflow) -> None:
    record, model = trained(tracking)
    assert registry.champion(tracking, "Ada's dogs", "champion") is None
    # The second takes the version of the first
    for _ in range(2):
        registry.promote(
            tracking, "Ada's dogs", "champion", registry.champion(tracking, "Ada's dogs", "champion"), record, model, {}
        )
    assert registry.champion(tracking, "Ada's dogs", "champion") == registry.Version("Ada's dogs", "1", record.run_id)


@pytest.mark.parametrize("cut", ["create_model_version", "set_model_version_tag", "set_registered_model_alias"])
def test_what_is_cut_off_leaves_the_champion_and_is_gone_on_with(
    tracking: Mlflow, monkeypatch: pytest.MonkeyPatch, cut: str
) -> None:
    import mlflow

    (first, one), (second, two) = trained(tracking), trained(tracking)
    registry.promote(tracking, "dogs", "champion", None, first, one, {})

    def stop(*arguments: Any, **named: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(mlflow.MlflowClient, cut, stop)
        with pytest.raises(KeyboardInterrupt):
            registry.promote(
                tracking, "dogs", "champion", registry.Version("dogs", "1", first.run_id), second, two, {"pair": "+1"}
            )
    assert registry.champion(tracking, "dogs", "champion") == registry.Version("dogs", "1", first.run_id)
    registry.promote(
        tracking, "dogs", "champion", registry.Version("dogs", "1", first.run_id), second, two, {"pair": "+1"}
    )
    assert registry.champion(tracking, "dogs", "champion") == registry.Version("dogs", "2", second.run_id)
    assert len(tracking.connect()[0].search_model_versions("name = 'dogs'")) == 2


def test_files_of_an_earlier_export_do_not_stay(tracking: Mlflow, tmp_path) -> None:
    record, _ = trained(tracking)
    for name in ("old.onnx", "new.onnx"):
        folder = tmp_path / name
        (folder / "deep").mkdir(parents=True)
        (folder / "deep" / name).write_text(name)
        tracking.add(record.run_id, folder, registry.FOLDER, {})
    client, _ = tracking.connect()
    assert [file.path for file in client.list_artifacts(record.run_id, "exported/deep")] == ["exported/deep/new.onnx"]
    assert tracking.record(record.run_id).status == "FINISHED"
