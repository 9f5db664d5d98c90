"""The losses of training a whole network, uncut and without cached features, by plain Keras."""

from typing import Any

import numpy as np

from dogbreeds.experiments.prepare import head_seed
from dogbreeds.experiments.run import Run
from dogbreeds.training.loop import epoch_order


def pooled(network: Any, images: Any, pooling: str) -> Any:
    """Return the output of a backbone as a vector for each image, by layers of Keras."""
    import keras

    outputs = network(images)
    rank = len(outputs.shape)
    if rank == 2:
        return outputs
    if pooling == "cls":
        return outputs[:, 0]
    return (keras.layers.GlobalAveragePooling1D() if rank == 3 else keras.layers.GlobalAveragePooling2D())(outputs)


def of_same_place(network: Any, other: Any, names: frozenset[str]) -> list[Any]:
    """Return the layers of a network in the place of layers of another, equal one, whose names Keras may have made."""
    return [layer for layer, same in zip(network.layers, other.layers, strict=True) if same.name in names]


def whole_network_losses(run: Run, network: Any, trained: list[Any]) -> list[float]:
    """Train for an epoch on raw images, and return the loss of each step.

    Args:
        run: whose head has one hidden layer with dropout. Its images are not augmented.
        network: its whole backbone, which is trained.
        trained: the parts of it that train, with all their layers. BatchNorm is frozen, and dropout is off.
    """
    import keras

    from dogbreeds.data.resize import resizer

    for layer in network._flatten_layers(include_self=False):
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.trainable = False
        if isinstance(layer, keras.layers.Dropout):
            layer.rate = 0.0
        if "drop_prob" in vars(layer):
            layer.drop_prob = 0.0
        if "DropPath" in type(layer).__name__ and "rate" in vars(layer):
            layer.rate = 0.0
    kept = {id(variable) for part in trained for variable in part.trainable_variables}
    for variable in network.trainable_variables:
        variable.trainable = id(variable) in kept
    split = run.data.open().train
    classes = len(run.data.open().class_names)
    images = keras.Input(network.input.shape[1:])
    features = pooled(network, images, run.model.pooling)
    head = run.head.build(features.shape[-1], classes, head_seed(run.seed))
    hidden = keras.layers.Dense(head.layers[0].units, activation="relu")(features)
    hidden = keras.layers.Dropout(head.layers[1].rate, seed=head.layers[1].seed)(hidden)
    whole = keras.Model(images, keras.layers.Dense(classes)(hidden))
    whole.layers[-3].set_weights(head.layers[0].get_weights())
    whole.layers[-1].set_weights(head.layers[2].get_weights())
    whole.compile(
        optimizer=keras.optimizers.Adam(run.optimizer.lr),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    square = resizer(run.model.image_size, run.data.resize)
    pixels = np.stack([square(read()) for read in split.source.loaders()]).astype(np.float32)
    order = epoch_order(run.seed, 0, len(split.rows))
    losses = []
    for start in range(0, len(order), run.phase.batch_size):
        rows = order[start : start + run.phase.batch_size]
        whole.reset_metrics()
        losses.append(float(np.ravel(whole.train_on_batch(pixels[rows], split.labels[rows]))[0]))
    return losses
