"""`execute`: complete attempts, read back from a real SQLite store."""

import contextlib
import os
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from dogbreeds.core import locks
from dogbreeds.core.errors import UserError
from dogbreeds.evaluation.metrics import PairedOutcome
from dogbreeds.experiments.attempt import execute
from dogbreeds.experiments.result import Skipped
from dogbreeds.experiments.run import Run
from dogbreeds.experiments.run_name import SWEPT_ENV
from dogbreeds.experiments.sweep import Sweep
from dogbreeds.tracking.mlflow_backend import Mlflow
from dogbreeds.tracking.records import SWEEP_RUN_ENV, PriorRuns, Record, RunOrigin, short
from dogbreeds.training.checkpoint import Checkpoints

SMALL = ("data.classes=6", "phase.epochs=3", "tracking.system_metrics_seconds=0.2")


def origin(folder: Path, name: str = "an attempt") -> RunOrigin:
    return RunOrigin("seed: 0\n", ("data.classes=12",), name, folder)


def correct_predictions(client, record, split: str, folder: Path) -> dict[str, bool]:
    """Return whether a recorded run's prediction is correct, by image id."""
    run_folder = folder / record.info.run_id
    run_folder.mkdir(exist_ok=True)
    stored = np.load(client.download_artifacts(record.info.run_id, f"predictions/{split}.npz", str(run_folder)))
    return dict(zip(stored["ids"].tolist(), stored["logits"].argmax(axis=1) == stored["labels"], strict=True))


def execute_recorded(run: Run, folder: Path, name: str = "an attempt"):
    """Run an attempt; return its result, its MLflow run and the client."""
    result = execute(run, origin(folder, name))
    client, experiment = run.tracking.connect()
    return result, client.search_runs([experiment], order_by=["attributes.start_time DESC"])[0], client


@pytest.fixture
def attempted(composed, tmp_path: Path):
    """A function that runs an attempt and returns what `execute_recorded` does."""
    return lambda *overrides, name="an attempt": execute_recorded(composed(*SMALL, *overrides), tmp_path, name)


@pytest.fixture(scope="module")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("finished")


@pytest.fixture(scope="module")
def composed_in_module(composed_in, shared_cache: Path, shared_folder: Path):
    """As `composed`, in a folder and a store that the tests of this module share with `finished`."""
    return composed_in(shared_folder, shared_cache)


@pytest.fixture(scope="module")
def attempted_in_module(composed_in_module, shared_folder: Path):
    """As `attempted`, in the folder and the store of `composed_in_module`."""
    return lambda *overrides: execute_recorded(composed_in_module(*SMALL, *overrides), shared_folder)


@pytest.fixture(scope="module")
def finished(attempted_in_module):
    """A finished attempt that several tests read: its result, its MLflow run and the client."""
    return attempted_in_module()


def test_execute_records_parameters_metrics_tags_and_artifacts(finished, tmp_path: Path) -> None:
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
        "data.images.train": "120",
        "data.images.val": "60",
        "data.images.test": "60",
        "overrides": "data.classes=12",
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
    for split in ("train", "val"):
        for metric in ("loss", "accuracy", "top5_accuracy"):
            history = client.get_metric_history(record.info.run_id, f"{split}/{metric}")
            assert [point.step for point in history] == [1, 2, 3]
    history = client.get_metric_history(record.info.run_id, "val/accuracy")
    assert [point.value for point in history] == [epoch.val.accuracy.value for epoch in result.history.epochs]
    assert metrics["best/val_accuracy"] == max(point.value for point in history) == result.objective
    assert metrics["lr"] == 1e-3
    assert metrics["test/accuracy"] == result.test.accuracy.value
    low, high = result.history.best.val.accuracy.interval
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
    assert (len(tags["model.digest"]), tags["model.tolerance"]) == (32, "0.0001")
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
    stored = np.load(client.download_artifacts(record.info.run_id, "predictions/test.npz", str(tmp_path)))
    assert stored["logits"].dtype == np.float32
    assert (stored["logits"].argmax(axis=1) == stored["labels"]).sum() == result.test.accuracy.correct
    assert stored["ids"][0] == "test/000-cream-bib-prick/0"


def test_recorded_model_reproduces_the_recorded_test_accuracy(finished, composed, tmp_path: Path) -> None:
    import keras

    result, record, client = finished
    model = keras.models.load_model(client.download_artifacts(record.info.run_id, "model/model.keras", str(tmp_path)))
    dataset = composed(*SMALL).data.open()
    images = np.stack([load() for load in dataset.test.source.loaders()])
    predicted = np.array([name.decode() for name in model(images)["class"].numpy()])
    assert (predicted == np.array(dataset.class_names)[dataset.test.labels]).sum() == result.test.accuracy.correct
    assert result.test.accuracy.value > 0.8


def test_execute_gives_the_same_numbers_with_the_same_seed(finished, attempted) -> None:
    first, again = finished[0], attempted("tracking.model=none")[0]
    assert [epoch.metrics() for epoch in first.history.epochs] == [epoch.metrics() for epoch in again.history.epochs]
    assert first.test == again.test


def test_execute_skips_a_finished_run_in_a_sweep_unless_rerun(
    attempted, composed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog
) -> None:
    caplog.set_level("INFO")
    first = attempted("tracking.model=none", "phase.epochs=1")[0]
    client, experiment = composed(*SMALL).tracking.connect()
    monkeypatch.setenv(SWEEP_RUN_ENV, client.create_run(experiment).info.run_id)
    settings = (*SMALL, "tracking.model=none", "phase.epochs=1")
    again = execute(composed(*settings), origin(tmp_path))
    assert (type(again), again.run_id, again.objective) == (Skipped, first.run_id, first.objective)
    assert any(message.startswith(f"skipped: run {short(first.run_id)} ") for message in caplog.messages)
    rerun = execute(composed(*settings, "rerun=true"), origin(tmp_path))
    assert rerun.run_id != first.run_id


def test_execute_takes_over_the_result_of_the_run_that_it_waited_for(
    finished, composed_in_module, shared_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result, record, client = finished
    monkeypatch.setattr(locks, "_LOG_AFTER_SECONDS", 0.0)
    run = composed_in_module(*SMALL)
    awaited: list[str] = []
    with contextlib.ExitStack() as holder:
        holder.enter_context(Checkpoints(Path(run.checkpoint_dir) / record.data.tags["identity"]).locked())

        def release(message: str, waiting_for: str) -> None:
            awaited.append(waiting_for)
            holder.close()

        monkeypatch.setattr(locks.log, "warning", release)
        taken_over = execute(run, origin(shared_folder))
    assert (type(taken_over), taken_over.run_id) == (Skipped, result.run_id)
    assert len(awaited) == 1
    same = client.search_runs([record.info.experiment_id], f"tags.identity = '{record.data.tags['identity']}'")
    assert [run.info.run_id for run in same] == [result.run_id]


@pytest.mark.parametrize(
    ("finished_at", "interrupted_at", "newest"),
    [(2.0, None, True), (2.0, 1.0, True), (1.0, 2.0, False), (None, 1.0, False)],
)
def test_result_is_not_taken_over_from_before_an_interrupted_run(
    finished_at: float | None, interrupted_at: float | None, newest: bool
) -> None:
    finished, unfinished = (
        None if started is None else Record("a", "a run", started, "", {}, {}, {})
        for started in (finished_at, interrupted_at)
    )
    assert PriorRuns(finished, unfinished).newest_is_finished == newest


@pytest.mark.slow
def test_augmented_training_uses_a_different_copy_each_epoch(finished, attempted) -> None:
    augmented = attempted("augment=guide", "augment.copies=2", "tracking.model=none")[0].history
    plain = finished[0].history
    assert augmented.epochs[-1].train_loss > 1.2 * plain.epochs[-1].train_loss
    assert augmented.epochs[-1].val.accuracy.value > 0.5


@pytest.mark.long
def test_training_from_pixels_uses_augmented_images(attempted) -> None:
    settings = (
        "unfreeze=all",
        "optimizer.lr=1e-3",
        "tracking.model=none",
        "phase.epochs=2",
        "data.train_per_class=10",
        "data.classes=4",
    )
    plain, augmented = (attempted(*settings, augment)[0].history for augment in ("augment=none", "augment=guide"))
    assert augmented.epochs[0].train_loss != plain.epochs[0].train_loss
    assert augmented.epochs[1].train_loss > plain.epochs[1].train_loss


TUNED = ("phase=finetune", "phase.epochs=1", "unfreeze.layers=16")


def test_finetune_starts_from_the_best_frozen_run(finished, attempted_in_module) -> None:
    frozen, parent, _ = finished
    collapsed, _, _ = attempted_in_module("phase.epochs=1", "optimizer.lr=3e-1")
    assert collapsed.objective < frozen.objective
    # This learning rate changes nothing, so the first epoch measures the weights that the fine-tune started from.
    tuned, record, client = attempted_in_module(*TUNED, "optimizer.lr=1e-30")
    assert record.data.tags["parent"] == parent.info.run_id
    assert record.data.metrics["parent/val_accuracy"] == frozen.objective
    assert tuned.history.epochs[0].val.accuracy == frozen.history.best.val.accuracy
    assert tuned.history.epochs[0].val.loss == pytest.approx(frozen.history.best.val.loss, rel=1e-4)
    assert (record.data.params["unfreeze.layers_asked"], record.data.params["unfreeze.layers_trained"]) == ("16", "16")
    assert [item.path for item in client.list_artifacts(record.info.run_id, "model")] == ["model/model.keras"]
    # The reference probe is the parent's, of which only accuracies are known.
    assert record.data.tags["reference"] == parent.data.tags["reference"] == "ridge"
    for split in ("val", "test"):
        for name in (f"reference/{split}_accuracy", f"reference/{split}_accuracy_low", f"reference/{split}_n"):
            assert record.data.metrics[name] == parent.data.metrics[name]
        assert f"reference/{split}_p_value" not in record.data.metrics
    inherited = tuned.reference.deciding
    assert (inherited.probe, inherited.run) == (frozen.reference.deciding.probe, tuned.test.accuracy)
    # Only the heads of frozen attempts are saved separately, for fine-tunes to start from.
    assert client.list_artifacts(record.info.run_id, "head") == []
    assert record.data.tags["verdict"] == "no_better_than_frozen"
    assert record.data.tags["verdict.reason"].startswith("+0.0 points on test (95 % interval ")
    for split in ("val", "test"):
        assert [
            record.data.metrics[f"parent/{split}_{name}"] for name in ("difference", "p_value", "gained", "lost")
        ] == [0, 1, 0, 0]


def test_frozen_run_is_compared_with_the_reference_probe_image_by_image(finished) -> None:
    result, record, _ = finished
    metrics = record.data.metrics
    assert list(result.reference.comparisons) == ["val", "test"]
    for split, accuracy in (("val", result.best.val.accuracy), ("test", result.test.accuracy)):
        found = result.reference.comparisons[split]
        assert found.run == accuracy
        assert found.pair.difference == pytest.approx(found.run.value - found.probe.value)
        assert metrics[f"reference/{split}_accuracy"] == found.probe.value > 0.8
        assert metrics[f"reference/{split}_n"] == found.probe.n == accuracy.n
        assert metrics[f"reference/{split}_p_value"] == found.pair.p_value
    assert 0 < metrics["seconds/reference"] < metrics["seconds/total"]


@pytest.mark.slow
def test_finetune_is_compared_with_its_parent_image_by_image(finished, attempted_in_module, tmp_path: Path) -> None:
    parent, client = finished[1:]
    tuned = attempted_in_module(
        *TUNED, f"phase.parent={short(parent.info.run_id)}", "optimizer.lr=3e-2", "unfreeze.batchnorm=trainable"
    )[1]
    assert tuned.data.tags["parent"] == parent.info.run_id
    for split in ("val", "test"):
        before = correct_predictions(client, parent, split, tmp_path)
        now = correct_predictions(client, tuned, split, tmp_path)
        assert sorted(before) == sorted(now)
        gained = sum(now[image] and not before[image] for image in now)
        lost = sum(before[image] and not now[image] for image in now)
        assert (tuned.data.metrics[f"parent/{split}_gained"], tuned.data.metrics[f"parent/{split}_lost"]) == (
            gained,
            lost,
        )
        assert gained + lost > 0
        assert tuned.data.metrics[f"parent/{split}_p_value"] == PairedOutcome(gained, lost, len(now), split).p_value
    # The epoch was selected on val, so the verdict uses the unbiased test split.
    assert tuned.data.metrics["verdict/p_value"] == tuned.data.metrics["parent/test_p_value"]


def test_finetune_rejects_a_parent_that_does_not_match(finished, attempted_in_module) -> None:
    _, parent, client = finished
    for overrides, message in (
        (
            ("head=linear",),
            ", head is MLP there and Linear here. phase=finetune starts",
        ),
        (
            ("phase.parent=zzz",),
            "phase.parent=zzz matches 0 finished frozen runs of experiment 'dogbreeds'. It must match one",
        ),
        (
            ("head.widths=[9]", f"phase.parent={parent.info.run_id}"),
            "cannot be the parent: head.widths is [512, 256] there and [9] here. A fine-tune needs",
        ),
        (
            ("preprocessing=torch", "preflight=none", f"phase.parent={parent.info.run_id}"),
            "cannot be the parent: preprocessing.mode is raw there and torch here.",
        ),
    ):
        with pytest.raises(UserError) as error:
            attempted_in_module(*TUNED, *overrides)
        assert message in str(error.value)
    # A rejected fine-tune leaves no run behind.
    assert {record.info.status for record in client.search_runs([parent.info.experiment_id])} == {"FINISHED"}


def test_finetune_is_rejected_with_tracking_none(composed, tmp_path: Path) -> None:
    with pytest.raises(
        UserError,
        match=r"^phase=finetune was set with tracking=none\. .* frozen run .* MLflow .* Type tracking=mlflow, or phase",
    ):
        execute(composed(SMALL[0], *TUNED, "tracking=none"), origin(tmp_path))


def test_execute_records_nothing_with_tracking_none(composed, tmp_path: Path) -> None:
    result = execute(composed("tracking=none", *SMALL[:2]), origin(tmp_path))
    assert len(result.history.epochs) == 3
    assert not (tmp_path / "mlruns/artifacts").exists()


@pytest.mark.parametrize(("error", "status"), [(RuntimeError("bug"), "FAILED"), (KeyboardInterrupt(), "KILLED")])
def test_execute_ends_its_run_after_an_error_or_an_interruption(
    composed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, status: str
) -> None:
    from dogbreeds.experiments import trainer

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(trainer, "fit", fail)
    run = composed(*SMALL)
    with pytest.raises(type(error)):
        execute(run, origin(tmp_path))
    client, experiment = run.tracking.connect()
    assert [record.info.status for record in client.search_runs([experiment])] == [status]


def test_execute_records_a_diverged_attempt_up_to_the_divergence(attempted) -> None:
    result, record, _ = attempted("optimizer=sgd", "optimizer.lr=1e38", "head=linear", "phase.epochs=5")
    assert result.history.diverged
    assert result.history.stop_reason.startswith("the loss was nan at step ") or result.history.stop_reason.startswith(
        "the loss was inf at step "
    )
    assert record.info.status == "FINISHED"
    assert record.data.tags["verdict"] == "diverged"
    assert record.data.tags["verdict.reason"] == result.history.stop_reason
    assert 0 <= result.objective < 1


@pytest.mark.parametrize(
    ("save", "rates", "saved"),
    [
        pytest.param("best", ["3e-5", "1e-3", "1e-4"], [False, True, False], marks=pytest.mark.slow),
        pytest.param("all", ["3e-5", "1e-3"], [True, True], marks=pytest.mark.long),
        pytest.param("none", ["1e-3"], [False], marks=pytest.mark.slow),
    ],
)
def test_sweep_saves_the_models_that_tracking_model_selects(
    attempted, composed, monkeypatch: pytest.MonkeyPatch, save: str, rates: list[str], saved: list[bool]
) -> None:
    client, experiment = composed(*SMALL).tracking.connect()
    parent = client.create_run(experiment).info.run_id
    monkeypatch.setenv(SWEEP_RUN_ENV, parent)
    small = ("preflight=none", "baseline=none", "phase.epochs=2", f"tracking.model={save}")
    records = [attempted(f"optimizer.lr={lr}", *small, name=lr)[1] for lr in rates]
    assert {record.data.tags["mlflow.parentRunId"] for record in records} == {parent}
    artifacts = [{item.path for item in client.list_artifacts(record.info.run_id)} for record in records]
    assert ["model" in paths for paths in artifacts] == saved
    # The logged model of a network that was removed is removed too.
    models = {model.source_run_id for model in client.search_logged_models([experiment])}
    assert [record.info.run_id in models for record in records] == saved
    # Every frozen attempt's head is saved, so that a fine-tune can start from any of them.
    assert ["head" in paths for paths in artifacts] == [save != "none"] * len(rates)
    assert [client.get_run(record.info.run_id).data.tags.get("head") for record in records] == [
        None if save == "none" else "kept"
    ] * len(rates)


@pytest.mark.slow
def test_sweep_is_one_run_with_its_jobs_nested_below(composed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from omegaconf import OmegaConf

    run = composed(*SMALL)
    assert isinstance(run.tracking, Mlflow)
    settings = {"_target_": "dogbreeds.tracking.mlflow_backend.Mlflow"} | asdict(run.tracking)
    hydra = {"overrides": {"task": ["optimizer.lr=1e-2,1e-3"]}, "sweep": {"dir": str(tmp_path)}}
    monkeypatch.delenv(SWEPT_ENV, raising=False)
    Sweep().begin(OmegaConf.create({"tracking": settings, "seed": 0, "rerun": False, "hydra": hydra}))
    assert os.environ[SWEPT_ENV] == "optimizer.lr"
    client, experiment = run.tracking.connect()
    best = 0.0
    for lr in ("1e-2", "1e-3"):
        best = max(best, execute(composed(*SMALL, f"optimizer.lr={lr}"), origin(tmp_path)).objective)
    Sweep.close("FINISHED")
    assert SWEEP_RUN_ENV not in os.environ
    assert SWEPT_ENV not in os.environ
    records = client.search_runs([experiment])
    parents = [record for record in records if "mlflow.parentRunId" not in record.data.tags]
    assert len(parents) == 1
    assert parents[0].info.run_name == "sweep optimizer.lr=1e-2,1e-3"
    assert parents[0].info.status == "FINISHED"
    assert parents[0].data.metrics["best/val_accuracy"] == best
    artifacts = {item.path for item in client.list_artifacts(parents[0].info.run_id)}
    assert {"curves.png", "sweep.html", "sweep.png"} <= artifacts
    assert {record.data.tags.get("mlflow.parentRunId") for record in records} == {None, parents[0].info.run_id}


@pytest.mark.parametrize("uri", ["file:./mlruns", "nosuch://place", "sqlite:////proc/no/mlflow.db"])
def test_connect_rejects_a_store_that_cannot_be_used(composed, uri: str) -> None:
    with pytest.raises(
        UserError,
        match=r"^tracking\.uri=.* cannot be used \(.*\)\. It must be sqlite:///<file>, .* Type tracking\.uri=",
    ):
        composed(f"tracking.uri={uri}").tracking.connect()


@pytest.mark.parametrize(
    ("run_id", "expected"),
    [
        ("56483272a1b2", "56483272a"),
        ("1234e567890b", "1234e567890b"),
        ("12345678", "12345678"),
        ("3f2a9c00112233", "3f2a9c00"),
        ("5648e27e", "5648e27e"),
    ],
)
def test_short_id_is_never_parsed_as_a_number(run_id: str, expected: str) -> None:
    assert short(run_id) == expected
