"""Metrics of predictions: accuracy, top-5 accuracy and cross-entropy of one network, and the paired outcome of two.

Every accuracy carries its n and a 95 % interval. SciPy is imported where it is used, so that importing this module is
cheap.
"""

import math
from dataclasses import dataclass

import numpy as np

# Classes that count as right in the top-5 accuracy.
TOP = 5
# Standard normal quantile of 0.975.
_Z95 = 1.959963984540054
# Of 0.995.
_Z99 = 2.5758293035489004
# Significance level of the paired test of a verdict.
PAIRED_LEVEL = 0.01
# Metrics of the validation split that can select the best epoch.
MONITORS = ("accuracy", "balanced_accuracy", "macro_f1", "loss")


@dataclass(frozen=True)
class Proportion:
    """A count out of n, with its Wilson interval.

    Source: Wilson 1927; Brown, Cai and DasGupta 2001.

    Attributes:
        correct: the count, in [0, n].
        n: the number of images.
    """

    correct: int
    n: int

    @property
    def value(self) -> float:
        """The proportion in [0, 1]; NaN without images."""
        return self.correct / self.n if self.n else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval, within [0, 1]."""
        if not self.n:
            return 0.0, 1.0
        # As SciPy computes it, whose import takes a second, and whose test of the count is not needed here.
        scale = 2 * (self.n + _Z95**2)
        middle = (2 * self.n * self.value + _Z95**2) / scale
        reach = _Z95 / scale * math.sqrt(4 * self.n * self.value * (1 - self.value) + _Z95**2)
        low = middle - reach if self.correct else 0.0
        high = middle + reach if self.correct < self.n else 1.0
        return low, high

    def __str__(self) -> str:
        low, high = self.interval
        return f"{100 * self.value:.1f} % (95 % interval {100 * low:.1f}–{100 * high:.1f}, n = {self.n:,})"


def probabilities(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Compute class probabilities, in float64.

    Args:
        logits: [n, classes] float.
        temperature: what the logits are divided by; above 1 it lowers the confidence.

    Returns:
        [n, classes] float64; each row sums to 1.
    """
    from scipy.special import softmax

    return softmax(logits.astype(np.float64) / temperature, axis=1)


@dataclass(frozen=True)
class Scores:
    """The scores of a split.

    Attributes:
        loss: mean cross-entropy in nats; NaN if a logit is not finite.
        accuracy: proportion of images whose class has the highest logit.
        top5: proportion of images whose class is among the five highest logits; None with five classes or fewer, where
            it would be 100 % whatever the network predicts.
        balanced_accuracy: mean recall of the classes that have images, in [0, 1]; NaN if an earlier version measured.
        macro_f1: mean F1 of these classes, in [0, 1]; NaN likewise.
    """

    loss: float
    accuracy: Proportion
    top5: Proportion | None
    balanced_accuracy: float = math.nan
    macro_f1: float = math.nan

    def monitored(self, monitor: str) -> float:
        """Return a metric so that more is better.

        Args:
            monitor: one of `MONITORS`.
        """
        if monitor == "loss":
            return -self.loss
        return self.accuracy.value if monitor == "accuracy" else float(getattr(self, monitor))


def score(logits: np.ndarray, labels: np.ndarray) -> Scores:
    """Compute loss, accuracy and top-5 accuracy. Of equal logits, the one with the lower index ranks first.

    Args:
        logits: [n, classes] float.
        labels: [n] int.
    """
    n, classes = logits.shape
    has_top5 = classes > TOP
    # Logits that are not finite have no ranking.
    if not np.isfinite(logits).all():
        return Scores(math.nan, Proportion(0, n), Proportion(0, n) if has_top5 else None, 0.0, 0.0)
    wide = logits.astype(np.float64)
    shifted = wide - wide.max(axis=1, keepdims=True)
    own = np.take_along_axis(shifted, labels[:, None].astype(np.int64), axis=1)
    losses = np.log(np.exp(shifted).sum(axis=1)) - own[:, 0]
    ranked_before = (shifted > own) | ((shifted == own) & (np.arange(classes) < labels[:, None]))
    rank = ranked_before.sum(axis=1)
    predicted = shifted.argmax(axis=1)
    return Scores(
        loss=float(losses.mean()),
        accuracy=Proportion(int((rank < 1).sum()), n),
        top5=Proportion(int((rank < TOP).sum()), n) if has_top5 else None,
        balanced_accuracy=balanced_accuracy(labels, predicted, classes),
        macro_f1=macro_f1(labels, predicted, classes),
    )


def balanced_accuracy(labels: np.ndarray, predicted: np.ndarray, classes: int) -> float:
    """Compute the mean recall of the classes that have images.

    Args:
        labels: [n] int.
        predicted: [n] int.
        classes: number of classes.
    """
    support, correct = _class_counts(labels, predicted, classes)
    return float((correct[support > 0] / support[support > 0]).mean())


def macro_f1(labels: np.ndarray, predicted: np.ndarray, classes: int) -> float:
    """Compute the mean F1 of the classes that have images.

    Args:
        labels: [n] int.
        predicted: [n] int.
        classes: number of classes.
    """
    support, correct = _class_counts(labels, predicted, classes)
    f1 = 2 * correct / np.maximum(1, support + np.bincount(predicted, minlength=classes))
    return float(f1[support > 0].mean())


def _class_counts(labels: np.ndarray, predicted: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Count the images of each class, and those that are classified correctly: two arrays of [classes]."""
    return np.bincount(labels, minlength=classes), np.bincount(labels[labels == predicted], minlength=classes)


@dataclass(frozen=True)
class PairedOutcome:
    """The accuracies of two networks on the same images, image by image.

    Attributes:
        gained: number of images that only the second network classifies correctly.
        lost: number of images that only the first network classifies correctly.
        n: number of images.
        split: name of the split.
    """

    gained: int
    lost: int
    n: int
    split: str

    @classmethod
    def of(cls, before: np.ndarray, now: np.ndarray, split: str) -> "PairedOutcome":
        """Count the images on which two networks differ.

        Args:
            before: [n] bool, whether the first network is correct.
            now: [n] bool, whether the second network is correct.
            split: name of the split.
        """
        return cls(gained=int((now & ~before).sum()), lost=int((before & ~now).sum()), n=len(now), split=split)

    @property
    def p_value(self) -> float:
        """The p-value of the exact two-sided McNemar test: gained and lost are equally likely. Source: McNemar 1947."""
        from scipy.stats import binomtest

        discordant = self.gained + self.lost
        return float(binomtest(min(self.gained, self.lost), discordant).pvalue) if discordant else 1.0

    @property
    def difference(self) -> float:
        """The accuracy of the second network minus that of the first."""
        return (self.gained - self.lost) / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the difference."""
        return self.bounds(_Z95)

    def bounds(self, deviations: float) -> tuple[float, float]:
        """Return an interval of the difference.

        Half an image is added to each of the four counts. Source: Agresti and Min 2005.

        Args:
            deviations: its reach to each side, in standard errors.
        """
        gained = self.gained + 0.5
        lost = self.lost + 0.5
        n = self.n + 2
        middle = (gained - lost) / n
        reach = deviations * math.sqrt(max(0.0, gained + lost - (gained - lost) ** 2 / n)) / n
        return max(-1.0, middle - reach), min(1.0, middle + reach)

    def metrics(self) -> dict[str, float]:
        """Return the difference, its p-value and both counts by name, as they are recorded."""
        return {
            "difference": self.difference,
            "p_value": self.p_value,
            "gained": float(self.gained),
            "lost": float(self.lost),
        }

    def __str__(self) -> str:
        low, high = self.interval
        return (
            f"{100 * self.difference:+.1f} points on {self.split} (95 % interval {100 * low:+.1f} to {100 * high:+.1f};"
            f" {self.gained} images gained, {self.lost} lost of {self.n:,}, p = {self.p_value:.2g})"
        )


@dataclass(frozen=True)
class Reference:
    """What the reference probe reaches on the images that decide about a run, and what the run reaches on them.

    Attributes:
        probe: accuracy of the probe.
        run: accuracy of the run, with the weights of its best epoch.
        pair: image by image, the probe first and the run second; None where only the accuracies are known.
    """

    probe: Proportion
    run: Proportion
    pair: PairedOutcome | None = None

    @classmethod
    def of(cls, probe: np.ndarray, run: np.ndarray, split: str) -> "Reference":
        """Compare the two image by image.

        Args:
            probe: [n] bool, whether the probe is correct.
            run: [n] bool, whether the run is.
            split: name of the split.
        """
        n = len(run)
        outcome = PairedOutcome.of(probe, run, split)
        return cls(Proportion(int(probe.sum()), n), Proportion(int(run.sum()), n), outcome)

    @property
    def difference(self) -> float:
        """The accuracy of the run minus that of the probe."""
        return self.run.value - self.probe.value

    @property
    def numbers(self) -> dict[str, float]:
        """The accuracy of the probe and the difference, by name."""
        return {"reference": self.probe.value, "reference_difference": self.difference}

    @property
    def bounds(self) -> tuple[float, float]:
        """The 99 % interval of the difference."""
        if self.pair is not None:
            return self.pair.bounds(_Z99)
        variances = (part.value * (1 - part.value) / part.n for part in (self.probe, self.run))
        reach = _Z99 * math.sqrt(sum(variances))
        return self.difference - reach, self.difference + reach

    @property
    def is_lower(self) -> bool:
        """Whether the run is significantly below the probe."""
        if self.pair is not None:
            return self.pair.difference < 0 and self.pair.p_value < PAIRED_LEVEL
        return self.bounds[1] < 0
