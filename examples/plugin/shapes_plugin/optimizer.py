"""An optimizer of Keras that dogbreeds has no option for."""

from dataclasses import dataclass

import dogbreeds


@dataclass(frozen=True, kw_only=True)
class Nadam(dogbreeds.Optimizer):
    """`keras.optimizers.Nadam`. The fields `lr`, `layer_decay` and `clipnorm` are those of every optimizer."""

    beta_1: float = dogbreeds.number(at_least=0, below=1, example=0.9)

    def build(self):
        import keras

        return keras.optimizers.Nadam(self.lr, beta_1=self.beta_1)
