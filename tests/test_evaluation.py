"""Evaluation of small sets of predictions, with numbers by hand, and intervals of drawn ones."""

import math
from dataclasses import asdict

import numpy as np
import pytest

from dogbreeds.evaluation.class_scores import class_scores, confusions
from dogbreeds.evaluation.metrics import balanced_accuracy, macro_f1, score
from dogbreeds.evaluation.results import Epoch, ZeroShotBaseline, scores_from_dict
from dogbreeds.evaluation.summary import Calibration, Measure, augmented, evaluate
from dogbreeds.evaluation.verdict import Setting, judge
from dogbreeds.experiments.recording import epoch_line, final_metrics, summary_lines
from dogbreeds.experiments.result import Result
from dogbreeds.reports.evaluation_report import score_rows
from dogbreeds.tracking.tracking import Tracker
from dogbreeds.training.state import History

NAMES = ("akita", "beagle", "collie")
LABELS = np.array([0, 0, 0, 0, 1, 1, 1, 1, 2, 2])
PREDICTED = np.array([0, 0, 1, 1, 1, 1, 1, 0, 2, 0])


def confident(predicted: np.ndarray, classes: int = 3, logit: float = 2.0) -> np.ndarray:
    """Return [n, classes] logits that predict these classes, all with the same confidence."""
    return logit * np.eye(classes)[predicted]


def matrix() -> np.ndarray:
    return np.array([[2, 2, 0], [1, 3, 0], [1, 0, 1]])


def test_evaluate_gives_the_numbers_calculated_by_hand() -> None:
    found = evaluate(confident(PREDICTED), LABELS, NAMES, (1.0, "others"), seed=0)
    assert (found.scores.accuracy.correct, found.scores.accuracy.n) == (6, 10)
    assert found.matrix.tolist() == matrix().tolist()
    # F1 of the classes is 2 * 2 / (4 + 4), 2 * 3 / (4 + 5) and 2 * 1 / (2 + 1).
    assert found.macro_f1.value == pytest.approx((4 / 8 + 6 / 9 + 2 / 3) / 3)
    share = math.exp(2) / (math.exp(2) + 2)
    assert found.log_loss.value == pytest.approx(-(6 * math.log(share) + 4 * math.log((1 - share) / 2)) / 10)
    assert found.calibration.before.value == pytest.approx(abs(share - 0.6))
    assert found.log_loss.low < found.log_loss.value < found.log_loss.high
    assert found.macro_f1.low < found.macro_f1.value < found.macro_f1.high
    assert all(measure.n == 10 for measure in (found.macro_f1, found.log_loss, found.calibration.before))


@pytest.mark.parametrize("predicted", [[0, 1, 2, 0, 1, 2], [0, 1, 2, 0, 1, 1], [0, 0, 0, 1, 2, 2], [1, 2, 0, 2, 0, 1]])
@pytest.mark.parametrize("logit", [0.1, 9.0])
def test_intervals_of_few_images_stay_within_what_a_score_can_be(predicted: list[int], logit: float) -> None:
    labels = np.array([0, 1, 2, 0, 1, 2])
    found = evaluate(confident(np.array(predicted), logit=logit), labels, NAMES, (1.5, "others"), seed=0)
    shares = (found.macro_f1, found.calibration.before, found.calibration.after)
    assert all(0 <= measure.low <= measure.high <= 1 for measure in shares)
    assert -1 <= found.calibration.gain.low <= found.calibration.gain.high <= 1
    assert found.log_loss.low >= 0


@pytest.mark.parametrize("classes", [3, 6])
def test_top5_accuracy_is_nowhere_with_few_classes(classes: int) -> None:
    names = tuple("abcdef"[:classes])
    labels = np.arange(classes)
    scores = score(confident(labels, classes), labels)
    found = evaluate(confident(labels, classes), labels, names, (1.0, "others"), seed=0)
    epoch = Epoch(1, 1e-3, 0.5, 1.0, 1.0 if scores.top5 else None, scores, 1.0)
    history = History(epochs=[epoch], best=epoch)
    judged = judge([epoch], Setting(classes, 1e-3))
    result = Result("", None, history, {}, scores, ZeroShotBaseline("none", 0), judged, 1.0, 2.0)
    shown = [
        *found.metrics(),
        *(row.name for row in score_rows(found)),
        *epoch.metrics(),
        *final_metrics(result),
        epoch_line(epoch, 20),
        *summary_lines(result, Tracker("name")),
    ]
    with_top5 = [text for text in shown if "top" in text]
    # Of `evaluate` the metric with its interval and the row; of a run 2 metrics of epochs, 4 of the run and 3 lines.
    assert len(with_top5) == (13 if classes == 6 else 0)
    assert scores_from_dict(asdict(scores)) == scores


def test_class_scores_are_sorted_worst_first() -> None:
    found = class_scores(matrix(), NAMES)
    assert [
        (scores.name, scores.correct.correct, scores.correct.n, scores.mistaken_for, scores.mistaken_n)
        for scores in found
    ] == [
        ("akita", 2, 4, "beagle", 2),
        ("collie", 1, 2, "akita", 1),
        ("beagle", 3, 4, "akita", 1),
    ]
    assert [scores.precision for scores in found] == [0.5, 1.0, 0.6]


def test_class_scores_leave_out_classes_without_images_and_give_no_precision_without_predictions() -> None:
    found = class_scores(np.array([[0, 2, 0], [0, 2, 0], [0, 0, 0]]), NAMES)
    assert [scores.name for scores in found] == ["akita", "beagle"]
    assert math.isnan(found[0].precision)
    assert (found[1].mistaken_for, found[1].mistaken_n) == ("", 0)
    assert found[0].f1 == 0.0
    assert macro_f1(np.array([0, 0, 1, 1]), np.array([1, 1, 1, 1]), 3) == pytest.approx((0 + 2 * 2 / (2 + 4)) / 2)


def test_balanced_accuracy_is_the_mean_recall_of_the_classes_that_have_images() -> None:
    labels, predicted = np.array([0, 0, 0, 1]), np.array([0, 0, 2, 0])
    assert balanced_accuracy(labels, predicted, 3) == pytest.approx((2 / 3 + 0) / 2)
    scores = score(np.eye(3)[predicted], labels)
    assert (scores.balanced_accuracy, scores.macro_f1) == (
        balanced_accuracy(labels, predicted, 3),
        macro_f1(labels, predicted, 3),
    )


def test_confusions_name_the_more_frequent_direction_first() -> None:
    found = confusions(matrix(), NAMES)
    assert [(pair.first, pair.second, pair.there, pair.back) for pair in found] == [
        ("akita", "beagle", 2, 1),
        ("collie", "akita", 1, 0),
    ]


@pytest.mark.slow
def test_log_loss_interval_contains_the_true_value_in_95_percent_of_samples() -> None:
    """Of 60 samples, about 95 % have an interval that contains the log loss of a very large sample."""
    rng = np.random.default_rng(1)

    def drawn(n: int) -> tuple[np.ndarray, np.ndarray]:
        labels = np.arange(n) % 3
        return rng.normal(size=(n, 3)) + 1.5 * np.eye(3)[labels], labels

    truth = score(*drawn(300_000)).loss
    contained = sum(
        found.low <= truth <= found.high
        for found in (evaluate(*drawn(150), NAMES, (1.0, "others"), seed).log_loss for seed in range(60))
    )
    assert 53 <= contained <= 60


def test_calibration_description_states_that_scaling_corrects_overconfidence() -> None:
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 3, 600)
    predicted = np.where(rng.random(600) < 0.7, labels, (labels + 1) % 3)
    found = evaluate(confident(predicted, logit=6.0), labels, NAMES, None, seed=0).calibration
    assert found.before.value == pytest.approx(0.29, abs=0.05)
    assert found.after.value < 0.05
    assert found.gain.low > 0
    assert found.description.startswith(
        f"Temperature {found.temperature:.2f}, fitted on each half of these images for the other, lowers the"
        " calibration error"
    )


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (0.01, 0.03, "lowers the calibration error from 5.0 to 3.0 %"),
        (-0.03, -0.01, "does not lower the calibration error: it rises from 5.0 to 3.0 %"),
        (-0.0001, 0.03, "does not significantly lower the calibration error: it changes from 5.0 to 3.0 %"),
    ],
)
def test_calibration_description_claims_a_gain_only_if_it_is_significant(low: float, high: float, words: str) -> None:
    before, after = Measure(0.05, 0.04, 0.06, 100), Measure(0.03, 0.02, 0.04, 100)
    found = Calibration(before, after, Measure(0.02, low, high, 100), 1.3, "others", after, [], [])
    assert words in found.description
    assert "n = 100" in found.description
    assert "-0.0 " not in found.description


def test_augmented_compares_the_views_image_by_image() -> None:
    averaged = confident(np.where(np.arange(10) == 2, LABELS, PREDICTED))
    found = augmented(
        confident(PREDICTED), averaged / averaged.sum(axis=1, keepdims=True), LABELS, 4, 3.6, "test", seed=0
    )
    assert (found.pair.gained, found.pair.lost, found.pair.split) == (1, 0, "test")
    assert found.accuracy.correct == 7


def test_evaluate_with_the_same_seed_gives_the_same_intervals() -> None:
    logits = confident(PREDICTED) + np.random.default_rng(0).normal(size=(10, 3))
    first, repeated, other = (evaluate(logits, LABELS, NAMES, (1.0, "others"), seed).log_loss for seed in (0, 0, 1))
    assert first == repeated
    assert first != other
