"""The runs that tell which setting caused what happened."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from omegaconf import OmegaConf

from dogbreeds.experiments import compose
from dogbreeds.experiments.compose import from_config
from dogbreeds.tracking.mlflow_backend import Mlflow
from dogbreeds.tracking.records import Record, RunOrigin
from dogbreeds.training.phase import Finetune

if TYPE_CHECKING:
    from dogbreeds.experiments.result import Result, Skipped

# Groups that a fine-tune shares with its frozen attempt
_OF_THE_PARENT = ("data", "model", "preprocessing", "head", "augment", "schedule")


def changed(typed: Sequence[str], changes: Sequence[str]) -> list[str]:
    """Overrides, with those that are changed replaced: Hydra refuses two options of a group."""
    keys = {change.split("=")[0] for change in changes}
    return [*(override for override in typed if override.lstrip("+").split("=")[0] not in keys), *changes]


def parent_of(overrides: Sequence[str], choices: Mapping[str, str]) -> list[str]:
    """Overrides of the frozen attempt that a fine-tune goes on from: its data, model, pixels and head, also where an overlay brought them."""
    brought = [f"{group}={choices[group]}" for group in _OF_THE_PARENT if group in choices]
    own = [
        override
        for override in overrides
        if not override.lstrip("+").startswith(("attempt=", "phase", "unfreeze", "optimizer"))
    ]
    return changed(["attempt=frozen", *brought], own)


def _measured(tracking: Mlflow, overrides: Sequence[str], choices: Mapping[str, str], folder: Path) -> Record:
    """A run with these overrides: from MLflow if it has been run, else run now. All fine-tunes of a seed go on from the same parent."""
    run = from_config(compose.composed("train", overrides))
    if isinstance(run.phase, Finetune) and run.phase.parent is None:
        parent = _found_or_run(tracking, parent_of(overrides, choices), folder)
        overrides = [*overrides, f"phase.parent='{parent.run_id}'"]
    return _found_or_run(tracking, overrides, folder)


def _found_or_run(tracking: Mlflow, overrides: Sequence[str], folder: Path) -> Record:
    """A run with exactly these overrides; what has finished is not run again, as in any sweep."""
    from dogbreeds.experiments.attempt import execute

    config = compose.composed("train", overrides)
    done = execute(
        from_config(config), RunOrigin(OmegaConf.to_yaml(config), tuple(overrides), " ".join(overrides)[:250], folder)
    )
    # No range test: it is refused above
    return tracking.record(cast("Result | Skipped", done).run_id)
