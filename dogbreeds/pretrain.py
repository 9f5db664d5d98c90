"""Pretrain the miniature backbone on drawn dogs, and write the weights that ship with the package.

python -m dogbreeds.pretrain            # about 40 minutes on 2 cores
"""

import logging
from pathlib import Path

import hydra
import numpy as np
from omegaconf import DictConfig

from dogbreeds import cli
from dogbreeds.core.files import atomic_write
from dogbreeds.core.paths import config_folder
from dogbreeds.core.text import size_text
from dogbreeds.data import drawn_dogs
from dogbreeds.models.model import SHIPPED_WEIGHTS, Miniature

log = logging.getLogger(__name__)


def draw_images(split: str, per_class: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw images of all classes, and return them, [n, 64, 64, 3] uint8, with their [n] int32 labels."""
    labels = np.repeat(np.arange(drawn_dogs.NUM_BREEDS, dtype=np.int32), per_class)
    images = np.stack(
        [drawn_dogs.draw(split, label, index) for label in range(drawn_dogs.NUM_BREEDS) for index in range(per_class)]
    )
    return images, labels


def compress_to_float16(path: Path) -> None:
    """Rewrite a weight file with compressed float16 arrays, which Keras casts back when it loads them."""
    import h5py

    with h5py.File(path, "r+") as file:
        arrays: list[str] = []
        file.visititems(lambda name, node: arrays.append(name) if isinstance(node, h5py.Dataset) else None)
        values = {name: file[name][()] for name in arrays}
    with atomic_write(path) as compressed, h5py.File(compressed, "w") as file:
        for name, value in values.items():
            is_float = np.issubdtype(value.dtype, np.floating)
            file.create_dataset(
                name, data=value.astype(np.float16) if is_float else value, compression="gzip" if value.ndim else None
            )


@hydra.main(version_base="1.3", config_path=str(config_folder()), config_name="pretrain")
@cli.job
def task(config: DictConfig) -> float:
    """Pretrain the backbone, save its weights, and return the validation accuracy over all classes."""
    log.info("drawing %s images", f"{config.images_per_class * drawn_dogs.NUM_BREEDS:,}")
    import keras

    keras.utils.set_random_seed(config.seed)
    images, labels = draw_images("pretrain", config.images_per_class)
    validation = draw_images("pretrain_val", config.validation_images_per_class)
    miniature = Miniature(architecture="Miniature", image_size=drawn_dogs.SIZE, pixels="raw", weights=None)
    backbone = miniature.construct(None)
    network = keras.Sequential(
        [
            backbone,
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dropout(config.dropout),
            keras.layers.Dense(drawn_dogs.NUM_BREEDS, activation="softmax"),
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
        images, labels, batch_size=config.batch_size, epochs=config.epochs, validation_data=validation, verbose=2
    )
    path = Path(config.weights or SHIPPED_WEIGHTS)
    path.parent.mkdir(parents=True, exist_ok=True)
    backbone.save_weights(path)
    compress_to_float16(path)
    log.info("%s: %s", path, size_text(path.stat().st_size))
    return history.history["val_accuracy"][-1]


if __name__ == "__main__":
    cli.main(task, "pretrain")
