import math

import numpy as np
import pytest

from dogbreeds.metrics import Proportion, score


@pytest.mark.parametrize(
    ("correct", "n", "low", "high"),  # of Wilson's interval, as scipy.stats.binomtest(correct, n).proportion_ci(method="wilson") gives it
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
