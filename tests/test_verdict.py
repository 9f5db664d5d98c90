"""Verdicts of learning curves of every shape."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from dogbreeds.evaluation.metrics import PairedOutcome, Proportion, Reference, Scores
from dogbreeds.evaluation.results import Epoch
from dogbreeds.evaluation.verdict import VERDICTS, Setting, has_collapsed, judge

# Validation accuracies in % of the guide's attempt 2.
GUIDE = [43.10, 24.44, 15.94, 14.39]
# The number of its validation images and of its classes.
N, CLASSES = 4072, 120
STEADY = [60, 70, 74, 76, 77]
PARENTED = [92, 93, 93.5, 93.4]


def curve(
    val: Sequence[float],
    n: int = N,
    train: Sequence[float] | None = None,
    val_loss: Sequence[float] | None = None,
    train_loss: Sequence[float] | None = None,
) -> list[Epoch]:
    """Return epochs with these validation accuracies.

    Args:
        val: accuracies in %.
        n: number of validation images.
        train: training accuracies in %; None for those of validation.
        val_loss: in nats; None for 1.
        train_loss: in nats; None for 1.
    """
    epochs = []
    for index, share in enumerate(val):
        correct = Proportion(round(share / 100 * n), n)
        scores = Scores(val_loss[index] if val_loss else 1.0, correct, correct)
        accuracy = (train or val)[index] / 100
        epochs.append(Epoch(index + 1, 1e-3, train_loss[index] if train_loss else 1.0, accuracy, accuracy, scores, 1.0))
    return epochs


def paired(probe: int, run: int, n: int, both: int | None = None, split: str = "test") -> Reference:
    """Return the comparison with a probe: the images on which each is right, and both; None for all of the fewer."""
    both = min(probe, run) if both is None else both
    return Reference(Proportion(probe, n), Proportion(run, n), PairedOutcome(run - both, probe - both, n, split))


def setting(lr: float = 1e-3, classes: int = CLASSES, **more) -> Setting:
    return Setting(classes, lr, **more)


LOGISTIC = {"head": "Logistic", "head.C": None, "unfreeze.batchnorm": "affine"}
# By name: epochs, setting, verdict, words of its reason and words of its advice.
CASES = {
    "the guide's attempt 2": (
        curve(GUIDE),
        setting(1e-2),
        "collapsed",
        "validation accuracy peaked at 43.1 % in epoch 1 and fell to 14.4 %, by 28 standard errors",
        "type optimizer.lr=1e-3, or head=batchnorm.",
    ),
    # EfficientNet-B3, 20 photos of each of 120 breeds, Adam, the guide's head. Few validation images show a collapse if
    # training fell too.
    "a collapse of few validation images": (
        curve([10.6, 9.4, 6.0, 7.1, 5.8, 3.3], n=480),
        setting(1e-2, reference=paired(379, 51, 480, both=45, split="val"), n_train=2400),
        "collapsed",
        "peaked at 10.6 % in epoch 1 and fell to 3.3 %",
        "type optimizer.lr=1e-3, or head=batchnorm.",
    ),
    "a fall of few validation images, far below the probe": (
        curve([10.6, 9.4, 6.0, 7.1, 5.8, 3.3], n=480, train=[4.9, 4.6, 3.9, 3.5, 3.0, 2.4]),
        setting(1e-2, reference=paired(379, 51, 480, both=45, split="val"), n_train=2400),
        "underperforming",
        "the reference probe reaches 79.0 % on the same features",
        "type optimizer.lr=1e-3",
    ),
    "a late collapse": (
        curve([40, 60, 70, 72, 20, 12]),
        setting(1e-3),
        "collapsed",
        "peaked at 72.0 % in epoch 4",
        "type optimizer.lr=1e-4, or",
    ),
    "a collapse to chance": (
        curve([50, 20, 0.8, 0.8]),
        setting(1e-1),
        "collapsed",
        "fell to 0.8 %",
        "type optimizer.lr=1e-2, or",
    ),
    # The head is dead: the loss stays at ln(20) = 3.0.
    "a collapse whose loss had blown up before the peak was measured": (
        curve([46, 15, 15, 5, 5], n=200, train=[30, 14, 12, 6, 5], train_loss=[19.8, 5.6, 3.4, 3.0, 3.0]),
        setting(3e-2, classes=20),
        "collapsed",
        "peaked at 46.0 % in epoch 1 and fell to 5.0 %",
        "type optimizer.lr=3e-3, or head=batchnorm.",
    ),
    "a collapse in wrong pixels": (
        curve(GUIDE),
        setting(1e-2, native=False),
        "collapsed",
        "43.1 %",
        "type preprocessing=native.",
    ),
    "a fine-tune that collapses": (
        curve([93, 60, 20, 10]),
        setting(1e-2, pair=PairedOutcome(0, 100, N, "test")),
        "collapsed",
        "peaked at 93.0 % in epoch 1",
        "Fine-tuning was too aggressive: type optimizer.lr=1e-3, and unfreeze.batchnorm=frozen",
    ),
    "a dip that recovers": (
        curve([60, 75, 20, 74, 76]),
        setting(),
        "learned",
        "best validation 76.0 %",
        "type phase=finetune.",
    ),
    "a dip at the end": (
        curve([60, 75, 76, 20]),
        setting(),
        "learned",
        "76.0 % (95 % interval 74.7–77.3, n = 4,072) in epoch 3, 20.0 % in",
        "",
    ),
    "noise around a plateau": (
        curve([50, 58, 47, 55, 44, 52, 49], n=100),
        setting(),
        "learned",
        "best validation 58.0 %",
        "",
    ),
    "half is lost, with few images": (
        curve([22, 18, 10, 10], n=50),
        setting(classes=20),
        "undecided",
        "fell from 22.0 % in epoch 1 to 10.0 %, by 1.7 standard errors: 50 images cannot tell a collapse from noise",
        "Decide with more images",
    ),
    "half is lost, with few images, in training as well": (
        curve([22, 18, 10, 10], n=100, train=[20, 15, 9, 8]),
        setting(1e-2, classes=20, n_train=2000),
        "collapsed",
        "by 2 standard errors or more in the last two epochs, as did training accuracy, from 20.0 %",
        "type optimizer.lr=1e-3, or",
    ),
    "half is lost, with many images": (
        curve([22, 18, 10, 10], n=5000),
        setting(classes=20),
        "collapsed",
        "peaked at 22.0 % in epoch 1",
        "",
    ),
    "a slow decline": (curve([80, 79, 77, 75, 73]), setting(), "learned", "80.0 %", ""),
    "a steady climb": (curve(STEADY), setting(), "learned", "77.0 %", "Fine-tuning can start from it"),
    "chance throughout": (
        curve([0.8, 0.9, 1.0, 0.7]),
        setting(1e-2),
        "never_learned",
        "validation accuracy is 1.0 % at best, where chance is 0.8 %; training accuracy",
        "type optimizer.lr=1e-3, or head=batchnorm.",
    ),
    "chance, and the loss still falls": (
        curve([0.8, 0.9, 1.0, 0.9], train_loss=[4.8, 4.3, 3.8, 3.2]),
        setting(1e-5),
        "never_learned",
        "chance is 0.8 %",
        "increase phase.epochs",
    ),
    "chance, at a rate that is not too high": (
        curve([0.8, 0.9, 1.0, 0.9]),
        setting(1e-4),
        "never_learned",
        "",
        "phase=lr_range",
    ),
    "memorised training images": (
        curve([0.8, 0.9, 0.8, 0.9], train=[10, 50, 80, 99], train_loss=[4.0, 2.0, 0.8, 0.1]),
        setting(1e-3),
        "never_learned",
        "training accuracy is 99.0 %",
        "were memorised: check whether their labels are correct.",
    ),
    "wrong pixels": (
        curve([1, 3, 2, 2.5]),
        setting(1e-3, native=False),
        "never_learned",
        "3.0 % at best",
        "not those of pretraining: type preprocessing=native.",
    ),
    "few classes, few images, all correct": (
        curve([60, 90, 100, 100], n=10),
        setting(classes=2),
        "learned",
        "best validation 100.0 %",
        "",
    ),
    "few classes, few images, chance": (
        curve([50, 60, 55, 45], n=20),
        setting(classes=2),
        "undecided",
        "60.0 % at best, where chance is 50.0 %; training accuracy is 60.0 %: 20 images cannot tell it from chance",
        "Decide with more images",
    ),
    "few validation images, and chance on many training images": (
        curve([50, 60, 55, 45], n=20, train=[50, 51, 50, 52]),
        setting(classes=2, n_train=2000),
        "never_learned",
        "training accuracy is 52.0 %",
        "phase=lr_range",
    ),
    "two classes with random labels": (
        curve([50, 54, 58, 54], n=24, train=[55, 70, 85, 96.9], val_loss=[0.72, 0.9, 1.3, 1.81]),
        setting(classes=2, n_train=96),
        "undecided",
        "training accuracy is 96.9 %: 24 images cannot tell it from chance",
        "The training images were memorised: check their labels too.",
    ),
    "chance, where the probe has learned": (
        curve([50, 54, 50, 54], n=50, train=[55, 52, 50, 53]),
        setting(1e-2, classes=2, n_train=100, reference=paired(probe=46, run=27, n=50)),
        "never_learned",
        "54.0 % at best",
        "type optimizer.lr=1e-3, or head=batchnorm.",
    ),
    "a loss of NaN": (
        curve(STEADY[:1]),
        setting(1e-2, diverged="the loss was nan at step 7 (epoch 2), lr 0.01"),
        "diverged",
        "at step 7 (epoch 2), lr 0.01",
        "Type optimizer.lr=1e-3;",
    ),
    "an infinite loss in the first epoch": (
        [],
        setting(1.0, diverged="the loss was inf at step 2 (epoch 1), lr 1"),
        "diverged",
        "inf at step 2 (epoch 1)",
        "Type optimizer.lr=1e-2;",
    ),
    "no epoch": ([], setting(), "never_learned", "no epoch was finished", "phase=lr_range"),
    "overfitting": (
        curve(
            [70, 73, 72, 71], train=[72, 85, 95, 99], val_loss=[1.1, 0.9, 1.3, 1.8], train_loss=[1.2, 0.6, 0.2, 0.05]
        ),
        setting(),
        "overfitting",
        "validation loss rose from 0.90 in epoch 2 to 1.80, while training accuracy reached 99.0 % and validation"
        " 71.0 %",
        "augment=guide",
    ),
    "validation loss rises with training loss": (
        curve([70, 73, 72, 71], train=[72, 85, 95, 99], val_loss=[1.1, 0.9, 1.3, 1.8], train_loss=[1.2, 0.6, 0.7, 0.9]),
        setting(),
        "learned",
        "",
        "",
    ),
    "validation loss rises, accuracies alike": (
        curve([70, 73, 73, 73], train=[70, 73, 74, 75], val_loss=[1.1, 0.9, 1.3, 1.8], train_loss=[1.2, 1.1, 1.0, 0.9]),
        setting(),
        "learned",
        "",
        "",
    ),
    "far below the probe, at a high rate": (
        curve([12, 13.1, 12.5, 13], n=480, train=[8, 9, 8.5, 9]),
        setting(1e-2, n_train=1920, reference=paired(probe=379, run=63, n=480)),
        "underperforming",
        "accuracy is 13.1 % on test, where the reference probe reaches 79.0 % on the same features: -65.8 points (99 %",
        "The learning rate is too high for this head: type optimizer.lr=1e-3, or head=batchnorm.",
    ),
    "far below the probe, with SGD at a low rate": (
        curve([8, 12, 16, 20], n=480, train=[5, 9, 13, 17], train_loss=[4.7, 4.6, 4.5, 4.4]),
        setting(1e-3, settings={"optimizer": "SGD"}, reference=paired(probe=379, run=96, n=480)),
        "underperforming",
        "20.0 % on test",
        "Training has not come to its end: type optimizer.lr=1e-2, or increase phase.epochs.",
    ),
    "far below the probe, still rising at a usual rate": (
        curve([20, 30, 40, 50], n=480, train=[15, 28, 39, 50]),
        setting(1e-3, reference=paired(probe=379, run=240, n=480)),
        "underperforming",
        "50.0 % on test",
        "Training has not come to its end: increase phase.epochs, or find a rate with phase=lr_range.",
    ),
    "below the probe, with memorised training images": (
        curve([50, 52, 53, 52.5], n=480, train=[80, 98, 99, 99]),
        setting(1e-3, reference=paired(probe=379, run=254, n=480)),
        "underperforming",
        "52.9 % on test",
        "The head memorises the training images: raise head.dropout, or type augment=guide, or check their labels.",
    ),
    "below the probe, and neither high nor rising": (
        curve([50, 52, 53, 52.5], n=480, train=[50, 53, 54, 54]),
        setting(1e-3, reference=paired(probe=379, run=254, n=480)),
        "underperforming",
        "52.9 % on test",
        "type head=linear, or find a rate with phase=lr_range.",
    ),
    "below a given accuracy": (
        curve([50, 52, 53, 52.5], n=480),
        setting(1e-3, reference=Reference(Proportion(379, 480), Proportion(254, 480))),
        "underperforming",
        "accuracy is 52.9 %, where the reference probe reaches 79.0 %",
        "",
    ),
    "few images, on which it may be as good, and below the probe on the images that it has seen": (
        curve([60, 80, 80, 80], n=10, train=[30, 40, 42, 45], train_loss=[1.2, 1.1, 1.1, 1.0]),
        setting(
            1e-4,
            classes=3,
            reference=paired(probe=8, run=8, n=10, both=7),
            training=paired(probe=54, run=27, n=60, split="train"),
        ),
        "underperforming",
        "accuracy is 45.0 % on train, where the reference probe reaches 90.0 %",
        "Training has not come to its end: type optimizer.lr=1e-3, or increase phase.epochs.",
    ),
    "few images at chance, and below the probe on the images that it has seen": (
        curve([16.7, 50, 50, 50], n=6, train=[20, 30, 36, 36.7]),
        setting(classes=6, n_train=30, training=paired(probe=27, run=11, n=30, split="train")),
        "never_learned",
        "validation accuracy is 50.0 % at best",
        "",
    ),
    "a little below the probe": (
        curve([70, 74, 76, 76], n=2400),
        setting(1e-3, reference=paired(probe=1896, run=1824, n=2400, both=1780)),
        "learned",
        "in the last; accuracy is 76.0 % on test, where the reference probe reaches 79.0 % on the same features: -3.0",
        "Fine-tuning can start from it",
    ),
    "as good as the probe, on so few images that it may be much worse": (
        curve([60, 80, 80, 80], n=10),
        setting(1e-3, classes=3, reference=paired(probe=8, run=8, n=10, both=7)),
        "undecided",
        "10 images cannot exclude that it is much worse",
        "Decide with more images: add some to test.",
    ),
    "everything trains, so that there is no probe": (
        curve(STEADY),
        setting(no_reference="the whole network trains"),
        "learned",
        "how much the features could give is not known: the whole network trains",
        "",
    ),
    "a fall that is noise, where the run is as good as the probe": (
        curve([22, 18, 10, 10], n=50),
        setting(classes=20, reference=paired(probe=1000, run=1000, n=4000)),
        "learned",
        "25.0 % on test",
        "",
    ),
    "a fine-tune with so few images that a gain can hide": (
        curve(PARENTED, n=60),
        setting(1e-5, pair=PairedOutcome(6, 3, 60, "test")),
        "undecided",
        "+5.0 points on test",
        "Use the frozen network until more images decide: add some to test.",
    ),
    "more gained than lost": (
        curve(PARENTED),
        setting(1e-5, pair=PairedOutcome(60, 10, 1000, "test")),
        "better_than_frozen",
        "+5.0 points on test (95 % interval +3.4 to +6.6; 60 images gained, 10 lost of 1,000, p = ",
        "Use the fine-tuned network.",
    ),
    "more lost than gained": (
        curve(PARENTED),
        setting(1e-4, pair=PairedOutcome(10, 60, 1000, "val")),
        "worse_than_frozen",
        "-5.0 points on val",
        "type optimizer.lr=1e-5, or unf",
    ),
    "a fine-tune worse than a memorised head": (
        curve(PARENTED, train=[99.9, 99.5, 99.9, 100]),
        setting(1e-4, pair=PairedOutcome(10, 60, 1000, "val"), settings=LOGISTIC),
        "worse_than_frozen",
        "-5.0 points on val",
        "or fine-tune again from a more regularised head. The parent's had memorised the training images: type"
        " head.C=1e-3, for the frozen run too.",
    ),
    "a fine-tune no better than a memorised head that was regularised once": (
        curve(PARENTED, train=[99.9, 99.5, 99.9, 100]),
        setting(1e-4, pair=PairedOutcome(12, 10, 1000, "test"), settings=LOGISTIC | {"head.C": 1e-3}),
        "no_better_than_frozen",
        "+0.2 points on test",
        "type head.C=1e-4, for the frozen run too.",
    ),
    "a fine-tune worse than a head that had not memorised": (
        curve(PARENTED, train=[94, 96, 99.9, 100]),
        setting(1e-4, pair=PairedOutcome(10, 60, 1000, "val"), settings=LOGISTIC),
        "worse_than_frozen",
        "-5.0 points on val",
        "Use the frozen network, or fine-tune again: type optimizer.lr=1e-5, or unfreeze.batchnorm=frozen.",
    ),
    "as many gained as lost": (
        curve(PARENTED),
        setting(1e-5, pair=PairedOutcome(12, 10, 1000, "test")),
        "no_better_than_frozen",
        "+0.2 points on test",
        "1,000 images show no significant difference: use the frozen network, which is cheaper.",
    ),
    "a gain that is noise": (
        curve(PARENTED),
        setting(1e-5, pair=PairedOutcome(20, 10, 1000, "test")),
        "no_better_than_frozen",
        "p = 0.099) compared with the frozen parent (significant if p < 0.01)",
        "",
    ),
    "a fine-tune where nothing changed": (
        curve(PARENTED),
        setting(1e-5, pair=PairedOutcome(0, 0, 60, "test")),
        "no_better_than_frozen",
        "0 images gained, 0 lost of 60, p = 1)",
        "",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_judge_returns_verdict_reason_and_advice(case: str) -> None:
    epochs, about, name, reason, advice = CASES[case]
    verdict = judge(epochs, about)
    assert verdict.name == name
    assert reason in verdict.reason
    assert advice in verdict.advice
    assert str(verdict) == f"{name.replace('_', ' ')}: {verdict.reason}. {verdict.advice}"
    assert verdict.reason
    assert verdict.advice.endswith(".")
    assert "\n" not in str(verdict)
    assert all(isinstance(value, float) for value in verdict.numbers.values())


# Runs on real photos of the kinds that verdicts were wrong on, as `python -m tests.bench.faults cases` measured them.
MEASURED = json.loads((Path(__file__).parent / "fixtures/verdict_cases.json").read_text())
TOO_FAST = {"collapsed", "never_learned", "underperforming"}
# By name of the case: verdicts that are right, and words of fitting advice, one of which must be there.
RIGHT = {
    "the guide's head, Adam 1e-2, 120 classes, n = 480": (TOO_FAST, ("optimizer.lr=1e-3",)),
    "the guide's head, Adam 4e-3, 120 classes, n = 480": (TOO_FAST, ("optimizer.lr", "phase.epochs", "phase=lr_range")),
    "the guide's head, Adam 1e-2, 120 classes, n = 120": (TOO_FAST, ("optimizer.lr=1e-3",)),
    "random labels, 2 classes, 72 images": ({"undecided", "never_learned", "overfitting"}, ("labels",)),
    "random labels, 3 classes, 36 images": ({"undecided", "never_learned", "overfitting"}, ("labels",)),
    "slow SGD, 120 classes": ({"underperforming"}, ("optimizer.lr=1e-2",)),
    "slow SGD, 5 classes": ({"never_learned", "underperforming"}, ("optimizer.lr=1e-3",)),
    "fast SGD, 120 classes": (TOO_FAST, ("optimizer.lr=1e-2", "head=batchnorm")),
    # A head that bears it.
    "fast SGD, BatchNorm head, 120 classes": (
        {"learned", "overfitting", "undecided"},
        ("phase=finetune", "head.dropout"),
    ),
    "slow Adam, linear head, 120 classes": ({"underperforming"}, ("optimizer.lr=1e-3",)),
    "fast Adam, BatchNorm head, 120 classes": (TOO_FAST | {"overfitting"}, ("optimizer.lr=1e-2", "head.dropout")),
    "few images: 10 classes, 5 each, 10 for validation": ({"undecided"}, ("more images",)),
    "few images: 2 classes, 5 each, 4 for validation": ({"undecided"}, ("more images",)),
    "sound: the guide's head, Adam 1e-3, 120 classes": ({"learned"}, ("phase=finetune",)),
    "sound: linear head, 2 classes": ({"learned", "undecided"}, ("phase=finetune", "more images")),
}


@pytest.mark.parametrize("run", MEASURED, ids=[f"{run['backbone']}: {run['case']}" for run in MEASURED])
def test_verdict_of_a_measured_run_is_right_and_its_advice_fits(run: dict) -> None:
    history, n = run["history"], run["n_val"]
    percent = {name: [100 * share for share in history[name]] for name in ("accuracy", "val_accuracy")}
    epochs = curve(percent["val_accuracy"], n, percent["accuracy"], history["val_loss"], history["loss"])
    found = run["reference"]
    reference = Reference(Proportion(**found["probe"]), Proportion(**found["run"]), PairedOutcome(**found["pair"]))
    settings = run["settings"]
    more = {"n_train": run["n_train"], "reference": reference, "settings": settings, "diverged": run["diverged"]}
    verdict = judge(epochs, setting(settings["optimizer.lr"], run["classes"], **more))
    names, words = RIGHT[run["case"]]
    assert verdict.name in names
    assert any(word in verdict.advice for word in words)


def test_cases_cover_every_verdict() -> None:
    assert {name for *_, name, _, _ in CASES.values()} == set(VERDICTS)


def test_judge_returns_the_numbers_of_the_reason() -> None:
    collapsed, never = judge(curve(GUIDE), setting(1e-2)).numbers, judge(curve([0.8, 1.0, 0.9]), setting()).numbers
    assert collapsed == pytest.approx({"peak": 0.431, "fall": 0.431 - 0.1439, "peak_epoch": 1}, abs=1e-4)
    assert never == pytest.approx({"peak": 0.01, "chance": 1 / 120}, abs=1e-4)
    assert judge(curve(PARENTED), setting(pair=PairedOutcome(10, 0, 100, "test"))).numbers == {
        "difference": 0.1,
        "p_value": pytest.approx(2 / 1024),
        "gained": 10,
        "lost": 0,
    }


@pytest.mark.parametrize(
    # `since`: the first epoch at whose end the attempt has collapsed; 0 for never.
    ("val", "since"),
    [
        (GUIDE, 3),
        ([50, 60, 20, 12, 10], 4),
        ([60, 75, 20, 74, 76], 0),
        ([60, 20, 60, 20, 61], 0),
        (STEADY, 0),
        ([0.8, 0.9, 0.8, 0.7], 0),
    ],
)
def test_has_collapsed_from_the_second_bad_epoch(val: list[float], since: int) -> None:
    epochs = curve(val)
    collapsed = [number for number in range(len(val) + 1) if has_collapsed(epochs[:number])]
    assert collapsed[:1] == ([since] if since else [])
