"""Average of the weights over training, which is validated and kept in their place."""

from dataclasses import dataclass

from dogbreeds.core.spec import Spec, number


@dataclass(frozen=True, kw_only=True)
class Ema(Spec):
    """Exponential moving average of the weights, kept by Keras' optimizers.

    Source: Polyak and Juditsky 1992.

    Attributes:
        decay: share of the average that each step keeps; None for no average.
    """

    group = "ema"
    implied = {"decay": None}
    decay: float | None = number(above=0, below=1, example=0.99, optional=True)
