import math

import numpy as np
import pytest

from dogbreeds.evaluation.metrics import score
from dogbreeds.evaluation.summary import Calibration, Measure, augmented, breeds, confusions, evaluate, macro_f1

NAMES = ("akita", "beagle", "collie")
LABELS = np.array([0, 0, 0, 0, 1, 1, 1, 1, 2, 2])
CALLED = np.array([0, 0, 1, 1, 1, 1, 1, 0, 2, 0])


def sure(called: np.ndarray, classes: int = 3, logit: float = 2.0) -> np.ndarray:
    """Logits that all say the same with the same confidence."""
    return logit * np.eye(classes)[called]


def matrix() -> np.ndarray:
    return np.array([[2, 2, 0], [1, 3, 0], [1, 0, 1]])


def test_numbers_of_a_small_set_are_those_one_gets_by_hand() -> None:
    found = evaluate(sure(CALLED), LABELS, NAMES, (1.0, "others"), seed=0)
    assert (found.scores.accuracy.correct, found.scores.accuracy.n) == (6, 10)
    assert found.matrix.tolist() == matrix().tolist()
    # F1 of each: 2 * 2 / (4 + 4), 2 * 3 / (4 + 5), 2 * 1 / (2 + 1)
    assert found.macro_f1.value == pytest.approx((4 / 8 + 6 / 9 + 2 / 3) / 3)
    share = math.exp(2) / (math.exp(2) + 2)
    assert found.log_loss.value == pytest.approx(-(6 * math.log(share) + 4 * math.log((1 - share) / 2)) / 10)
    assert found.calibration.before.value == pytest.approx(abs(share - 0.6))
    assert found.log_loss.low < found.log_loss.value < found.log_loss.high
    assert found.macro_f1.low < found.macro_f1.value < found.macro_f1.high
    assert all(measure.n == 10 for measure in (found.macro_f1, found.log_loss, found.calibration.before))


def test_breeds_are_listed_the_worst_first() -> None:
    found = breeds(matrix(), NAMES)
    assert [(breed.name, breed.right.correct, breed.right.n, breed.mistaken) for breed in found] == [
        ("akita", 2, 4, ("beagle", 2)),
        ("collie", 1, 2, ("akita", 1)),
        ("beagle", 3, 4, ("akita", 1)),
    ]
    assert [breed.precision for breed in found] == [0.5, 1.0, 0.6]


def test_breeds_without_photos_are_left_out_and_those_never_said_have_no_precision() -> None:
    found = breeds(np.array([[0, 2, 0], [0, 2, 0], [0, 0, 0]]), NAMES)
    assert [breed.name for breed in found] == ["akita", "beagle"]
    assert math.isnan(found[0].precision)
    assert found[0].f1 == 0.0
    assert macro_f1(np.array([0, 0, 1, 1]), np.array([1, 1, 1, 1]), 3) == pytest.approx((0 + 2 * 2 / (2 + 4)) / 2)


def test_confusions_name_the_more_frequent_direction_first() -> None:
    found = confusions(matrix(), NAMES)
    assert [(pair.first, pair.second, pair.there, pair.back) for pair in found] == [
        ("akita", "beagle", 2, 1),
        ("collie", "akita", 1, 0),
    ]


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """Of 60 sets of photos drawn alike, about 95 % of the intervals hold the log loss that very many photos have."""
    rng = np.random.default_rng(1)

    def drawn(n: int) -> tuple[np.ndarray, np.ndarray]:
        labels = np.arange(n) % 3
        return rng.normal(size=(n, 3)) + 1.5 * np.eye(3)[labels], labels

    truth = score(*drawn(300_000)).loss
    held = sum(
        found.low <= truth <= found.high
        for found in (evaluate(*drawn(150), NAMES, (1.0, "others"), seed).log_loss for seed in range(60))
    )
    assert 53 <= held <= 60


def test_overconfidence_is_mended_and_said_so() -> None:
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 3, 600)
    called = np.where(rng.random(600) < 0.7, labels, (labels + 1) % 3)
    found = evaluate(sure(called, logit=6.0), labels, NAMES, None, seed=0).calibration
    assert found.before.value == pytest.approx(0.29, abs=0.05)
    assert found.after.value < 0.05
    assert found.gain.low > 0
    assert found.said.startswith(
        f"Temperature {found.temperature:.2f}, fitted on each half of these photos for the other, lowers the"
        " calibration error"
    )


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (0.01, 0.03, "lowers the calibration error from 5.0 to 3.0 %"),
        (-0.03, -0.01, "does not lower"),
        (-0.0001, 0.03, "is not shown to lower"),
    ],
)
def test_what_is_not_shown_is_not_claimed(low: float, high: float, words: str) -> None:
    before, after = Measure(0.05, 0.04, 0.06, 100), Measure(0.03, 0.02, 0.04, 100)
    found = Calibration(before, after, Measure(0.02, low, high, 100), 1.3, "others", after, [], [])
    assert words in found.said
    assert "n = 100" in found.said
    assert "-0.0 " not in found.said


def test_views_are_compared_photo_by_photo() -> None:
    averaged = sure(np.where(np.arange(10) == 2, LABELS, CALLED))
    found = augmented(sure(CALLED), averaged / averaged.sum(axis=1, keepdims=True), LABELS, 4, 3.6, "test", seed=0)
    assert (found.pair.gained, found.pair.lost, found.pair.split) == (1, 0, "test")
    assert found.accuracy.correct == 7


def test_the_same_seed_draws_the_same_intervals() -> None:
    logits = sure(CALLED) + np.random.default_rng(0).normal(size=(10, 3))
    first, again, other = (evaluate(logits, LABELS, NAMES, (1.0, "others"), seed).log_loss for seed in (0, 0, 1))
    assert first == again
    assert first != other
