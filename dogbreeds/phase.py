"""Phases of transfer learning: how long an attempt trains, on how many photos at a time, and from where it starts."""

from dataclasses import dataclass

from dogbreeds.spec import Spec, integer, text


@dataclass(frozen=True, kw_only=True)
class Phase(Spec):
    """What the phases share."""

    group = "phase"
    epochs: int = integer(at_least=1, example=20)
    batch_size: int = integer(at_least=1, example=32)
    patience_epochs: int | None = integer(at_least=1, example=5, optional=True)


@dataclass(frozen=True, kw_only=True)
class Frozen(Phase):
    """The head alone trains, from new weights."""


@dataclass(frozen=True, kw_only=True)
class Finetune(Phase):
    """Part of the backbone trains too, from a frozen attempt's best weights; `parent` names its MLflow run, null finds it."""

    parent: str | None = text(example="3f2a9c", optional=True)
