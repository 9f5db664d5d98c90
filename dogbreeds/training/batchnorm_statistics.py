"""Compare the running statistics of a backbone's BatchNorm layers with the statistics of images.

Every BatchNorm layer stores the mean and the variance of its inputs in pretraining. Images in the pixel convention of
pretraining reproduce them, images in another convention do not, and no labels are needed to see the difference.
"""

from collections.abc import Callable, Container, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from dogbreeds.models.preprocessing import MODES, Preprocessing

if TYPE_CHECKING:
    import keras

# Number of BatchNorm layers to compare: the first ones, whose inputs still depend directly on the pixels.
LAYERS = 10
# Images at a time.
_BATCH_SIZE = 16


def first_batchnorms(network: "keras.Model") -> "list[tuple[keras.layers.BatchNormalization, keras.KerasTensor]]":
    """Return the first `LAYERS` BatchNorm layers, in the order of computation, each with its input tensor."""
    import keras

    from dogbreeds.models.blocks import nodes_in_order

    found = [
        (node.operation, node.input_tensors[0])
        for node in nodes_in_order(network)
        if isinstance(node.operation, keras.layers.BatchNormalization)
    ]
    return found[:LAYERS]


def num_used(images: int) -> int:
    """Return how many images are used: whole batches, because their variances are averaged; at least one batch."""
    return images - images % _BATCH_SIZE or images


def has_trained_statistics(layer: "keras.layers.BatchNormalization") -> bool:
    """Return whether the running statistics differ from their initial values, mean 0 and variance 1."""
    return bool(np.any(np.asarray(layer.moving_mean)) or np.any(np.asarray(layer.moving_variance) != 1))


def gaussian_kl(
    mean: np.ndarray, variance: np.ndarray, running_mean: np.ndarray, running_variance: np.ndarray
) -> float:
    """Compute the KL divergence of Gaussian inputs from the running statistics, in nats, the median over channels.

    Args:
        mean, variance: [channels] of the layer's inputs; variances above 0.
        running_mean, running_variance: [channels] of the layer.
    """
    log_ratio = np.log(running_variance / variance)
    nats = 0.5 * (log_ratio + (variance + (mean - running_mean) ** 2) / running_variance - 1)
    return float(np.median(nats))


def batchnorm_divergences(
    network: "keras.Model",
    layers: "list[tuple[keras.layers.BatchNormalization, keras.KerasTensor]]",
    images: np.ndarray,
    advance: Callable[[int], None] = lambda images: None,
) -> list[float]:
    """Compute for each convention in `MODES` the KL divergence from the running statistics, the mean over layers.

    Args:
        network: the backbone.
        layers: from `first_batchnorms`.
        images: [n, size, size, 3] RGB in [0, 255].
        advance: called with the number of images just done, in each convention.
    """
    import keras
    import tensorflow as tf

    probe = keras.Model(network.input, [tensor for _, tensor in layers])
    moments = tf.function(
        lambda pixels: [tf.nn.moments(output, axes=(0, 1, 2)) for output in _listed(probe(pixels, training=False))],
        reduce_retracing=True,
    )
    found = []
    for mode in MODES:
        batches = [moments(pixels) for pixels in in_convention(images[: num_used(len(images))], mode, advance)]
        distances = []
        for index, (layer, _) in enumerate(layers):
            means, variances = (
                np.stack([batch[index][which].numpy() for batch in batches]).astype(np.float64) for which in (0, 1)
            )
            distances.append(
                gaussian_kl(
                    mean=means.mean(axis=0),
                    # Total variance: within batches plus between them.
                    variance=variances.mean(axis=0) + means.var(axis=0) + layer.epsilon,
                    running_mean=np.asarray(layer.moving_mean, dtype=np.float64),
                    running_variance=np.asarray(layer.moving_variance, dtype=np.float64) + layer.epsilon,
                )
            )
        found.append(float(np.nan_to_num(np.mean(distances), nan=np.inf)))
    return found


def estimate_anew(
    network: "keras.Model", batches: "Iterable[np.ndarray]", layers: Container[str], advance: Callable[[int], None]
) -> None:
    """Give BatchNorm layers the statistics of their inputs, the mean over batches; needed after weights were averaged.

    Source: Izmailov et al. 2018, Averaging weights, section 3.2.

    Args:
        network: model whose layers are changed in place.
        batches: inputs of the network.
        layers: names of the BatchNorm layers; others keep their statistics.
        advance: called with the number of rows just done.
    """
    import keras
    import tensorflow as tf

    chosen = [
        layer for layer in network.layers if isinstance(layer, keras.layers.BatchNormalization) and layer.name in layers
    ]
    momenta = [layer.momentum for layer in chosen]
    trainable = [layer.trainable for layer in chosen]
    try:
        for layer in chosen:
            layer.trainable = True
        for count, batch in enumerate(batches):
            for layer in chosen:
                # The first batch replaces what was there, so that all weigh alike in the end.
                layer.momentum = count / (count + 1)
            network(tf.cast(batch, tf.float32), training=True)
            advance(len(batch))
    finally:
        for layer, momentum, is_trainable in zip(chosen, momenta, trainable, strict=True):
            layer.momentum, layer.trainable = momentum, is_trainable


def in_convention(
    images: np.ndarray, mode: str, advance: Callable[[int], None] = lambda images: None
) -> "Iterator[Any]":
    """Yield batches of images in a pixel convention, and count each once it has been used."""
    import tensorflow as tf

    for start in range(0, len(images), _BATCH_SIZE):
        batch = images[start : start + _BATCH_SIZE]
        yield Preprocessing(mode=mode).apply(tf.cast(batch, tf.float32))
        advance(len(batch))


def _listed(outputs: Any) -> list[Any]:
    """Return the outputs of a model as a list, also where it has one output."""
    return outputs if isinstance(outputs, list) else [outputs]
