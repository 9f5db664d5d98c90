"""The photos that a trained network is evaluated on: a split of its run's own, or another folder."""

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
from dogbreeds.features.extraction import Photos

if TYPE_CHECKING:
    from dogbreeds.inference.classifier import Classifier

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvaluationSet:
    """Photos at a network's size, as training saw them, without those that cannot be read.

    Attributes:
        place: a word for them: the split's name, or the folder's.
        ids: a name for each.
        labels: [n] int32.
        array: [m, size, size, 3] uint8, memory-mapped, at the network's size.
        rows: [n] which of the array they are.
        about: how many of what, in words.
    """

    place: str
    ids: Sequence[str]
    labels: np.ndarray
    array: np.ndarray
    rows: np.ndarray
    about: str


def of_folder(named: str, on_corrupt: str, classifier: "Classifier", arrays: FeatureCache) -> EvaluationSet:
    """All photos of a folder `<class>/…` whose classes are among the network's.

    Args:
        named: the folder, as the setting `photos` has it.
        on_corrupt: `stop` or `skip`.
        classifier: the network.
        arrays: where photos are kept once they are decoded.

    Raises:
        MissingFileError, UserError: where there is no such folder, or where it has other classes or nothing that can be read.
    """
    folder = Path(named).expanduser()
    if not folder.is_dir():
        raise MissingFileError(
            f"photos={printable(named)} is not a folder. It must hold <class>/ folders of photos, named as the"
            " network's classes are. Type photos=path/to/photos."
        )
    data = Folder(
        root=named,
        val_fraction=0.2,
        split_seed=0,
        resize=classifier.resize,
        on_corrupt=on_corrupt,
        max_corrupt_fraction=1.0,
    )
    split, note = data.labelled(classifier.class_names)
    if note:
        log.warning(note)
    whole = folder.resolve()
    # Other folders may be called alike
    place = f"photos-{re.sub(r'[^A-Za-z0-9_.-]', '_', whole.name)[:40]}-{digest(os.fsencode(whole))[:6]}"
    return _shown(place, split, data, classifier, arrays)


def _shown(place: str, split: Split, data: Data, classifier: "Classifier", arrays: FeatureCache) -> EvaluationSet:
    photos = Photos(split.source, data, classifier.size, arrays)
    array = photos.rows()
    split = split.without(photos.skipped())
    if not len(split.rows):
        raise UserError(
            f"None of the photos of {place} can be read. An evaluation needs some. Mend them, or name another folder."
        )
    about = f"{len(split.rows):,} photos of {len(np.unique(split.labels))} breeds"
    return EvaluationSet(place, [split.source.ids[row] for row in split.rows], split.labels, array, split.rows, about)
