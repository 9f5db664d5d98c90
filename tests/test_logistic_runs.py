"""Runs with `head=logistic`: record, saved network, fine-tune, interruption and sweep."""

import os
import signal
from pathlib import Path

import mlflow
import numpy as np
import pytest

from dogbreeds.evaluation.metrics import score
from dogbreeds.experiments.attempt import execute
from dogbreeds.experiments.classifier import Classifier
from dogbreeds.experiments.recorded_runs import Only, open_network
from dogbreeds.experiments.result import Skipped
from dogbreeds.tracking.records import SWEEP_RUN_ENV, RunOrigin
from dogbreeds.training.checkpoint import Checkpoints

SMALL = ("head=logistic", "data.classes=6", "data.train_per_class=8", "tracking.system_metrics_seconds=0")


def origin(folder: Path) -> RunOrigin:
    return RunOrigin("seed: 0\n", (), "a run", folder)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("logistic")


@pytest.fixture(scope="module")
def composed_here(composed_in, shared_cache: Path, place: Path):
    return composed_in(place, shared_cache)


@pytest.fixture(scope="module")
def finished(composed_here, place: Path):
    """A run with mirrored copies, its result, its record and the client."""
    run = composed_here(*SMALL, "augment=flip")
    result = execute(run, origin(place))
    client, _ = run.tracking.connect()
    return run, result, run.tracking.record(result.run_id), client


@pytest.mark.slow
def test_run_records_its_path_and_what_it_chose(finished) -> None:
    _, result, record, client = finished
    points = {
        name: [point.value for point in client.get_metric_history(record.run_id, name)]
        for name in ("C", "val/accuracy", "train/loss")
    }
    assert points["C"] == [epoch.strength for epoch in result.history.epochs]
    assert points["val/accuracy"] == [epoch.val.accuracy.value for epoch in result.history.epochs]
    assert record.metrics["best/C"] == result.best.strength
    assert "lr" not in record.metrics
    assert record.tags["verdict"] == result.verdict.name
    assert "curves.png" in {item.path for item in client.list_artifacts(record.run_id)}
    # Mirrored copies train too.
    assert result.history.epochs[0].train_accuracy * 96 == pytest.approx(
        round(result.history.epochs[0].train_accuracy * 96)
    )
    assert len(client.list_artifacts(record.run_id, "refitted_predictions")) == 1


@pytest.mark.slow
def test_saved_network_is_the_refitted_one_and_measures_what_the_run_measured(finished) -> None:
    run, result, record, _ = finished
    assert record.tags["refitted"] == "train and val"
    with open_network(run.tracking, record.run_id, Only(model=None, data=None)) as (found, network, file):
        classifier = Classifier(network.model, network.class_names, found, file, run.tracking)
        # It raises an error if a probability is not as recorded.
        tested = classifier.evaluate(run.data.open(), split="test")
        validated = classifier.evaluate(run.data.open(), split="val")
    assert tested.scores.accuracy.value == record.metrics["refitted/test_accuracy"]
    ours, theirs = run.tracking.predictions(record.run_id)["test"], run.tracking.network_predictions(record)["test"]
    assert not np.allclose(ours.logits, theirs.logits, atol=1e-2)
    assert score(ours.logits, ours.labels).accuracy == result.test.accuracy
    # It was fitted to these.
    assert validated.scores.loss < 0.5 * record.metrics["best/val_loss"]


@pytest.mark.long
def test_fine_tune_starts_from_the_fit_of_the_training_images_alone(finished, composed_here, place: Path) -> None:
    run, result, record, _ = finished
    tuned = execute(
        composed_here(
            *SMALL, "augment=flip", "phase=finetune", "phase.epochs=1", "optimizer.lr=1e-12", "preflight=none"
        ),
        origin(place),
    )
    assert np.allclose(tuned.predictions["test"].logits, result.predictions["test"].logits, atol=1e-3)
    assert run.tracking.record(tuned.run_id).tags["parent"] == record.run_id
    assert "refitted" not in run.tracking.record(tuned.run_id).tags
    assert tuned.history.epochs[0].strength is None


@pytest.mark.long
def test_interrupted_run_resumes_after_its_last_strength(
    finished, composed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, result, _, _ = finished
    run = composed(*SMALL, "augment=flip", "tracking.model=none")
    save = Checkpoints.save
    saved: list[int] = []

    def interrupting(self, metadata, arrays) -> None:
        save(self, metadata, arrays)
        saved.append(metadata["epoch"])
        if len(saved) == 3:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Checkpoints, "save", interrupting)
    with pytest.raises(KeyboardInterrupt):
        execute(run, origin(tmp_path))
    again = execute(run, origin(tmp_path))
    assert saved[:4] == [1, 2, 3, 4]
    assert again.history.best_logits is not None
    assert np.array_equal(again.history.best_logits, result.history.best_logits)
    assert [epoch.val for epoch in again.history.epochs] == [epoch.val for epoch in result.history.epochs]
    # Finished work is found by the same settings.
    monkeypatch.setenv(SWEEP_RUN_ENV, mlflow.MlflowClient(run.tracking.uri).create_run("1").info.run_id)
    assert isinstance(execute(run, origin(tmp_path)), Skipped)


@pytest.mark.slow
def test_no_refit_saves_the_network_that_was_measured(composed, tmp_path: Path) -> None:
    run = composed(*SMALL, "head.refit=false", "head.C=1e-2", "head.choose_by=cross_validation")
    result = execute(run, origin(tmp_path))
    record = run.tracking.record(result.run_id)
    assert len(result.history.epochs) == 1
    assert "refitted" not in record.tags
    assert "refitted/test_accuracy" not in record.metrics
    assert run.tracking.network_predictions(record).keys() == {"val", "test"}
