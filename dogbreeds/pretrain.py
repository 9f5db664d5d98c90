"""Pretrains the miniature's backbone on the drawn breeds and writes the weights that ship with the package.

python -m dogbreeds.pretrain            # about 40 minutes on 2 cores
"""

import logging
from pathlib import Path

import hydra
import numpy as np
from omegaconf import DictConfig

from dogbreeds import cli
from dogbreeds.core.paths import home
from dogbreeds.data import drawn_dogs
from dogbreeds.models.model import SHIPPED, Miniature

log = logging.getLogger(__name__)


def photos(split: str, each: int) -> tuple[np.ndarray, np.ndarray]:
    """`each` photos of every breed: [n, 64, 64, 3] uint8 and [n] int32 labels."""
    labels = np.repeat(np.arange(drawn_dogs.BREEDS, dtype=np.int32), each)
    images = np.stack(
        [drawn_dogs.draw(split, breed, photo) for breed in range(drawn_dogs.BREEDS) for photo in range(each)]
    )
    return images, labels


def halve(path: Path) -> None:
    """Rewrites a weights file with its arrays in float16, compressed: half the size, and Keras casts them back on loading."""
    import h5py

    with h5py.File(path, "r+") as file:
        arrays: list[str] = []
        file.visititems(lambda name, node: arrays.append(name) if isinstance(node, h5py.Dataset) else None)
        values = {name: file[name][()] for name in arrays}
    with h5py.File(path.with_suffix(".half"), "w") as half:
        for name, value in values.items():
            floating = np.issubdtype(value.dtype, np.floating)
            half.create_dataset(
                name, data=value.astype(np.float16) if floating else value, compression="gzip" if value.ndim else None
            )
    path.with_suffix(".half").replace(path)


@hydra.main(version_base="1.3", config_path=str(home() / "conf"), config_name="pretrain")
def task(config: DictConfig) -> float:
    """Pretrains and saves; returns the validation accuracy over all drawn breeds."""
    import keras

    keras.utils.set_random_seed(config.seed)
    images, labels = photos("pretrain", config.photos_per_breed)
    held_out = photos("pretrain_val", config.validation_photos_per_breed)
    backbone = Miniature(architecture="Miniature", image_size=drawn_dogs.SIZE, pixels="raw", weights=None).construct(
        None
    )
    network = keras.Sequential(
        [
            backbone,
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dropout(config.dropout),
            keras.layers.Dense(drawn_dogs.BREEDS, activation="softmax"),
        ]
    )
    steps = config.epochs * -(-len(labels) // config.batch_size)
    network.compile(
        optimizer=keras.optimizers.AdamW(
            keras.optimizers.schedules.CosineDecay(config.lr, steps), weight_decay=config.weight_decay
        ),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    history = network.fit(
        images, labels, batch_size=config.batch_size, epochs=config.epochs, validation_data=held_out, verbose=2
    )
    path = Path(config.weights or SHIPPED)
    path.parent.mkdir(parents=True, exist_ok=True)
    backbone.save_weights(path)
    halve(path)
    log.info("%s: %.2f MB", path, path.stat().st_size / 1e6)
    return history.history["val_accuracy"][-1]


if __name__ == "__main__":
    cli.main(task, "pretrain")
