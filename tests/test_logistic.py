"""Logistic regression as the training of a head: its epochs, what chooses `C`, resuming, and the refit."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from dogbreeds.core.errors import UserError
from dogbreeds.evaluation import logistic_regression, verdict
from dogbreeds.evaluation.logistic_regression import STRENGTHS, fit_path
from dogbreeds.evaluation.metrics import score
from dogbreeds.models.head import Logistic
from dogbreeds.models.network import Network
from dogbreeds.reports.attempt_row import AttemptRow
from dogbreeds.reports.curves import learning_curves
from dogbreeds.reports.evaluation_notes import about
from dogbreeds.reports.model_card import model_card
from dogbreeds.tracking.records import Record
from dogbreeds.training.logistic import fit_logistic, refitted, strengths
from dogbreeds.training.loop import predict
from dogbreeds.training.rows import Rows
from dogbreeds.training.state import History, TrainingState
from tests.test_fit import CLASSES, FEATURES, network, rows


def head(**settings) -> Logistic:
    return Logistic(**{"C": None, "patience": 1, "choose_by": "validation", "refit": True, **settings})


def fit(
    network: Network, train: Sequence[Rows] | None = None, val: Rows | None = None, spec: Logistic | None = None, **more
) -> History:
    return fit_logistic(
        network,
        spec or head(),
        train=train or [rows()],
        val=val or rows(1, 200),
        monitor=more.pop("monitor", "accuracy"),
        on_epoch=more.pop("on_epoch", lambda epoch: None),
        **more,
    )


def test_each_epoch_is_a_strength_and_the_network_gets_the_best_one() -> None:
    built = network(head())
    assert [type(layer).__name__ for layer in built.head.layers] == ["Dense"]
    val = rows(1, 200)
    history = fit(built)
    tried = [epoch.strength for epoch in history.epochs]
    assert tried == list(STRENGTHS[: len(tried)])
    fits = list(fit_path(rows().array, rows().labels, CLASSES, strengths=tried))
    for epoch, expected in zip(history.epochs, fits, strict=True):
        assert epoch.val.accuracy == score(expected.logits(val.array), val.labels).accuracy
        assert epoch.val.loss == pytest.approx(score(expected.logits(val.array), val.labels).loss, rel=1e-4)
        assert epoch.train_loss == pytest.approx(score(expected.logits(rows().array), rows().labels).loss, rel=1e-4)
    best = max(history.epochs, key=lambda epoch: (epoch.val.accuracy.value, -epoch.val.loss))
    assert history.best == best
    # Standardisation is folded into the layer.
    assert np.allclose(predict(built, val), fits[best.number - 1].logits(val.array), atol=1e-4)
    assert np.array_equal(predict(built, val), history.best_logits)
    losses = [epoch.val.loss for epoch in history.epochs]
    assert len(history.epochs) == max(best.number, losses.index(min(losses)) + 1) + 1
    assert history.judged == [best]
    assert best.metrics()["C"] == best.strength
    assert "lr" not in best.metrics()


def test_monitor_and_patience_decide_which_strength_is_best() -> None:
    by_loss = fit(network(head()), monitor="loss", spec=head(patience=20))
    assert len(by_loss.epochs) == len(STRENGTHS)
    assert by_loss.stop_reason == ""
    assert by_loss.best == min(by_loss.epochs, key=lambda epoch: epoch.val.loss)
    alone = fit(network(head()), spec=head(C=0.5))
    assert [epoch.strength for epoch in alone.epochs] == [0.5]
    assert strengths(head(C=0.5)) == (0.5,)


def test_cross_validation_chooses_by_images_that_each_fit_has_left_out() -> None:
    noise = Rows(
        np.random.default_rng(3).normal(size=(60, FEATURES)).astype(np.float32), np.arange(60), rows().labels[:60]
    )
    # A mirrored copy with the same features: if it stayed in the fit, its image would be memorised.
    history = fit(network(head()), train=[noise, noise], spec=head(choose_by="cross_validation", patience=20))
    left_out = [epoch.cross_validation for epoch in history.epochs]
    assert history.epochs[-1].train_accuracy > 0.5
    assert all(found is not None and found.accuracy.value < 0.4 and found.accuracy.n == 120 for found in left_out)
    best = max(history.epochs, key=lambda epoch: (epoch.selecting.accuracy.value, -epoch.selecting.loss))
    assert history.best == best
    assert best.metrics()["cross_validation/accuracy"] == best.selecting.accuracy.value


@pytest.mark.parametrize("choose_by", ["validation", "cross_validation"])
def test_a_fit_resumed_after_any_epoch_is_the_same_bit_for_bit(choose_by: str) -> None:
    spec = head(choose_by=choose_by)
    saved: list[tuple] = []
    built = network(head())
    whole = fit(built, spec=spec, save=lambda state: saved.append(state.to_checkpoint()))
    logits = predict(built, rows(1, 200))
    for checkpoint in (saved[0], saved[len(saved) // 2], saved[-1]):
        again = network(head(), seed=5)
        state = TrainingState.from_checkpoint(*checkpoint)
        seen = len(state.history.epochs)
        called: list = []
        resumed = fit(again, spec=spec, resume_from=state, on_epoch=called.append)
        assert [replace(epoch, seconds=0) for epoch in resumed.epochs] == [
            replace(epoch, seconds=0) for epoch in whole.epochs
        ]
        assert len(called) == len(whole.epochs) - seen
        assert np.array_equal(predict(again, rows(1, 200)), logits)


def test_refit_adds_the_validation_images_and_leaves_the_network_as_it_was() -> None:
    built = network(head())
    history = fit(built)
    before = predict(built, rows(2, 50))
    train, val = rows(), rows(1, 200)
    other = refitted(built, head(), [train, val], 0.1, None)
    (expected,) = fit_path(
        np.concatenate([train.array, val.array]), np.concatenate([train.labels, val.labels]), CLASSES, strengths=[0.1]
    )
    assert np.allclose(predict(other, rows(2, 50)), expected.logits(rows(2, 50).array), atol=1e-3)
    assert np.array_equal(predict(built, rows(2, 50)), before)
    assert history.best is not None


def test_class_weights_enter_the_fit() -> None:
    weights = np.array([1, 1, 20, 1, 1], np.float32)
    built, weighted = network(head()), network(head())
    fit(built, spec=head(C=1e-2))
    fit(weighted, spec=head(C=1e-2), class_weights=weights)
    assert (predict(weighted, rows(1, 200)).argmax(axis=1) == 2).sum() > (
        predict(built, rows(1, 200)).argmax(axis=1) == 2
    ).sum()


def test_features_that_are_not_finite_end_the_fit() -> None:
    val = rows(1, 200)
    val.array[3, 2] = np.nan
    history = fit(network(head()), val=val)
    assert history.diverged
    assert history.best is None
    assert len(history.epochs) == 1


def test_problem_in_a_temporary_file_gives_the_same_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = fit(network(head()))
    monkeypatch.setattr(logistic_regression, "_MAX_BYTES_IN_MEMORY", 0)
    found = fit(network(head()))
    assert [epoch.val for epoch in found.epochs] == [epoch.val for epoch in expected.epochs]


@pytest.mark.parametrize(
    ("overrides", "received", "typed"),
    [
        (["head.C=-1"], "head.C was -1", "Type head.C=0.001"),
        (["head.C=0"], "head.C was 0", "Type head.C=0.001"),
        (["head.choose_by=test"], "head.choose_by was 'test'", "Type head.choose_by=validation"),
        (["phase=lr_range"], "phase=lr_range", "Type phase=frozen"),
        (["unfreeze=all"], "unfreeze policy (All)", "Type unfreeze=none, or phase=finetune"),
        (["unfreeze=last_n"], "unfreeze policy (LastN)", "Type unfreeze=none, or phase=finetune"),
    ],
)
def test_settings_that_do_not_go_with_a_logistic_head_are_refused(
    composed, overrides: list[str], received: str, typed: str
) -> None:
    with pytest.raises(UserError) as refusal:
        composed("head=logistic", *overrides)
    assert received in str(refusal.value)
    assert typed in str(refusal.value)
    assert str(refusal.value).count(". ") == 2


def test_a_fine_tune_from_a_logistic_head_trains_as_any_other(composed) -> None:
    assert composed("head=logistic", "phase=finetune").logistic_head is None
    assert composed("head=logistic").logistic_head == composed("head=logistic").head
    assert composed("head=logistic").num_epochs == len(STRENGTHS)
    assert composed("head=linear", "phase.epochs=7").num_epochs == 7


def test_curve_is_drawn_over_the_strengths() -> None:
    history = fit(network(head()))
    assert history.best is not None
    figure = learning_curves(history.epochs, history.best.number, "a run")
    for axes in figure.axes:
        assert axes.get_xscale() == "log"
        assert [list(line.get_xdata()) for line in axes.lines] == [[epoch.strength for epoch in history.epochs]] * 2


@pytest.mark.parametrize("strength", [None, 1e-5])
def test_advice_after_a_failed_fit_names_no_learning_rate(strength: float | None) -> None:
    noise = Rows(np.random.default_rng(0).normal(size=(96, FEATURES)).astype(np.float32), np.arange(96), rows().labels)
    spec = head(C=strength)
    history = fit(
        network(head()), train=[noise], spec=spec, val=replace(rows(1, 900), array=np.roll(rows(1, 900).array, 1, 0))
    )
    setting = verdict.Setting(CLASSES, lr=1e-1, settings={"head": "Logistic", "head.C": strength}, n_train=96)
    found = verdict.judge(history.judged, setting)
    assert found.name == "never_learned"
    assert "lr" not in found.advice
    assert ("head.C=null" in found.advice) == (strength is not None)


def record(**tags: str) -> Record:
    params = {
        "head": "Logistic", "phase": "Frozen", "optimizer.lr": "0.001", "preprocessing.mode": "raw",
        "unfreeze": "Nothing", "unfreeze.layers_trained": "0", "unfreeze.layers_asked": "0", "data": "Folder",
        "data.images.val": "20", "data.images.train": "80", "data.name": "photos",
        "model.architecture": "EfficientNetB0",
    }  # fmt: skip
    return Record("a1b2c3d4", "a run", 0.0, "FINISHED", params, {}, {"verdict": "learned", **tags})


def test_reports_say_no_rate_and_what_the_saved_network_was_fitted_to() -> None:
    frozen = record(refitted="train and val")
    tuned = replace(frozen, params={**frozen.params, "phase": "Finetune"})
    assert [AttemptRow("a run", (run,), ()).cells()["lr"] for run in (frozen, tuned)] == ["–", "0.001"]

    def notes(run: Record, split: str) -> str:
        return " ".join(about(run, "run a1b2c3d4", split, "20 images", ["x.jpg"], None))

    assert "was fitted to train and val" in notes(frozen, "val")
    assert "best epoch was chosen" in notes(record(), "val")
    assert "fitted" not in notes(frozen, "test")
    # Without test images, nothing that the saved network has not seen was recorded.
    assert "Not measured" in model_card("a run", frozen, {}, ["a", "b"], 64, "stretch", {})
