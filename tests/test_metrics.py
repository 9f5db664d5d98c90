"""Scores, proportions and paired outcomes, with intervals and p-values by hand."""

import math
from fractions import Fraction

import numpy as np
import pytest

from dogbreeds.evaluation.metrics import PairedOutcome, Proportion, score


@pytest.mark.parametrize(
    # By the closed form of Wilson's interval, to six decimals.
    ("correct", "n", "low", "high"),
    [(0, 10, 0.0, 0.277533), (10, 10, 0.722467, 1.0), (5, 10, 0.236593, 0.763407), (3816, 4072, 0.929202, 0.944128)],
)
def test_proportion_interval_is_wilsons(correct: int, n: int, low: float, high: float) -> None:
    assert Proportion(correct, n).interval == pytest.approx((low, high), abs=1e-4)


def test_proportion_str_has_interval_and_n() -> None:
    assert str(Proportion(925, 1200)) == "77.1 % (95 % interval 74.6–79.4, n = 1,200)"


def test_score_agrees_with_keras(rng: np.random.Generator) -> None:
    import keras

    logits, labels = rng.normal(size=(500, 30)).astype(np.float32), rng.integers(0, 30, size=500)
    scores = score(logits, labels)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)(labels, logits)
    top5 = keras.metrics.sparse_top_k_categorical_accuracy(labels, logits, k=5)
    assert scores.loss == pytest.approx(float(loss), rel=1e-5)
    assert scores.accuracy.value == (logits.argmax(axis=1) == labels).mean()
    assert scores.top5 is not None
    assert scores.top5.value == pytest.approx(float(np.mean(top5)))


@pytest.mark.parametrize("bad", [0.0, math.nan])
def test_score_has_no_top5_accuracy_where_it_would_be_100_percent_for_any_network(bad: float) -> None:
    assert score(np.full((4, 5), bad), np.zeros(4, int)).top5 is None
    assert score(np.full((4, 6), bad), np.zeros(4, int)).top5 is not None


def test_score_ranks_equal_logits_by_index() -> None:
    scores = score(np.zeros((120, 120)), np.arange(120))
    assert scores.top5 is not None
    assert (scores.accuracy.correct, scores.top5.correct) == (1, 5)
    assert scores.loss == pytest.approx(math.log(120))


def test_score_of_nan_logits_has_nothing_correct_and_a_nan_loss() -> None:
    scores = score(np.full((4, 3), np.nan), np.array([0, 1, 2, 0]))
    assert scores.accuracy.correct == 0
    assert math.isnan(scores.loss)


@pytest.mark.parametrize(
    ("gained", "lost", "p_value"),
    [
        (10, 0, 2 / 1024),
        (0, 10, 2 / 1024),
        (5, 5, 1.0),
        (0, 0, 1.0),
        (1, 0, 1.0),
        (6, 0, 2 / 64),
        (8, 2, 2 * (1 + 10 + 45) / 1024),
        (4, 3, 1.0),
    ],
)
def test_p_value_is_that_of_mcnemars_exact_test(gained: int, lost: int, p_value: float) -> None:
    assert PairedOutcome(gained, lost, 100, "test").p_value == pytest.approx(p_value, rel=1e-9)


@pytest.mark.parametrize(("gained", "lost"), [(300, 200), (520, 480), (1040, 1000)])
def test_p_value_is_exact_for_many_discordant_images(gained: int, lost: int) -> None:
    tail = sum(math.comb(gained + lost, fewer) for fewer in range(lost + 1))
    assert PairedOutcome(gained, lost, 10_000, "test").p_value == pytest.approx(
        float(Fraction(2 * tail, 2 ** (gained + lost))), rel=1e-6
    )


@pytest.mark.parametrize(
    ("gained", "lost", "n"), [(0, 0, 60), (10, 0, 100), (0, 10, 100), (60, 10, 1000), (500, 480, 8580), (100, 0, 100)]
)
def test_interval_contains_the_difference_and_is_symmetric(gained: int, lost: int, n: int) -> None:
    pair = PairedOutcome(gained, lost, n, "test")
    low, high = pair.interval
    assert pair.difference == (gained - lost) / n
    assert -1 <= low <= pair.difference <= high <= 1
    mirrored = PairedOutcome(lost, gained, n, "test")
    assert mirrored.difference == -pair.difference
    assert mirrored.interval == pytest.approx((-high, -low))


def test_interval_contains_the_true_difference_in_95_percent_of_samples(rng: np.random.Generator) -> None:
    draws = rng.multinomial(300, [0.08, 0.05, 0.87], size=4000)
    intervals = [PairedOutcome(int(gained), int(lost), 300, "test").interval for gained, lost, _ in draws]
    assert np.mean([low <= 0.03 <= high for low, high in intervals]) == pytest.approx(0.95, abs=0.015)


def test_interval_is_that_of_agresti_and_min() -> None:
    # (60.5 - 10.5) / 1002 ± 1.96 sqrt(71 - 50**2 / 1002) / 1002.
    assert PairedOutcome(60, 10, 1000, "test").interval == pytest.approx((0.033711, 0.066090), abs=1e-5)


def test_paired_outcome_str_has_interval_counts_and_p_value() -> None:
    text = "+5.0 points on test (95 % interval +3.4 to +6.6; 60 images gained, 10 lost of 1,000, p = 8e-10)"
    assert str(PairedOutcome(60, 10, 1000, "test")) == text
    assert str(PairedOutcome(0, 0, 60, "val")).startswith("+0.0 points on val (95 % interval -")
