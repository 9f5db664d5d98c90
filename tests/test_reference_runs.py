"""The reference probe of runs: which images and weights it has, what the verdict gets, and why a run has none."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dogbreeds.evaluation import verdict
from dogbreeds.evaluation.metrics import Proportion
from dogbreeds.evaluation.reference_probe import fit_probe
from dogbreeds.evaluation.results import Predictions
from dogbreeds.evaluation.verdict import Setting
from dogbreeds.experiments.attempt import execute
from dogbreeds.experiments.prepare import assemble_network
from dogbreeds.experiments.reference import measure_reference
from dogbreeds.experiments.run import Run
from dogbreeds.experiments.training_inputs import TrainingInputs
from dogbreeds.tracking.records import Parent, RunOrigin

SMALL = ("data.classes=4", "data.train_per_class=12", "phase.epochs=2", "tracking=none", "tracking.folder=null")


@pytest.mark.slow
def test_augmented_run_has_a_probe_of_plain_images_with_the_weights_of_its_loss(
    composed: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: list[Setting] = []
    judge = verdict.judge
    monkeypatch.setattr(verdict, "judge", lambda epochs, setting: settings.append(setting) or judge(epochs, setting))
    run = composed(*SMALL, "augment=guide", "augment.copies=1", "loss.class_weights=balanced")
    dataset = run.data.open()
    # The classes have unequal numbers of training images.
    dataset = replace(dataset, train=dataset.train.without(frozenset(dataset.train.rows[:8].tolist())))
    result = execute(run, RunOrigin("seed: 0\n", (), "a run", tmp_path), dataset)

    network = assemble_network(run, dataset).network
    plain = {name: TrainingInputs(run, dataset, network).rows(split) for name, split in dataset.splits.items()}
    labels = plain["train"].labels
    weights = 40 / (4 * np.bincount(labels))
    assert len(set(weights)) > 1
    train = plain["train"].array[plain["train"].indices]
    probe = fit_probe(train, labels, 4, class_weights=weights.astype(np.float32))
    for split in ("val", "test"):
        rows = plain[split]
        correct = (probe.logits(rows.array[rows.indices]).argmax(axis=1) == rows.labels).sum()
        assert result.reference.comparisons[split].probe == Proportion(int(correct), len(rows))
    assert result.reference.facts == pytest.approx(probe.facts)
    assert (settings[-1].reference, settings[-1].n_train) == (result.reference.comparisons["test"], 40)


@pytest.mark.parametrize(
    ("uses_cache", "suffix", "reason"),
    [
        (True, None, ""),
        (True, "blocks", "part of the backbone trains"),
        (False, "blocks", "the whole network trains"),
    ],
)
def test_run_has_no_probe_where_more_than_the_head_trains(
    composed: Callable[..., Run], uses_cache: bool, suffix: str | None, reason: str
) -> None:
    network: Any = SimpleNamespace(uses_cache=uses_cache, suffix=suffix)
    inputs = TrainingInputs(composed(*SMALL), SimpleNamespace(), network)
    assert inputs.reason_for_no_probe() == reason
    prepared: Any = SimpleNamespace(parent=None)
    found = measure_reference(prepared, inputs, {})
    assert found.tags() == {"reference": reason or "no epoch was finished"}
    assert found.deciding is None


@pytest.mark.parametrize("recorded", [True, False], ids=["recorded", "by an earlier version"])
def test_finetune_inherits_the_accuracies_that_its_parent_recorded(recorded: bool) -> None:
    metrics = {"reference/val_accuracy": 0.75, "reference/test_accuracy": 0.5} if recorded else {}
    parent = Parent("p", Path("h"), 0.9, {}, reference=metrics, reference_description="ridge" if recorded else "")
    predictions = {
        split: Predictions(("a", "b", "c", "d"), np.array([0, 1, 1, 0]), np.eye(2)[[0, 1, 1, 1]])
        for split in ("val", "test")
    }
    prepared: Any = SimpleNamespace(parent=parent)
    unused: Any = None
    found = measure_reference(prepared, unused, predictions)
    if recorded:
        assert found.tags() == {"reference": "ridge"}
        assert found.deciding.probe == Proportion(2, 4)
        assert (found.deciding.run, found.deciding.pair) == (Proportion(3, 4), None)
        assert found.metrics()["reference/val_accuracy"] == 0.75
    else:
        assert found.tags() == {"reference": "the parent run recorded none"}
        assert (found.deciding, found.metrics()) == (None, {})
