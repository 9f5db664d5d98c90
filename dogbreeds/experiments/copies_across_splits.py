"""The preflight's check for near-duplicates between training and test images, from features that are cached.

Equal files are found before, from their digests. The result is cached with the features.
"""

import logging
import zlib
from collections.abc import Generator
from typing import Any

import numpy as np

from dogbreeds.data.alignment import grey_images
from dogbreeds.data.dataset import Split
from dogbreeds.data.near_duplicates import MIN_SIMILARITY, THRESHOLDS, find_copies
from dogbreeds.evaluation.neighbours import directions, nearest
from dogbreeds.experiments.prepare import PreparedRun
from dogbreeds.experiments.training_inputs import TrainingInputs
from dogbreeds.training.preflight import Finding, near_duplicates_finding

log = logging.getLogger(__name__)

_NEIGHBOURS = 3


def check_near_duplicates(prepared: PreparedRun, inputs: TrainingInputs) -> list[Finding]:
    """Look for test images that are near-duplicates of training images, where the features of both are cached.

    Args:
        prepared: the run.
        inputs: its inputs.
    """
    train, test = prepared.dataset.train, prepared.dataset.test
    if test is None or inputs.reason_for_no_probe() or not (inputs.are_cached(train) and inputs.are_cached(test)):
        return []
    cache = prepared.run.features.open_cache()
    identity = inputs.identity(test) | {
        "train": inputs.identity(train)["photos"],
        "rows": [zlib.crc32(split.rows.tobytes()) for split in (train, test)],
        "thresholds": list(THRESHOLDS),
    }

    def compute(copied: np.ndarray, start: int, notes: dict[str, Any]) -> Generator[int, None, None]:
        log.info("preflight: comparing %s test images with those of train", f"{len(copied):,}")
        copied[:] = _copied_rows(inputs, train, test)
        yield len(copied)

    # The training row that each test image is a copy of, or -1.
    copied = cache.get_or_compute("copies", identity, (len(test.rows),), "int32", compute).rows
    pairs = [
        (test.source.ids[row], train.source.ids[other])
        for row, other in zip(test.rows.tolist(), np.asarray(copied).tolist(), strict=True)
        if other >= 0 and test.source.digests[row] != train.source.digests[other]
    ]
    return near_duplicates_finding(pairs, len(test.rows))


def _copied_rows(inputs: TrainingInputs, train: Split, test: Split) -> np.ndarray:
    """Return for each test image the row of the training image that it is a copy of, or -1: [n] int32."""
    rows = [inputs.rows(split) for split in (train, test)]
    features = [np.asarray(each.array[each.indices], np.float32).reshape(len(each.indices), -1) for each in rows]
    points = directions(np.concatenate(features))
    n_train = len(features[0])
    pairs = nearest(points[n_train:], _NEIGHBOURS, among=points[:n_train]).pairs_among(MIN_SIMILARITY)
    of_test, of_train = np.unique(pairs[:, 0]), np.unique(pairs[:, 1])
    thumbnails = [
        grey_images(inputs.pixels(split), each.indices[chosen])
        for split, each, chosen in ((test, rows[1], of_test), (train, rows[0], of_train))
    ]
    own = np.stack([np.searchsorted(of_test, pairs[:, 0]), len(of_test) + np.searchsorted(of_train, pairs[:, 1])], 1)
    found = np.full(len(test.rows), -1, np.int32)
    # Images that cannot be read have no features.
    places = np.searchsorted(test.rows, rows[1].indices)
    for each in reversed(find_copies(np.concatenate(thumbnails), own)):
        found[places[of_test[each.first]]] = rows[0].indices[of_train[each.second - len(of_test)]]
    return found
