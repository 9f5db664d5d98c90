"""Optimizers, by name."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dogbreeds.core.spec import Spec, number

if TYPE_CHECKING:
    import keras


@dataclass(frozen=True, kw_only=True)
class Optimizer(Spec):
    """What all optimizers share: a learning rate, the schedule's highest, that may shrink by `layer_decay` a block below the head."""

    group = "optimizer"
    lr: float = number(above=0, example=1e-3)
    layer_decay: float = number(above=0, at_most=1, example=0.9)

    def build(self) -> "keras.Optimizer":
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Adam(Optimizer):
    beta_1: float = number(at_least=0, below=1, example=0.9)
    beta_2: float = number(at_least=0, below=1, example=0.999)
    epsilon: float = number(above=0, example=1e-7)

    def build(self) -> "keras.Optimizer":
        import keras

        return keras.optimizers.Adam(self.lr, beta_1=self.beta_1, beta_2=self.beta_2, epsilon=self.epsilon)


@dataclass(frozen=True, kw_only=True)
class AdamW(Adam):
    weight_decay: float = number(at_least=0, example=0.004)

    def build(self) -> "keras.Optimizer":
        import keras

        return keras.optimizers.AdamW(
            self.lr, weight_decay=self.weight_decay, beta_1=self.beta_1, beta_2=self.beta_2, epsilon=self.epsilon
        )


@dataclass(frozen=True, kw_only=True)
class SGD(Optimizer):
    momentum: float = number(at_least=0, below=1, example=0.9)

    def build(self) -> "keras.Optimizer":
        import keras

        return keras.optimizers.SGD(self.lr, momentum=self.momentum)


@dataclass(frozen=True, kw_only=True)
class RMSprop(Optimizer):
    rho: float = number(at_least=0, below=1, example=0.9)
    momentum: float = number(at_least=0, below=1, example=0.9)

    def build(self) -> "keras.Optimizer":
        import keras

        return keras.optimizers.RMSprop(self.lr, rho=self.rho, momentum=self.momentum)
