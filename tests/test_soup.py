"""Soups: what they average, which candidates they take, and runs of them on fine-tunes."""

import dataclasses
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import dogbreeds
from dogbreeds.core.errors import UserError
from dogbreeds.experiments import soup_members
from dogbreeds.experiments.attempt import execute
from dogbreeds.experiments.classifier import Classifier
from dogbreeds.experiments.compose import compose_config, compose_run
from dogbreeds.experiments.recorded_runs import Only, open_network
from dogbreeds.models.head import Linear
from dogbreeds.training.checkpoint import Checkpoints
from dogbreeds.training.loop import predict
from dogbreeds.training.phase import Soup
from dogbreeds.training.rows import JoinedRows
from dogbreeds.training.soup import make_soup, matching_weights, weights_by_layer
from dogbreeds.training.state import TrainingState
from tests.test_fit import network, rows

SOUP = {"epochs": 1, "batch_size": 32, "patience_epochs": None, "monitor": "accuracy", "parent": None}


def soup_of(built, members, method: str, interpolations: int = 0, **options):
    phase = Soup(members=["a"] * len(members), method=method, interpolations=interpolations, **SOUP)
    return make_soup(built, phase, members, train=rows(), val=rows(1, 200), on_epoch=lambda epoch: None, **options)


@pytest.fixture(scope="module")
def members():
    """A good classifier, another one, and one that spoils every average; the parent is untrained."""
    data = rows()
    centres = np.stack([data.array[data.labels == label].mean(axis=0) for label in range(5)], axis=1)
    noise = np.random.default_rng(0).normal(size=(3, *centres.shape))
    bias = -0.5 * (centres**2).sum(axis=0)
    weights = [centres + 0.5 * noise[0], centres + 0.5 * noise[1], -20 * centres + noise[2]]
    return [[kernel.astype(np.float32), bias.astype(np.float32)] for kernel in weights]


def test_uniform_soup_is_the_mean_of_all_members(members) -> None:
    built = network(Linear(dropout=0.0))
    history = soup_of(built, members, "uniform")
    assert [epoch.members for epoch in history.epochs] == [3]
    assert np.allclose(built.head.get_weights()[0], np.mean([kernel for kernel, _ in members], axis=0), atol=1e-6)
    assert np.allclose(predict(built, rows(1, 200)), history.best_logits, atol=1e-6)


def test_greedy_soup_leaves_out_what_lowers_validation_accuracy(members) -> None:
    built = network(Linear(dropout=0.0))
    history = soup_of(built, members, "greedy")
    first, second, third = [epoch.val.accuracy.value for epoch in history.epochs]
    assert [epoch.members for epoch in history.epochs] == [1, 2, 3]
    assert second >= first > third
    assert history.best is not None
    assert history.best.number == 2
    assert history.judged == [history.best]
    mean = (members[0][0] + members[1][0]) / 2
    assert np.allclose(built.head.get_weights()[0], mean, atol=1e-6)


def test_interpolations_lie_between_the_parent_and_the_greedy_soup(members) -> None:
    built = network(Linear(dropout=0.0))
    parent = built.head.get_weights()[0]
    states: list = []
    history = soup_of(built, members, "greedy", 4, save=lambda state: states.append(state.to_checkpoint()))
    assert [epoch.soup_share for epoch in history.epochs] == [1, 1, 1, 0.25, 0.5, 0.75]
    mean = (members[0][0] + members[1][0]) / 2
    restored = [TrainingState.from_checkpoint(*state) for state in states]
    for number, share in ((3, 0.25), (5, 0.75)):
        assert np.allclose(restored[number].weights[0], share * mean + (1 - share) * parent, atol=1e-6)
    # Resumed after the second candidate, it takes the same ones.
    again = soup_of(network(Linear(dropout=0.0)), members, "greedy", 4, resume_from=restored[1])
    assert [epoch.val for epoch in again.epochs] == [epoch.val for epoch in history.epochs]
    assert np.array_equal(again.best_weights[0], history.best_weights[0])


def test_network_of_another_head_is_refused() -> None:
    saved = weights_by_layer([network(Linear(dropout=0.0)).head])
    built = network(Linear(dropout=0.0))
    assert np.array_equal(matching_weights(built, saved, "1")[0], saved["scores"][0])
    with pytest.raises(UserError, match="scores"):
        matching_weights(built, {"scores": [saved["scores"][0].T, saved["scores"][1]]}, "1")


def test_joined_rows_give_inputs_and_labels_in_the_order_that_is_asked_for() -> None:
    first, second = rows(0, 30), rows(1, 20)
    joined = JoinedRows.of(first, second)
    positions = np.array([49, 3, 30, 29, 3])
    inputs, labels = joined[positions]
    everything = np.concatenate([first.array, second.array])
    assert len(joined) == 50
    assert inputs.dtype == first.array.dtype
    assert np.array_equal(inputs, everything[positions])
    assert labels.tolist() == [second.labels[19], first.labels[3], second.labels[0], first.labels[29], first.labels[3]]
    # The inputs of one part, as an epoch's last batch may have them.
    assert np.array_equal(joined[np.array([31])][0], second.array[1:2])


# --- runs ---------------------------------------------------------------------

SMALL = ("head=linear", "data.classes=6", "data.train_per_class=8", "tracking.system_metrics_seconds=0")
TUNED = (*SMALL, "phase=finetune", "phase.epochs=1", "optimizer.lr=1e-4", "unfreeze.batchnorm=trainable")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("soup")


@pytest.fixture(scope="module")
def tuned(composed_in, shared_cache: Path, place: Path):
    """A frozen run and two fine-tunes of it, with different unfrozen layers; the tracking of all."""
    # It makes the store.
    composed_in(place, shared_cache)
    here = [
        f"features.dir={shared_cache}",
        f"checkpoint_dir={place}/checkpoints",
        f"tracking.uri=sqlite:///{place}/mlruns/mlflow.db",
        f"tracking.artifacts={place}/mlruns/artifacts",
    ]
    overrides = [(*SMALL, "phase.epochs=2"), TUNED, (*TUNED, "unfreeze.layers=40", "seed=1")]
    runs = [compose_run([*here, *each]) for each in overrides]
    frozen, *results = [execute(run, run.origin) for run in runs]
    return frozen, results, runs[0].tracking


def compose_soup(tracking, members, **options):
    config = compose_config("soup", [f"tracking.uri={tracking.uri}", f"tracking.artifacts={tracking.artifacts}"])
    config.tracking.system_metrics_seconds = 0
    return soup_members.compose(
        tracking, members, config, **{"method": "greedy", "interpolations": 2, "refit": False} | options
    )


def saved_network(tracking, result):
    with open_network(tracking, result.run_id, Only(model=None, data=None)) as (opened, network_, file):
        return Classifier(network_.model, network_.class_names, opened, file, tracking)


@pytest.mark.long
@pytest.mark.parametrize("refit", [False, True])
def test_soup_of_fine_tunes_is_a_run_whose_network_measures_what_it_recorded(
    tuned, monkeypatch: pytest.MonkeyPatch, refit: bool
) -> None:
    frozen, results, tracking = tuned
    found = soup_members.find(tracking, (), None, Only(model=None, data=None))
    assert {record.run_id for record in found} == {result.run_id for result in results}
    run, composed = compose_soup(tracking, found, method="uniform", refit=refit)
    assert run.phase.parent == frozen.run_id
    assert run.unfreeze.layers == 40
    save = Checkpoints.save
    # Between two candidates, or after the first of two fine-tunes has trained again.
    interrupted = f"refit-{found[0].run_id}" if refit else ""

    def interrupting(self, metadata, arrays) -> None:
        save(self, metadata, arrays)
        if interrupted in self.folder.name and metadata["epoch"] == 1:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patched:
        patched.setattr(Checkpoints, "save", interrupting)
        with pytest.raises(KeyboardInterrupt):
            execute(run, composed)
    result = execute(run, composed)
    record = tracking.record(result.run_id)
    assert record.params["phase"] == "Soup"
    assert [epoch.soup_share for epoch in result.history.epochs] == [1, 0.5]
    assert record.tags["verdict"] == result.verdict.name
    assert any(name.startswith("parent/test_") for name in record.metrics)
    classifier = saved_network(tracking, result)
    tested = classifier.evaluate(run.data.open(), split="test")
    assert tested.scores.accuracy.value == record.metrics["refitted/test_accuracy" if refit else "test/accuracy"]
    if not refit:
        return
    assert record.tags["refitted"] == "train and val"
    # Uninterrupted, it has the same weights; they are not those of the fine-tunes that saw training images alone.
    again = saved_network(tracking, execute(dataclasses.replace(run, rerun=True), composed))
    ours, others = classifier.model.get_weights(), again.model.get_weights()
    assert all(np.array_equal(one, other) for one, other in zip(ours, others, strict=True))
    kernel = weights_by_layer([classifier.model])["scores"][0]
    before = result.history.best_weights[-2]
    assert kernel.shape == before.shape
    assert not np.allclose(kernel, before, atol=1e-6)


def test_soup_of_one_fine_tune_interpolates_it_with_its_parent(members) -> None:
    built = network(Linear(dropout=0.0))
    parent = built.head.get_weights()[0]
    states: list = []
    history = soup_of(built, members[:1], "greedy", 2, save=lambda state: states.append(state.to_checkpoint()))
    assert [(epoch.members, epoch.soup_share) for epoch in history.epochs] == [(1, 1), (1, 0.5)]
    half = TrainingState.from_checkpoint(*states[1]).weights[0]
    assert np.allclose(half, (members[0][0] + parent) / 2, atol=1e-6)


@pytest.mark.long
def test_members_that_cannot_be_averaged_are_named(tuned) -> None:
    frozen, results, tracking = tuned
    everything = Only(model=None, data=None)
    for runs, named in (
        ((frozen.run_id, results[0].run_id), "Frozen"),
        (("ffff",), "members=ffff"),
    ):
        with pytest.raises(UserError) as error:
            soup_members.find(tracking, runs, None, everything)
        assert named in str(error.value)
        assert "Type " in str(error.value)
    # One that is not named is no soup; one that is named is interpolated with its parent.
    store = SimpleNamespace(records=lambda: [tracking.record(results[0].run_id)])
    with pytest.raises(UserError, match=r"alone\..*Type "):
        soup_members.find(store, (), None, everything)
    (alone,) = soup_members.find(tracking, (results[0].run_id[:8],), None, everything)
    assert alone.run_id == results[0].run_id


def test_an_argument_of_make_soup_is_no_override() -> None:
    with pytest.raises(UserError, match=r"overrides had 'method=uniform'.*make_soup\(method=\.\.\.\)"):
        dogbreeds.make_soup(overrides=["method=uniform"])


@pytest.mark.slow
def test_command_takes_the_ids_of_members_and_no_ids(command) -> None:
    for members in ("[3f2a9c41,380]", "[]", "null"):
        refused = command("soup", f"members={members}")
        assert refused.returncode == 1
        # The store is empty, so all that is typed is accepted, and nothing is found.
        found = "members=3f2a9c41 " if "3f2a" in members else "there is no fine-tune with a saved network"
        assert found in refused.stderr, refused.stderr
