"""Files of predictions, one for each split: what later runs are compared with, image by image."""

from pathlib import Path

import numpy as np

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


def read_predictions(folder: Path) -> dict[str, Predictions]:
    """Return the predictions of each split that has a file in a folder."""
    return {file.stem: _read(file) for file in folder.glob("*.npz")}


def _read(file: Path) -> Predictions:
    with np.load(file) as stored:
        # Earlier versions recorded no class names.
        class_names = stored["class_names"].tolist() if "class_names" in stored.files else ()
        return Predictions(stored["ids"].tolist(), stored["labels"], stored["logits"], tuple(class_names))
