"""Evaluator: runs a trained network over an evaluation set and measures its predictions."""

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from dogbreeds.core.console import progress
from dogbreeds.core.errors import UserError
from dogbreeds.data.class_names import display_name
from dogbreeds.evaluation import calibration, summary
from dogbreeds.evaluation.metrics import probabilities
from dogbreeds.evaluation.results import Mistake, Predictions
from dogbreeds.evaluation.summary import Evaluation
from dogbreeds.inference import tta
from dogbreeds.inference.evaluation_set import EvaluationSet

if TYPE_CHECKING:
    from dogbreeds.inference.classifier import Classifier


def evaluate(
    classifier: "Classifier",
    evaluation_set: EvaluationSet,
    views: int,
    seed: int,
    run_predictions: Mapping[str, Predictions],
) -> tuple[Evaluation, np.ndarray]:
    """Measure a network on an evaluation set.

    Args:
        classifier: the network.
        evaluation_set: the images.
        views: of each image, for test-time augmentation; 1 turns it off.
        seed: of the bootstrap.
        run_predictions: the run's own predictions, by split; those on `val` fit the temperature for other images.

    Returns:
        The evaluation, and [n, classes] logits of the unaugmented images.

    Raises:
        UserError: the logits are not finite.
    """
    logits, seconds = _logits(classifier, evaluation_set, view=0)
    if not np.isfinite(logits).all():
        raise UserError(
            "The network's outputs are not finite numbers. Only a network with finite outputs can be evaluated."
            " Evaluate another run: type run=best, for example."
        )
    temperature = _temperature(run_predictions, evaluation_set.name)
    evaluation = summary.evaluate(logits, evaluation_set.labels, classifier.class_names, temperature, seed)
    if views == 1:
        return evaluation, logits
    probability_sum = probabilities(logits)
    all_seconds = seconds
    for view in range(1, views):
        view_logits, view_seconds = _logits(classifier, evaluation_set, view)
        probability_sum = probability_sum + probabilities(view_logits)
        all_seconds += view_seconds
    augmented = summary.augmented(
        logits,
        probability_sum / views,
        evaluation_set.labels,
        views=views,
        cost=all_seconds / seconds,
        split=evaluation_set.name,
        seed=seed,
    )
    return replace(evaluation, augmented=augmented), logits


def _logits(classifier: "Classifier", evaluation_set: EvaluationSet, view: int) -> tuple[np.ndarray, float]:
    """Return [n, classes] logits of a view of the images, and the seconds they took."""
    rows = evaluation_set.rows
    batch_size = classifier.batch_size()
    batches = []
    # Compile before the clock starts.
    classifier.logits(evaluation_set.images[rows[:1]])
    task = f"view {view} of {evaluation_set.name}" if view else evaluation_set.name
    started = time.perf_counter()
    with progress(task, len(rows), "images") as advance:
        for start in range(0, len(rows), batch_size):
            images = tta.view(evaluation_set.images[rows[start : start + batch_size]], view, classifier.decoder)
            batches.append(classifier.logits(images))
            advance(len(images))
    return np.concatenate(batches), time.perf_counter() - started


def _temperature(run_predictions: Mapping[str, Predictions], name: str) -> tuple[float, str] | None:
    """Fit a temperature on the run's validation predictions; None if these are evaluated themselves, or missing."""
    if name == "val" or "val" not in run_predictions:
        return None
    val = run_predictions["val"]
    return calibration.fit_temperature(val.logits, val.labels), f"{len(val.labels):,} validation images"


def most_confident_mistakes(
    classifier: "Classifier", evaluation_set: EvaluationSet, logits: np.ndarray, count: int
) -> tuple[Mistake, ...]:
    """Return the misclassified images with the highest confidence, the most confident first.

    Args:
        classifier: the network, for its class names.
        evaluation_set: the images.
        logits: [n, classes] of the images.
        count: the largest number of mistakes to return.
    """
    predicted = logits.argmax(axis=1)
    confidence = np.where(predicted == evaluation_set.labels, -1, probabilities(logits).max(axis=1))
    worst = [index for index in np.argsort(-confidence, kind="stable")[:count] if confidence[index] >= 0]
    names = [display_name(name) for name in classifier.class_names]
    return tuple(
        Mistake(
            image=np.array(evaluation_set.images[evaluation_set.rows[index]]),
            label=names[evaluation_set.labels[index]],
            predicted=names[predicted[index]],
            probability=float(confidence[index]),
        )
        for index in worst
    )
