"""Mixing, label smoothing, averaged weights and weight decay of kernels, compared with Keras and by hand."""

import numpy as np
import pytest

from dogbreeds.data.mix import Cutmix, Mix, Mixup
from dogbreeds.models.head import MLP, BatchNorm, Linear
from dogbreeds.training.loop import fit, predict
from dogbreeds.training.optimizer import SGD, AdamW
from dogbreeds.training.schedule import Constant
from dogbreeds.training.state import TrainingState
from dogbreeds.training.step import Step
from tests.test_fit import ADAM, CLASSES, FEATURES, N, network, phase, rows

PLAIN_SGD = SGD(lr=0.05, momentum=0.0, layer_decay=1.0, clipnorm=None)


def train(built, optimizer=PLAIN_SGD, epochs: int = 1, **options):
    data = rows()
    return fit(
        built,
        train=lambda epoch: data,
        val=rows(1, 200),
        phase=phase(epochs=epochs),
        optimizer=optimizer,
        schedule=Constant(),
        seed=0,
        on_epoch=lambda epoch: None,
        **options,
    )


def test_label_smoothing_gives_the_loss_of_keras() -> None:
    import keras

    data, built = rows(), network(Linear(dropout=0.0))
    logits = predict(built, data)
    step = Step(built, PLAIN_SGD, label_smoothing=0.2)
    found = step(frozenset(), 0.05, data.array, data.labels).loss
    loss = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.2)
    assert found == pytest.approx(float(loss(np.eye(CLASSES)[data.labels], logits)), rel=1e-5)


def test_mixup_gives_the_loss_of_soft_labels_on_mixed_rows() -> None:
    import keras

    data, built = rows(), network(Linear(dropout=0.0))
    mixed = Mixup(alpha=1).apply(data.array, data.labels, seed=0, epoch=0, step=0)
    own, other = np.eye(CLASSES)[data.labels], np.eye(CLASSES)[mixed.partners]
    soft = mixed.shares[:, None] * own + (1 - mixed.shares[:, None]) * other
    loss = keras.losses.CategoricalCrossentropy(from_logits=True)
    expected = float(loss(soft, built.infer(mixed.inputs)))
    inputs, targets = Mixup(alpha=1).apply_steps(data.array[None], data.labels[None], seed=0, epoch=0, first_step=0)
    (found,) = Step(built, PLAIN_SGD).take(frozenset(), [0.05], inputs, targets)
    assert found.loss == pytest.approx(expected, rel=1e-5)
    assert np.std(mixed.shares) > 0.2
    assert not np.allclose(mixed.inputs, data.array)


def test_cutmix_counts_classes_by_the_area_that_is_theirs() -> None:
    labels = np.arange(8, dtype=np.int32)
    images = np.broadcast_to(labels.astype(np.uint8)[:, None, None, None], (8, 14, 14, 3))
    mixed = Cutmix(alpha=1).apply(images, labels, seed=3, epoch=1, step=2)
    for row in range(8):
        is_own = mixed.inputs[row, ..., 0] == row
        assert is_own.mean() == pytest.approx(mixed.shares[row], abs=1e-6) or mixed.partners[row] == row
        assert set(np.unique(mixed.inputs[row])) <= {row, mixed.partners[row]}
    assert 0 < mixed.shares.min() < 0.9


@pytest.mark.parametrize("mix", [Mixup(alpha=0.4), Cutmix(alpha=1)])
def test_mixing_depends_only_on_seed_epoch_and_step(mix: Mix) -> None:
    images = np.random.default_rng(0).normal(size=(3, 6, 4, 4, 2)).astype(np.float32)
    labels = np.arange(18, dtype=np.int32).reshape(3, 6)
    inputs, targets = mix.apply_steps(images, labels, seed=1, epoch=2, first_step=5)
    last, last_targets = mix.apply_steps(images[2:], labels[2:], seed=1, epoch=2, first_step=7)
    assert np.array_equal(last[0], inputs[2])
    assert np.array_equal(last_targets[0], targets[2])
    others = [
        mix.apply(images[0], labels[0], **{"seed": 1, "epoch": 2, "step": 5} | change).inputs
        for change in ({"seed": 2}, {"epoch": 3}, {"step": 6})
    ]
    assert not any(np.allclose(other, inputs[0]) for other in others)


def test_average_of_the_weights_is_that_of_its_formula_and_is_kept() -> None:
    plain, averaged = network(Linear(dropout=0.0)), network(Linear(dropout=0.0))
    step, expected = Step(plain, PLAIN_SGD), None
    data = rows()
    from dogbreeds.training.loop import epoch_order

    for epoch in range(2):
        order = epoch_order(0, epoch, N)
        for start in range(0, N, 20):
            batch = order[start : start + 20]
            step(frozenset(), 0.05, data.array[batch], data.labels[batch])
            now = [value.numpy() for value in plain.head.trainable_variables]
            expected = now if expected is None else [0.8 * a + 0.2 * b for a, b in zip(expected, now, strict=True)]
    history = train(averaged, epochs=2, ema_decay=0.8)
    assert history.best is not None
    kept = averaged.head.get_weights()
    if history.best.number == 2:
        assert all(np.allclose(a, b, atol=1e-5) for a, b in zip(kept, expected, strict=True))
    assert not np.allclose(kept[0], plain.head.get_weights()[0], atol=1e-3)
    # What is kept is what was validated.
    assert np.allclose(predict(averaged, rows(1, 200)), history.best_logits, atol=1e-5)


@pytest.mark.parametrize("ema_decay", [0.9, pytest.param(None, marks=pytest.mark.slow)])
def test_training_with_every_option_resumes_bit_for_bit(ema_decay: float | None) -> None:
    options = {"ema_decay": ema_decay, "label_smoothing": 0.1, "mix": Mixup(alpha=0.4)}
    states: list = []

    def save(state: TrainingState) -> None:
        states.append(state.to_checkpoint())

    head = MLP(widths=[16], dropout=0.5)
    optimizer = AdamW(lr=1e-2, weight_decay=0.1, weight_decay_on="kernels", **ADAM)
    whole = network(head)
    history = train(whole, optimizer, epochs=3, save=save, save_steps=3, **options)
    middle = next(state for state in states if state[0]["epoch"] == 1 and state[0]["step"])
    resumed = network(head)
    again = train(resumed, optimizer, epochs=3, resume_from=TrainingState.from_checkpoint(*middle), **options)
    assert [epoch.train_loss for epoch in again.epochs] == [epoch.train_loss for epoch in history.epochs]
    assert [epoch.val for epoch in again.epochs] == [epoch.val for epoch in history.epochs]
    for ours, theirs in zip(resumed.head.get_weights(), whole.head.get_weights(), strict=True):
        assert np.array_equal(ours, theirs)


def test_weight_decay_on_kernels_leaves_biases_and_batchnorm_alone() -> None:
    decays = {}
    for name in ("all", "kernels"):
        built = network(BatchNorm(dropout=0.0))
        # Without a gradient, only the decay moves a weight.
        optimizer = AdamW(lr=0.1, weight_decay=0.5, weight_decay_on=name, **ADAM)
        for variable in built.head.trainable_variables:
            variable.assign(np.ones(variable.shape, np.float32))
        step = Step(built, optimizer)
        step(frozenset(), 0.1, np.zeros((20, FEATURES), np.float32), np.arange(20, dtype=np.int32) % CLASSES)
        decays[name] = {variable.path.split("/")[-1]: variable.numpy() for variable in built.head.trainable_variables}
    # Inputs of zero give gamma no gradient.
    assert np.allclose(decays["all"]["gamma"], 0.95, atol=1e-3)
    assert np.allclose(decays["kernels"]["gamma"], 1, atol=1e-6)
    for name in ("kernel", "bias"):
        difference = decays["kernels"][name] - decays["all"][name]
        assert np.allclose(difference, 0 if name == "kernel" else 0.05, atol=1e-3)
