"""What is measured on predictions. Every accuracy carries its n and a 95 % interval."""

import math
from dataclasses import dataclass

import numpy as np

# Standard normal quantile of 0.975
_Z95 = 1.959963984540054


@dataclass(frozen=True)
class Proportion:
    """How many of n, with the Wilson interval. Source: Wilson 1927; Brown, Cai and DasGupta 2001."""

    correct: int
    n: int

    @property
    def value(self) -> float:
        return self.correct / self.n if self.n else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval, within [0, 1]."""
        if not self.n:
            return 0.0, 1.0
        share, z2 = self.value, _Z95**2
        middle = (share + z2 / (2 * self.n)) / (1 + z2 / self.n)
        reach = _Z95 / (1 + z2 / self.n) * math.sqrt(share * (1 - share) / self.n + z2 / (4 * self.n**2))
        return max(0.0, middle - reach), min(1.0, middle + reach)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{100 * self.value:.1f} % (95 % interval {100 * low:.1f}–{100 * high:.1f}, n = {self.n:,})"


def probabilities(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """[n, classes] logits -> [n, classes] float64, each row adding up to 1."""
    wide = logits.astype(np.float64) / temperature
    powers = np.exp(wide - wide.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


@dataclass(frozen=True)
class Scores:
    """A split's results.

    Attributes:
        loss: mean cross-entropy in nats.
        accuracy, top5: shares of photos whose breed came first, or among the first five.
    """

    loss: float
    accuracy: Proportion
    top5: Proportion


def score(logits: np.ndarray, labels: np.ndarray) -> Scores:
    """Measures predictions.

    Args:
        logits: [n, classes] float.
        labels: [n] int.
    """
    # Nothing was ranked
    if not np.isfinite(logits).all():
        return Scores(math.nan, Proportion(0, len(labels)), Proportion(0, len(labels)))
    wide = logits.astype(np.float64)
    shifted = wide - wide.max(axis=1, keepdims=True)
    own = np.take_along_axis(shifted, labels[:, None].astype(np.int64), axis=1)
    losses = np.log(np.exp(shifted).sum(axis=1)) - own[:, 0]
    # Of equals, the first is taken
    ahead = (shifted > own) | ((shifted == own) & (np.arange(logits.shape[1]) < labels[:, None]))
    rank = ahead.sum(axis=1)
    first, five = int((rank < 1).sum()), int((rank < 5).sum())
    return Scores(float(losses.mean()), Proportion(first, len(labels)), Proportion(five, len(labels)))


@dataclass(frozen=True)
class PairedOutcome:
    """Two networks on the same n photos: how many only the second got right (`gained`), how many only the first did (`lost`)."""

    gained: int
    lost: int
    n: int
    split: str

    @classmethod
    def of(cls, before: np.ndarray, now: np.ndarray, split: str) -> "PairedOutcome":
        """Of [n] bool each: which photos the first got right, and which the second."""
        return cls(int((now & ~before).sum()), int((before & ~now).sum()), len(now), split)

    @property
    def p_value(self) -> float:
        """Of the exact two-sided McNemar test: of the photos that differ, as many are gained as lost. Source: McNemar 1947."""
        differ, fewer = self.gained + self.lost, min(self.gained, self.lost)
        log_shares = [
            math.lgamma(differ + 1) - math.lgamma(k + 1) - math.lgamma(differ - k + 1) - differ * math.log(2)
            for k in range(fewer + 1)
        ]
        return min(1.0, 2 * sum(math.exp(share) for share in log_shares))

    @property
    def difference(self) -> float:
        """Accuracy of the second less that of the first."""
        return (self.gained - self.lost) / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the difference. Source: Agresti and Min 2005, half a photo added to each of the four counts."""
        gained, lost, n = self.gained + 0.5, self.lost + 0.5, self.n + 2
        middle = (gained - lost) / n
        reach = _Z95 * math.sqrt(max(0.0, gained + lost - (gained - lost) ** 2 / n)) / n
        return max(-1.0, middle - reach), min(1.0, middle + reach)

    def __str__(self) -> str:
        low, high = self.interval
        return (
            f"{100 * self.difference:+.1f} points on {self.split} (95 % interval {100 * low:+.1f} to {100 * high:+.1f};"
            f" {self.gained} photos gained, {self.lost} lost of {self.n:,}, p = {self.p_value:.2g})"
        )
