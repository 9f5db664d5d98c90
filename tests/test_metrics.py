import math
from fractions import Fraction

import numpy as np
import pytest

from dogbreeds.evaluation.metrics import PairedOutcome, Proportion, score


@pytest.mark.parametrize(
    # Of Wilson's interval, as scipy.stats.binomtest(correct, n).proportion_ci(method="wilson") gives it
    ("correct", "n", "low", "high"),
    [(0, 10, 0.0, 0.277533), (10, 10, 0.722467, 1.0), (5, 10, 0.236593, 0.763407), (3816, 4072, 0.929202, 0.944128)],
)
def test_wilson_s_interval(correct: int, n: int, low: float, high: float) -> None:
    assert Proportion(correct, n).interval == pytest.approx((low, high), abs=1e-4)


def test_a_proportion_reads_with_its_n() -> None:
    assert str(Proportion(925, 1200)) == "77.1 % (95 % interval 74.6–79.4, n = 1,200)"


def test_scores_agree_with_keras(rng: np.random.Generator) -> None:
    import keras

    logits, labels = rng.normal(size=(500, 30)).astype(np.float32), rng.integers(0, 30, size=500)
    scores = score(logits, labels)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)(labels, logits)
    top5 = keras.metrics.sparse_top_k_categorical_accuracy(labels, logits, k=5)
    assert scores.loss == pytest.approx(float(loss), rel=1e-5)
    assert scores.accuracy.value == (logits.argmax(axis=1) == labels).mean()
    assert scores.top5.value == pytest.approx(float(np.mean(top5)))


def test_equal_scores_for_all_classes_are_not_taken_for_knowledge() -> None:
    scores = score(np.zeros((120, 120)), np.arange(120))
    assert (scores.accuracy.correct, scores.top5.correct) == (1, 5)
    assert scores.loss == pytest.approx(math.log(120))


def test_what_is_not_a_number_ranks_nothing() -> None:
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
def test_mcnemar_s_exact_test(gained: int, lost: int, p_value: float) -> None:
    assert PairedOutcome(gained, lost, 100, "test").p_value == pytest.approx(p_value, rel=1e-9)


@pytest.mark.parametrize(("gained", "lost"), [(300, 200), (520, 480), (1040, 1000)])
def test_mcnemar_s_exact_test_is_exact_for_many(gained: int, lost: int) -> None:
    tail = sum(math.comb(gained + lost, fewer) for fewer in range(lost + 1))
    assert PairedOutcome(gained, lost, 10_000, "test").p_value == pytest.approx(
        float(Fraction(2 * tail, 2 ** (gained + lost))), rel=1e-6
    )


@pytest.mark.parametrize(
    ("gained", "lost", "n"), [(0, 0, 60), (10, 0, 100), (0, 10, 100), (60, 10, 1000), (500, 480, 8580), (100, 0, 100)]
)
def test_a_difference_lies_in_its_interval(gained: int, lost: int, n: int) -> None:
    pair = PairedOutcome(gained, lost, n, "test")
    low, high = pair.interval
    assert pair.difference == (gained - lost) / n
    assert -1 <= low <= pair.difference <= high <= 1
    mirrored = PairedOutcome(lost, gained, n, "test")
    assert mirrored.difference == -pair.difference
    assert mirrored.interval == pytest.approx((-high, -low))


def test_the_interval_of_a_difference_covers_it_as_often_as_it_says(rng: np.random.Generator) -> None:
    draws = rng.multinomial(300, [0.08, 0.05, 0.87], size=4000)
    intervals = [PairedOutcome(int(gained), int(lost), 300, "test").interval for gained, lost, _ in draws]
    assert np.mean([low <= 0.03 <= high for low, high in intervals]) == pytest.approx(0.95, abs=0.015)


def test_agresti_and_min_s_interval() -> None:
    # (60.5 - 10.5) / 1002, give or take 1.96 sqrt(71 - 50**2 / 1002) / 1002
    assert PairedOutcome(60, 10, 1000, "test").interval == pytest.approx((0.033711, 0.066090), abs=1e-5)


def test_a_pair_reads_with_its_counts() -> None:
    said = "+5.0 points on test (95 % interval +3.4 to +6.6; 60 photos gained, 10 lost of 1,000, p = 8e-10)"
    assert str(PairedOutcome(60, 10, 1000, "test")) == said
    assert str(PairedOutcome(0, 0, 60, "val")).startswith("+0.0 points on val (95 % interval -")
