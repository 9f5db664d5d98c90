"""What version 0.1.0 left behind is resumed, found, shown and exported by this one."""

import os
import sqlite3
import tarfile
from collections.abc import Callable
from pathlib import Path

import mlflow
import numpy as np
import pytest

from dogbreeds.core.paths import home
from dogbreeds.experiments.attempt import execute
from dogbreeds.experiments.compose import composed, from_config
from dogbreeds.experiments.result import Skipped
from dogbreeds.experiments.run import Run
from dogbreeds.inference.classifier import load
from dogbreeds.reports.attempts_table import tables
from dogbreeds.tracking.records import SWEEP, RunOrigin

FIXTURE = Path(__file__).parent / "fixtures/version_0.1.0.tar.xz"
MADE_IN = "/tmp/before"
SMALL = (
    "data.breeds=4",
    "data.train_per_breed=6",
    "data.val_per_breed=3",
    "data.test_per_breed=3",
    "tracking.system_metrics_seconds=0",
)
HEAD = "head.widths=[32,16]"
CUT_OFF = ("phase.epochs=30", "phase.patience_epochs=null", "tracking.model=none")


@pytest.fixture
def before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Run]:
    """A function from overrides to a run, at home where version 0.1.0 has been."""
    with tarfile.open(FIXTURE) as packed:
        packed.extractall(tmp_path, filter="data")
    with sqlite3.connect(tmp_path / "home/mlruns/mlflow.db") as store:
        for table, column in (
            ("runs", "artifact_uri"),
            ("experiments", "artifact_location"),
            ("params", "value"),
            ("tags", "value"),
        ):
            store.execute(f"update {table} set {column} = replace({column}, ?, ?)", (MADE_IN, str(tmp_path)))
    store.close()
    (tmp_path / "home/conf").symlink_to(home() / "conf")
    monkeypatch.setenv("DOGBREEDS_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DOGBREEDS_CACHE", str(tmp_path / "cache"))
    return lambda *overrides: from_config(composed("train", [*overrides, *SMALL]))


def recorded(place: Path) -> list:
    """All runs, the newest last."""
    return mlflow.MlflowClient(f"sqlite:///{place}/home/mlruns/mlflow.db").search_runs(
        ["1"], order_by=["attributes.start_time"]
    )


def composition(place: Path) -> RunOrigin:
    return RunOrigin("seed: 0\n", (), "a later version's", place)


def test_settings_have_the_keys_that_they_had(before, tmp_path: Path) -> None:
    jobs = [run for run in recorded(tmp_path) if not run.info.run_name.startswith("sweep ")]
    assert len(jobs) == 11
    for run in jobs:
        overrides = run.data.params["overrides"].split()
        assert before(*overrides).key == run.data.tags["key"], overrides


def test_tables_show_them(before, tmp_path: Path) -> None:
    tracking = before().tracking
    records = tracking.records()
    assert len(records) == 6
    (table,) = tables(records, lambda run_id: tracking.history(run_id, "val/accuracy"), each=True)
    assert sorted(len(row.records) for row in table.rows if row.records) == [1] * 6


@pytest.mark.parametrize(("head", "status"), [("linear", "KILLED"), ("batchnorm", "RUNNING")])
def test_what_was_cut_off_is_resumed_with_its_features(
    before, tmp_path: Path, caplog: pytest.LogCaptureFixture, head: str, status: str
) -> None:
    (run,) = [
        run
        for run in recorded(tmp_path)
        if run.data.params.get("head") in ("Linear", "BatchNorm") and run.info.status == status
    ]
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/home/mlruns/mlflow.db")
    measured = [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, "val/loss")]
    assert len(measured) >= 4
    caplog.set_level("INFO")
    result = execute(before(*CUT_OFF, f"head={head}"), composition(tmp_path))
    assert result.run_id == run.info.run_id
    assert not any(" images/s" in message for message in caplog.messages)
    curve = [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, "val/loss")]
    assert curve[: len(measured)] == measured
    assert [step for step, _ in curve] == list(range(1, 31))
    ended = client.get_run(run.info.run_id)
    assert (ended.info.status, ended.data.tags["resumed"]) == ("FINISHED", "1")


def test_what_a_search_pruned_is_resumed_by_itself(before, tmp_path: Path) -> None:
    pruned = next(run for run in recorded(tmp_path) if "pruned" in run.data.tags)
    result = execute(before(*pruned.data.params["overrides"].split()), composition(tmp_path))
    assert result.run_id == pruned.info.run_id
    assert [epoch.number for epoch in result.outcome.epochs] == [1, 2, 3, 4, 5]


def test_a_sweep_takes_their_results_over(before, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    swept = next(run for run in recorded(tmp_path) if run.data.params.get("optimizer.lr") == "0.003")
    above = mlflow.MlflowClient(f"sqlite:///{tmp_path}/home/mlruns/mlflow.db").create_run("1").info.run_id
    monkeypatch.setenv(SWEEP, above)
    result = execute(before("optimizer.lr=3e-3", "phase.epochs=3", "tracking.model=none", HEAD), composition(tmp_path))
    assert result == Skipped(swept.info.run_id, swept.data.metrics["best/val_accuracy"])
    assert SWEEP in os.environ


def test_a_fine_tune_goes_on_from_their_head(before, tmp_path: Path) -> None:
    frozen = recorded(tmp_path)[0]
    tuned = execute(
        before("phase=finetune", "phase.epochs=1", "optimizer.lr=1e-30", "seed=7", "tracking.model=none", HEAD),
        composition(tmp_path),
    )
    record = recorded(tmp_path)[-1]
    assert record.info.run_id == tuned.run_id
    assert record.data.tags["parent"] == frozen.info.run_id
    assert tuned.outcome.epochs[0].val.accuracy.value == frozen.data.metrics["best/val_accuracy"]


def test_their_network_is_opened_and_says_what_it_said(before, tmp_path: Path) -> None:
    frozen = recorded(tmp_path)[0]
    run = before(HEAD)
    file = run.tracking.network(frozen.info.run_id, tmp_path)
    classifier = load(file)
    said = run.tracking.predictions(frozen.info.run_id)["test"]
    photos = np.stack([photo() for photo in run.data.open().test.source.read()])
    probabilities = classifier.whole(photos)["probabilities"].numpy()
    shares = np.exp(said.logits - said.logits.max(axis=1, keepdims=True))
    np.testing.assert_allclose(probabilities, shares / shares.sum(axis=1, keepdims=True), atol=1e-4)
    assert tuple(classifier.class_names) == said.class_names


@pytest.mark.slow
def test_their_network_is_exported_by_the_command(before, command, tmp_path: Path) -> None:
    frozen = recorded(tmp_path)[0].info.run_id
    done = command("export", f"run={frozen}", "formats=[keras]", "photos=5", DOGBREEDS_CACHE=str(tmp_path / "cache"))
    assert done.returncode == 0, done.stderr
    (place,) = (tmp_path / "home/multirun/exported").iterdir()
    assert (place / "model.keras").is_file()
