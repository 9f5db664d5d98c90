"""Results of probing backbones: what linear classifiers of their features reach, and which of them are clearly behind.

All backbones are probed on the same images, so they are compared image by image.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dogbreeds.evaluation.metrics import PAIRED_LEVEL, PairedOutcome, Proportion
from dogbreeds.evaluation.results import ZeroShotBaseline

# A backbone is stopped if it is so much below the best one on the sample, and significantly below it.
STOP_DIFFERENCE = 0.03
# Bytes of a weight in float32.
_WEIGHT_BYTES = 4


@dataclass(frozen=True)
class ProbedImages:
    """Which images of a split the probes of a backbone's features classify correctly.

    Attributes:
        linear: [n] bool, logistic regression.
        reference: [n] bool, the reference probe.
    """

    linear: np.ndarray
    reference: np.ndarray


@dataclass(frozen=True)
class ProbedBackbone:
    """A backbone whose features were probed.

    Attributes:
        name: what it is called in the table.
        architecture: of the network.
        image_size: pixels a side.
        parameters: number of weights, without a classifier.
        images_per_second: of the forward pass alone, on the machine that measured it.
        strength: `C` of the logistic regression, chosen on the validation images.
        method: of the reference probe.
        splits: `val` and, if it was probed, `test`.
        baseline: zero-shot baseline, or why there is none.
        fingerprints: of backbone and data, by parameter name.
    """

    name: str
    architecture: str
    image_size: int
    parameters: int
    images_per_second: float
    strength: float
    method: str
    splits: dict[str, ProbedImages]
    baseline: ZeroShotBaseline
    fingerprints: dict[str, str]

    @property
    def split(self) -> str:
        """The split that decides: test if it was probed."""
        return list(self.splits)[-1]

    @property
    def linear(self) -> Proportion:
        """Accuracy of the logistic regression on the deciding split."""
        return _proportion(self.splits[self.split].linear)

    @property
    def reference(self) -> Proportion:
        """Accuracy of the reference probe on the deciding split."""
        return _proportion(self.splits[self.split].reference)

    @property
    def zero_shot(self) -> Proportion | None:
        """Accuracy of the zero-shot baseline on the deciding split, if it was measured."""
        return self.baseline.accuracies.get(self.split)

    @property
    def megabytes(self) -> float:
        """Size of its weights in float32."""
        return _WEIGHT_BYTES * self.parameters / 1e6

    def compare_with(self, other: "ProbedBackbone") -> PairedOutcome:
        """Compare with another backbone on the same images; gained are those that only this one has right."""
        split = self.split
        return PairedOutcome.of(other.splits[split].linear, self.splits[split].linear, split)

    def metrics(self) -> dict[str, float]:
        """Return the results by metric name."""
        metrics = {"probe/strength": self.strength, "probe/images_per_second": self.images_per_second}
        for split, images in self.splits.items():
            for kind, correct in (("accuracy", images.linear), ("reference_accuracy", images.reference)):
                accuracy = _proportion(correct)
                low, high = accuracy.interval
                name = f"probe/{split}_{kind}"
                metrics |= {name: accuracy.value, f"{name}_low": low, f"{name}_high": high}
            metrics[f"probe/{split}_n"] = float(len(images.linear))
        return metrics | self.baseline.metrics()


def _proportion(correct: np.ndarray) -> Proportion:
    return Proportion(int(correct.sum()), len(correct))


@dataclass(frozen=True)
class StoppedBackbone:
    """A backbone that was clearly behind on the sample.

    Attributes:
        probed: its results on the sample.
        pair: itself compared with the best one, on the sample's validation images.
        best: name of that one.
    """

    probed: ProbedBackbone
    pair: PairedOutcome
    best: str


@dataclass(frozen=True)
class FailedBackbone:
    """A backbone that could not be probed.

    Attributes:
        name: what it is called in the table.
        reason: the error's message.
    """

    name: str
    reason: str


@dataclass(frozen=True)
class BackboneProbe:
    """The results of all backbones.

    Attributes:
        data: name of the data set.
        classes: number of classes.
        imagenet_classes: number of them that are among ImageNet's.
        sizes: number of images of each split.
        measured: on all images, the best first. There is at least one.
        stopped: on the sample, the best first.
        failed: in the order in which they were named.
    """

    data: str
    classes: int
    imagenet_classes: int
    sizes: dict[str, int]
    measured: tuple[ProbedBackbone, ...]
    stopped: tuple[StoppedBackbone, ...] = ()
    failed: tuple[FailedBackbone, ...] = ()

    @property
    def best(self) -> ProbedBackbone:
        """The backbone with the highest accuracy on all images."""
        return self.measured[0]

    @property
    def as_good(self) -> tuple[ProbedBackbone, ...]:
        """The others that are not significantly below the best one."""
        return tuple(probed for probed in self.measured[1:] if probed.compare_with(self.best).p_value >= PAIRED_LEVEL)


def ranked(probed: Sequence[ProbedBackbone]) -> list[ProbedBackbone]:
    """Sort backbones, the most accurate first; of equal ones the fastest."""
    return sorted(probed, key=lambda each: (-each.linear.correct, -each.images_per_second))


def clearly_behind(probed: Sequence[ProbedBackbone]) -> tuple[StoppedBackbone, ...]:
    """Return the backbones that are clearly behind the best one: by `STOP_DIFFERENCE` or more, and significantly.

    Args:
        probed: results on the same images.
    """
    best, *others = ranked(probed)
    compared = [StoppedBackbone(other, other.compare_with(best), best.name) for other in others]
    return tuple(
        each for each in compared if each.pair.difference <= -STOP_DIFFERENCE and each.pair.p_value < PAIRED_LEVEL
    )
