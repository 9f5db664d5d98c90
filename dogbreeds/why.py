"""The command `python -m dogbreeds.why attempt=…`: which of an attempt's knobs did it.

The attempt is run as it is, with one knob at a time put back to what its reference attempt has, with all but one put back, and with all of
them, over several seeds. What has been run before is taken from MLflow.
"""

import logging
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from dogbreeds import command
from dogbreeds.knobs import Cell, cells, effects, report
from dogbreeds.phase import Finetune, LrRange
from dogbreeds.record import RANKING, Composition, Record
from dogbreeds.run import from_config
from dogbreeds.spec import Refused, home
from dogbreeds.sweep import Sweep
from dogbreeds.tracking import Mlflow

if TYPE_CHECKING:
    from dogbreeds.attempt import Done, Result

log = logging.getLogger(__name__)

_OF_THE_PARENT = ("data", "model", "preprocessing", "head", "augment", "schedule")  # groups that a fine-tune shares with its frozen attempt


@hydra.main(version_base="1.3", config_path=str(home() / "conf"), config_name="why")
def task(config: DictConfig) -> None:
    """Runs what has not been run yet, and says what each knob explains."""
    here = HydraConfig.get()
    choices = {group: option for group, option in here.runtime.choices.items() if option and not group.startswith("hydra")}
    typed = [override for override in here.overrides.task if not override.startswith("why.")]
    attempt, run = choices.get("attempt"), from_config(config)
    knobs, seeds = _knobs(config, attempt), _seeds(config)
    if here.mode == RunMode.MULTIRUN:
        raise Refused("--multirun was given. why makes its own runs, over why.seeds. Leave --multirun out.")
    if isinstance(run.phase, LrRange):
        raise Refused("phase=lr_range was asked about. It trains nothing that could be explained. Type phase=frozen or phase=finetune.")
    if not isinstance(run.tracking, Mlflow):
        raise Refused("tracking=none was chosen. The runs are compared through MLflow, which also remembers them. Type tracking=mlflow.")
    above = Composition(OmegaConf.to_yaml(config), tuple(typed), f"why {attempt or 'this'}: {' '.join(knobs)}"[:250], Path(here.runtime.output_dir))
    run_id = Sweep.open(run.tracking, above)
    measured: dict[Cell, list[float]] = {}
    verdicts: dict[Cell, list[str]] = {}
    todo = [(cell, seed) for seed in seeds for cell in cells(knobs)]
    for number, (cell, seed) in enumerate(todo, 1):
        changes = [*sorted(cell), f"seed={seed}"]
        log.info("--- %d of %d: %s", number, len(todo), " ".join(changes))
        record = _measured(run.tracking, changed(typed, changes), choices, above.folder)
        measured.setdefault(cell, []).append(record.metrics.get(RANKING, 0.0))
        verdicts.setdefault(cell, []).append(record.tags["verdict"])
    said = report(knobs, measured, verdicts)
    print(f"\n{said}")
    numbers = {f"why/{re.sub(r'[^A-Za-z0-9_. -]', '_', effect.knob.split('=')[0])}": effect.explains for effect in effects(knobs, measured)}
    run.tracking.note(run_id, "why.md", said, {name: statistics.mean(values) for name, values in numbers.items()})


def _knobs(config: DictConfig, attempt: str | None) -> tuple[str, ...]:
    wanted = config.why.put_back
    if wanted is None and attempt is not None:
        wanted = config.why.references.get(attempt)
    if wanted is None:
        named = f"attempt={attempt} has no reference in conf/why.yaml" if attempt else "No attempt was named"
        raise Refused(
            f"{named}. It must be one of {', '.join(config.why.references)}, or its knobs must be named. "
            "Type attempt=finetune_50, or 'why.put_back=[optimizer.lr=1e-3]', for example."
        )
    knobs = list(wanted) if OmegaConf.is_list(wanted) else []
    if not knobs or not all(isinstance(knob, str) and "=" in knob for knob in knobs):
        raise Refused(f"why.put_back was {wanted}. It must be a list of settings. Type 'why.put_back=[optimizer.lr=1e-3]', for example.")
    return tuple(knobs)


def _seeds(config: DictConfig) -> list[int]:
    seeds = list(config.why.seeds) if OmegaConf.is_list(config.why.seeds) else []
    if not seeds or len(set(seeds)) < len(seeds) or not all(type(seed) is int and seed >= 0 for seed in seeds):
        raise Refused(
            f"why.seeds was {config.why.seeds}. It must be a list of different whole numbers of 0 or more. Type 'why.seeds=[0,1,2]', for example."
        )
    return seeds


def changed(typed: Sequence[str], changes: Sequence[str]) -> list[str]:
    """Overrides, with those that are changed replaced: Hydra refuses two options of a group."""
    keys = {change.split("=")[0] for change in changes}
    return [*(override for override in typed if override.lstrip("+").split("=")[0] not in keys), *changes]


def parent_of(overrides: Sequence[str], choices: Mapping[str, str]) -> list[str]:
    """Overrides of the frozen attempt that a fine-tune goes on from: its data, model, pixels and head, also where an overlay brought them."""
    brought = [f"{group}={choices[group]}" for group in _OF_THE_PARENT if group in choices]
    own = [override for override in overrides if not override.lstrip("+").startswith(("attempt=", "phase", "unfreeze", "optimizer"))]
    return changed(["attempt=frozen", *brought], own)


def _measured(tracking: Mlflow, overrides: Sequence[str], choices: Mapping[str, str], folder: Path) -> Record:
    """A run with these overrides: from MLflow if it has been run, else run now. All fine-tunes of a seed go on from the same parent."""
    run = from_config(command.composed("train", overrides))
    if isinstance(run.phase, Finetune) and run.phase.parent is None:
        parent = _found_or_run(tracking, parent_of(overrides, choices), folder)
        overrides = [*overrides, f"phase.parent='{parent.run_id}'"]
    return _found_or_run(tracking, overrides, folder)


def _found_or_run(tracking: Mlflow, overrides: Sequence[str], folder: Path) -> Record:
    """A run with exactly these overrides; what has finished is not run again, as in any sweep."""
    from dogbreeds.attempt import execute

    config = command.composed("train", overrides)
    done = execute(from_config(config), Composition(OmegaConf.to_yaml(config), tuple(overrides), " ".join(overrides)[:250], folder))
    return tracking.record(cast("Result | Done", done).run_id)  # no range test: it is refused above


if __name__ == "__main__":
    command.main(task, "why", goes_on=True)
