"""Identity of a run's saved network: is a file the one that training saved, and does it give what was recorded?

A digest of the file, recorded when it is saved, decides. What was recorded of the run is compared too: the classes, and
the probabilities of its images. Runs of versions before 0.2.0 have no digest.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from dogbreeds.core.errors import UserError
from dogbreeds.core.text import digest_file
from dogbreeds.evaluation.results import Predictions
from dogbreeds.tracking.records import MODEL_FILE, MODEL_FOLDER, Record, short

log = logging.getLogger(__name__)

# Tags of a run.
MODEL_DIGEST_TAG = "model.digest"
HEAD_DIGEST_TAG = "head.digest"
TOLERANCE_TAG = "model.tolerance"
# Largest difference of a probability that is allowed where a run recorded none: it may have been computed in reduced
# precision. Another network differs by far more on some image.
_UNRECORDED_TOLERANCE = 5e-2


def check_digest(file: Path, run_id: str, tags: Mapping[str, str], tag: str, artifact_path: str) -> None:
    """Check that a downloaded file is the one that its run saved; only log a line if the run recorded no digest.

    Args:
        file: the downloaded file.
        run_id: the run.
        tags: its tags.
        tag: name of the tag with the digest.
        artifact_path: path of the file among the run's artifacts.

    Raises:
        UserError: the file has another digest.
    """
    recorded = tags.get(tag)
    if recorded is None:
        log.info(
            "run %s has no digest of %s, as before version 0.2.0: the file is taken as it is",
            short(run_id),
            artifact_path,
        )
        return
    found = digest_file(file)
    if found != recorded:
        raise UserError(
            f"{artifact_path} of run {short(run_id)} is not the file that the run saved: its digest begins with"
            f" {found[:8]}, and {recorded[:8]} was recorded. A run's files must not be changed or replaced. Restore the"
            " file, or name another run."
        )


def check_class_count(record: Record, class_names: Sequence[str]) -> None:
    """Check that a network has as many classes as its run.

    Args:
        record: the run.
        class_names: of the network.

    Raises:
        UserError: it has more or fewer.
    """
    recorded = record.params.get("data.classes")
    if recorded is not None:
        _check_count(record, len(class_names), int(recorded))


def _check_count(record: Record, found: int, recorded: int) -> None:
    if found != recorded:
        raise _another_network(record, f"it has {found:,} classes, and the run has {recorded:,}")


def check_predictions(
    record: Record,
    recorded: Predictions | None,
    class_names: Sequence[str],
    image_ids: Sequence[str],
    logits: np.ndarray,
    tolerance: float,
) -> float | None:
    """Check that a network gives the probabilities that its run recorded.

    Args:
        record: the run.
        recorded: what it recorded of the images' split; None if nothing.
        class_names: of the network.
        image_ids: names of the images.
        logits: [n, classes] of the images, as the network gives them.
        tolerance: largest difference of a probability that this machine's precision may cause.

    Returns:
        The largest difference of a probability; None if not all of the images were recorded.

    Raises:
        UserError: the classes differ, or a probability differs by more than was recorded as allowed.
    """
    if recorded is None:
        return None
    _check_count(record, len(class_names), recorded.logits.shape[1])
    if recorded.class_names and recorded.class_names != tuple(class_names):
        ours, theirs = next(pair for pair in zip(class_names, recorded.class_names, strict=True) if pair[0] != pair[1])
        raise _another_network(record, f"it has the class {ours} where the run has {theirs}")
    difference = recorded.largest_difference(image_ids, logits)
    allowed = max(float(record.tags.get(TOLERANCE_TAG, _UNRECORDED_TOLERANCE)), tolerance)
    # Not `>`, which NaN would pass.
    if difference is not None and not difference <= allowed:
        raise _another_network(record, f"a probability differs by {difference:.3g} from the recorded one", allowed)
    return difference


def _another_network(record: Record, evidence: str, allowed: float | None = None) -> UserError:
    limit = f", to within {allowed:g}" if allowed is not None else ""
    return UserError(
        f"The saved network of run {short(record.run_id)} is not the one that the run trained: {evidence}. It must give"
        f" what was recorded during training{limit}. Restore {MODEL_FOLDER}/{MODEL_FILE} among the run's artifacts, or"
        " name another run."
    )
