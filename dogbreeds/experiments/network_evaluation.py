"""Evaluation of a trained network on labelled images, checked against what its run recorded, and its report."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dogbreeds.evaluation.results import Predictions
from dogbreeds.evaluation.summary import Evaluation
from dogbreeds.experiments.recorded_runs import describe_run
from dogbreeds.inference import evaluator
from dogbreeds.inference.evaluation_set import EvaluationSet
from dogbreeds.models.precision import probability_tolerance
from dogbreeds.reports import evaluation_notes
from dogbreeds.reports.evaluation_report import EvaluationReport
from dogbreeds.tracking.records import Record, short
from dogbreeds.tracking.saved_network import check_predictions

if TYPE_CHECKING:
    from dogbreeds.inference.classifier import Classifier


@dataclass(frozen=True)
class NetworkEvaluation:
    """A network, the images that it was evaluated on, and the result.

    Attributes:
        evaluation: scores with intervals.
        about: sentences about network, images and their agreement with the run.
        logits: [n, classes] of the images.
        classifier: the network.
        images: the images.
        record: run of the network; None for a file.
        file: file of the network.
    """

    evaluation: Evaluation
    about: tuple[str, ...]
    logits: np.ndarray
    classifier: "Classifier"
    images: EvaluationSet
    record: Record | None
    file: Path

    def write_report(self, folder: Path, mistakes: int) -> None:
        """Write the report as a page with its figures.

        Args:
            folder: to write into.
            mistakes: images on the contact sheet.
        """
        images = self.images
        EvaluationReport(
            title=f"{'Run ' + short(self.record.run_id) if self.record else self.file.name} on {images.name}",
            about=self.about,
            facts=evaluation_notes.provenance(self.record, self.file, images.name, images.description),
            evaluation=self.evaluation,
            class_names=self.classifier.class_names,
            image_ids=images.ids,
            labels=images.labels,
            logits=self.logits,
            mistakes=evaluator.most_confident_mistakes(self.classifier, images, self.logits, mistakes),
        ).write(folder)


def evaluate_network(
    classifier: "Classifier",
    images: EvaluationSet,
    *,
    record: Record | None,
    file: Path,
    run_predictions: Mapping[str, Predictions],
    views: int,
    seed: int,
) -> NetworkEvaluation:
    """Measure a network on an evaluation set.

    Args:
        classifier: the network.
        images: the images.
        record: run of the network; None for a file.
        file: file of the network.
        run_predictions: what the run recorded, by split; empty for a file.
        views: of each image, for test-time augmentation; 1 turns it off.
        seed: of the bootstrap.

    Raises:
        UserError: the logits are not finite, or the network is not the one that its run trained.
    """
    evaluation, logits = evaluator.evaluate(classifier, images, views, seed, run_predictions)
    difference = None
    if record is not None:
        difference = check_predictions(
            record,
            run_predictions.get(images.name),
            classifier.class_names,
            images.ids,
            logits,
            probability_tolerance(),
        )
    about = evaluation_notes.about(
        record,
        network=describe_run(record) if record else str(file),
        split=images.name,
        images=images.description,
        image_ids=images.ids,
        difference=difference,
    )
    return NetworkEvaluation(evaluation, about, logits, classifier, images, record, file)
