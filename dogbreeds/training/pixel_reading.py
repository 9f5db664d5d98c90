"""Which pixel convention lets a linear probe read a few labelled images best, for a backbone without BatchNorm.

Such a backbone stores no statistics of the pixels that it was pretrained on. But its features are made for them: of the
features of the same images in every convention, those of pretraining tell the classes apart best.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dogbreeds.evaluation.metrics import Proportion
from dogbreeds.evaluation.reference_probe import fit_probe

# Images of a class that are sampled, if it has so many. A class with fewer than the minimum is left out.
_IMAGES_PER_CLASS = 12
_MIN_IMAGES_PER_CLASS = 4
# Classes that are sampled at least, if there are so many, each with fewer images if need be.
_MIN_CLASSES = 3
# Images that are used at most: of these the probe leaves out every one, and more would tell nothing new.
_MAX_IMAGES = 600
# Pixels a side of the thumbnails that the features are compared with.
_THUMBNAIL_SIZE = 8
# Significance level of the paired tests. It was chosen on the miniature with its BatchNorm layers hidden, where nearly
# all wrong conventions are below it and the right one is not; the study reports it on other backbones.
_ALPHA = 1e-3
_SEED = 0


@dataclass(frozen=True)
class Reading:
    """How well a probe reads the sampled images from one kind of features.

    Attributes:
        accuracy: of the images, each scored by a probe that is fitted without it.
        error: mean squared error of the scores, in [0, 1] for each class, from the one-hot labels.
        p_value: one-sided p-value that the convention with the least error is no better, paired over the images and
            adjusted for the number of conventions; 1 for that convention itself.
    """

    accuracy: Proportion
    error: float
    p_value: float

    @property
    def is_worse(self) -> bool:
        """Whether it is worse than the best convention beyond noise."""
        return self.p_value < _ALPHA


@dataclass(frozen=True)
class PixelReading:
    """How well a probe reads the sampled images in each pixel convention.

    Attributes:
        conventions: by name.
        thumbnail: of small copies of the images instead of the backbone's features.
    """

    conventions: dict[str, Reading]
    thumbnail: Reading

    @property
    def best(self) -> str:
        """The convention with the least error."""
        return min(self.conventions, key=lambda mode: self.conventions[mode].error)

    @property
    def can_tell(self) -> bool:
        """Whether the features are better than the pixels alone, as those of random weights or noisy labels are not."""
        return self.thumbnail.is_worse

    def is_mismatch(self, mode: str) -> bool:
        """Whether another convention is better beyond noise."""
        return self.can_tell and self.conventions[mode].is_worse

    def metrics(self) -> dict[str, float]:
        """Return the accuracies by name, as they are recorded."""
        return {f"probe_{mode}": reading.accuracy.value for mode, reading in self.conventions.items()}

    def __str__(self) -> str:
        ranked = sorted(self.conventions.items(), key=lambda item: item[1].error)
        accuracies = ", ".join(f"{mode} {100 * reading.accuracy.value:.0f} %" for mode, reading in ranked)
        if not self.can_tell:
            verdict = (
                f"no better than thumbnails ({100 * self.thumbnail.accuracy.value:.0f} %), so they cannot tell the"
                " convention of pretraining"
            )
        else:
            equal = [mode for mode, reading in ranked[1:] if not reading.is_worse]
            verdict = f"{self.best} is best{', not beyond noise of ' + ' and '.join(equal) if equal else ''}"
        images = self.thumbnail.accuracy.n
        return f"a probe of {images} labelled images reads {accuracies}: {verdict}"

    # --- as a table, which the cache stores -----------------------------------

    COLUMNS = ("correct", "images", "error", "p_value")

    def table(self) -> np.ndarray:
        """Return [conventions + 1, `COLUMNS`] float64, the thumbnail last."""
        readings = (*self.conventions.values(), self.thumbnail)
        return np.array([[each.accuracy.correct, each.accuracy.n, each.error, each.p_value] for each in readings])

    @classmethod
    def from_table(cls, table: np.ndarray, modes: Sequence[str]) -> "PixelReading":
        """Return what `table` gave.

        Args:
            table: [conventions + 1, `COLUMNS`].
            modes: names of the conventions, in its order.
        """
        readings = [
            Reading(Proportion(int(correct), int(images)), float(error), float(p_value))
            for correct, images, error, p_value in table
        ]
        return cls(dict(zip(modes, readings[:-1], strict=True)), readings[-1])


def choose_rows(labels: np.ndarray, rows: np.ndarray, images: int) -> np.ndarray | None:
    """Choose a sample of labelled images: some classes, and about a dozen images of each.

    The choice depends on the arguments alone.

    Args:
        labels: [n] int, class of each row.
        rows: [n] rows to choose from.
        images: images to choose, at most; never more than 600.

    Returns:
        The chosen rows, ascending; None if two classes with enough images are not there.
    """
    images = min(images, _MAX_IMAGES)
    present, counts = np.unique(labels, return_counts=True)
    eligible = present[counts >= _MIN_IMAGES_PER_CLASS]
    num_classes = min(len(eligible), max(_MIN_CLASSES, images // _IMAGES_PER_CLASS))
    per_class = images // max(num_classes, 1)
    if num_classes < 2 or per_class < _MIN_IMAGES_PER_CLASS:
        return None
    chosen = np.random.default_rng(_SEED).permutation(eligible)[:num_classes]
    of_classes = [rows[labels == label] for label in chosen]
    spread = [of[np.unique(np.linspace(0, len(of) - 1, per_class).astype(int))] for of in of_classes]
    return np.sort(np.concatenate(spread))


def read_pixels(features: Mapping[str, np.ndarray], thumbnails: np.ndarray, labels: np.ndarray) -> PixelReading | None:
    """Score the features of each convention by a probe of them.

    Args:
        features: by convention, [n, d] pooled features of the same images.
        thumbnails: [n, pixels] of these images, from `thumbnails`.
        labels: [n] int class of each image.

    Returns:
        The reading; None if fewer than two classes have enough images.
    """
    from scipy.stats import ttest_rel

    present, counts = np.unique(labels, return_counts=True)
    usable = np.isin(labels, present[counts >= _MIN_IMAGES_PER_CLASS])
    classes, labels = np.unique(labels[usable], return_inverse=True)
    if len(classes) < 2:
        return None
    scored = [_score(each[usable], labels, len(classes)) for each in (*features.values(), thumbnails)]
    errors = [error for _, error in scored]
    best = min(errors[:-1], key=np.mean)
    tests = len(features) - 1

    def read(correct: np.ndarray, error: np.ndarray) -> Reading:
        # Equal errors, such as those of the best itself, leave the test undefined.
        p_value = ttest_rel(error, best, alternative="greater").pvalue if np.any(error != best) else 1.0
        accuracy = Proportion(int(correct.sum()), len(correct))
        return Reading(accuracy, float(error.mean()), float(min(1.0, tests * p_value)))

    readings = [read(*each) for each in scored]
    return PixelReading(dict(zip(features, readings[:-1], strict=True)), readings[-1])


def thumbnails(images: np.ndarray) -> np.ndarray:
    """Return [n, pixels] float32: the means of a coarse grid over images [n, size, size, 3]."""
    edges = np.linspace(0, images.shape[1], _THUMBNAIL_SIZE + 1).astype(int)
    sizes = np.diff(edges).astype(np.float32)
    sums = np.add.reduceat(np.add.reduceat(images.astype(np.float32), edges[:-1], axis=1), edges[:-1], axis=2)
    return (sums / (sizes[:, None] * sizes)[..., None]).reshape(len(images), -1)


def _score(features: np.ndarray, labels: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return whether each image is classified correctly, [n] bool, and the squared error of its scores, [n]."""
    scores = fit_probe(features, labels, classes).left_out_scores
    if not len(scores):
        # Features too wide for ridge, which no backbone has. No scores at all are those of a probe that knows nothing.
        scores = np.zeros((len(labels), classes))
    # Scores outside of [0, 1] are no better than the bound, and a few of them could hide all the others.
    errors = np.square(np.clip(scores, 0, 1) - np.eye(classes)[labels]).sum(axis=1)
    return scores.argmax(axis=1) == labels, errors
