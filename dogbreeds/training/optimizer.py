"""Optimizers, built as Keras' own."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dogbreeds.core.spec import Spec, number, one_of

if TYPE_CHECKING:
    import keras


@dataclass(frozen=True, kw_only=True)
class Optimizer(Spec):
    """Base class of optimizers.

    Attributes:
        lr: peak learning rate of the schedule, for the head.
        layer_decay: factor of the learning rate for each block below the head, in (0, 1]; at 1 all have the same rate.
        clipnorm: largest norm of the gradient of each weight, by which Keras' optimizers clip it; None does not clip.
    """

    group = "optimizer"
    implied = {"clipnorm": None}
    lr: float = number(above=0, example=1e-3)
    layer_decay: float = number(above=0, at_most=1, example=0.9)
    clipnorm: float | None = number(above=0, example=1, optional=True)

    def build(self) -> "keras.Optimizer":
        """Build the Keras optimizer, at its peak learning rate. It does not clip: `Step` does, over all devices."""
        raise NotImplementedError

    def without_decay(self, variables: "Sequence[keras.Variable]") -> "list[keras.Variable]":
        """Return those of the variables that weight decay leaves alone."""
        return []


@dataclass(frozen=True, kw_only=True)
class Adam(Optimizer):
    """`keras.optimizers.Adam`."""

    beta_1: float = number(at_least=0, below=1, example=0.9)
    beta_2: float = number(at_least=0, below=1, example=0.999)
    epsilon: float = number(above=0, example=1e-7)

    def build(self) -> "keras.Optimizer":
        import keras

        return keras.optimizers.Adam(self.lr, beta_1=self.beta_1, beta_2=self.beta_2, epsilon=self.epsilon)


@dataclass(frozen=True, kw_only=True)
class AdamW(Adam):
    """`keras.optimizers.AdamW`, Adam with decoupled weight decay.

    Attributes:
        weight_decay: share of each weight that a step at learning rate 1 would take away.
        weight_decay_on: `all` weights, or `kernels` alone: neither biases nor the gamma and beta of BatchNorm.
    """

    implied = {"weight_decay_on": "all"}
    weight_decay: float = number(at_least=0, example=0.004)
    weight_decay_on: str = one_of("all", "kernels")

    def build(self) -> "keras.Optimizer":
        import keras

        return keras.optimizers.AdamW(
            self.lr, weight_decay=self.weight_decay, beta_1=self.beta_1, beta_2=self.beta_2, epsilon=self.epsilon
        )

    def without_decay(self, variables: "Sequence[keras.Variable]") -> "list[keras.Variable]":
        # Biases, gamma and beta are vectors; kernels are not.
        return [variable for variable in variables if len(variable.shape) < 2] if self.weight_decay_on != "all" else []


@dataclass(frozen=True, kw_only=True)
class SGD(Optimizer):
    """`keras.optimizers.SGD`."""

    momentum: float = number(at_least=0, below=1, example=0.9)

    def build(self) -> "keras.Optimizer":
        import keras

        return keras.optimizers.SGD(self.lr, momentum=self.momentum)


@dataclass(frozen=True, kw_only=True)
class RMSprop(Optimizer):
    """`keras.optimizers.RMSprop`."""

    rho: float = number(at_least=0, below=1, example=0.9)
    momentum: float = number(at_least=0, below=1, example=0.9)

    def build(self) -> "keras.Optimizer":
        import keras

        return keras.optimizers.RMSprop(self.lr, rho=self.rho, momentum=self.momentum)
