"""The runs of an ablation: an attempt with some of its settings reverted, from MLflow or run now."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from omegaconf import OmegaConf

from dogbreeds.experiments.compose import compose_config, from_config
from dogbreeds.experiments.run_name import run_name
from dogbreeds.tracking.mlflow_backend import Mlflow
from dogbreeds.tracking.records import Record, RunOrigin
from dogbreeds.training.phase import Finetune

if TYPE_CHECKING:
    from dogbreeds.experiments.result import Result, Skipped

# Groups that a fine-tune shares with its frozen parent.
_SHARED_WITH_PARENT = ("data", "model", "preprocessing", "head", "augment", "schedule")
# Settings that belong to a fine-tune alone; of gradient descent, which fits no logistic regression.
_OF_FINE_TUNES = ("attempt=", "phase", "unfreeze", "optimizer")
_OF_GRADIENT_DESCENT = ("schedule", "mix", "loss.label_smoothing", "ema")


def replace_overrides(typed: Sequence[str], changes: Sequence[str]) -> list[str]:
    """Replace overrides of the same keys, since Hydra refuses two options of a group.

    Args:
        typed: overrides as they were typed.
        changes: overrides that win.
    """
    keys = {change.split("=")[0] for change in changes}
    return [*(override for override in typed if override.lstrip("+").split("=")[0] not in keys), *changes]


def parent_overrides(overrides: Sequence[str], choices: Mapping[str, str]) -> list[str]:
    """Return the overrides of a fine-tune's frozen parent, which has the same data, model, pixels and head.

    Args:
        overrides: of the fine-tune.
        choices: chosen option of each group, also where the attempt's file chose it.
    """
    heads = [override.partition("=")[2] for override in overrides if override.startswith("head=")]
    is_logistic = [choices.get("head"), *heads][-1] == "logistic"
    others = (*_OF_FINE_TUNES, *(_OF_GRADIENT_DESCENT if is_logistic else ()))
    shared = [f"{group}={choices[group]}" for group in _SHARED_WITH_PARENT if group in choices and group not in others]
    own = [override for override in overrides if not override.lstrip("+").startswith(others)]
    return replace_overrides(["attempt=frozen", *shared], own)


def find_or_run(tracking: Mlflow, overrides: Sequence[str], choices: Mapping[str, str], folder: Path) -> Record:
    """Return the run with these overrides, recorded or run now. All fine-tunes of a seed have the same parent.

    Args:
        tracking: where runs are recorded.
        overrides: of the run.
        choices: chosen option of each group.
        folder: Hydra's output folder.
    """
    run = from_config(compose_config("train", overrides))
    if isinstance(run.phase, Finetune) and run.phase.parent is None:
        parent = _find_or_run(tracking, parent_overrides(overrides, choices), {**choices, "attempt": "frozen"}, folder)
        overrides = [*overrides, f"phase.parent='{parent.run_id}'"]
    return _find_or_run(tracking, overrides, choices, folder)


def _find_or_run(tracking: Mlflow, overrides: Sequence[str], choices: Mapping[str, str], folder: Path) -> Record:
    """Return the run with exactly these overrides; as in any sweep, a finished one is skipped."""
    from dogbreeds.experiments.attempt import execute

    config = compose_config("train", overrides)
    origin = RunOrigin(OmegaConf.to_yaml(config), tuple(overrides), run_name(choices, overrides, ["seed"]), folder)
    result = execute(from_config(config), origin)
    # Callers reject range tests, and only searches prune.
    return tracking.record(cast("Result | Skipped", result).run_id)
