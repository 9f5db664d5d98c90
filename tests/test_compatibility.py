"""Compatibility with version 0.1.0: its runs, caches and checkpoints are resumed, listed, fine-tuned and exported."""

import dataclasses
import os
import sqlite3
import sys
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import mlflow
import numpy as np
import pytest
from omegaconf import OmegaConf

from dogbreeds.core.former_names import RENAMED_SETTINGS, with_new_overrides
from dogbreeds.core.spec import number
from dogbreeds.data.miniature import Miniature
from dogbreeds.experiments.arguments import take_former_names
from dogbreeds.experiments.attempt import execute
from dogbreeds.experiments.automatic_settings import resolve
from dogbreeds.experiments.compose import build_spec, compose_config, from_config
from dogbreeds.experiments.recorded_runs import open_dataset
from dogbreeds.experiments.result import Skipped
from dogbreeds.experiments.run import Run
from dogbreeds.features.extraction import DecodedImages
from dogbreeds.inference.classifier import load
from dogbreeds.models.head import Linear
from dogbreeds.reports.attempts_table import build_tables
from dogbreeds.tracking.records import SWEEP_RUN_ENV, RunOrigin

FIXTURE = Path(__file__).parent / "fixtures/version_0.1.0.tar.xz"
SMALL = (
    "data.breeds=4",
    "data.train_per_breed=6",
    "data.val_per_breed=3",
    "data.test_per_breed=3",
    "tracking.system_metrics_seconds=0",
)
HEAD = "head.widths=[32,16]"
INTERRUPTED = ("phase.epochs=30", "phase.patience_epochs=null", "tracking.model=none")


@pytest.fixture
def old_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Run]:
    """Unpack the home folder and the cache of version 0.1.0; return a function that composes a run from overrides."""
    with tarfile.open(FIXTURE) as packed:
        packed.extractall(tmp_path, filter="data")
    with sqlite3.connect(tmp_path / "home/mlruns/mlflow.db") as store:
        # The store names the folder in which version 0.1.0 ran. The tests run in another.
        (artifacts,) = store.execute("select artifact_location from experiments where name = 'dogbreeds'").fetchone()
        recorded_root = artifacts.removeprefix("file://").split("/home/mlruns")[0]
        for table, column in (
            ("runs", "artifact_uri"),
            ("experiments", "artifact_location"),
            ("params", "value"),
            ("tags", "value"),
        ):
            store.execute(f"update {table} set {column} = replace({column}, ?, ?)", (recorded_root, str(tmp_path)))
    store.close()
    monkeypatch.setenv("DOGBREEDS_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DOGBREEDS_CACHE", str(tmp_path / "cache"))
    return lambda *overrides: from_config(compose_config("train", [*overrides, *SMALL]))


def client(folder: Path) -> "mlflow.MlflowClient":
    return mlflow.MlflowClient(f"sqlite:///{folder}/home/mlruns/mlflow.db")


def recorded_runs(folder: Path) -> list:
    """Return all runs, the newest last."""
    return client(folder).search_runs(["1"], order_by=["attributes.start_time"])


def origin(folder: Path) -> RunOrigin:
    return RunOrigin("seed: 0\n", (), "a later version's", folder)


def test_run_keys_of_recorded_settings_are_unchanged(old_home, tmp_path: Path) -> None:
    jobs = [run for run in recorded_runs(tmp_path) if not run.info.run_name.startswith("sweep ")]
    assert len(jobs) == 11
    for run in jobs:
        overrides = run.data.params["overrides"].split()
        assert old_home(*overrides).key == run.data.tags["key"], overrides


def test_renamed_settings_of_recorded_runs_have_their_present_names(old_home) -> None:
    records = old_home().tracking.records()
    present = {"data.classes": "4", "data.train_per_class": "6", "data.images.train": "24"}
    assert {name: records[0].params[name] for name in present} == present
    assert not {name for record in records for name in record.params} & set(RENAMED_SETTINGS)


def test_the_data_of_an_old_run_is_opened_from_its_recorded_config(old_home) -> None:
    tracking = old_home().tracking
    record = next(record for record in tracking.records() if record.params["model.architecture"] == "Miniature")
    data, dataset = open_dataset(tracking, record, root=None)
    assert isinstance(data, Miniature)
    assert (data.classes, data.train_per_class, len(dataset.train.rows)) == (4, 6, 24)


@pytest.mark.parametrize(
    ("former", "present"),
    [
        ("data.breeds=6", "data.classes=6"),
        ("+data.breeds=6", "+data.classes=6"),
        ("~preflight.photos", "~preflight.images"),
        ("photos", "photos"),
        ("photos_from=shots/data.breeds=6", "images_from=shots/data.breeds=6"),
        ("features=kept", "features=cached"),
        ("data.root=photos=1", "data.root=photos=1"),
        ("data.breeds_=6", "data.breeds_=6"),
        ("--multirun", "--multirun"),
    ],
)
def test_overrides_of_earlier_versions_are_taken_by_their_present_names(former: str, present: str) -> None:
    assert with_new_overrides([former]) == [present]


def test_an_old_override_means_the_same_run_as_the_new_one(old_home) -> None:
    former = from_config(compose_config("train", ["data.breeds=6", "features=kept", "preflight.photos=9"]))
    present = from_config(compose_config("train", ["data.classes=6", "features=cached", "preflight.images=9"]))
    assert former == present
    assert former.key == present.key
    assert former.data.classes == 6
    assert former.key != from_config(compose_config("train", [])).key


def test_the_command_takes_an_old_override_and_says_the_new_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("sys.argv", ["train", "--multirun", "data.breeds=7,8", "features=kept"])
    take_former_names()
    assert sys.argv == ["train", "--multirun", "data.classes=7,8", "features=cached"]
    assert "data.classes=7,8" in capsys.readouterr().err


def earlier_head() -> type[Linear]:
    """Return the class `Softened` before it had its field."""

    @dataclass(frozen=True, kw_only=True)
    class Softened(Linear):
        pass

    return Softened


@dataclass(frozen=True, kw_only=True)
class Softened(Linear):
    """A head with a field that was added after runs were recorded without it."""

    implied = {"softness": 0.0}
    softness: float = number(at_least=0, example=0.1)


def test_a_field_that_has_its_implied_value_leaves_the_run_s_key_alone(old_home) -> None:
    run = old_home("head=linear")
    earlier = dataclasses.replace(run, head=earlier_head()(dropout=0.2))
    assert dataclasses.replace(run, head=Softened(dropout=0.2, softness=0.0)).key == earlier.key
    assert dataclasses.replace(run, head=Softened(dropout=0.2, softness=0.5)).key != earlier.key


def test_a_recorded_config_without_a_new_field_has_its_implied_value() -> None:
    head = {"_target_": f"{__name__}.Softened", "dropout": 0.2}
    plugins = [__name__]
    assert build_spec(OmegaConf.create({"head": head}), "head", plugins).softness == 0.0
    assert build_spec(OmegaConf.create({"head": head | {"softness": 0.5}}), "head", plugins).softness == 0.5


def test_tables_list_old_runs(old_home, tmp_path: Path) -> None:
    tracking = old_home().tracking
    records = tracking.records()
    assert len(records) == 6
    (table,) = build_tables(records, lambda run_id: tracking.history(run_id, "val/accuracy"), all_runs=True)
    assert sorted(len(row.records) for row in table.rows if row.records) == [1] * 6


@pytest.mark.parametrize(
    ("head", "status"),
    [("linear", "KILLED"), pytest.param("batchnorm", "RUNNING", marks=pytest.mark.slow)],
)
def test_an_interrupted_old_run_is_resumed_with_its_cached_features(
    old_home, tmp_path: Path, caplog: pytest.LogCaptureFixture, head: str, status: str
) -> None:
    (run,) = [
        run
        for run in recorded_runs(tmp_path)
        if run.data.params.get("head") in ("Linear", "BatchNorm") and run.info.status == status
    ]
    store = client(tmp_path)
    before = [(point.step, point.value) for point in store.get_metric_history(run.info.run_id, "val/loss")]
    assert len(before) >= 4
    caplog.set_level("INFO")
    result = execute(old_home(*INTERRUPTED, f"head={head}"), origin(tmp_path))
    assert result.run_id == run.info.run_id
    assert not any(" images/s" in message for message in caplog.messages)
    curve = [(point.step, point.value) for point in store.get_metric_history(run.info.run_id, "val/loss")]
    assert curve[: len(before)] == before
    assert [step for step, _ in curve] == list(range(1, 31))
    finished = store.get_run(run.info.run_id)
    assert (finished.info.status, finished.data.tags["resumed"]) == ("FINISHED", "1")


def test_cached_images_of_an_old_run_are_found_and_used(old_home) -> None:
    run = old_home("head=linear")
    dataset = run.data.open()
    run, _ = resolve(run, dataset, looks_up_runs=False)
    assert run.data.decoder == "tensorflow"
    for split in (dataset.train, dataset.val):
        assert DecodedImages(split.source, run.data, run.model.image_size, run.features.open_cache()).is_cached


@pytest.mark.slow
def test_a_pruned_old_run_is_resumed_outside_a_search(old_home, tmp_path: Path) -> None:
    pruned = next(run for run in recorded_runs(tmp_path) if "pruned" in run.data.tags)
    result = execute(old_home(*pruned.data.params["overrides"].split()), origin(tmp_path))
    assert result.run_id == pruned.info.run_id
    assert [epoch.number for epoch in result.history.epochs] == [1, 2, 3, 4, 5]


@pytest.mark.slow
def test_a_sweep_reuses_finished_old_runs(old_home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old_run = next(run for run in recorded_runs(tmp_path) if run.data.params.get("optimizer.lr") == "0.003")
    monkeypatch.setenv(SWEEP_RUN_ENV, client(tmp_path).create_run("1").info.run_id)
    result = execute(old_home("optimizer.lr=3e-3", "phase.epochs=3", "tracking.model=none", HEAD), origin(tmp_path))
    assert result == Skipped(old_run.info.run_id, old_run.data.metrics["best/val_accuracy"])
    assert SWEEP_RUN_ENV in os.environ


@pytest.mark.slow
def test_a_fine_tune_starts_from_an_old_head(old_home, tmp_path: Path) -> None:
    frozen = recorded_runs(tmp_path)[0]
    fine_tuned = execute(
        old_home("phase=finetune", "phase.epochs=1", "optimizer.lr=1e-30", "seed=7", "tracking.model=none", HEAD),
        origin(tmp_path),
    )
    record = recorded_runs(tmp_path)[-1]
    assert record.info.run_id == fine_tuned.run_id
    assert record.data.tags["parent"] == frozen.info.run_id
    assert fine_tuned.history.epochs[0].val.accuracy.value == frozen.data.metrics["best/val_accuracy"]


def test_an_old_network_gives_its_recorded_predictions(old_home, tmp_path: Path) -> None:
    frozen = recorded_runs(tmp_path)[0]
    run = old_home(HEAD)
    file = run.tracking.download_network(frozen.info.run_id, tmp_path)
    classifier = load(file)
    recorded = run.tracking.predictions(frozen.info.run_id)["test"]
    images = np.stack([load_image() for load_image in run.data.open().test.source.loaders()])
    probabilities = classifier.model(images)["probabilities"].numpy()
    weights = np.exp(recorded.logits - recorded.logits.max(axis=1, keepdims=True))
    np.testing.assert_allclose(probabilities, weights / weights.sum(axis=1, keepdims=True), atol=1e-4)
    assert tuple(classifier.class_names) == recorded.class_names
    assert ([each.name for each in classifier.model.inputs], set(classifier.model.output)) == (
        ["image"],
        {"probabilities", "class"},
    )


@pytest.mark.long
def test_the_export_command_exports_an_old_network(old_home, command, tmp_path: Path) -> None:
    frozen = recorded_runs(tmp_path)[0].info.run_id
    done = command("export", f"run={frozen}", "formats=[keras]", "photos=5", DOGBREEDS_CACHE=str(tmp_path / "cache"))
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "home/multirun/exported").iterdir()
    assert (folder / "model.keras").is_file()
