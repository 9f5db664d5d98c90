"""A network that is built, saved and loaded in a fraction of a second, for tests of what surrounds a network."""

from pathlib import Path
from typing import cast

import numpy as np

from dogbreeds.inference.classifier import Classifier, load
from dogbreeds.models.network import Network, Prefix
from dogbreeds.models.unfreeze import Plan

SIZE = 16


def tiny_network(classes: int, seed: int = 0) -> Network:
    """Build a network of 16 px whose head separates images by their mean colour."""
    import keras

    pixels = keras.Input((SIZE, SIZE, 3), name="pixels")
    prefix = keras.Model(pixels, keras.layers.GlobalAveragePooling2D(name="pool")(pixels), name="frozen")
    head = keras.Sequential([keras.Input((3,)), keras.layers.Dense(classes)], name="head")
    kernel = np.random.default_rng(seed).normal(size=(3, classes)) / 20
    head.set_weights([kernel, np.zeros(classes)])
    return Network(Prefix(prefix, ""), None, head, plan=cast(Plan, None))


def class_names(classes: int) -> tuple[str, ...]:
    return tuple(f"class {number}" for number in range(classes))


def save_tiny(file: Path, classes: int, seed: int = 0, resize: str = "stretch") -> Classifier:
    """Save a tiny network, and return it as it is loaded from the file."""
    tiny_network(classes, seed).full_model(class_names(classes), resize).save(file)
    return load(file)
