"""Files of predictions, one for each split: what later runs are compared with, image by image."""

from pathlib import Path

import numpy as np

from dogbreeds.core.errors import UserError
from dogbreeds.core.files import read_npz
from dogbreeds.core.text import shorten
from dogbreeds.evaluation.results import Predictions


def write_predictions(folder: Path, split: str, predictions: Predictions) -> Path:
    """Write a split's predictions as `<split>.npz`, and return the file.

    Args:
        folder: folder to write into.
        split: name of the split.
        predictions: the predictions.
    """
    file = folder / f"{split}.npz"
    np.savez_compressed(
        file,
        ids=np.asarray(predictions.ids),
        labels=predictions.labels,
        logits=predictions.logits,
        class_names=np.asarray(predictions.class_names, dtype=np.str_),
    )
    return file


def read_predictions(folder: Path, run: str) -> dict[str, Predictions]:
    """Return the predictions of each split that has a file in a folder.

    Args:
        folder: the folder.
        run: name of the run that they belong to, for errors.

    Raises:
        UserError: a file is damaged.
    """
    return {file.stem: _read(file, run) for file in folder.glob("*.npz")}


def _read(file: Path, run: str) -> Predictions:
    try:
        arrays = read_npz(file)
        # Earlier versions recorded no class names.
        class_names = arrays["class_names"].tolist() if "class_names" in arrays else ()
        return Predictions(arrays["ids"].tolist(), arrays["labels"], arrays["logits"], tuple(class_names))
    except (ValueError, KeyError) as error:
        raise UserError(
            f"The predictions {file.name} of run {run} are damaged ({shorten(str(error), 160)}). A run's files must not"
            " be changed. Restore the file, or name another run."
        ) from error
