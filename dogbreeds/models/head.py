"""Classification heads on the backbone's pooled features.

All heads return logits: the loss is computed from them, and softmax is added when the full model is saved.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dogbreeds.core.spec import Spec, boolean, integer, integers, number, one_of

if TYPE_CHECKING:
    import keras


@dataclass(frozen=True, kw_only=True)
class Head(Spec):
    """Base class of the heads. A subclass defines the layers before the final dense layer."""

    group = "head"

    def hidden(self, seed: int) -> "list[keras.Layer]":
        """Create the layers between the pooled features and the final dense layer.

        Args:
            seed: for their initial weights and dropout masks.
        """
        raise NotImplementedError

    def build(self, num_features: int, num_classes: int, seed: int) -> "keras.Sequential":
        """Build the head.

        Args:
            num_features: channels of the pooled backbone output.
            num_classes: number of logits.
            seed: for initial weights and dropout masks.

        Returns:
            A model from [b, num_features] float32 to [b, num_classes] float32 logits.
        """
        import keras

        scores = keras.layers.Dense(num_classes, kernel_initializer=_glorot(seed), name="scores")
        pooled = keras.Input((num_features,), name="pooled")
        return keras.Sequential([pooled, *self.hidden(seed + 1), scores], name="head")


def _glorot(seed: int) -> "keras.initializers.Initializer":
    import keras

    return keras.initializers.GlorotUniform(seed=seed)


@dataclass(frozen=True, kw_only=True)
class Linear(Head):
    """Linear probe: one dense layer, after dropout if `dropout` is above 0."""

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
    """Dense ReLU layers, each followed by dropout. The head of the guide, which collapses at a high learning rate."""

    widths: tuple[int, ...] = integers(at_most=16_384, example="[512,256]")
    dropout: float = number(at_least=0, below=1, example=0.5)

    def hidden(self, seed: int) -> "list[keras.Layer]":
        import keras

        layers: list[keras.Layer] = []
        for index, width in enumerate(self.widths):
            layers.append(keras.layers.Dense(width, activation="relu", kernel_initializer=_glorot(seed + 2 * index)))
            layers.append(keras.layers.Dropout(self.dropout, seed=seed + 2 * index + 1))
        return layers


@dataclass(frozen=True, kw_only=True)
class Logistic(Head):
    """Multinomial logistic regression: one dense layer, fitted without a learning rate if the backbone is frozen.

    In a fine-tune, which starts from such a fit, the dense layer trains as that of any head.

    Attributes:
        C: inverse of the penalty on the squared weights of standardised features, as scikit-learn's. None tries a path
            of values from strong to weak regularisation, and chooses one.
        patience: values of `C` without a better metric or loss after which the path ends.
        choose_by: what chooses it: the run's `validation` split, or `cross_validation` within the training images.
        refit: whether the network that is saved is fitted again at the chosen `C`, on training and validation images.
    """

    C: float | None = number(above=0, example=1e-3, optional=True)
    patience: int = integer(at_least=1, example=1)
    choose_by: str = one_of("validation", "cross_validation")
    refit: bool = boolean()

    def hidden(self, seed: int) -> "list[keras.Layer]":
        return []
