"""What a network's answers to some photos are worth, in numbers: pure functions of logits and labels.

Every number carries its n and a 95 % interval: Wilson's for shares, bootstrapped for the others. Photos are drawn again from all of them, since
drawing within each breed left out what another photo of a breed would have changed: of 2 photos a breed, such an interval held the true log loss in
79 of 100 cases, and of one photo never. Intervals are mirrored at the estimate (the basic bootstrap), because a draw's macro F1 is too low and its
calibration error too high by about as much as the photos' own are. With 2 to 20 photos a breed, that of F1 held the truth in 91 to 94 of 100 cases.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from dogbreeds.evaluation import calibration
from dogbreeds.evaluation.calibration import Bin
from dogbreeds.evaluation.metrics import PairedOutcome, Proportion, Scores, probabilities, score

# Of the bootstrap
_DRAWS = 1000
# Of a probability, so that a photo that was thought impossible costs a finite log loss
_LEAST = 1e-12


@dataclass(frozen=True)
class Measure:
    """A number with its 95 % interval, on n photos."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Breed:
    """One breed's results.

    Attributes:
        name: the class's.
        right: how many of its photos were called so.
        precision: the share of photos called so that are; NaN where none was.
        f1: the harmonic mean of both; 0 where none was right.
        mistaken: what its photos were called most often instead, and how many of them; empty where all were right.
    """

    name: str
    right: Proportion
    precision: float
    f1: float
    mistaken: tuple[str, int]


@dataclass(frozen=True)
class Confusion:
    """Two breeds that are taken for each other: photos of the first that were called the second, and the other way round."""

    first: str
    second: str
    there: int
    back: int


@dataclass(frozen=True)
class Calibration:
    """How far confidence is from accuracy, before and after it is scaled by a temperature that was fitted on other photos.

    Attributes:
        before, after: the expected calibration error.
        gain: before less after, from the same draws; scaling helps where its interval is above 0.
        temperature: what logits were divided by.
        fitted_on: which photos it was fitted on, in words.
        log_loss_after: the log loss with it.
        bins_before, bins_after: of the reliability diagram.
    """

    before: Measure
    after: Measure
    gain: Measure
    temperature: float
    fitted_on: str
    log_loss_after: Measure
    bins_before: list[Bin]
    bins_after: list[Bin]

    @property
    def said(self) -> str:
        """Whether scaling lowers the error, in a sentence."""
        numbers = f"from {_percent(self.before.value)} to {_percent(self.after.value)} %"
        points = f"{_percent(self.gain.low)} to {_percent(self.gain.high)} points, n = {self.gain.n:,}"
        how = f"Temperature {self.temperature:.2f}, fitted on {self.fitted_on},"
        if self.gain.low > 0:
            return f"{how} lowers the calibration error {numbers} (a gain of {points})."
        if self.gain.high < 0:
            return f"{how} does not lower the calibration error: it rises {numbers} (a gain of {points})."
        return f"{how} is not shown to lower the calibration error: it goes {numbers} (a gain of {points})."


@dataclass(frozen=True)
class Augmented:
    """What averaging over several views of each photo gains, and what it costs.

    Attributes:
        views: how many.
        accuracy, log_loss: with it.
        pair: photo by photo beside the plain pass.
        cost: how many times as long it took.
    """

    views: int
    accuracy: Proportion
    log_loss: Measure
    pair: PairedOutcome
    cost: float


@dataclass(frozen=True)
class Evaluation:
    """All that is measured on a set of photos."""

    scores: Scores
    macro_f1: Measure
    log_loss: Measure
    calibration: Calibration
    breeds: list[Breed]
    confusions: list[Confusion]
    matrix: np.ndarray
    augmented: Augmented | None = None

    def metrics(self) -> dict[str, float]:
        """Numbers by name."""
        found: dict[str, float] = {"n": self.scores.accuracy.n}
        shares = {"accuracy": self.scores.accuracy, "top5_accuracy": self.scores.top5}
        measures = {"macro_f1": self.macro_f1, "log_loss": self.log_loss, "calibration_error": self.calibration.before}
        measures["calibration_error_scaled"] = self.calibration.after
        measures |= {name: Measure(share.value, *share.interval, share.n) for name, share in shares.items()}
        for name, measure in measures.items():
            found |= {name: measure.value, f"{name}_low": measure.low, f"{name}_high": measure.high}
        found["temperature"] = self.calibration.temperature
        if self.augmented is not None:
            pair = self.augmented.pair
            found |= {
                "tta/accuracy": self.augmented.accuracy.value,
                "tta/difference": pair.difference,
                "tta/p_value": pair.p_value,
            }
            found["tta/cost"] = self.augmented.cost
        # An earlier evaluation of the run may have had more
        found["tta/views"] = self.augmented.views if self.augmented is not None else 1
        return found


def _percent(share: float) -> str:
    # No minus before a zero
    return f"{round(100 * share, 1) + 0.0:.1f}"


def evaluate(
    logits: np.ndarray, labels: np.ndarray, names: Sequence[str], fitted: tuple[float, str] | None, seed: int
) -> Evaluation:
    """Measures a network's answers.

    Args:
        logits: [n, classes] float, finite.
        labels: [n] int.
        names: of the classes.
        fitted: a temperature that was fitted on other photos, and on which; None fits it on halves of these in turn.
        seed: of the bootstrap's draws and of the halves.
    """
    plain, called = probabilities(logits), logits.argmax(axis=1)
    if fitted is None:
        scaled, temperature = calibration.cross_fitted(logits, labels, seed)
        fitted_on = "each half of these photos for the other"
    else:
        temperature, fitted_on = fitted
        scaled = probabilities(logits, temperature)
    draws = _draws(len(labels), seed)
    matrix = np.bincount(labels * len(names) + called, minlength=len(names) ** 2).reshape(len(names), len(names))
    right = called == labels
    found = Calibration(
        *_calibration_errors(plain.max(axis=1), scaled.max(axis=1), right, draws),
        temperature,
        fitted_on,
        log_loss(scaled, labels, draws),
        calibration.bins(plain.max(axis=1), right),
        calibration.bins(scaled.max(axis=1), right),
    )
    f1 = _bootstrapped(lambda rows: macro_f1(labels[rows], called[rows], len(names)), draws)
    return Evaluation(
        score(logits, labels),
        f1,
        log_loss(plain, labels, draws),
        found,
        breeds(matrix, names),
        confusions(matrix, names),
        matrix,
    )


def augmented(
    plain: np.ndarray, averaged: np.ndarray, labels: np.ndarray, views: int, cost: float, split: str, seed: int
) -> Augmented:
    """What averaging over views gains.

    Args:
        plain: [n, classes] logits of the photos as they are.
        averaged: [n, classes] probabilities, the mean over the views.
        labels: [n] int.
        views: how many.
        cost: seconds of all views over seconds of the plain one.
        split: name of these photos.
        seed: of the bootstrap's draws.
    """
    before, now = plain.argmax(axis=1) == labels, averaged.argmax(axis=1) == labels
    accuracy = Proportion(int(now.sum()), len(labels))
    return Augmented(
        views,
        accuracy,
        log_loss(averaged, labels, _draws(len(labels), seed)),
        PairedOutcome.of(before, now, split),
        cost,
    )


def log_loss(shares: np.ndarray, labels: np.ndarray, draws: np.ndarray) -> Measure:
    """Mean negative logarithm of the right breed's probability, in nats."""
    losses = -np.log(np.maximum(shares[np.arange(len(labels)), labels], _LEAST))
    return _bootstrapped(lambda rows: float(losses[rows].mean()), draws)


def macro_f1(labels: np.ndarray, called: np.ndarray, classes: int) -> float:
    """The mean over breeds of F1; breeds without a photo are left out."""
    there = np.bincount(labels, minlength=classes)
    right = np.bincount(labels[labels == called], minlength=classes)
    f1 = 2 * right / np.maximum(1, there + np.bincount(called, minlength=classes))
    return float(f1[there > 0].mean())


def breeds(matrix: np.ndarray, names: Sequence[str]) -> list[Breed]:
    """Each breed that has photos, the worst first.

    Args:
        matrix: [classes, classes] counts; a row is a breed, a column what its photos were called.
        names: of the classes.
    """
    found = []
    for index in np.flatnonzero(matrix.sum(axis=1)).tolist():
        there, called, right = int(matrix[index].sum()), int(matrix[:, index].sum()), int(matrix[index, index])
        wrong = matrix[index].copy()
        wrong[index] = 0
        mistaken = (names[int(wrong.argmax())], int(wrong.max())) if wrong.any() else ("", 0)
        precision = right / called if called else math.nan
        found.append(Breed(names[index], Proportion(right, there), precision, 2 * right / (there + called), mistaken))
    return sorted(found, key=lambda breed: (breed.right.value, breed.f1))


def confusions(matrix: np.ndarray, names: Sequence[str]) -> list[Confusion]:
    """Pairs of breeds that were taken for each other, the most frequent first."""
    both = np.triu(matrix + matrix.T, k=1)
    pairs = sorted(zip(*np.nonzero(both), strict=True), key=lambda pair: -both[pair])
    return [
        (
            Confusion(names[first], names[second], int(matrix[first, second]), int(matrix[second, first]))
            if matrix[first, second] >= matrix[second, first]
            else Confusion(names[second], names[first], int(matrix[second, first]), int(matrix[first, second]))
        )
        for first, second in pairs
    ]


def _draws(n: int, seed: int) -> np.ndarray:
    """[draws, n] rows, drawn with replacement."""
    return np.random.default_rng(seed).integers(0, n, (_DRAWS, n))


def _bootstrapped(statistic: Callable[[np.ndarray], float], draws: np.ndarray) -> Measure:
    """Of a statistic that is never below 0."""
    (found,) = _mirrored(lambda rows: [statistic(rows)], draws)
    return _positive(found)


def _mirrored(statistics: Callable[[np.ndarray], list[float]], draws: np.ndarray) -> list[Measure]:
    """Several statistics of the same draws; a draw that falls 1 below the estimate puts the interval's upper end 1 above it."""
    n = draws.shape[1]
    values, drawn = np.array(statistics(np.arange(n))), np.array([statistics(rows) for rows in draws])
    low, high = 2 * values - np.quantile(drawn, [0.975, 0.025], axis=0)
    return [
        Measure(value, least, most, n)
        for value, least, most in zip(values.tolist(), low.tolist(), high.tolist(), strict=True)
    ]


def _calibration_errors(
    plain: np.ndarray, scaled: np.ndarray, right: np.ndarray, draws: np.ndarray
) -> tuple[Measure, Measure, Measure]:
    """The errors of both confidences, and by how much the second is lower."""

    def errors(rows: np.ndarray) -> list[float]:
        before, after = (calibration.calibration_error(which[rows], right[rows]) for which in (plain, scaled))
        return [before, after, before - after]

    before, after, gain = _mirrored(errors, draws)
    return _positive(before), _positive(after), gain


def _positive(measure: Measure) -> Measure:
    return Measure(measure.value, max(0.0, measure.low), measure.high, measure.n)
