import contextlib
import json
import math
import os
import signal

import numpy as np
import pytest

from dogbreeds.core import console, signals
from dogbreeds.evaluation.metrics import MONITORS, score
from dogbreeds.evaluation.results import Epoch
from dogbreeds.models.head import MLP, BatchNorm, Linear
from dogbreeds.models.network import Network
from dogbreeds.models.unfreeze import Plan
from dogbreeds.training.loop import epoch_order, fit, predict
from dogbreeds.training.loss import CrossEntropy
from dogbreeds.training.optimizer import SGD, Adam, AdamW, Optimizer, RMSprop
from dogbreeds.training.phase import Frozen
from dogbreeds.training.rows import Rows
from dogbreeds.training.schedule import Constant, Cosine, Plateau
from dogbreeds.training.state import TrainingState
from dogbreeds.training.step import Step

N, FEATURES, CLASSES = 96, 12, 5
# Frozen backbone: only the head trains.
PLAN = Plan(1, (frozenset(),), 1, "frozen", False, "", 0, {})
ADAM = {"layer_decay": 1.0, "clipnorm": None, "beta_1": 0.9, "beta_2": 0.999, "epsilon": 1e-7}


def rows(seed: int = 0, n: int = N) -> Rows:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, size=n).astype(np.int32)
    centres = np.random.default_rng(99).normal(size=(CLASSES, FEATURES))
    array = (centres[labels] + 0.8 * rng.normal(size=(n, FEATURES))).astype(np.float32)
    return Rows(array, np.arange(n), labels)


def network(head=None, seed: int = 0) -> Network:
    return Network(None, None, (head or MLP(widths=[16], dropout=0.5)).build(FEATURES, CLASSES, seed), PLAN)  # type: ignore[arg-type]


def phase(epochs: int = 4, batch_size: int = 20, patience: int | None = None, monitor: str = "accuracy") -> Frozen:
    return Frozen(epochs=epochs, batch_size=batch_size, patience_epochs=patience, monitor=monitor)


def train(
    built: Network, optimizer: Optimizer | None = None, schedule=None, seed: int = 0, class_weights=None, **settings
):
    seen: list[Epoch] = []
    data = rows()
    history = fit(
        built,
        train=lambda epoch: data,
        val=rows(1, 200),
        phase=phase(**settings),
        optimizer=optimizer or Adam(lr=1e-2, **ADAM),
        schedule=schedule or Constant(),
        seed=seed,
        on_epoch=seen.append,
        class_weights=class_weights,
    )
    assert seen == history.epochs
    return history


def test_fit_reports_the_steps_of_each_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    reported: list[list] = []

    @contextlib.contextmanager
    def progress(*arguments, brief: bool):
        reported.append([*arguments, brief, 0])
        yield lambda steps: reported[-1].append(reported[-1].pop() + steps)

    monkeypatch.setattr(console, "progress", progress)
    train(network(), epochs=2)
    assert reported == [[f"epoch {number}", 5, "steps", 0, True, 5] for number in (1, 2)]


@pytest.mark.parametrize(
    ("optimizer", "reference"),
    [
        (Adam(lr=1e-2, **ADAM), "Adam(1e-2)"),
        (SGD(lr=0.05, momentum=0.9, layer_decay=1.0, clipnorm=None), "SGD(0.05, momentum=0.9)"),
        pytest.param(
            AdamW(lr=1e-2, weight_decay=0.1, weight_decay_on="all", **ADAM),
            "AdamW(1e-2, weight_decay=0.1)",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            RMSprop(lr=1e-3, rho=0.8, momentum=0.5, layer_decay=1.0, clipnorm=None),
            "RMSprop(1e-3, rho=0.8, momentum=0.5)",
            marks=pytest.mark.slow,
        ),
    ],
)
@pytest.mark.parametrize(
    "head",
    [
        MLP(widths=[16], dropout=0.5),
        *(pytest.param(head, marks=pytest.mark.long) for head in (BatchNorm(dropout=0.2), Linear(dropout=0.0))),
    ],
)
def test_fit_gives_the_metrics_of_plain_keras_in_the_same_order(optimizer: Optimizer, reference: str, head) -> None:
    import keras

    ours, theirs = network(head), head.build(FEATURES, CLASSES, 0)
    history = train(ours, optimizer, epochs=2)
    name, arguments = reference.rstrip(")").split("(", 1)
    theirs.compile(
        optimizer=eval(f"keras.optimizers.{name}({arguments})", {"keras": keras}),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    data, val = rows(), rows(1, 200)
    for epoch in range(2):
        shuffled, losses, correct = epoch_order(0, epoch, N), [], 0.0
        for start in range(0, N, 20):
            batch = shuffled[start : start + 20]
            theirs.reset_metrics()
            loss, accuracy = theirs.train_on_batch(data.array[batch], data.labels[batch])
            losses.append(loss * len(batch))
            correct += accuracy * len(batch)
        assert history.epochs[epoch].train_loss == pytest.approx(sum(losses) / N, rel=1e-5)
        assert history.epochs[epoch].train_accuracy == pytest.approx(correct / N)
        expected = score(theirs.predict(val.array, verbose=0), val.labels)
        assert history.epochs[epoch].val.loss == pytest.approx(expected.loss, rel=1e-4)
        assert history.epochs[epoch].val.accuracy == expected.accuracy


def test_balanced_class_weights_give_the_loss_of_keras_class_weight() -> None:
    import keras

    labels = np.repeat(np.arange(CLASSES), [8, 1, *[3] * (CLASSES - 2)])
    weights = CrossEntropy(class_weights="balanced", label_smoothing=0).weights(labels, CLASSES)
    assert weights is not None
    # Each class counts alike, and an image 1 on average.
    assert np.bincount(labels, weights[labels]) == pytest.approx(np.full(CLASSES, len(labels) / CLASSES))
    ours, theirs = network(), MLP(widths=[16], dropout=0.5).build(FEATURES, CLASSES, 0)
    history = train(ours, class_weights=weights, epochs=1, batch_size=N)
    theirs.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    batch = epoch_order(0, 0, N)
    data = rows()
    loss = theirs.train_on_batch(data.array[batch], data.labels[batch], class_weight=dict(enumerate(weights.tolist())))
    assert history.epochs[0].train_loss == pytest.approx(float(loss), rel=1e-5)
    assert history.epochs[0].train_loss != pytest.approx(train(network(), epochs=1, batch_size=N).epochs[0].train_loss)


def test_class_weights_without_a_class_are_finite() -> None:
    weights = CrossEntropy(class_weights="balanced", label_smoothing=0).weights(np.array([0, 0, 0, 2]), 3)
    assert weights is not None
    assert weights[[0, 2]] == pytest.approx([4 / (2 * 3), 4 / 2])
    assert np.isfinite(weights).all()
    assert CrossEntropy(class_weights="none", label_smoothing=0).weights(np.array([0, 1]), 2) is None


@pytest.mark.parametrize("monitor", MONITORS)
def test_monitored_metric_selects_the_best_epoch_and_stops(monitor: str) -> None:
    history = train(network(), epochs=30, patience=2, monitor=monitor)
    values = [epoch.val.monitored(monitor) for epoch in history.epochs]
    assert history.best is history.epochs[values.index(max(values))]
    assert len(values) == min(30, history.best.number + 2)
    assert len(values) == 30 or monitor.replace("_", " ") in history.stop_reason


def test_fit_is_deterministic_for_a_seed_and_differs_for_another() -> None:
    first, again, other = train(network()), train(network()), train(network(), seed=1)
    assert [epoch.metrics() for epoch in first.epochs] == [epoch.metrics() for epoch in again.epochs]
    assert first.epochs[0].train_loss != other.epochs[0].train_loss
    assert all(np.array_equal(a, b) for a, b in zip(first.best_weights, again.best_weights, strict=True))


def test_epoch_order_is_another_permutation_for_each_epoch_and_seed() -> None:
    orders = [epoch_order(0, epoch, 50) for epoch in range(3)] + [epoch_order(1, 0, 50)]
    assert all(sorted(drawn) == list(range(50)) for drawn in orders)
    assert len({tuple(drawn) for drawn in orders}) == 4
    assert np.array_equal(orders[0], epoch_order(0, 0, 50))


def test_fit_restores_the_weights_of_the_best_epoch() -> None:
    built = network()
    history = train(built, Adam(lr=0.3, **ADAM), epochs=12)
    best = max(history.epochs, key=lambda epoch: (epoch.val.accuracy.correct, -epoch.number))
    assert history.best == best
    assert best.number < 12
    again = score(predict(built, rows(1, 200)), rows(1, 200).labels)
    assert again == best.val
    assert score(history.best_logits, rows(1, 200).labels) == best.val


def test_fit_stops_when_patience_is_exhausted() -> None:
    history = train(network(), Adam(lr=0.3, **ADAM), epochs=40, patience=3)
    assert history.best is not None
    assert len(history.epochs) == history.best.number + 3 < 40
    assert history.stop_reason == "no better validation accuracy for 3 epochs"


def test_fit_stops_at_a_nan_loss_and_reports_step_epoch_and_rate() -> None:
    built = network(Linear(dropout=0.0))
    good = rows()
    broken = Rows(
        np.where(np.arange(N)[:, None] == epoch_order(0, 1, N)[25], np.nan, good.array).astype(np.float32),
        good.indices,
        good.labels,
    )
    history = fit(
        built,
        train=lambda epoch: broken if epoch else good,
        val=rows(1, 200),
        phase=phase(),
        optimizer=Adam(lr=1e-2, **ADAM),
        schedule=Constant(),
        seed=0,
        on_epoch=lambda epoch: None,
    )
    assert history.diverged
    assert history.stop_reason == "the loss was nan at step 7 (epoch 2), lr 0.01"
    assert len(history.epochs) == 1
    assert all(np.isfinite(variable.numpy()).all() for variable in built.variables)
    assert score(predict(built, rows(1, 200)), rows(1, 200).labels) == history.epochs[0].val


def test_fit_records_the_scheduled_rate_of_each_epoch_s_last_step() -> None:
    history = train(network(), schedule=Cosine(warmup_epochs=1, final_fraction=0.0), epochs=4)
    expected = [Cosine(warmup_epochs=1, final_fraction=0.0).lr(1e-2, index + 4 / 5, 4, []) for index in range(4)]
    assert [epoch.lr for epoch in history.epochs] == pytest.approx(expected)
    assert history.epochs[0].lr < history.epochs[1].lr > history.epochs[3].lr


def test_training_metrics_weight_a_partial_batch_by_its_images() -> None:
    built = network(Linear(dropout=0.0))
    data = rows(n=21)
    before = score(predict(built, data), data.labels)
    still = SGD(lr=1e-30, momentum=0.0, layer_decay=1.0, clipnorm=None)
    history = fit(
        built,
        train=lambda epoch: data,
        val=data,
        phase=phase(epochs=1),
        optimizer=still,
        schedule=Constant(),
        seed=0,
        on_epoch=lambda epoch: None,
    )
    assert history.epochs[0].train_loss == pytest.approx(before.loss, rel=1e-5)
    assert math.isclose(history.epochs[0].train_accuracy, before.accuracy.value, rel_tol=1e-6)


@pytest.mark.parametrize(
    ("head", "optimizer"),
    [
        (MLP(widths=[16], dropout=0.5), Adam(lr=1e-2, **ADAM)),
        pytest.param(
            BatchNorm(dropout=0.2), SGD(lr=0.05, momentum=0.9, layer_decay=1.0, clipnorm=None), marks=pytest.mark.slow
        ),
        pytest.param(
            Linear(dropout=0.2),
            RMSprop(lr=1e-3, rho=0.8, momentum=0.5, layer_decay=1.0, clipnorm=None),
            marks=pytest.mark.slow,
        ),
    ],
)
@pytest.mark.parametrize(("save_steps", "epochs"), [(None, 4), (2, 2)])
def test_fit_resumes_from_any_checkpoint_bit_for_bit(
    head, optimizer: Optimizer, save_steps: int | None, epochs: int
) -> None:
    data = rows()
    settings = {
        "train": lambda epoch: data,
        "val": rows(1, 200),
        "phase": phase(epochs=epochs, patience=2),
        "optimizer": optimizer,
        "schedule": Plateau(factor=0.5, patience_epochs=1, min_delta=1e-4, min_lr=0.0),
        "seed": 3,
    }
    checkpoints: list[tuple[str, dict]] = []

    def save(state: TrainingState) -> None:
        metadata, arrays = state.to_checkpoint()
        checkpoints.append((json.dumps(metadata), {name: array.copy() for name, array in arrays.items()}))

    uninterrupted = network(head)
    expected = fit(uninterrupted, **settings, on_epoch=lambda epoch: None, save=save, save_steps=save_steps)
    assert len(checkpoints) == (
        len(expected.epochs) if save_steps is None else len(expected.epochs) + len(expected.epochs) * 5 // 2
    )
    for metadata, arrays in checkpoints:
        resumed, reported = network(head, seed=9), []
        state = TrainingState.from_checkpoint(json.loads(metadata), arrays)
        history = fit(resumed, **settings, on_epoch=reported.append, resume_from=state)
        assert [epoch.metrics() for epoch in history.epochs] == [epoch.metrics() for epoch in expected.epochs]
        # Epochs that were reported before are not reported again.
        assert reported == history.epochs[json.loads(metadata)["epoch"] :]
        assert (history.stop_reason, history.best.number) == (expected.stop_reason, expected.best.number)
        assert history.best_logits.tobytes() == expected.best_logits.tobytes()
        assert [a.numpy().tobytes() for a in resumed.variables] == [
            b.numpy().tobytes() for b in uninterrupted.variables
        ]


@pytest.mark.parametrize("steps_per_execution", [1, 3])
@pytest.mark.parametrize("at", [4, *(pytest.param(at, marks=pytest.mark.long) for at in (1, 5, 7))])
def test_fit_finishes_the_step_when_interrupted_and_resumes_without_loss(at: int, steps_per_execution: int) -> None:
    """A signal arrives in the middle of a call: its steps are finished, and a checkpoint is written."""
    signals.install_handlers()
    data, val, checkpoints, taken = rows(), rows(1, 200), [], []
    real = Step.take

    def interrupted(self, layers, lrs, *arguments):
        taken.extend(lrs)
        if len(taken) - len(lrs) < at <= len(taken):
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, layers, lrs, *arguments)

    def run(built, **more):
        return fit(
            built,
            train=lambda epoch: data,
            val=val,
            phase=phase(epochs=2),
            optimizer=Adam(lr=1e-2, **ADAM),
            schedule=Constant(),
            seed=0,
            on_epoch=lambda epoch: None,
            steps_per_execution=steps_per_execution,
            **more,
        )

    uninterrupted, first, second = network(), network(), network()
    run(uninterrupted)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Step, "take", interrupted)
        with pytest.raises(signals.Terminated):
            run(first, save=lambda state: checkpoints.append(state.to_checkpoint()))
    state = TrainingState.from_checkpoint(*checkpoints[-1])
    done = state.epoch * 5 + state.step
    # Of five batches in an epoch, four are whole: three steps, one, and the last by itself.
    assert done == (at if steps_per_execution == 1 else {1: 3, 4: 4, 5: 5, 7: 8}[at])
    steps: list[float] = []

    def counted(self, layers, lrs, *arguments):
        steps.extend(lrs)
        return real(self, layers, lrs, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Step, "take", counted)
        run(second, resume_from=state)
    assert len(steps) == 10 - done
    assert [a.numpy().tobytes() for a in second.variables] == [b.numpy().tobytes() for b in uninterrupted.variables]


def test_fit_stops_at_an_infinite_gradient_and_saves_nothing_after_it() -> None:
    import keras

    # The slope of the square root is infinite at 0.
    root = keras.layers.Lambda(lambda scores: keras.ops.sqrt(keras.ops.relu(scores)))
    saved: list[TrainingState] = []
    head = keras.Sequential([keras.Input((FEATURES,)), keras.layers.Dense(CLASSES), root])
    built = Network(None, None, head, PLAN)  # type: ignore[arg-type]
    data = rows()
    history = fit(
        built,
        train=lambda epoch: data,
        val=data,
        phase=phase(),
        optimizer=Adam(lr=1e-2, **ADAM),
        schedule=Constant(),
        seed=0,
        on_epoch=lambda epoch: None,
        save=saved.append,
    )
    assert (history.diverged, history.stop_reason) == (True, "the gradient was not finite at step 1 (epoch 1), lr 0.01")
    assert saved == []
