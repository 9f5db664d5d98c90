"""Evaluation set: the labelled images that a trained network is evaluated on, a split of its run or a folder."""

import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dogbreeds.core.errors import MissingFileError, UserError
from dogbreeds.core.text import digest, printable
from dogbreeds.data.dataset import Data, Split
from dogbreeds.data.folder import Folder
from dogbreeds.features.cache import FeatureCache
from dogbreeds.features.extraction import DecodedImages

if TYPE_CHECKING:
    from dogbreeds.inference.classifier import Classifier

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvaluationSet:
    """Labelled images, decoded and resized as in training. Unreadable ones are left out.

    Attributes:
        name: the split's name, or `photos-<folder>-<digest>`; results are stored under it.
        ids: [n] name of each image.
        labels: [n] int32.
        images: [m, size, size, 3] uint8, memory-mapped, at the network's image size.
        rows: [n] the row of each image in `images`.
        description: number of images and classes, for people.
    """

    name: str
    ids: Sequence[str]
    labels: np.ndarray
    images: np.ndarray
    rows: np.ndarray
    description: str


def folder_evaluation_set(path: str, on_corrupt: str, classifier: "Classifier", cache: FeatureCache) -> EvaluationSet:
    """Build an evaluation set from all images of a folder `<class>/…`.

    Args:
        path: the folder, as the setting `images` gives it; its classes must be among the network's.
        on_corrupt: `stop` or `skip`.
        classifier: the network to evaluate.
        cache: stores the decoded images.

    Raises:
        MissingFileError: the folder does not exist.
        UserError: it has other classes, or no readable image.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise MissingFileError(
            f"images={printable(path)} is not a folder. It must contain one folder of images per class, <class>/, named"
            " as the network's classes. Type images=path/to/images."
        )
    data = Folder(
        root=path,
        val_fraction=0.2,
        split_seed=0,
        resize=classifier.resize,
        decoder=classifier.decoder,
        on_corrupt=on_corrupt,
        max_corrupt_fraction=1.0,
    )
    split, note = data.labelled_split(classifier.class_names)
    if note:
        log.warning(note)
    real_path = folder.resolve()
    # Two folders may have the same name: the digest tells them apart.
    name = f"photos-{re.sub(r'[^A-Za-z0-9_.-]', '_', real_path.name)[:40]}-{digest(os.fsencode(real_path))[:6]}"
    return split_evaluation_set(name, split, data, classifier, cache)


def split_evaluation_set(
    name: str, split: Split, data: Data, classifier: "Classifier", cache: FeatureCache
) -> EvaluationSet:
    """Build an evaluation set from a split.

    Args:
        name: of the evaluation set.
        split: its images.
        data: how they are decoded and resized, and what happens to corrupt ones.
        classifier: the network to evaluate.
        cache: stores the decoded images.

    Raises:
        UserError: no image of the split is readable.
    """
    decoded = DecodedImages(split.source, data, classifier.image_size, cache)
    images = decoded.rows()
    split = split.without(decoded.skipped_rows())
    if not len(split.rows):
        raise UserError(
            f"None of the images of {name} can be read. Evaluation needs at least one. Repair them, or name another"
            " folder with images=<folder>."
        )
    description = f"{len(split.rows):,} images of {len(np.unique(split.labels))} classes"
    ids = [split.source.ids[row] for row in split.rows]
    return EvaluationSet(name, ids, split.labels, images, split.rows, description)
