"""Mixed precision: what trains computes in 16 bits; weights, logits, loss, and all that is measured stay in float32."""

import math

import numpy as np
import pytest

from dogbreeds.core.errors import UserError
from dogbreeds.experiments.run import Ungrouped
from dogbreeds.models.head import MLP, BatchNorm, Linear
from dogbreeds.models.network import Network
from dogbreeds.models.precision import PRECISIONS, computes_in
from dogbreeds.training.loop import fit, predict
from dogbreeds.training.loss_scale import LossScale
from dogbreeds.training.optimizer import SGD, Adam
from dogbreeds.training.schedule import Constant
from dogbreeds.training.state import History, TrainingState
from dogbreeds.training.step import Step
from tests.test_fit import ADAM, CLASSES, FEATURES, PLAN, network, phase, rows

MIXED = PRECISIONS[1:]
STILL = SGD(lr=1e-6, momentum=0.0, layer_decay=1.0, clipnorm=None)


def train(built: Network, precision: str, epochs: int = 3, **more) -> History:
    data = rows()
    return fit(
        built,
        train=lambda epoch: data,
        val=rows(1, 200),
        phase=phase(epochs=epochs),
        optimizer=Adam(lr=1e-2, **ADAM),
        schedule=Constant(),
        seed=0,
        on_epoch=lambda epoch: None,
        precision=precision,
        **more,
    )


def weights(built: Network) -> list[bytes]:
    return [variable.numpy().tobytes() for variable in built.variables]


def test_precision_is_part_of_the_key_unless_it_is_float32(composed) -> None:
    run = composed("precision=mixed_float16")
    assert run.parameters()["precision"] == "mixed_float16"
    plain = composed()
    assert plain.precision == "float32"
    assert run.key != plain.key


@pytest.mark.parametrize("value", ["float16", "bfloat16", None, 16])
def test_unknown_precision_says_what_to_type(value) -> None:
    settings = {"seed": 0, "stop_on_collapse": False, "checkpoint_steps": None, "checkpoint_dir": "c", "rerun": False}
    with pytest.raises(UserError) as error:
        Ungrouped(**settings, precision=value, steps_per_execution=None)
    message = str(error.value)
    assert message.startswith(f"precision was {value!r}.")
    assert ", ".join(PRECISIONS) in message
    assert message.endswith("Type precision=float32, for example.")


@pytest.mark.parametrize("precision", MIXED)
def test_layers_that_train_compute_in_16_bits_and_have_their_own_type_again_afterwards(precision: str) -> None:
    import keras

    head = BatchNorm(dropout=0.2).build(FEATURES, CLASSES, 0)
    inputs = np.ones((2, FEATURES), np.float32)
    with computes_in(precision, head.layers):
        assert head.layers[0](inputs).dtype == precision.removeprefix("mixed_")
        # The logits.
        assert head(inputs).dtype == "float32"
    assert {layer.dtype_policy.name for layer in head.layers} == {"float32"}
    assert head.layers[0](inputs).dtype == "float32"
    assert {variable.dtype for variable in head.trainable_variables} == {"float32"}
    assert keras.config.dtype_policy().name == "float32"


def test_layers_have_their_own_type_again_after_an_error() -> None:
    head = Linear(dropout=0.2).build(FEATURES, CLASSES, 0)
    with pytest.raises(ZeroDivisionError), computes_in("mixed_bfloat16", head.layers):
        raise ZeroDivisionError
    assert {layer.dtype_policy.name for layer in head.layers} == {"float32"}


def test_loss_scale_halves_down_to_1_and_doubles_after_2000_steps() -> None:
    scale = LossScale()
    value, steps = scale.variables
    for _ in range(15):
        assert bool(scale.update(False))
    assert float(value.numpy()) == 1
    # At 1 it is the gradient itself that overflows.
    assert not bool(scale.update(False))
    assert float(value.numpy()) == 1
    steps.assign(1999)
    scale.update(True)
    assert (float(value.numpy()), float(steps.numpy())) == (2, 0)
    scale.update(True)
    assert (float(value.numpy()), float(steps.numpy())) == (2, 1)
    assert math.isclose(float(scale.scaled(np.float32(3))), 6)


@pytest.mark.slow
@pytest.mark.parametrize("precision", MIXED)
def test_mixed_training_is_near_float32_and_what_it_records_is_float32(precision: str) -> None:
    # Dropout draws other masks in another type.
    plain, mixed = network(MLP(widths=[16], dropout=0.0)), network(MLP(widths=[16], dropout=0.0))
    losses = [[epoch.train_loss for epoch in train(plain, "float32").epochs]]
    history = train(mixed, precision)
    losses.append([epoch.train_loss for epoch in history.epochs])
    # Types of 8 and of 11 bits.
    assert losses[1] == pytest.approx(losses[0], rel={"mixed_bfloat16": 3e-2, "mixed_float16": 3e-3}[precision])
    assert losses[1] != losses[0]
    again = network(MLP(widths=[16], dropout=0.0), seed=7)
    for variable, value in zip(again.variables, history.best_weights, strict=True):
        variable.assign(value)
    assert history.best_logits is not None
    assert predict(again, rows(1, 200)).tobytes() == history.best_logits.tobytes()


@pytest.mark.slow
def test_float16_step_that_overflows_is_skipped_until_the_scale_is_small_enough() -> None:
    import keras

    head = keras.Sequential([keras.Input((FEATURES,)), keras.layers.Dense(8), keras.layers.Dense(CLASSES)])
    # The gradient of the first kernel is 10 times the scale, and float16 ends at 65,504: 2**12 is the first that fits.
    to_first_class = np.eye(1, CLASSES, dtype=np.float32).repeat(8, axis=0)
    head.set_weights([np.full((FEATURES, 8), 0.01), np.zeros(8), to_first_class, np.zeros(CLASSES)])
    built = Network(None, None, head, PLAN)  # type: ignore[arg-type]
    step = Step(built, STILL, None, "mixed_float16")
    before = weights(built)
    for scale in (2.0**14, 2.0**13, 2.0**12):
        metrics = step(frozenset(), 1e-6, np.full((4, FEATURES), 10, np.float32), np.ones(4, np.int32))
        assert (metrics.is_finite, metrics.grad_sum) == (True, 0)
        assert [float(variable.numpy()) for variable in step.variables[-2:]] == [scale, 0]
    assert weights(built) == before
    metrics = step(frozenset(), 1e-6, np.full((4, FEATURES), 10, np.float32), np.ones(4, np.int32))
    assert metrics.is_finite
    assert metrics.grad_sum > 0
    assert weights(built) != before


@pytest.mark.slow
def test_float16_gradient_that_no_scale_makes_finite_is_a_fault() -> None:
    import keras

    # The slope of the square root is infinite at 0.
    root = keras.layers.Lambda(lambda scores: keras.ops.sqrt(keras.ops.relu(scores)))
    head = keras.Sequential([keras.Input((FEATURES,)), keras.layers.Dense(CLASSES), root])
    built = Network(None, None, head, PLAN)  # type: ignore[arg-type]
    before = weights(built)
    history = train(built, "mixed_float16", epochs=4)
    # 15 steps halve the scale from 2**15 to 1. The 16th is the first of the fourth epoch.
    assert history.stop_reason == "the gradient was not finite at step 16 (epoch 4), lr 0.01"
    assert weights(built) == before


@pytest.mark.slow
def test_float16_resumes_with_its_scale_bit_for_bit() -> None:
    checkpoints: list[TrainingState] = []
    expected, resumed = network(), network(seed=5)
    train(
        expected,
        "mixed_float16",
        save=lambda state: checkpoints.append(TrainingState.from_checkpoint(*state.to_checkpoint())),
    )
    # Scale and steps without an overflow.
    assert [float(value) for value in checkpoints[0].optimizer_variables[-2:]] == [2.0**15, 5]
    train(resumed, "mixed_float16", resume_from=checkpoints[0])
    assert weights(resumed) == weights(expected)
