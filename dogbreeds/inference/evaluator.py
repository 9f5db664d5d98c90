"""Runs a trained network over a set of images, and measures it."""

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from dogbreeds.core.console import progress
from dogbreeds.core.errors import UserError
from dogbreeds.data.class_names import spoken
from dogbreeds.evaluation import calibration, summary
from dogbreeds.evaluation.metrics import probabilities
from dogbreeds.evaluation.results import Mistake, Predictions
from dogbreeds.evaluation.summary import Evaluation
from dogbreeds.inference import tta
from dogbreeds.inference.evaluation_set import EvaluationSet

if TYPE_CHECKING:
    from dogbreeds.inference.classifier import Classifier


def evaluated(
    classifier: "Classifier", subject: EvaluationSet, views: int, seed: int, trained: Mapping[str, Predictions]
) -> tuple[Evaluation, np.ndarray]:
    """A network's scores, and its [n, classes] logits of the photos as they are.

    Args:
        classifier: the network.
        subject: the photos.
        views: of each photo, over which probabilities are averaged too; 1 for none.
        seed: of the bootstrap.
        trained: what training said, by split; its validation photos calibrate the answers to others.
    """
    logits, seconds = _logits(classifier, subject, 0)
    if not np.isfinite(logits).all():
        raise UserError(
            "The network's answers are not numbers. A network must give some. Evaluate another run: type run=best, for"
            " example."
        )
    fitted = _temperature(trained, subject.place)
    found = summary.evaluate(logits, subject.labels, classifier.class_names, fitted, seed)
    if views == 1:
        return found, logits
    shares, all_seconds = probabilities(logits), seconds
    for number in range(1, views):
        seen, more = _logits(classifier, subject, number)
        shares, all_seconds = shares + probabilities(seen), all_seconds + more
    gained = summary.augmented(
        logits, shares / views, subject.labels, views, all_seconds / seconds, subject.place, seed
    )
    return replace(found, augmented=gained), logits


def _logits(classifier: "Classifier", subject: EvaluationSet, number: int) -> tuple[np.ndarray, float]:
    """[n, classes] logits of a view of the photos, and the seconds that they took."""
    batch, found = classifier.batch_size(), []
    # Compiled before the time is taken
    classifier.logits(subject.array[subject.rows[:1]])
    what = f"view {number} of {subject.place}" if number else subject.place
    started = time.perf_counter()
    with progress(what, len(subject.rows), "photos") as advance:
        for start in range(0, len(subject.rows), batch):
            photos = tta.view(subject.array[subject.rows[start : start + batch]], number)
            found.append(classifier.logits(photos))
            advance(len(photos))
    return np.concatenate(found), time.perf_counter() - started


def _temperature(trained: Mapping[str, Predictions], place: str) -> tuple[float, str] | None:
    """A temperature from what training said of validation photos, for others; None where there are none that the answers do not come from."""
    if place == "val" or "val" not in trained:
        return None
    val = trained["val"]
    return calibration.temperature(val.logits, val.labels), f"{len(val.labels):,} validation photos"


def mistakes(classifier: "Classifier", subject: EvaluationSet, logits: np.ndarray, count: int) -> tuple[Mistake, ...]:
    shares, called = probabilities(logits), logits.argmax(axis=1)
    confidence = np.where(called == subject.labels, -1, shares.max(axis=1))
    worst = [position for position in np.argsort(-confidence, kind="stable")[:count] if confidence[position] >= 0]
    names = [spoken(name) for name in classifier.class_names]
    return tuple(
        Mistake(
            np.array(subject.array[subject.rows[at]]),
            names[subject.labels[at]],
            names[called[at]],
            float(confidence[at]),
        )
        for at in worst
    )
