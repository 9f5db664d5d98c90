"""What training has come to, and all that another process needs to resume it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from dogbreeds.evaluation.results import Epoch, _scores


@dataclass
class History:
    """What training gave: its epochs, why it ended, and the best epoch's weights and predictions."""

    epochs: list[Epoch] = field(default_factory=list)
    ended: str = ""
    best: Epoch | None = None
    best_weights: list[np.ndarray] = field(default_factory=list)
    best_logits: np.ndarray | None = None
    diverged: bool = False


@dataclass
class TrainingState:
    """How far training has come: all that another process needs to go on as if it were this one.

    Orders, rates and augmentation follow from the seed and from what is here; dropout's generators are among the weights.

    Attributes:
        outcome: of the epochs that are done.
        epoch: the one that is running, counted from 0.
        step: how many of its steps are done.
        sums: [3] float64 over those steps: losses, photos right, photos right among the first five.
        seconds: that the running epoch has taken.
        weights: of suffix and head, when it was written down.
        optimizers: their variables, then too.
    """

    outcome: History = field(default_factory=History)
    epoch: int = 0
    step: int = 0
    sums: np.ndarray = field(default_factory=lambda: np.zeros(3))
    seconds: float = 0.0
    weights: list[np.ndarray] = field(default_factory=list)
    optimizers: list[np.ndarray] = field(default_factory=list)

    def packed(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Plain values and arrays, to be kept."""
        outcome = self.outcome
        about = {
            "epoch": self.epoch,
            "step": self.step,
            "sums": self.sums.tolist(),
            "seconds": self.seconds,
            "ended": outcome.ended,
        }
        about |= {
            "epochs": [asdict(epoch) for epoch in outcome.epochs],
            "best": outcome.best.number if outcome.best else None,
        }
        lists = {"weights": self.weights, "optimizers": self.optimizers, "best_weights": outcome.best_weights}
        arrays = {f"{name}.{index}": array for name, those in lists.items() for index, array in enumerate(those)}
        return about, arrays if outcome.best_logits is None else arrays | {"best_logits": outcome.best_logits}

    @classmethod
    def unpacked(cls, about: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> "TrainingState":
        """What `packed` gave."""

        def listed(name: str) -> list[np.ndarray]:
            return [arrays[f"{name}.{index}"] for index in range(sum(key.startswith(f"{name}.") for key in arrays))]

        epochs = [Epoch(**{**epoch, "val": _scores(epoch["val"])}) for epoch in about["epochs"]]
        best = epochs[about["best"] - 1] if about["best"] else None
        outcome = History(epochs, about["ended"], best, listed("best_weights"), arrays.get("best_logits"))
        return cls(
            outcome,
            about["epoch"],
            about["step"],
            np.array(about["sums"]),
            about["seconds"],
            listed("weights"),
            listed("optimizers"),
        )
