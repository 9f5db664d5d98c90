"""Audit of a data set: near-duplicates, label errors, outliers and low quality, from the features of one backbone.

The pass over the images is that of a frozen run, whose features and decoded images are cached.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from dogbreeds.core.errors import UserError
from dogbreeds.core.files import atomic_folder
from dogbreeds.data.alignment import grey_images
from dogbreeds.data.corrections import open_corrected
from dogbreeds.data.dataset import Dataset
from dogbreeds.data.image import ImageLoader
from dogbreeds.data.image_quality import image_sizes, quality_findings
from dogbreeds.data.near_duplicates import MIN_SIMILARITY, Copies, find_copies, groups_of
from dogbreeds.evaluation.audit import (
    LABEL_ERROR,
    NEAR_DUPLICATE,
    OUTLIER,
    QUALITY,
    Audit,
    Finding,
    confusable_pairs,
    copy_to_leave_out,
)
from dogbreeds.evaluation.image_map import place
from dogbreeds.evaluation.image_outliers import find_outliers
from dogbreeds.evaluation.label_errors import LabelErrors, check_cleanlab, find_label_errors
from dogbreeds.evaluation.logistic_regression import TrainingProblem
from dogbreeds.evaluation.metrics import PairedOutcome
from dogbreeds.evaluation.neighbours import directions, nearest
from dogbreeds.experiments.isolation import process_state_restored
from dogbreeds.experiments.run import Run
from dogbreeds.experiments.training_inputs import TrainingInputs
from dogbreeds.features.extraction import DecodedImages
from dogbreeds.models.unfreeze import Nothing
from dogbreeds.reports import audit_page
from dogbreeds.training.phase import Frozen

log = logging.getLogger(__name__)

# What an audit writes.
FILES = ("audit.csv", "audit.html")
_NEIGHBOURS = 8
# Penalty of the two classifiers that tell what copies do to the test accuracy.
_STRENGTH = 1e-3


class PixelRows:
    """Decoded images of several splits, one below the other, read by row.

    Args:
        parts: the array of each split's source, and the rows of the split.
    """

    def __init__(self, parts: Sequence[tuple[np.ndarray, np.ndarray]]):
        self.parts = parts
        self._firsts = np.cumsum([0, *(len(rows) for _, rows in parts)])

    def __len__(self) -> int:
        return int(self._firsts[-1])

    def __getitem__(self, image: int) -> np.ndarray:
        part = int(np.searchsorted(self._firsts, image, side="right")) - 1
        array, rows = self.parts[part]
        return array[rows[image - self._firsts[part]]]


@dataclass(frozen=True)
class AuditedImages:
    """The images of all splits, those of train first, as an audit reads them.

    Attributes:
        features: [n, d] float32.
        pixels: [n, size, size, 3] uint8, read by row.
        ids: name of each image.
        splits: [n] name of the split of each.
        labels: [n] int, class of each.
    """

    features: np.ndarray
    pixels: PixelRows
    ids: tuple[str, ...]
    splits: np.ndarray
    labels: np.ndarray


def audit_dataset(run: Run, dataset: Dataset | None = None) -> tuple[Audit, AuditedImages]:
    """Audit a data set by the features of a run's frozen backbone.

    Args:
        run: settings; its phase is frozen.
        dataset: the images; None opens those of the run.

    Returns:
        What was found, and the images for its page.

    Raises:
        MissingFileError, UserError: if cleanlab, data or weights are missing, or do not fit together.
    """
    check_cleanlab()
    if not isinstance(run.phase, Frozen) or type(run.unfreeze) is not Nothing:
        raise UserError(
            f"phase was {type(run.phase).__name__} and unfreeze {type(run.unfreeze).__name__}. An audit compares"
            " features of a frozen backbone. Type phase=frozen unfreeze=none, or leave both out."
        )
    run.model.weights_file()
    dataset = open_corrected(run.data, dataset)
    with process_state_restored():
        images = read_images(run, dataset)
    return _audit(run, dataset, images), images


def read_images(run: Run, dataset: Dataset) -> AuditedImages:
    """Run the pass over the images of a data set, and return what an audit compares."""
    from dogbreeds.experiments.automatic_settings import resolve
    from dogbreeds.experiments.prepare import assemble_network

    # What it would say of copies is a finding.
    run = replace(run, preflight=replace(run.preflight, max_duplicate_fraction=1.0))
    run, assembly = resolve(run, dataset, looks_up_runs=False)
    assembly = assembly or assemble_network(run, dataset)
    inputs = TrainingInputs(run, dataset, assembly.network)
    features, parts, labels = [], [], []
    ids: list[str] = []
    splits: list[str] = []
    cache = run.features.open_cache()
    for name, split in dataset.splits.items():
        rows = inputs.rows(split)
        pixels = DecodedImages(split.source, run.data, run.model.image_size, cache).rows()
        features.append(np.asarray(rows.array[rows.indices], np.float32).reshape(len(rows.indices), -1))
        parts.append((pixels, rows.indices))
        ids += [split.source.ids[row] for row in rows.indices]
        splits += [name] * len(rows.indices)
        labels.append(rows.labels)
    return AuditedImages(
        np.concatenate(features), PixelRows(parts), tuple(ids), np.array(splits), np.concatenate(labels)
    )


def _audit(run: Run, dataset: Dataset, images: AuditedImages) -> Audit:
    started = time.perf_counter()
    features, ids, splits, labels = images.features, images.ids, images.splits, images.labels

    def step(what: str) -> None:
        log.info("%s (after %.0f s)", what, time.perf_counter() - started)

    step(f"comparing {len(ids):,} images with each other")
    points = directions(features)
    neighbours = nearest(points, _NEIGHBOURS)
    grey = grey_images(images.pixels, np.arange(len(ids)))
    copies = find_copies(grey, neighbours.pairs(MIN_SIMILARITY))
    groups = groups_of(copies, len(ids))
    step("looking for wrong labels")
    labels_found = find_label_errors(features, labels, groups, len(dataset.class_names))
    inflation = _inflation(features, labels, groups, splits, len(dataset.class_names))
    step("placing the images on the map")
    places = place(points)
    outliers, distances = find_outliers(neighbours, groups)
    sizes = image_sizes(_loaders(dataset, images))
    quality = quality_findings(grey, sizes, run.model.image_size)
    findings = [
        *_of_copies(copies, splits, ids),
        *_of_labels(labels_found, dataset.class_names),
        *(
            Finding(int(image), OUTLIER, float(distance), "look at it: like none of the others")
            for image, distance in zip(outliers, distances, strict=True)
        ),
        *(Finding(image, QUALITY, score, problem) for image, score, problem in quality),
    ]
    step(f"{len(findings):,} findings")
    return Audit(
        data=dataset.name,
        backbone=run.model.architecture,
        class_names=dataset.class_names,
        ids=ids,
        splits=splits,
        labels=labels,
        findings=tuple(findings),
        labels_found=labels_found,
        confusable=confusable_pairs(labels_found.probabilities, labels),
        inflation=inflation,
        places=places,
        neighbours=neighbours.indices,
        seconds=time.perf_counter() - started,
    )


def _loaders(dataset: Dataset, images: AuditedImages) -> list[ImageLoader]:
    """Return the loader of each image, in the order of the audit."""
    found: list[ImageLoader] = []
    for (_, rows), split in zip(images.pixels.parts, dataset.splits.values(), strict=True):
        loaders = list(split.source.loaders())
        found += [loaders[row] for row in rows]
    return found


def _of_copies(copies: Sequence[Copies], splits: np.ndarray, ids: Sequence[str]) -> list[Finding]:
    """Return the findings of copies, those across splits first."""
    findings = []
    for each in copies:
        image, other = copy_to_leave_out(each.first, each.second, splits)
        findings.append(Finding(image, NEAR_DUPLICATE, each.score, ids[other], other))
    return sorted(findings, key=lambda found: (splits[found.image] == splits[found.other], -found.score))


def _of_labels(found: LabelErrors, class_names: Sequence[str]) -> list[Finding]:
    return [
        Finding(int(image), LABEL_ERROR, float(1 - score), class_names[likely])
        for image, likely, score in zip(found.images, found.suggested, found.scores, strict=True)
    ]


def _inflation(
    features: np.ndarray, labels: np.ndarray, groups: np.ndarray, splits: np.ndarray, classes: int
) -> PairedOutcome | None:
    """Compare a classifier that has trained on copies of test images with one that has not, on the test images."""
    is_train, is_test = splits == "train", splits == "test"
    copied = is_train & np.isin(groups, groups[is_test])
    if not copied.any() or (is_train & ~copied).sum() < 2:
        return None
    train = np.flatnonzero(is_train)
    problem = TrainingProblem(features, labels[train], classes, train)
    without = problem.fit(_STRENGTH, left_out=copied[train])
    with_copies = problem.fit(_STRENGTH, without.weights)
    test = np.flatnonzero(is_test)
    correct = [
        problem.classifier(fit).logits(features, test).argmax(axis=1) == labels[test] for fit in (without, with_copies)
    ]
    return PairedOutcome.of(correct[0], correct[1], "test")


def write(audit: Audit, images: AuditedImages, folder: Path) -> None:
    """Write the table and the page into a folder.

    Raises:
        UserError: if the folder cannot be written, or has other files.
    """
    with atomic_folder(folder, FILES) as temporary:
        (temporary / "audit.csv").write_text(audit_page.as_csv(audit), encoding="utf-8")
        (temporary / "audit.html").write_text(audit_page.as_html(audit, images.pixels), encoding="utf-8")
