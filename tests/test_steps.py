"""Several training steps in one call: the same bits, checkpoints and faults as one step a call. Gradient clipping."""

import numpy as np
import pytest

from dogbreeds.core.errors import UserError
from dogbreeds.models.head import MLP, BatchNorm
from dogbreeds.models.network import Network
from dogbreeds.training.loop import fit
from dogbreeds.training.optimizer import SGD, Adam, AdamW, Optimizer, RMSprop
from dogbreeds.training.rows import Rows
from dogbreeds.training.schedule import Cosine
from dogbreeds.training.state import TrainingState
from dogbreeds.training.step import Step
from tests.test_fit import ADAM, CLASSES, FEATURES, N, network, phase, rows


def train(built: Network, steps_per_execution: int | None, optimizer: Optimizer, epochs: int = 2, **more):
    """Train and return the history, the metrics of each step, and the number of steps in each call."""
    data = more.pop("data", rows())
    measured, calls = [], []
    take = Step.take

    def record(self, layers, lrs, *arguments):
        metrics = take(self, layers, lrs, *arguments)
        measured.extend(metrics)
        calls.append(len(lrs))
        return metrics

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Step, "take", record)
        history = fit(
            built,
            train=lambda epoch: data,
            val=rows(1, 200),
            phase=phase(epochs=epochs, batch_size=10),
            optimizer=optimizer,
            schedule=Cosine(warmup_epochs=1, final_fraction=0.1),
            seed=0,
            on_epoch=lambda epoch: None,
            steps_per_execution=steps_per_execution,
            **more,
        )
    return history, measured, calls


def states() -> tuple[list[tuple], dict]:
    """Return a list of checkpoints, as bytes, and the argument of `fit` that appends to it."""
    saved: list[tuple] = []

    def save(state: TrainingState) -> None:
        arrays = state.to_checkpoint()[1]
        saved.append(
            (state.epoch, state.step, state.metric_sums.tobytes(), {k: v.tobytes() for k, v in arrays.items()})
        )

    return saved, {"save": save}


@pytest.mark.parametrize(
    ("head", "optimizer"),
    [
        (MLP(widths=[16], dropout=0.5), Adam(lr=1e-2, **ADAM)),
        pytest.param(
            BatchNorm(dropout=0.2),
            AdamW(lr=1e-2, weight_decay=0.1, weight_decay_on="all", **ADAM),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_several_steps_in_one_call_give_the_bits_of_one_step_a_call(head, optimizer: Optimizer) -> None:
    # 96 images: nine whole batches, and one of six images.
    one, save_one = states()
    expected, metrics, calls = train(network(head), 1, optimizer, save_steps=4, **save_one)
    assert calls == [1] * 20
    several, save_several = states()
    history, found, calls = train(network(head), 7, optimizer, save_steps=4, **save_several)
    # A call ends at each fourth step, counted over both epochs, and before the smaller batch.
    assert calls == [4, 4, 1, 1, 2, 4, 3, 1]
    assert found == metrics
    assert [epoch.metrics() for epoch in history.epochs] == [epoch.metrics() for epoch in expected.epochs]
    # Weights, momenta, the states of dropout, sums and best weights, at each checkpoint.
    assert several == one
    assert len(one) == 7


def test_number_of_steps_in_one_call_is_no_part_of_the_key(composed) -> None:
    run = composed("steps_per_execution=4")
    assert run.steps_per_execution == 4
    assert run.key == composed().key


def test_fault_in_the_middle_of_a_call_is_named_by_its_step_and_ends_the_call() -> None:
    from tests.test_fit import epoch_order

    good = rows()
    broken = np.where(np.arange(N)[:, None] == epoch_order(0, 0, N)[25], np.nan, good.array).astype(np.float32)
    saved, save = states()
    history, measured, calls = train(
        network(), 9, Adam(lr=1e-2, **ADAM), data=Rows(broken, good.indices, good.labels), **save
    )
    assert calls == [9]
    # Image 25 of the order is in the third batch.
    assert len(measured) == 3
    assert history.stop_reason.startswith("the loss was nan at step 3 (epoch 1), lr 0.00")
    assert (history.epochs, saved) == ([], [])


@pytest.mark.slow
def test_chosen_number_of_steps_grows_from_one_and_respects_checkpoints() -> None:
    big = rows(n=3000)
    _, _, calls = train(network(), None, Adam(lr=1e-2, **ADAM), epochs=1, data=big, save_steps=50)
    assert calls[:2] == [1, 1]
    assert sum(calls) == 300
    assert max(calls) > 1
    assert set(np.cumsum(calls)) >= set(range(50, 301, 50))


# --- gradient clipping --------------------------------------------------------


@pytest.mark.parametrize(
    ("optimizer", "reference"),
    [
        (SGD(lr=0.05, momentum=0.9, layer_decay=1.0, clipnorm=0.1), "SGD"),
        pytest.param(Adam(lr=1e-2, **ADAM | {"clipnorm": 0.1}), "Adam", marks=pytest.mark.slow),
        pytest.param(
            RMSprop(lr=1e-2, rho=0.9, momentum=0.0, layer_decay=1.0, clipnorm=0.1), "RMSprop", marks=pytest.mark.slow
        ),
    ],
)
def test_clipnorm_clips_the_gradient_of_each_weight_as_keras_does(optimizer: Optimizer, reference: str) -> None:
    import keras

    head = MLP(widths=[16], dropout=0.0)
    ours, theirs = network(head), head.build(FEATURES, CLASSES, 0)
    data = rows()
    step = Step(ours, optimizer)
    more = {"momentum": 0.9} if reference == "SGD" else {}
    clipped = getattr(keras.optimizers, reference)(optimizer.lr, clipnorm=0.1, **more)
    theirs.compile(clipped, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    for start in range(0, 60, 20):
        # Large inputs, so that the gradients are clipped.
        batch = 10 * data.array[start : start + 20]
        loss = theirs.train_on_batch(batch, data.labels[start : start + 20])
        found = step(frozenset(), optimizer.lr, batch, data.labels[start : start + 20]).loss
        assert found == pytest.approx(float(loss), rel=1e-4)
    plain = network(head)
    free = Step(plain, SGD(lr=0.05, momentum=0.9, layer_decay=1.0, clipnorm=None))
    free(frozenset(), optimizer.lr, 10 * data.array[:20], data.labels[:20])
    assert not np.allclose(plain.head.get_weights()[0], ours.head.get_weights()[0], atol=1e-2)


def test_clipnorm_is_part_of_the_key_unless_it_is_off(composed) -> None:
    run = composed("optimizer.clipnorm=1")
    assert run.optimizer.clipnorm == 1
    assert run.key != composed().key
    assert composed().optimizer.clipnorm is None


@pytest.mark.parametrize("value", [0, -1, True, "1", float("inf"), 1e-50])
def test_clipnorm_of_another_kind_says_what_to_type(value) -> None:
    with pytest.raises(UserError) as error:
        SGD(lr=0.1, momentum=0.9, layer_decay=1.0, clipnorm=value)
    message = str(error.value)
    assert message.startswith(f"optimizer.clipnorm was {value!r}")
    assert message.endswith("Type optimizer.clipnorm=1, for example.")


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "auto"])
def test_steps_per_execution_of_another_kind_says_what_to_type(composed, value) -> None:
    with pytest.raises(UserError, match=r"^steps_per_execution was .*Type steps_per_execution=10, for example\.$"):
        composed(f"steps_per_execution={value}")


# --- reuse --------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "mixed_float16"])
def test_steps_of_a_network_are_compiled_once_for_all_rates_and_start_as_new(precision: str) -> None:
    def run(built: Network, lr: float):
        initial = [variable.numpy() for variable in network().variables]
        for variable, value in zip(built.variables, initial, strict=True):
            variable.assign(value)
        history, metrics, _ = train(built, None, Adam(lr=lr, **ADAM), precision=precision)
        return history, metrics

    built = network()
    run(built, 1e-1)
    (step,) = built.steps.values()
    history, metrics = run(built, 1e-2)
    assert list(built.steps.values()) == [step]
    expected, alone = run(network(), 1e-2)
    assert metrics == alone
    assert [a.tobytes() for a in history.best_weights] == [b.tobytes() for b in expected.best_weights]


@pytest.mark.slow
def test_a_network_keeps_the_steps_of_two_optimizers() -> None:
    built = network()
    for beta_1 in (0.5, 0.6, 0.7):
        Step.of(built, Adam(lr=1e-2, **ADAM | {"beta_1": beta_1}))
    assert len(built.steps) == 2
