"""Phases of transfer learning: how long an attempt trains, on how many photos at a time, and from where it starts."""

from dataclasses import dataclass

from dogbreeds.core.errors import UserError
from dogbreeds.core.spec import Spec, integer, number, text


@dataclass(frozen=True, kw_only=True)
class Phase(Spec):
    """What the phases share."""

    group = "phase"
    batch_size: int = integer(at_least=1, example=32)


@dataclass(frozen=True, kw_only=True)
class Training(Phase):
    """Epochs of training, the best of which is kept."""

    epochs: int = integer(at_least=1, example=20)
    patience_epochs: int | None = integer(at_least=1, example=5, optional=True)


@dataclass(frozen=True, kw_only=True)
class Frozen(Training):
    """The head alone trains, from new weights."""


@dataclass(frozen=True, kw_only=True)
class Finetune(Training):
    """Part of the backbone trains too, from a frozen attempt's best weights; `parent` names its MLflow run, null finds it."""

    parent: str | None = text(example="3f2a9c", optional=True)


@dataclass(frozen=True, kw_only=True)
class LrRange(Phase):
    """The learning-rate range test: a new head trains for `steps` batches while the rate grows from `min_lr` to `max_lr`."""

    steps: int = integer(at_least=20, example=200)
    min_lr: float = number(above=0, example=1e-6)
    max_lr: float = number(above=0, example=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_lr <= self.min_lr:
            raise UserError(
                f"phase.max_lr was {self.max_lr:g} and phase.min_lr {self.min_lr:g}. The rate grows from the one to the"
                " other. Type phase.min_lr=1e-6 phase.max_lr=1, for example."
            )
