"""A run's saved network: how it is written, and whether a file is the one that training saved and gives what it gave.

A digest of the file, recorded when it is saved, decides. What was recorded of the run is compared too: the classes, and
the probabilities of its images. Runs of versions before 0.2.0 have no digest.
"""

import logging
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dogbreeds.core.errors import UserError
from dogbreeds.core.files import atomic_write
from dogbreeds.core.text import digest_file
from dogbreeds.evaluation.results import Predictions
from dogbreeds.tracking.records import MODEL_FILE, MODEL_FOLDER, Record, short

if TYPE_CHECKING:
    import keras

log = logging.getLogger(__name__)

# Tags of a run.
MODEL_DIGEST_TAG = "model.digest"
HEAD_DIGEST_TAG = "head.digest"
TOLERANCE_TAG = "model.tolerance"
# Largest difference of a probability that is allowed where a run recorded none: it may have been computed in reduced
# precision. Another network differs by far more on some image.
_UNRECORDED_TOLERANCE = 5e-2
# Beginning of a file by which its compression is judged.
_SAMPLE_BYTES = 1 << 20


def save_network(network: "keras.Model", file: Path) -> str:
    """Save a network, compressed where that pays, and return the digest of the file.

    Args:
        network: the trained network.
        file: `.keras` file to write.
    """
    _list_attributes_once()
    network.save(file)
    _compress(file)
    return digest_file(file)


def save_weights(network: "keras.Model", file: Path) -> str:
    """Save a network's weights, and return the digest of the file.

    Args:
        network: the trained network.
        file: `.weights.h5` file to write.
    """
    _list_attributes_once()
    network.save_weights(file)
    return digest_file(file)


def _list_attributes_once() -> None:
    """Let Keras list the attributes that it never saves once for each kind of object, rather than for each object.

    Keras 3.15 looks up this list under another name than it stores it, and makes a new one for each layer, which takes
    half of the time that saving takes.
    """
    from keras.src.backend.common import global_state
    from keras.src.saving import saving_lib

    for kind in ("Layer", "Functional", "Sequential"):
        global_state.set_global_attribute(f"saving_attr_skiplist_{kind}", saving_lib.get_attr_skipset(kind))


def _compress(archive: Path) -> None:
    """Compress the files of a zip archive, which Keras stores as they are, if it saves a fifth of the largest one.

    It does for the miniature: its weights are in half precision, so that half of the bits are zeros. Full precision
    would be read for seconds to save a fifteenth.
    """
    with zipfile.ZipFile(archive) as source:
        members = source.infolist()
        with source.open(max(members, key=lambda member: member.file_size)) as largest:
            sample = largest.read(_SAMPLE_BYTES)
        if len(zlib.compress(sample, 1)) > 0.8 * len(sample):
            return
        with (
            atomic_write(archive) as compressed,
            zipfile.ZipFile(compressed, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as target,
        ):
            for member in members:
                target.writestr(member.filename, source.read(member))


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
