"""What a training run measured."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dogbreeds.evaluation.metrics import PairedOutcome, Proportion, Scores

# And how many outputs: how the tag begins where there is a baseline
_MEASURED = "zero training: the 1000-way top's"

_SPLITS = {"val": "validation", "test": "test"}
_HOLDS = "ImageNet holds Stanford Dogs' photos"


@dataclass(frozen=True)
class ZeroShotBaseline:
    """The baseline of an attempt, or why it has none.

    Attributes:
        said: what it is, or the reason, as the run is tagged.
        dogs: how many classes are among ImageNet's.
        accuracies: measured, by split.
    """

    said: str
    dogs: int
    accuracies: dict[str, Proportion] = field(default_factory=dict)

    def metrics(self) -> dict[str, float]:
        return {f"baseline/{split}_accuracy": accuracy.value for split, accuracy in self.accuracies.items()}

    def tags(self) -> dict[str, str]:
        return {"baseline": self.said, "data.imagenet_classes": str(self.dogs)}

    def lines(self) -> list[str]:
        """For people, among an attempt's results: on test, where there is one."""
        if not self.accuracies:
            return [f"zero  no baseline: {self.said}"] if self.dogs else []
        split, accuracy = list(self.accuracies.items())[-1]
        return [f"zero  {_SPLITS[split]:10} {accuracy}: the 1000-way top, untrained; {_HOLDS}"]


@dataclass(frozen=True)
class Epoch:
    """What one epoch measured. `number` counts from 1; `lr` is that of its last step; training figures are means over its steps."""

    number: int
    lr: float
    train_loss: float
    train_accuracy: float
    train_top5: float
    val: Scores
    seconds: float

    def metrics(self) -> dict[str, float]:
        return {
            "train/loss": self.train_loss,
            "train/accuracy": self.train_accuracy,
            "train/top5_accuracy": self.train_top5,
            "val/loss": self.val.loss,
            "val/accuracy": self.val.accuracy.value,
            "val/top5_accuracy": self.val.top5.value,
            "lr": self.lr,
        }


def _scores(values: Mapping[str, Any]) -> Scores:
    return Scores(**{**values, "accuracy": Proportion(**values["accuracy"]), "top5": Proportion(**values["top5"])})


# Of the running mean of the loss
_SMOOTHING = 0.95


@dataclass(frozen=True)
class Range:
    """What the test measured.

    Attributes:
        lrs: [steps] the rate of each step, ascending.
        losses: [steps] training loss in nats, before each step; the last may not be a number.
    """

    lrs: tuple[float, ...]
    losses: tuple[float, ...]

    @property
    def smoothed(self) -> tuple[float, ...]:
        """Running means of the losses, without bias towards the first."""
        means, mean, weight = [], 0.0, 0.0
        for loss in self.losses:
            if not math.isfinite(loss):
                break
            mean = _SMOOTHING * mean + (1 - _SMOOTHING) * loss
            weight = _SMOOTHING * weight + 1 - _SMOOTHING
            means.append(mean / weight)
        return tuple(means)

    @property
    def falling(self) -> bool:
        """Whether the loss was still at its lowest when the test ended."""
        smoothed = self.smoothed
        return len(smoothed) == len(self.losses) and min(smoothed) == smoothed[-1]

    @property
    def suggestion(self) -> float | None:
        """A rate to train with, as `suggest` has it; None where the loss fell to the end too."""
        return None if self.falling else suggest(self.lrs, self.smoothed)

    @property
    def objective(self) -> float:
        """The suggestion, for sweepers; 0 where there is none."""
        return self.suggestion or 0.0


def suggest(lrs: Sequence[float], smoothed: Sequence[float]) -> float | None:
    """A tenth of the rate at which the smoothed loss is lowest: it rises beyond, and well below that training is stable.

    The steepest point, which is often taken instead, lies right before the rise with a head that collapses: it gave 6e-3 where 1e-3 learns.

    Args:
        lrs: ascending.
        smoothed: a loss for each of the first of them.

    Returns:
        None where the loss never falls by a twentieth, so that there is nothing to suggest.
    """
    if not len(smoothed):
        return None
    low = int(np.argmin(smoothed))
    return lrs[low] / 10 if smoothed[low] < 0.95 * smoothed[0] else None


@dataclass(frozen=True)
class Mistake:
    """A photo that was called something else.

    Attributes:
        photo: [size, size, 3] uint8.
        breed: what it is.
        called: what the network said.
        probability: how sure it was.
    """

    photo: np.ndarray
    breed: str
    called: str
    probability: float


@dataclass(frozen=True)
class Predictions:
    """What a network said of a split's photos.

    Attributes:
        ids: a name for each photo.
        labels: [n] int.
        logits: [n, classes] float.
        class_names: in the order of the logits; empty where they were not recorded, as by earlier versions.
    """

    ids: Sequence[str]
    labels: np.ndarray
    logits: np.ndarray
    class_names: tuple[str, ...] = ()

    def beside(self, other: "Predictions", split: str) -> PairedOutcome:
        """This network, photo by photo beside another one, whose photos must be these."""
        theirs = dict(zip(other.ids, other.logits.argmax(axis=1) == other.labels, strict=True))
        before = np.array([theirs[name] for name in self.ids])
        now = self.logits.argmax(axis=1) == self.labels
        return PairedOutcome.of(before, now, split)
