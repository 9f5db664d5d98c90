"""A small network without BatchNorm, pretrained on drawn dogs, for the preflight's check of such backbones.

Blocks as in ConvNeXt (Liu et al. 2022), with layer normalisation, on pixels in [-1, 1]. Its weights are in no release:
it is trained where it is needed, in about two minutes.
"""

from pathlib import Path

import numpy as np

from dogbreeds.data import drawn_dogs
from dogbreeds.models.model import Backbone, arrays_digest

# Convention of its pretraining.
PIXELS = "tf"
# Classes and images of each to pretrain on, and epochs.
CLASSES = 60
IMAGES_PER_CLASS = 60
EPOCHS = 9
_WIDTHS = (48, 96)
_BLOCKS_PER_STAGE = 2


def construct():
    """Build the network, [b, 64, 64, 3] in [-1, 1] -> [b, 8, 8, 96], with random weights."""
    from keras import Input, Model, layers

    images = Input((drawn_dogs.SIZE, drawn_dogs.SIZE, 3))
    hidden = images
    for stride, width in zip((4, 2), _WIDTHS, strict=True):
        hidden = layers.Conv2D(width, stride, stride)(hidden)
        hidden = layers.LayerNormalization()(hidden)
        for _ in range(_BLOCKS_PER_STAGE):
            inner = layers.DepthwiseConv2D(3, padding="same")(hidden)
            inner = layers.LayerNormalization()(inner)
            inner = layers.Dense(2 * width, activation="gelu")(inner)
            hidden = layers.add([hidden, layers.Dense(width)(inner)])
    return Model(images, layers.LayerNormalization()(hidden), name="layernorm")


def pretrained(weights: Path) -> Backbone:
    """Return the pretrained backbone; pretrain it, and write its weights, if that file is not there."""
    import keras

    keras.utils.set_random_seed(0)
    network = construct()
    if weights.is_file():
        network.load_weights(weights)
    else:
        _pretrain(network)
        weights.parent.mkdir(parents=True, exist_ok=True)
        network.save_weights(weights)
    return Backbone(network, (), f"layernorm:{arrays_digest(network.get_weights())}")


def _pretrain(network) -> None:
    import keras

    from dogbreeds.models.preprocessing import Preprocessing

    labels = np.repeat(np.arange(CLASSES), IMAGES_PER_CLASS)
    drawn = [drawn_dogs.draw("pretrain", label, index) for label in range(CLASSES) for index in range(IMAGES_PER_CLASS)]
    images = np.asarray(Preprocessing(mode=PIXELS).apply(np.stack(drawn).astype(np.float32)))
    classifier = keras.Sequential(
        [network, keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(CLASSES, activation="softmax")]
    )
    batch_size = 32
    steps = EPOCHS * -(-len(labels) // batch_size)
    classifier.compile(
        keras.optimizers.AdamW(keras.optimizers.schedules.CosineDecay(3e-3, steps)),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    classifier.fit(images, labels, batch_size=batch_size, epochs=EPOCHS, verbose=2)
