"""Runs with random crops of another size, live copies, mixing and averaged weights: record, saved network, resume."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest

from dogbreeds.experiments.attempt import execute
from dogbreeds.experiments.classifier import Classifier
from dogbreeds.experiments.recorded_runs import Only, open_network
from dogbreeds.training.checkpoint import Checkpoints
from tests.test_logistic_runs import origin

SMALL = ("data.classes=6", "data.train_per_class=8", "tracking.system_metrics_seconds=0", "phase.epochs=2")
FROZEN = (*SMALL, "head=linear", "augment=crop", "augment.size=32", "mix=mixup", "loss.label_smoothing=0.1")
TUNED = (*SMALL, "head=linear", "phase=finetune", "unfreeze.layers=20", "augment=trivial", "augment.copies=null")
TUNED = (*TUNED, "augment.size=32", "mix=cutmix", "ema.decay=0.5", "phase.batch_size=16", "optimizer.lr=1e-4")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("augmented")


@pytest.fixture(scope="module")
def composed_here(composed_in, shared_cache: Path, place: Path):
    return composed_in(place, shared_cache)


@pytest.fixture(scope="module")
def frozen(composed_here, place: Path):
    run = composed_here(*FROZEN)
    return run, execute(run, origin(place))


def check_saved_network(run, result) -> None:
    record = run.tracking.record(result.run_id)
    with open_network(run.tracking, record.run_id, Only(model=None, data=None)) as (found, network, file):
        classifier = Classifier(network.model, network.class_names, found, file, run.tracking)
        # It raises an error if a probability is not as recorded.
        tested = classifier.evaluate(run.data.open(), split="test")
    assert tested.scores.accuracy.value == record.metrics["test/accuracy"]


@pytest.mark.long
def test_frozen_run_on_smaller_crops_is_tested_at_the_size_of_the_images(frozen) -> None:
    run, result = frozen
    assert run.augment.train_size(run.model.image_size) == 32
    check_saved_network(run, result)


@pytest.mark.long
def test_fine_tune_on_live_crops_resumes_bit_for_bit_and_saves_what_it_measured(
    frozen, composed_here, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = composed_here(*TUNED)
    save = Checkpoints.save
    saved: list[int] = []

    def interrupting(self, metadata, arrays) -> None:
        save(self, metadata, arrays)
        saved.append(metadata["epoch"])
        if len(saved) == 1:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patched:
        patched.setattr(Checkpoints, "save", interrupting)
        with pytest.raises(KeyboardInterrupt):
            execute(run, origin(place))
    resumed = execute(run, origin(place))
    check_saved_network(run, resumed)
    whole = execute(composed_here(*TUNED, "rerun=true", "tracking.model=none"), origin(place))
    assert [epoch.train_loss for epoch in resumed.history.epochs] == [
        epoch.train_loss for epoch in whole.history.epochs
    ]
    assert np.array_equal(resumed.predictions["val"].logits, whole.predictions["val"].logits)
