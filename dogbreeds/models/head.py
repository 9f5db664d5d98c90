"""Classifiers on the backbone's pooled output. All end in logits: the loss is computed from them, and softmax is added on saving."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dogbreeds.core.spec import Spec, integers, number

if TYPE_CHECKING:
    import keras


@dataclass(frozen=True, kw_only=True)
class Head(Spec):
    """Layers between [b, features] and the class scores."""

    group = "head"

    def hidden(self, seed: int) -> "list[keras.Layer]":
        raise NotImplementedError

    def build(self, features: int, classes: int, seed: int) -> "keras.Sequential":
        """[b, features] float32 -> [b, classes] float32 logits, with weights and dropout drawn from `seed`."""
        import keras

        scores = keras.layers.Dense(classes, kernel_initializer=_glorot(seed), name="scores")
        return keras.Sequential([keras.Input((features,), name="pooled"), *self.hidden(seed + 1), scores], name="head")


def _glorot(seed: int) -> "keras.initializers.Initializer":
    import keras

    return keras.initializers.GlorotUniform(seed=seed)


@dataclass(frozen=True, kw_only=True)
class Linear(Head):
    """One dense layer: the linear probe."""

    dropout: float = number(at_least=0, below=1, example=0.2)

    def hidden(self, seed: int) -> "list[keras.Layer]":
        import keras

        return [keras.layers.Dropout(self.dropout, seed=seed)] if self.dropout else []


@dataclass(frozen=True, kw_only=True)
class BatchNorm(Head):
    """BatchNorm, dropout, dense.

    Source: Keras' example "Image classification via fine-tuning with EfficientNet".
    """

    dropout: float = number(at_least=0, below=1, example=0.2)

    def hidden(self, seed: int) -> "list[keras.Layer]":
        import keras

        return [keras.layers.BatchNormalization(), keras.layers.Dropout(self.dropout, seed=seed)]


@dataclass(frozen=True, kw_only=True)
class MLP(Head):
    """Dense ReLU layers, each followed by dropout: the guide's head, and the one that collapses at a high learning rate."""

    widths: tuple[int, ...] = integers(example="[512,256]")
    dropout: float = number(at_least=0, below=1, example=0.5)

    def hidden(self, seed: int) -> "list[keras.Layer]":
        import keras

        built: list[keras.Layer] = []
        for index, width in enumerate(self.widths):
            built.append(keras.layers.Dense(width, activation="relu", kernel_initializer=_glorot(seed + 2 * index)))
            built.append(keras.layers.Dropout(self.dropout, seed=seed + 2 * index + 1))
        return built
