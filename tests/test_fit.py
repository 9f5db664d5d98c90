import json
import math
import os
import signal

import numpy as np
import pytest

from dogbreeds.core import signals
from dogbreeds.evaluation.metrics import score
from dogbreeds.evaluation.results import Epoch
from dogbreeds.models.head import MLP, BatchNorm, Linear
from dogbreeds.models.network import Network
from dogbreeds.models.unfreeze import Plan
from dogbreeds.training.loop import Rows, Step, fit, order, predict
from dogbreeds.training.optimizer import SGD, Adam, AdamW, Optimizer, RMSprop
from dogbreeds.training.phase import Frozen
from dogbreeds.training.schedule import Constant, Cosine, Plateau
from dogbreeds.training.state import TrainingState

N, FEATURES, CLASSES = 96, 12, 5
# Only the head trains
PLAN = Plan(1, (frozenset(),), 1, "frozen", False, "", 0, {})
ADAM = {"layer_decay": 1.0, "beta_1": 0.9, "beta_2": 0.999, "epsilon": 1e-7}


def rows(seed: int = 0, n: int = N) -> Rows:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, size=n).astype(np.int32)
    centres = np.random.default_rng(99).normal(size=(CLASSES, FEATURES))
    array = (centres[labels] + 0.8 * rng.normal(size=(n, FEATURES))).astype(np.float32)
    return Rows(array, np.arange(n), labels)


def network(head=None, seed: int = 0) -> Network:
    return Network(None, None, (head or MLP(widths=[16], dropout=0.5)).build(FEATURES, CLASSES, seed), PLAN)  # type: ignore[arg-type]


def phase(epochs: int = 4, batch_size: int = 20, patience: int | None = None) -> Frozen:
    return Frozen(epochs=epochs, batch_size=batch_size, patience_epochs=patience)


def train(built: Network, optimizer: Optimizer | None = None, schedule=None, seed: int = 0, **settings):
    seen: list[Epoch] = []
    data = rows()
    outcome = fit(
        built,
        lambda epoch: data,
        rows(1, 200),
        phase(**settings),
        optimizer or Adam(lr=1e-2, **ADAM),
        schedule or Constant(),
        seed,
        seen.append,
    )
    assert seen == outcome.epochs
    return outcome


@pytest.mark.parametrize(
    ("optimizer", "reference"),
    [
        (Adam(lr=1e-2, **ADAM), "Adam(1e-2)"),
        (AdamW(lr=1e-2, weight_decay=0.1, **ADAM), "AdamW(1e-2, weight_decay=0.1)"),
        (SGD(lr=0.05, momentum=0.9, layer_decay=1.0), "SGD(0.05, momentum=0.9)"),
        (RMSprop(lr=1e-3, rho=0.8, momentum=0.5, layer_decay=1.0), "RMSprop(1e-3, rho=0.8, momentum=0.5)"),
    ],
)
@pytest.mark.parametrize(
    "head",
    [
        MLP(widths=[16], dropout=0.5),
        *(pytest.param(head, marks=pytest.mark.slow) for head in (BatchNorm(dropout=0.2), Linear(dropout=0.0))),
    ],
)
def test_training_is_plain_keras_in_the_same_order(optimizer: Optimizer, reference: str, head) -> None:
    import keras

    ours, theirs = network(head), head.build(FEATURES, CLASSES, 0)
    outcome = train(ours, optimizer, epochs=2)
    name, arguments = reference.rstrip(")").split("(", 1)
    theirs.compile(
        optimizer=eval(f"keras.optimizers.{name}({arguments})", {"keras": keras}),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    data, held = rows(), rows(1, 200)
    for epoch in range(2):
        shuffled, losses, right = order(0, epoch, N), [], 0.0
        for start in range(0, N, 20):
            batch = shuffled[start : start + 20]
            theirs.reset_metrics()
            loss, accuracy = theirs.train_on_batch(data.array[batch], data.labels[batch])
            losses.append(loss * len(batch))
            right += accuracy * len(batch)
        assert outcome.epochs[epoch].train_loss == pytest.approx(sum(losses) / N, rel=1e-5)
        assert outcome.epochs[epoch].train_accuracy == pytest.approx(right / N)
        expected = score(theirs.predict(held.array, verbose=0), held.labels)
        assert outcome.epochs[epoch].val.loss == pytest.approx(expected.loss, rel=1e-4)
        assert outcome.epochs[epoch].val.accuracy == expected.accuracy


def test_the_same_seed_gives_the_same_numbers_and_another_does_not() -> None:
    first, again, other = train(network()), train(network()), train(network(), seed=1)
    assert [epoch.metrics() for epoch in first.epochs] == [epoch.metrics() for epoch in again.epochs]
    assert first.epochs[0].train_loss != other.epochs[0].train_loss
    assert all(np.array_equal(a, b) for a, b in zip(first.best_weights, again.best_weights, strict=True))


def test_each_epoch_has_its_own_order_of_all_photos() -> None:
    orders = [order(0, epoch, 50) for epoch in range(3)] + [order(1, 0, 50)]
    assert all(sorted(drawn) == list(range(50)) for drawn in orders)
    assert len({tuple(drawn) for drawn in orders}) == 4
    assert np.array_equal(orders[0], order(0, 0, 50))


def test_the_best_epoch_s_weights_are_put_back() -> None:
    built = network()
    outcome = train(built, Adam(lr=0.3, **ADAM), epochs=12)
    best = max(outcome.epochs, key=lambda epoch: (epoch.val.accuracy.correct, -epoch.number))
    assert outcome.best == best
    assert best.number < 12
    again = score(predict(built, rows(1, 200)), rows(1, 200).labels)
    assert again == best.val
    assert score(outcome.best_logits, rows(1, 200).labels) == best.val


def test_patience_ends_training() -> None:
    outcome = train(network(), Adam(lr=0.3, **ADAM), epochs=40, patience=3)
    assert outcome.best is not None
    assert len(outcome.epochs) == outcome.best.number + 3 < 40
    assert outcome.ended == "no better validation accuracy for 3 epochs"


def test_a_loss_that_is_not_a_number_stops_at_once_and_says_where() -> None:
    built = network(Linear(dropout=0.0))
    good = rows()
    broken = Rows(
        np.where(np.arange(N)[:, None] == order(0, 1, N)[25], np.nan, good.array).astype(np.float32),
        good.rows,
        good.labels,
    )
    outcome = fit(
        built,
        lambda epoch: broken if epoch else good,
        rows(1, 200),
        phase(),
        Adam(lr=1e-2, **ADAM),
        Constant(),
        0,
        lambda epoch: None,
    )
    assert outcome.diverged
    assert outcome.ended == "the loss was nan at step 7 (epoch 2), lr 0.01"
    assert len(outcome.epochs) == 1
    assert all(np.isfinite(variable.numpy()).all() for variable in built.learned)
    assert score(predict(built, rows(1, 200)), rows(1, 200).labels) == outcome.epochs[0].val


def test_the_schedule_sets_the_rate_of_every_step() -> None:
    outcome = train(network(), schedule=Cosine(warmup_epochs=1, final_fraction=0.0), epochs=4)
    expected = [Cosine(warmup_epochs=1, final_fraction=0.0).lr(1e-2, index + 4 / 5, 4, []) for index in range(4)]
    assert [epoch.lr for epoch in outcome.epochs] == pytest.approx(expected)
    assert outcome.epochs[0].lr < outcome.epochs[1].lr > outcome.epochs[3].lr


def test_a_tail_smaller_than_a_batch_counts_by_its_photos() -> None:
    built = network(Linear(dropout=0.0))
    data = rows(n=21)
    before = score(predict(built, data), data.labels)
    still = SGD(lr=1e-30, momentum=0.0, layer_decay=1.0)
    outcome = fit(built, lambda epoch: data, data, phase(epochs=1), still, Constant(), 0, lambda epoch: None)
    assert outcome.epochs[0].train_loss == pytest.approx(before.loss, rel=1e-5)
    assert math.isclose(outcome.epochs[0].train_accuracy, before.accuracy.value, rel_tol=1e-6)


@pytest.mark.parametrize(
    ("head", "optimizer"),
    [
        (MLP(widths=[16], dropout=0.5), Adam(lr=1e-2, **ADAM)),
        pytest.param(BatchNorm(dropout=0.2), SGD(lr=0.05, momentum=0.9, layer_decay=1.0), marks=pytest.mark.slow),
        pytest.param(
            Linear(dropout=0.2), RMSprop(lr=1e-3, rho=0.8, momentum=0.5, layer_decay=1.0), marks=pytest.mark.slow
        ),
    ],
)
@pytest.mark.parametrize(("save_steps", "epochs"), [(None, 4), (2, 2)])
def test_training_goes_on_from_any_checkpoint_to_the_same_bits(
    head, optimizer: Optimizer, save_steps: int | None, epochs: int
) -> None:
    settings = (
        phase(epochs=epochs, patience=2),
        optimizer,
        Plateau(factor=0.5, patience_epochs=1, min_delta=1e-4, min_lr=0.0),
        3,
    )
    kept: list[tuple[str, dict]] = []

    def save(progress: TrainingState) -> None:
        about, arrays = progress.packed()
        kept.append((json.dumps(about), {name: array.copy() for name, array in arrays.items()}))

    data, held = rows(), rows(1, 200)
    whole = network(head)
    expected = fit(whole, lambda epoch: data, held, *settings, lambda epoch: None, save=save, save_steps=save_steps)
    assert len(kept) == (
        len(expected.epochs) if save_steps is None else len(expected.epochs) + len(expected.epochs) * 5 // 2
    )
    for about, arrays in kept:
        resumed, said = network(head, seed=9), []
        outcome = fit(
            resumed,
            lambda epoch: data,
            held,
            *settings,
            said.append,
            before=TrainingState.unpacked(json.loads(about), arrays),
        )
        assert [epoch.metrics() for epoch in outcome.epochs] == [epoch.metrics() for epoch in expected.epochs]
        # What was told before is not told again
        assert said == outcome.epochs[json.loads(about)["epoch"] :]
        assert (outcome.ended, outcome.best.number) == (expected.ended, expected.best.number)
        assert outcome.best_logits.tobytes() == expected.best_logits.tobytes()
        assert [a.numpy().tobytes() for a in resumed.learned] == [b.numpy().tobytes() for b in whole.learned]


@pytest.mark.parametrize("at", [pytest.param(1, marks=pytest.mark.slow), 4, pytest.param(5, marks=pytest.mark.slow), 7])
def test_an_interruption_is_let_through_after_the_step_and_loses_nothing(at: int) -> None:
    """A signal arrives in the middle of a step: the step is finished and written down."""
    signals.handle()
    data, held, kept, calls = rows(), rows(1, 200), [], []
    real = Step.__call__

    def interrupted(self, *arguments):
        calls.append(1)
        if len(calls) == at:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, *arguments)

    def run(built, **more):
        return fit(
            built,
            lambda epoch: data,
            held,
            phase(epochs=2),
            Adam(lr=1e-2, **ADAM),
            Constant(),
            0,
            lambda epoch: None,
            **more,
        )

    whole, first, second = network(), network(), network()
    run(whole)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Step, "__call__", interrupted)
        with pytest.raises(signals.Terminated):
            run(first, save=lambda progress: kept.append(progress.packed()))
    before = TrainingState.unpacked(*kept[-1])
    assert before.epoch * 5 + before.step == at
    steps: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Step, "__call__", lambda self, *arguments: steps.append(1) or real(self, *arguments))
        run(second, before=before)
    assert len(steps) == 10 - at
    assert [a.numpy().tobytes() for a in second.learned] == [b.numpy().tobytes() for b in whole.learned]


def test_a_gradient_that_is_not_finite_stops_at_once_and_nothing_is_saved_after_it() -> None:
    import keras

    # At 0 its slope is not a number
    root = keras.layers.Lambda(lambda scores: keras.ops.sqrt(keras.ops.relu(scores)))
    kept: list[TrainingState] = []
    head = keras.Sequential([keras.Input((FEATURES,)), keras.layers.Dense(CLASSES), root])
    built = Network(None, None, head, PLAN)  # type: ignore[arg-type]
    data = rows()
    outcome = fit(
        built,
        lambda epoch: data,
        data,
        phase(),
        Adam(lr=1e-2, **ADAM),
        Constant(),
        0,
        lambda epoch: None,
        save=kept.append,
    )
    assert (outcome.diverged, outcome.ended) == (True, "the gradient was not finite at step 1 (epoch 1), lr 0.01")
    assert kept == []
