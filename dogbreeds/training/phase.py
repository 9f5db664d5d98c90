"""Phases of transfer learning: what a run starts from, how long it trains, and its batch size."""

from dataclasses import dataclass
from typing import Any

from dogbreeds.core.errors import UserError
from dogbreeds.core.spec import Spec, boolean, integer, number, one_of, text, texts
from dogbreeds.evaluation.metrics import MONITORS


@dataclass(frozen=True, kw_only=True)
class Phase(Spec):
    """Base class of phases.

    Attributes:
        batch_size: images in a training step.
    """

    group = "phase"
    batch_size: int = integer(at_least=1, example=32)


@dataclass(frozen=True, kw_only=True)
class Training(Phase):
    """Base class of phases that train for epochs and end with the weights of the best one.

    Attributes:
        epochs: maximum number of epochs.
        patience_epochs: epochs without a better value of the monitored metric before training stops; None never stops
            early.
        monitor: metric of the validation split that selects the best epoch.
    """

    implied = {"monitor": "accuracy"}
    epochs: int = integer(at_least=1, example=20)
    patience_epochs: int | None = integer(at_least=1, example=5, optional=True)
    monitor: str = one_of(*MONITORS)


@dataclass(frozen=True, kw_only=True)
class Frozen(Training):
    """Train a new head on the frozen backbone."""


@dataclass(frozen=True, kw_only=True)
class Finetune(Training):
    """Train the head and part of the backbone, starting from the best weights of a frozen run.

    Attributes:
        parent: MLflow id of that run, or its beginning; or the folder of a run with `tracking=none`, a path with a `/`.
            None selects the best frozen run that matches.
    """

    parent: str | None = text(example="3f2a9c", optional=True)


def soup_method() -> Any:
    """Declare the field for the method of a soup."""
    return one_of("greedy", "uniform")


def soup_interpolations() -> Any:
    """Declare the field for the steps between a parent and a soup."""
    return integer(at_least=0, at_most=100, example=10)


@dataclass(frozen=True, kw_only=True)
class Soup(Finetune):
    """Average the weights of fine-tunes of one parent, then interpolate with the parent. Nothing trains.

    One epoch is one candidate, measured on validation: each soup, then each interpolation. Sources: Wortsman et al.
    2022, Model soups; Wortsman et al. 2022, WiSE-FT.

    Attributes:
        members: MLflow ids of the fine-tunes, the best first.
        method: `greedy` adds a member if validation accuracy does not fall; `uniform` averages all.
        interpolations: number of steps from the parent to the soup, so that 10 tries shares of 0.1, 0.2, … 0.9; 0 tries
            none.
        refit: whether the network that is saved averages the same fine-tunes, trained again on training and validation
            images.
    """

    implied = {**Finetune.implied, "refit": False}
    members: tuple[str, ...] = texts(example="[3f2a9c41,8d01b7e2]")
    method: str = soup_method()
    interpolations: int = soup_interpolations()
    refit: bool = boolean(default=False)

    @property
    def num_soups(self) -> int:
        """Number of candidates before the interpolations."""
        return len(self.members) if self.method == "greedy" else 1

    @property
    def num_candidates(self) -> int:
        """Number of epochs."""
        return self.num_soups + max(0, self.interpolations - 1)


@dataclass(frozen=True, kw_only=True)
class LrRange(Phase):
    """Learning-rate range test: train a new head while the learning rate grows.

    Attributes:
        steps: number of batches.
        min_lr: learning rate of the first step.
        max_lr: learning rate of the last step.
    """

    steps: int = integer(at_least=20, at_most=100_000, example=200)
    min_lr: float = number(above=0, example=1e-6)
    max_lr: float = number(above=0, example=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_lr <= self.min_lr:
            raise UserError(
                f"phase.max_lr={self.max_lr:g} is not above phase.min_lr={self.min_lr:g}. The learning rate grows from"
                " min_lr to max_lr. Set phase.min_lr=1e-6 phase.max_lr=1, for example."
            )
