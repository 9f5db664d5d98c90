"""What a backbone's BatchNorm layers remember of their input, beside what the photos at hand give.

Every BatchNorm layer keeps the mean and the variance of what it was fed in pretraining. Photos in the right convention reproduce them;
photos in another one do not, and no label is needed to see it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dogbreeds.models.preprocessing import MODES, Preprocessing

if TYPE_CHECKING:
    import keras

# BatchNorm layers that are compared: the first ones, which see the pixels before much has been done to them
LAYERS = 10
# Photos at a time
_BATCH = 16


@dataclass(frozen=True)
class PixelFit:
    """How well each pixel convention fits a backbone.

    Attributes:
        remembers: whether there are BatchNorm layers that have seen training, so that `distances` are nats.
        distances: by convention. Where the backbone remembers: Kullback-Leibler divergence of what its first BatchNorm layers are fed
            from what they remember, in nats, the median over channels, the mean over layers. Where it does not: the share that is lost of
            the variance between photos at the backbone's output, beside the convention that keeps most.
    """

    remembers: bool
    distances: dict[str, float]

    @property
    def best(self) -> str:
        return min(self.distances, key=lambda mode: self.distances[mode])

    def __str__(self) -> str:
        ranked = sorted(self.distances.items(), key=lambda item: item[1])
        return ", ".join(f"{mode} {amount(distance)}" for mode, distance in ranked)


def amount(distance: float) -> str:
    """A distance with the digits that matter."""
    return f"{distance:.3f}" if distance < 0.1 else f"{distance:.2f}" if distance < 10 else f"{distance:,.0f}"


def batchnorms(network: "keras.Model") -> "list[tuple[keras.layers.BatchNormalization, keras.KerasTensor]]":
    """The first BatchNorm layers in the order of computation, and what goes into them."""
    import keras

    from dogbreeds.models.blocks import in_order

    found = [
        (node.operation, node.input_tensors[0])
        for node in in_order(network)
        if isinstance(node.operation, keras.layers.BatchNormalization)
    ]
    return found[:LAYERS]


def has_seen_training(layer: "keras.layers.BatchNormalization") -> bool:
    """Whether its statistics are others than those that it is born with."""
    return bool(np.any(np.asarray(layer.moving_mean)) or np.any(np.asarray(layer.moving_variance) != 1))


def divergence(mean: np.ndarray, variance: np.ndarray, stored_mean: np.ndarray, stored_variance: np.ndarray) -> float:
    """How far what a layer is fed lies from what it remembers: Gaussian Kullback-Leibler divergence in nats, the median over channels.

    Args:
        mean, variance: [channels] of what it is fed; variances above 0.
        stored_mean, stored_variance: [channels] of what it remembers.
    """
    nats = 0.5 * (np.log(stored_variance / variance) + (variance + (mean - stored_mean) ** 2) / stored_variance - 1)
    return float(np.median(nats))


def divergences(
    network: "keras.Model",
    layers: "list[tuple[keras.layers.BatchNormalization, keras.KerasTensor]]",
    photos: np.ndarray,
) -> list[float]:
    """Of each convention, the mean over layers."""
    import keras
    import tensorflow as tf

    probe = keras.Model(network.input, [tensor for _, tensor in layers])
    moments = tf.function(
        lambda pixels: [tf.nn.moments(output, axes=(0, 1, 2)) for output in _listed(probe(pixels, training=False))],
        reduce_retracing=True,
    )
    found = []
    for mode in MODES:
        measured = [moments(pixels) for pixels in _in_convention(photos, mode)]
        distances = []
        for index, (layer, _) in enumerate(layers):
            means, variances = (
                np.stack([batch[index][which].numpy() for batch in measured]).astype(np.float64) for which in (0, 1)
            )
            distances.append(
                divergence(
                    means.mean(axis=0),
                    # Within batches, and between them
                    variances.mean(axis=0) + means.var(axis=0) + layer.epsilon,
                    np.asarray(layer.moving_mean, dtype=np.float64),
                    np.asarray(layer.moving_variance, dtype=np.float64) + layer.epsilon,
                )
            )
        found.append(float(np.nan_to_num(np.mean(distances), nan=np.inf)))
    return found


def lost_spread(network: "keras.Model", photos: np.ndarray) -> list[float]:
    """Of each convention, the share lost of the variance between photos, relative to the size of the output, beside the best."""
    import tensorflow as tf

    pooled = tf.function(
        lambda pixels: tf.reduce_mean(network(pixels, training=False), axis=(1, 2)), reduce_retracing=True
    )
    spreads = []
    for mode in MODES:
        outputs = np.concatenate([pooled(pixels).numpy() for pixels in _in_convention(photos, mode)]).astype(np.float64)
        spreads.append(outputs.var(axis=0).sum() / max(float((outputs**2).mean(axis=0).sum()), 1e-30))
    most = max(spreads)
    return [1 - spread / most if most > 0 else 0.0 for spread in spreads]


def _in_convention(photos: np.ndarray, mode: str) -> "Iterator[Any]":
    import tensorflow as tf

    # Whole batches: their variances are averaged
    for start in range(0, len(photos) - len(photos) % _BATCH or len(photos), _BATCH):
        yield Preprocessing(mode=mode).apply(tf.cast(photos[start : start + _BATCH], tf.float32))


def _listed(outputs: Any) -> list[Any]:
    return outputs if isinstance(outputs, list) else [outputs]
