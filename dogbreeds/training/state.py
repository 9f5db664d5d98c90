"""Training state: the history of finished epochs, and everything a checkpoint stores to resume training."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from dogbreeds.evaluation.results import Epoch, epoch_from_dict

if TYPE_CHECKING:
    import pandas


@dataclass
class History:
    """Result of training.

    Attributes:
        epochs: finished epochs, in order.
        stop_reason: why training ended before its last epoch; empty if it did not.
        best: first epoch with the best value of the monitored metric; None before any has finished.
        best_weights: weights of suffix and head after that epoch.
        best_logits: [n, classes] float32, validation logits of that epoch.
        diverged: whether a loss or a gradient was not finite.
    """

    epochs: list[Epoch] = field(default_factory=list)
    stop_reason: str = ""
    best: Epoch | None = None
    best_weights: list[np.ndarray] = field(default_factory=list)
    best_logits: np.ndarray | None = None
    diverged: bool = False

    @property
    def judged(self) -> list[Epoch]:
        """The epochs that the verdict judges: all of them, or of a logistic regression or a soup the chosen one."""
        if self.best is not None and self.best.is_alternative:
            return [self.best]
        return self.epochs

    def frame(self) -> "pandas.DataFrame":
        """Return the epochs as a table: one row for each, with its metrics, learning rate and seconds.

        Examples:
            >>> result.history.frame()[["train/loss", "val/accuracy"]].shape
            (2, 2)
        """
        import pandas

        rows = [{"epoch": epoch.number, **epoch.metrics(), "seconds": epoch.seconds} for epoch in self.epochs]
        return pandas.DataFrame(rows).set_index("epoch") if rows else pandas.DataFrame()


@dataclass
class TrainingState:
    """Everything needed to resume training bit for bit.

    The order of the images, the learning rates and the augmentation follow from the seed and from this state. The
    states of dropout's random generators are among the weights.

    Attributes:
        history: result of the finished epochs.
        epoch: index of the current epoch, from 0.
        step: completed steps in it.
        metric_sums: [3] float64 over these steps: loss × images, correct, top-5 correct.
        seconds: time spent in the current epoch.
        weights: of suffix and head, as of the last checkpoint.
        optimizer_variables: such as momenta, as of the last checkpoint; of a logistic regression, the weights of each
            fit from which that of the next `C` starts.
    """

    history: History = field(default_factory=History)
    epoch: int = 0
    step: int = 0
    metric_sums: np.ndarray = field(default_factory=lambda: np.zeros(3))
    seconds: float = 0.0
    weights: list[np.ndarray] = field(default_factory=list)
    optimizer_variables: list[np.ndarray] = field(default_factory=list)

    def to_checkpoint(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Return the state as JSON-compatible metadata and named arrays."""
        history = self.history
        metadata = {
            "epoch": self.epoch,
            "step": self.step,
            "sums": self.metric_sums.tolist(),
            "seconds": self.seconds,
            "ended": history.stop_reason,
            "epochs": [asdict(epoch) for epoch in history.epochs],
            "best": history.best.number if history.best else None,
        }
        lists = {
            "weights": self.weights,
            "optimizers": self.optimizer_variables,
            "best_weights": history.best_weights,
        }
        arrays = {f"{name}.{index}": array for name, values in lists.items() for index, array in enumerate(values)}
        if history.best_logits is not None:
            arrays["best_logits"] = history.best_logits
        return metadata, arrays

    @classmethod
    def from_checkpoint(cls, metadata: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> "TrainingState":
        """Restore the state from what `to_checkpoint` returned."""

        def listed(name: str) -> list[np.ndarray]:
            return [arrays[f"{name}.{index}"] for index in range(sum(key.startswith(f"{name}.") for key in arrays))]

        epochs = [epoch_from_dict(epoch) for epoch in metadata["epochs"]]
        history = History(
            epochs=epochs,
            stop_reason=metadata["ended"],
            best=epochs[metadata["best"] - 1] if metadata["best"] else None,
            best_weights=listed("best_weights"),
            best_logits=arrays.get("best_logits"),
        )
        return cls(
            history=history,
            epoch=metadata["epoch"],
            step=metadata["step"],
            metric_sums=np.array(metadata["sums"]),
            seconds=metadata["seconds"],
            weights=listed("weights"),
            optimizer_variables=listed("optimizers"),
        )
