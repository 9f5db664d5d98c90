"""Losses: what training minimises."""

from dataclasses import dataclass

import numpy as np

from dogbreeds.core.spec import Spec, number, one_of


@dataclass(frozen=True, kw_only=True)
class CrossEntropy(Spec):
    """Cross-entropy of the predicted classes, in nats.

    Attributes:
        label_smoothing: share of each image that is spread evenly over all classes, in training. Source: Szegedy et al.
            2016.
        class_weights: `none`: each image counts alike. `balanced`: each class counts alike, an image with the weight
            n / (classes * images of its class) in the training data, as scikit-learn's class_weight="balanced".
    """

    group = "loss"
    implied = {"class_weights": "none", "label_smoothing": 0.0}
    label_smoothing: float = number(at_least=0, below=1, example=0.1)
    class_weights: str = one_of("none", "balanced")

    def weights(self, labels: np.ndarray, classes: int) -> np.ndarray | None:
        """Return the weight of each class.

        Args:
            labels: [n] int, of the training images.
            classes: number of classes.

        Returns:
            [classes] float32, whose mean over the images is 1; None if all are 1.
        """
        if self.class_weights == "none":
            return None
        counts = np.bincount(labels, minlength=classes)
        present = np.count_nonzero(counts)
        return (len(labels) / (present * np.maximum(counts, 1))).astype(np.float32)
