"""Settings of data and of the feature cache for tests that build them without a config: a new setting is added here."""

from pathlib import Path
from typing import Any

from dogbreeds.data.miniature import Miniature
from dogbreeds.features.features import Features


def miniature_data(train_per_class: int, **changes: Any) -> Miniature:
    """Return drawn dogs of ten classes."""
    values = {
        "classes": 10,
        "val_per_class": 1,
        "test_per_class": 1,
        "resize": "stretch",
        "decoder": "pillow",
        "on_corrupt": "stop",
        "max_corrupt_fraction": 0.01,
    }
    return Miniature(train_per_class=train_per_class, **values | changes)


def feature_settings(place: Path, batch_size: int | None, **changes: Any) -> Features:
    """Return a cache in a folder, of features that TensorFlow computes in float32."""
    values = {
        "dtype": "float32",
        "layers": (),
        "runtime": "tensorflow",
        "precision": "float32",
        "max_gigabytes": 1,
    }
    return Features(dir=str(place), batch_size=batch_size, **values | changes)
