"""Results of a run: epochs, predictions, mistakes, baseline, reference probe and the learning-rate range test."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dogbreeds.evaluation.metrics import PairedOutcome, Proportion, Reference, Scores, probabilities

# First words of the `baseline` tag of a run whose baseline was measured; the number of outputs follows. The tag is
# stored, and reports recognise it by these words.
MEASURED_BASELINE_PREFIX = "zero training: the 1000-way top's"

# Names of the splits that a baseline is measured on, for people.
SPLIT_NAMES = {"val": "validation", "test": "test"}
IMAGENET_OVERLAP = "ImageNet contains the images of Stanford Dogs"


@dataclass(frozen=True)
class ZeroShotBaseline:
    """The zero-shot baseline of a run, or why it has none.

    Attributes:
        description: what the baseline is, or why there is none; the value of the `baseline` tag.
        imagenet_classes: number of the classes that are among ImageNet's.
        accuracies: the measured accuracies, by split.
    """

    description: str
    imagenet_classes: int
    accuracies: dict[str, Proportion] = field(default_factory=dict)

    def metrics(self) -> dict[str, float]:
        """Return the accuracies in [0, 1] by metric name."""
        return {f"baseline/{split}_accuracy": accuracy.value for split, accuracy in self.accuracies.items()}

    def tags(self) -> dict[str, str]:
        """Return the tags of the run."""
        return {"baseline": self.description, "data.imagenet_classes": str(self.imagenet_classes)}

    def lines(self) -> list[str]:
        """Return the log line of the baseline in a list, on the test split if there is one.

        The list is empty if there is no baseline and no class is among ImageNet's.
        """
        if not self.accuracies:
            return [f"baseline  none: {self.description}"] if self.imagenet_classes else []
        split, accuracy = list(self.accuracies.items())[-1]
        return [f"baseline  {SPLIT_NAMES[split]} {accuracy}: the 1000-way top, untrained; {IMAGENET_OVERLAP}"]


@dataclass(frozen=True)
class ReferenceResult:
    """What the reference probe reaches on the features of a run, or why it has none.

    Attributes:
        description: the probe's method, or why there is none; the value of the `reference` tag.
        comparisons: the probe and the run, by split; the test split, if there is one, is the last.
        training: the same on training images, which the run has seen, and which the probe has not: each was left out
            of its fit; None if there are none.
        facts: numbers about the probe, by name; empty in a fine-tune, which takes the accuracies from its parent.
        seconds: how long fitting and scoring took.
    """

    description: str
    comparisons: dict[str, Reference] = field(default_factory=dict)
    training: Reference | None = None
    facts: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def deciding(self) -> Reference | None:
        """The comparison on the split that the verdict decides by: the test split if there is one."""
        return list(self.comparisons.values())[-1] if self.comparisons else None

    def metrics(self) -> dict[str, float]:
        """Return accuracies, intervals and paired comparisons by metric name."""
        metrics = {f"reference/{name}": value for name, value in self.facts.items()}
        if self.seconds:
            metrics["seconds/reference"] = self.seconds
        training = {"train": self.training} if self.training is not None else {}
        for split, found in (self.comparisons | training).items():
            low, high = found.probe.interval
            numbers = {"accuracy": found.probe.value, "accuracy_low": low, "accuracy_high": high, "n": found.probe.n}
            metrics |= {
                f"reference/{split}_{name}": float(value)
                for name, value in (numbers | (found.pair.metrics() if found.pair else {})).items()
            }
        return metrics

    def tags(self) -> dict[str, str]:
        """Return the tags of the run."""
        return {"reference": self.description}

    def lines(self) -> list[str]:
        """Return the log line of the probe in a list, on the test split if there is one."""
        if not self.comparisons:
            return [f"reference  none: {self.description}"]
        split, found = list(self.comparisons.items())[-1]
        return [f"reference  {split} {found.probe}: {self.description}"]


@dataclass(frozen=True)
class Epoch:
    """The results of one epoch.

    Attributes:
        number: the epoch, counted from 1.
        lr: learning rate of its last step; None without one.
        train_loss: training loss in nats, the mean over its steps.
        train_accuracy: training accuracy in [0, 1], the mean over its steps.
        train_top5: training top-5 accuracy in [0, 1], the mean over its steps; None where `val` has none.
        val: scores on the validation split after the epoch.
        seconds: duration.
        strength: `C` of a logistic regression, whose epochs are its values; None for other heads.
        members: number of fine-tunes in a soup, whose epochs are its candidates; None for other runs.
        soup_share: share of the soup in an interpolation with the parent, in (0, 1]; None for other runs.
        cross_validation: scores on training images that were left out one fold at a time, where they choose `C`.
    """

    number: int
    lr: float | None
    train_loss: float
    train_accuracy: float
    train_top5: float | None
    val: Scores
    seconds: float
    strength: float | None = None
    cross_validation: Scores | None = None
    members: int | None = None
    soup_share: float | None = None

    @property
    def is_alternative(self) -> bool:
        """Whether the run's epochs are alternatives of which one is chosen, rather than a course of training."""
        return self.strength is not None or self.members is not None

    @property
    def selecting(self) -> Scores:
        """The scores that the best epoch is selected by."""
        return self.cross_validation or self.val

    def metrics(self) -> dict[str, float]:
        """Return the results by metric name."""
        metrics = {
            "train/loss": self.train_loss,
            "train/accuracy": self.train_accuracy,
            "train/top5_accuracy": self.train_top5,
            "val/loss": self.val.loss,
            "val/accuracy": self.val.accuracy.value,
            "val/top5_accuracy": self.val.top5.value if self.val.top5 is not None else None,
            "val/balanced_accuracy": self.val.balanced_accuracy,
            "val/macro_f1": self.val.macro_f1,
            "lr": self.lr,
            "C": self.strength,
            "soup/members": self.members,
            "soup/share": self.soup_share,
        }
        if self.cross_validation is not None:
            metrics["cross_validation/loss"] = self.cross_validation.loss
            metrics["cross_validation/accuracy"] = self.cross_validation.accuracy.value
        return {name: value for name, value in metrics.items() if value is not None}


def epoch_from_dict(values: Mapping[str, Any]) -> Epoch:
    """Restore an epoch from what `dataclasses.asdict` made of it; earlier versions had fewer fields."""
    scores = {name: scores_from_dict(values[name]) for name in ("val", "cross_validation") if values.get(name)}
    return Epoch(**{**values, **scores})


def scores_from_dict(values: Mapping[str, Any]) -> Scores:
    """Restore scores from what `dataclasses.asdict` made of them."""
    accuracy, top5 = (Proportion(**found) if (found := values[name]) else None for name in ("accuracy", "top5"))
    return Scores(**{**values, "accuracy": accuracy, "top5": top5})


# Weight of the earlier steps in the running mean of the loss.
_SMOOTHING = 0.95


@dataclass(frozen=True)
class Range:
    """The result of a learning-rate range test.

    Attributes:
        lrs: [steps] learning rate of each step, ascending.
        losses: [steps] training loss in nats before each step; the last may be NaN or infinite.
    """

    lrs: tuple[float, ...]
    losses: tuple[float, ...]

    @property
    def smoothed(self) -> tuple[float, ...]:
        """Running means of the losses, bias-corrected, up to the first loss that is not finite."""
        means = []
        mean = 0.0
        weight = 0.0
        for loss in self.losses:
            if not math.isfinite(loss):
                break
            mean = _SMOOTHING * mean + (1 - _SMOOTHING) * loss
            weight = _SMOOTHING * weight + 1 - _SMOOTHING
            means.append(mean / weight)
        return tuple(means)

    @property
    def falling(self) -> bool:
        """Whether the smoothed loss was at its lowest when the test ended."""
        smoothed = self.smoothed
        return len(smoothed) == len(self.losses) and min(smoothed) == smoothed[-1]

    @property
    def suggestion(self) -> float | None:
        """The learning rate that `suggest` returns; None also if the loss fell until the end of the test."""
        return None if self.falling else suggest(self.lrs, self.smoothed)

    @property
    def objective(self) -> float:
        """The suggestion, for sweepers; 0 if there is none."""
        return self.suggestion or 0.0


def suggest(lrs: Sequence[float], smoothed: Sequence[float]) -> float | None:
    """Suggest a learning rate: a tenth of the rate at which the smoothed loss is lowest.

    The loss rises beyond that rate, and training is stable well below it. The steepest point, which is often used
    instead, lies right before the rise if the head collapses: it suggested 6e-3 for a head that learns at 1e-3.

    Args:
        lrs: learning rates, ascending.
        smoothed: the smoothed loss at each of the first of these rates.

    Returns:
        The learning rate; None if the loss never falls by a twentieth.
    """
    if not len(smoothed):
        return None
    lowest = int(np.argmin(smoothed))
    return lrs[lowest] / 10 if smoothed[lowest] < 0.95 * smoothed[0] else None


@dataclass(frozen=True)
class Mistake:
    """A misclassified image.

    Attributes:
        image: [size, size, 3] uint8.
        label: name of its class.
        predicted: name of the predicted class.
        probability: the probability of the predicted class.
    """

    image: np.ndarray
    label: str
    predicted: str
    probability: float


@dataclass(frozen=True)
class Predictions:
    """A network's predictions on a split.

    Attributes:
        ids: name of each image.
        labels: [n] int.
        logits: [n, classes] float.
        class_names: in the order of the logits; empty if they were not recorded, as by earlier versions.
    """

    ids: Sequence[str]
    labels: np.ndarray
    logits: np.ndarray
    class_names: tuple[str, ...] = ()

    def largest_difference(self, ids: Sequence[str], logits: np.ndarray) -> float | None:
        """Return the largest difference of a probability between these predictions and others of the same classes.

        Args:
            ids: name of each of the others' images.
            logits: [n, classes] of them.

        Returns:
            The difference, in [0, 1]; None if one of the images is not among these.
        """
        row_by_id = {name: row for row, name in enumerate(self.ids)}
        if not row_by_id.keys() >= set(ids):
            return None
        ours = self.logits[[row_by_id[name] for name in ids]]
        return float(np.abs(probabilities(ours) - probabilities(logits)).max(initial=0.0))

    def compare_with(self, other: "Predictions", split: str) -> PairedOutcome:
        """Compare with another network's predictions on the same images, image by image.

        Args:
            other: predictions of the network to compare with; its images must include all of these.
            split: name of the split.

        Returns:
            The paired outcome, in which gained images are those that only this network classifies correctly.
        """
        other_correct = dict(zip(other.ids, other.logits.argmax(axis=1) == other.labels, strict=True))
        before = np.array([other_correct[name] for name in self.ids])
        now = self.logits.argmax(axis=1) == self.labels
        return PairedOutcome.of(before, now, split)
