import numpy as np
import pytest

from dogbreeds.training.schedule import Constant, Cosine, Plateau


def test_constant_keeps_the_peak_rate() -> None:
    assert {Constant().lr(1e-3, progress, 10, [1.0]) for progress in (0, 3.5, 9.9)} == {1e-3}


@pytest.mark.parametrize(
    ("losses", "cuts"),
    [
        ([3, 2, 1], 0),
        ([1, 1, 1, 1], 1),
        ([1, 2, 2, 2, 2, 2, 2], 2),
        ([1, 2, 2, 0.5, 2, 2], 0),
        ([1, 0.99995, 0.99993, 0.99991], 1),
    ],
)
def test_plateau_cuts_after_three_epochs_without_a_lower_loss(losses: list[float], cuts: int) -> None:
    plateau = Plateau(factor=0.5, patience_epochs=3, min_delta=1e-4, min_lr=1e-7)
    assert plateau.lr(1e-3, len(losses), 20, losses) == pytest.approx(1e-3 * 0.5**cuts)


def test_plateau_equals_keras_reduce_lr_on_plateau_on_random_losses(rng: np.random.Generator) -> None:
    import keras

    plateau = Plateau(factor=0.5, patience_epochs=3, min_delta=1e-4, min_lr=1e-4)
    for _ in range(20):
        losses = np.cumsum(rng.normal(-0.02, 0.2, size=25)) + 5
        callback = keras.callbacks.ReduceLROnPlateau(
            monitor="val_loss", factor=0.5, patience=3, min_delta=1e-4, min_lr=1e-4
        )
        model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
        model.compile(optimizer=keras.optimizers.SGD(1e-3))
        callback.set_model(model)
        callback.on_train_begin()
        for epoch, loss in enumerate(losses):
            callback.on_epoch_end(epoch, {"val_loss": loss})
            assert plateau.lr(1e-3, epoch + 1, 25, losses[: epoch + 1]) == pytest.approx(
                float(model.optimizer.learning_rate), rel=1e-5
            )


def test_cosine_warms_up_to_the_peak_and_decays_to_the_final_fraction() -> None:
    cosine = Cosine(warmup_epochs=2, final_fraction=0.1)
    rates = [cosine.lr(1.0, progress, 10, []) for progress in np.linspace(0, 10, 101)]
    assert rates[0] == pytest.approx(1e-3)
    assert rates[10] == pytest.approx(0.5)
    assert rates[20] == 1.0
    assert rates[60] == pytest.approx(0.55)
    assert rates[100] == pytest.approx(0.1)
    assert np.all(np.diff(rates[20:]) < 0)
