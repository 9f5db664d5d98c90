"""Whole attempts, read back from a real SQLite store."""

import os
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from dogbreeds.core.errors import UserError
from dogbreeds.evaluation.metrics import PairedOutcome
from dogbreeds.experiments.attempt import execute
from dogbreeds.experiments.result import Skipped
from dogbreeds.experiments.run import Run
from dogbreeds.experiments.sweep import Sweep
from dogbreeds.tracking.mlflow_backend import Mlflow
from dogbreeds.tracking.records import SWEEP, RunOrigin, short

SMALL = ("data.breeds=6", "phase.epochs=3", "tracking.system_metrics_seconds=0.2")


def composition(folder: Path, name: str = "an attempt") -> RunOrigin:
    return RunOrigin("seed: 0\n", ("data.breeds=12",), name, folder)


def predictions(client, record, split: str, folder: Path) -> dict[str, bool]:
    """Which photos a recorded attempt got right, by their names."""
    place = folder / record.info.run_id
    place.mkdir(exist_ok=True)
    said = np.load(client.download_artifacts(record.info.run_id, f"predictions/{split}.npz", str(place)))
    return dict(zip(said["ids"].tolist(), said["logits"].argmax(axis=1) == said["labels"], strict=True))


def execute_recorded(run: Run, folder: Path, name: str = "an attempt"):
    """Runs an attempt; gives its result, its MLflow run and the client."""
    result = execute(run, composition(folder, name))
    client, experiment = run.tracking.connect()
    return result, client.search_runs([experiment], order_by=["attributes.start_time DESC"])[0], client


@pytest.fixture
def attempted(composed, tmp_path: Path):
    """A function that runs an attempt as `execute_recorded` does."""
    return lambda *overrides, name="an attempt": execute_recorded(composed(*SMALL, *overrides), tmp_path, name)


@pytest.fixture(scope="module")
def beside(composed_in, shared_cache: Path, tmp_path_factory: pytest.TempPathFactory):
    """As `attempted`, in the folder and the store of `finished`."""
    folder = tmp_path_factory.mktemp("finished")
    composed = composed_in(folder, shared_cache)
    return lambda *overrides: execute_recorded(composed(*SMALL, *overrides), folder)


@pytest.fixture(scope="module")
def finished(beside):
    """An attempt that has finished, which several tests look at: its result, its MLflow run and the client."""
    return beside()


def test_everything_about_an_attempt_is_recorded(finished, tmp_path: Path) -> None:
    result, record, client = finished
    assert record.info.status == "FINISHED"
    assert record.info.run_name == "an attempt"
    params, metrics, tags = record.data.params, record.data.metrics, record.data.tags
    assert {
        "optimizer": "Adam",
        "optimizer.lr": "0.001",
        "head.widths": "[512, 256]",
        "model.architecture": "Miniature",
        "preprocessing.mode": "raw",
        "seed": "0",
        "data.name": "miniature",
        "data.classes": "6",
        "data.photos.train": "120",
        "data.photos.val": "60",
        "data.photos.test": "60",
        "overrides": "data.breeds=12",
        "unfreeze.layers_trained": "0",
        "parameters.backbone": "847529",
        "parameters.trainable": "461062",
    }.items() <= params.items()
    assert len(params["data.fingerprint"]) == 32
    assert {
        "git.commit",
        "git.dirty",
        "version.keras",
        "version.tensorflow",
        "version.mlflow",
        "python",
        "host",
    } <= tags.keys()
    for part in ("train", "val"):
        for what in ("loss", "accuracy", "top5_accuracy"):
            history = client.get_metric_history(record.info.run_id, f"{part}/{what}")
            assert [point.step for point in history] == [1, 2, 3]
    history = client.get_metric_history(record.info.run_id, "val/accuracy")
    assert [point.value for point in history] == [epoch.val.accuracy.value for epoch in result.outcome.epochs]
    assert metrics["best/val_accuracy"] == max(point.value for point in history) == result.objective
    assert metrics["lr"] == 1e-3
    assert metrics["test/accuracy"] == result.test.accuracy.value
    low, high = result.outcome.best.val.accuracy.interval
    assert (metrics["best/val_accuracy_low"], metrics["best/val_accuracy_high"]) == (low, high)
    assert any(name.startswith("system/") for name in metrics)
    assert (tags["verdict"], tags["verdict.reason"], tags["verdict.advice"]) == (
        result.verdict.name,
        result.verdict.reason,
        result.verdict.advice,
    )
    assert tags["verdict"] == "learned"
    assert tags["mlflow.note.content"] == str(result.verdict)
    assert metrics["verdict/peak"] == metrics["best/val_accuracy"]
    assert (tags["preflight"], tags["head"], tags["model"]) == ("passed", "kept", "kept")
    assert (
        metrics["preflight/raw"] < 0.05 < min(metrics[f"preflight/{mode}"] for mode in ("torch", "caffe", "tf", "unit"))
    )
    assert metrics["preflight/initial_loss"] == pytest.approx(np.log(6), rel=0.5)
    assert record.inputs.dataset_inputs[0].dataset.name == "miniature"
    artifacts = {
        item.path
        for folder in ("", "config", "model", "head", "predictions")
        for item in client.list_artifacts(record.info.run_id, folder)
    }
    assert {
        "curves.png",
        "config/config.yaml",
        "config/overrides.txt",
        "model/model.keras",
        "head/head.weights.h5",
        "predictions/val.npz",
        "predictions/test.npz",
    } <= artifacts
    said = np.load(client.download_artifacts(record.info.run_id, "predictions/test.npz", str(tmp_path)))
    assert said["logits"].dtype == np.float32
    assert (said["logits"].argmax(axis=1) == said["labels"]).sum() == result.test.accuracy.correct
    assert said["ids"][0] == "test/000-cream-bib-prick/0"


def test_the_recorded_model_gives_the_recorded_test_accuracy(finished, composed, tmp_path: Path) -> None:
    import keras

    result, record, client = finished
    whole = keras.models.load_model(client.download_artifacts(record.info.run_id, "model/model.keras", str(tmp_path)))
    dataset = composed(*SMALL).data.open()
    photos = np.stack([photo() for photo in dataset.test.source.read()])
    breeds = np.array([name.decode() for name in whole(photos)["breed"].numpy()])
    assert (breeds == np.array(dataset.class_names)[dataset.test.labels]).sum() == result.test.accuracy.correct
    assert result.test.accuracy.value > 0.8


def test_the_same_seed_twice_gives_the_same_numbers(finished, attempted) -> None:
    first, again = finished[0], attempted("tracking.model=none")[0]
    assert [epoch.metrics() for epoch in first.outcome.epochs] == [epoch.metrics() for epoch in again.outcome.epochs]
    assert first.test == again.test


def test_in_a_sweep_what_has_finished_is_not_run_again(
    attempted, composed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog
) -> None:
    caplog.set_level("INFO")
    first = attempted("tracking.model=none", "phase.epochs=1")[0]
    client, experiment = composed(*SMALL).tracking.connect()
    monkeypatch.setenv(SWEEP, client.create_run(experiment).info.run_id)
    settings = (*SMALL, "tracking.model=none", "phase.epochs=1")
    again = execute(composed(*settings), composition(tmp_path))
    assert (type(again), again.run_id, again.objective) == (Skipped, first.run_id, first.objective)
    assert any(message.startswith(f"already there: run {short(first.run_id)} ") for message in caplog.messages)
    anew = execute(composed(*settings, "rerun=true"), composition(tmp_path))
    assert anew.run_id != first.run_id


@pytest.mark.slow
def test_augmented_training_goes_through_its_copies(finished, attempted) -> None:
    augmented = attempted("augment=guide", "augment.copies=2", "tracking.model=none")[0].outcome
    plain = finished[0].outcome
    assert augmented.epochs[-1].train_loss > 1.2 * plain.epochs[-1].train_loss
    assert augmented.epochs[-1].val.accuracy.value > 0.5


@pytest.mark.long
def test_everything_may_train_on_augmented_photos(attempted) -> None:
    settings = (
        "unfreeze=all",
        "optimizer.lr=1e-3",
        "tracking.model=none",
        "phase.epochs=2",
        "data.train_per_breed=10",
        "data.breeds=4",
    )
    plain, augmented = (attempted(*settings, augment)[0].outcome for augment in ("augment=none", "augment=guide"))
    assert augmented.epochs[0].train_loss != plain.epochs[0].train_loss
    assert augmented.epochs[1].train_loss > plain.epochs[1].train_loss


TUNED = ("phase=finetune", "phase.epochs=1", "unfreeze.layers=16")


def test_a_fine_tune_goes_on_from_its_frozen_parent(finished, beside) -> None:
    frozen, parent, _ = finished
    collapsed, _, _ = beside("phase.epochs=1", "optimizer.lr=3e-1")
    assert collapsed.objective < frozen.objective
    # Too little to change anything: it starts where the parent was best
    tuned, record, client = beside(*TUNED, "optimizer.lr=1e-30")
    assert record.data.tags["parent"] == parent.info.run_id
    assert record.data.metrics["parent/val_accuracy"] == frozen.objective
    assert tuned.outcome.epochs[0].val.accuracy == frozen.outcome.best.val.accuracy
    assert tuned.outcome.epochs[0].val.loss == pytest.approx(frozen.outcome.best.val.loss, rel=1e-4)
    assert (record.data.params["unfreeze.layers_asked"], record.data.params["unfreeze.layers_trained"]) == ("16", "16")
    assert [item.path for item in client.list_artifacts(record.info.run_id, "model")] == ["model/model.keras"]
    # A fine-tune goes on from a frozen attempt's head only
    assert client.list_artifacts(record.info.run_id, "head") == []
    assert record.data.tags["verdict"] == "no_better_than_frozen"
    assert record.data.tags["verdict.reason"].startswith("+0.0 points on test (95 % interval ")
    for split in ("val", "test"):
        assert [
            record.data.metrics[f"parent/{split}_{name}"] for name in ("difference", "p_value", "gained", "lost")
        ] == [0, 1, 0, 0]


@pytest.mark.slow
def test_a_fine_tune_is_compared_with_its_parent_photo_by_photo(finished, beside, tmp_path: Path) -> None:
    parent, client = finished[1:]
    other = beside(
        *TUNED, f"phase.parent={short(parent.info.run_id)}", "optimizer.lr=3e-2", "unfreeze.batchnorm=trainable"
    )[1]
    assert other.data.tags["parent"] == parent.info.run_id
    said = {
        (whose, split): predictions(client, whose, split, tmp_path)
        for whose in (parent, other)
        for split in ("val", "test")
    }
    for split in ("val", "test"):
        before, now = said[parent, split], said[other, split]
        assert sorted(before) == sorted(now)
        gained = sum(now[name] and not before[name] for name in now)
        lost = sum(before[name] and not now[name] for name in now)
        assert (other.data.metrics[f"parent/{split}_gained"], other.data.metrics[f"parent/{split}_lost"]) == (
            gained,
            lost,
        )
        assert gained + lost > 0
        assert other.data.metrics[f"parent/{split}_p_value"] == PairedOutcome(gained, lost, len(now), split).p_value
    # Val chose the epoch: only test judges fairly
    assert other.data.metrics["verdict/p_value"] == other.data.metrics["parent/test_p_value"]


def test_a_parent_that_does_not_fit_is_refused(finished, beside) -> None:
    _, parent, client = finished
    for overrides, said in (
        (
            ("head=linear",),
            "No finished frozen attempt of experiment 'dogbreeds' matches in data.fingerprint, data.resize, head, ",
        ),
        (
            ("phase.parent=zzz",),
            "phase.parent=zzz names 0 finished frozen attempts of experiment 'dogbreeds'. It must name one",
        ),
        (
            ("head.widths=[9]", f"phase.parent={parent.info.run_id}"),
            "does not fit: head.widths is [512, 256] there and [9] here. A fine-tune needs",
        ),
        (
            ("preprocessing=torch", "preflight=none", f"phase.parent={parent.info.run_id}"),
            "does not fit: preprocessing.mode is raw there and torch here.",
        ),
    ):
        with pytest.raises(UserError) as refusal:
            beside(*TUNED, *overrides)
        assert said in str(refusal.value)
    # A refusal leaves no run behind
    assert {record.info.status for record in client.search_runs([parent.info.experiment_id])} == {"FINISHED"}


def test_a_fine_tune_without_records_is_refused(composed, tmp_path: Path) -> None:
    with pytest.raises(
        UserError,
        match=(
            r"^phase=finetune was asked for with tracking=none\. A fine-tune goes on from a frozen attempt that MLflow"
            r" keeps\."
        ),
    ):
        execute(composed(SMALL[0], *TUNED, "tracking=none"), composition(tmp_path))


def test_nothing_is_recorded_with_tracking_none(composed, tmp_path: Path) -> None:
    result = execute(composed("tracking=none", *SMALL[:2]), composition(tmp_path))
    assert len(result.outcome.epochs) == 3
    assert not (tmp_path / "mlruns/artifacts").exists()


@pytest.mark.parametrize(("error", "status"), [(RuntimeError("bug"), "FAILED"), (KeyboardInterrupt(), "KILLED")])
def test_a_run_never_stays_running(
    composed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, status: str
) -> None:
    from dogbreeds.experiments import attempt

    def break_off(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(attempt, "fit", break_off)
    run = composed(*SMALL)
    with pytest.raises(type(error)):
        execute(run, composition(tmp_path))
    client, experiment = run.tracking.connect()
    assert [record.info.status for record in client.search_runs([experiment])] == [status]


def test_training_that_diverges_is_recorded_as_far_as_it_came(attempted) -> None:
    result, record, _ = attempted("optimizer=sgd", "optimizer.lr=1e38", "head=linear", "phase.epochs=5")
    assert result.outcome.diverged
    assert result.outcome.ended.startswith("the loss was nan at step ") or result.outcome.ended.startswith(
        "the loss was inf at step "
    )
    assert record.info.status == "FINISHED"
    assert record.data.tags["verdict"] == "diverged"
    assert record.data.tags["verdict.reason"] == result.outcome.ended
    assert 0 <= result.objective < 1


@pytest.mark.parametrize(
    ("keep", "rates", "kept"),
    [
        ("best", ["3e-5", "1e-3", "1e-4"], [False, True, False]),
        pytest.param("all", ["3e-5", "1e-3"], [True, True], marks=pytest.mark.slow),
        pytest.param("none", ["1e-3"], [False], marks=pytest.mark.slow),
    ],
)
def test_of_a_sweep_the_best_model_is_kept(
    attempted, composed, monkeypatch: pytest.MonkeyPatch, keep: str, rates: list[str], kept: list[bool]
) -> None:
    client, experiment = composed(*SMALL).tracking.connect()
    parent = client.create_run(experiment).info.run_id
    monkeypatch.setenv(SWEEP, parent)
    small = ("preflight=none", "baseline=none", "phase.epochs=2", f"tracking.model={keep}")
    records = [attempted(f"optimizer.lr={lr}", *small, name=lr)[1] for lr in rates]
    assert {record.data.tags["mlflow.parentRunId"] for record in records} == {parent}
    artifacts = [{item.path for item in client.list_artifacts(record.info.run_id)} for record in records]
    assert ["model" in paths for paths in artifacts] == kept
    # A fine-tune may go on from any of them
    assert ["head" in paths for paths in artifacts] == [keep != "none"] * len(rates)
    assert [client.get_run(record.info.run_id).data.tags.get("head") for record in records] == [
        None if keep == "none" else "kept"
    ] * len(rates)


@pytest.mark.slow
def test_a_sweep_is_one_run_above_its_jobs(composed, tmp_path: Path) -> None:
    from omegaconf import OmegaConf

    run = composed(*SMALL)
    assert isinstance(run.tracking, Mlflow)
    settings = {"_target_": "dogbreeds.tracking.mlflow_backend.Mlflow"} | asdict(run.tracking)
    hydra = {"overrides": {"task": ["optimizer.lr=1e-2,1e-3"]}, "sweep": {"dir": str(tmp_path)}}
    Sweep().begin(OmegaConf.create({"tracking": settings, "seed": 0, "rerun": False, "hydra": hydra}))
    client, experiment = run.tracking.connect()
    best = 0.0
    for lr in ("1e-2", "1e-3"):
        best = max(best, execute(composed(*SMALL, f"optimizer.lr={lr}"), composition(tmp_path)).objective)
    Sweep.close("FINISHED")
    assert SWEEP not in os.environ
    records = client.search_runs([experiment])
    parents = [record for record in records if "mlflow.parentRunId" not in record.data.tags]
    assert len(parents) == 1
    assert parents[0].info.run_name == "sweep optimizer.lr=1e-2,1e-3"
    assert parents[0].info.status == "FINISHED"
    assert parents[0].data.metrics["best/val_accuracy"] == best
    assert "curves.png" in [item.path for item in client.list_artifacts(parents[0].info.run_id)]
    assert {record.data.tags.get("mlflow.parentRunId") for record in records} == {None, parents[0].info.run_id}


@pytest.mark.parametrize("uri", ["file:./mlruns", "nosuch://place", "sqlite:////proc/no/mlflow.db"])
def test_a_store_that_cannot_be_used(composed, uri: str) -> None:
    with pytest.raises(
        UserError,
        match=r"^tracking\.uri=.* cannot be used \(.*\)\. It must be sqlite:///<file>, .* Type tracking\.uri=",
    ):
        composed(f"tracking.uri={uri}").tracking.connect()


@pytest.mark.parametrize(
    ("run_id", "shown"),
    [
        ("56483272a1b2", "56483272a"),
        ("1234e567890b", "1234e567890b"),
        ("12345678", "12345678"),
        ("3f2a9c00112233", "3f2a9c00"),
        ("5648e27e", "5648e27e"),
    ],
)
def test_a_run_s_short_name_is_no_number(run_id: str, shown: str) -> None:
    assert short(run_id) == shown
