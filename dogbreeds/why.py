"""The command `python -m dogbreeds.why attempt=…`: which of an attempt's knobs did it.

The attempt is run as it is, with one knob at a time put back to what its reference attempt has, with all but one put back, and with all of
them, over several seeds. What has been run before is taken from MLflow.
"""

import logging
import re
import statistics
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from dogbreeds import cli
from dogbreeds.core.errors import UserError
from dogbreeds.core.paths import home
from dogbreeds.evaluation.ablation import Cell, cells, effects, report
from dogbreeds.experiments.ablation_runs import _measured, changed
from dogbreeds.experiments.compose import from_config
from dogbreeds.experiments.sweep import Sweep
from dogbreeds.tracking.mlflow_backend import Mlflow
from dogbreeds.tracking.records import RANKING, RunOrigin
from dogbreeds.training.phase import LrRange

log = logging.getLogger(__name__)


@hydra.main(version_base="1.3", config_path=str(home() / "conf"), config_name="why")
def task(config: DictConfig) -> None:
    """Runs what has not been run yet, and says what each knob explains."""
    here = HydraConfig.get()
    choices = {
        group: option for group, option in here.runtime.choices.items() if option and not group.startswith("hydra")
    }
    typed = [override for override in here.overrides.task if not override.startswith("why.")]
    attempt, run = choices.get("attempt"), from_config(config)
    knobs, seeds = _knobs(config, attempt), _seeds(config)
    if here.mode == RunMode.MULTIRUN:
        raise UserError("--multirun was given. why makes its own runs, over why.seeds. Leave --multirun out.")
    if isinstance(run.phase, LrRange):
        raise UserError(
            "phase=lr_range was asked about. It trains nothing that could be explained. Type phase=frozen or"
            " phase=finetune."
        )
    if not isinstance(run.tracking, Mlflow):
        raise UserError(
            "tracking=none was chosen. The runs are compared through MLflow, which also remembers them. Type"
            " tracking=mlflow."
        )
    above = RunOrigin(
        OmegaConf.to_yaml(config),
        tuple(typed),
        f"why {attempt or 'this'}: {' '.join(knobs)}"[:250],
        Path(here.runtime.output_dir),
    )
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
    numbers = {
        f"why/{re.sub(r'[^A-Za-z0-9_. -]', '_', effect.knob.split('=')[0])}": effect.explains
        for effect in effects(knobs, measured)
    }
    run.tracking.note(run_id, "why.md", said, {name: statistics.mean(values) for name, values in numbers.items()})


def _knobs(config: DictConfig, attempt: str | None) -> tuple[str, ...]:
    wanted = config.why.put_back
    if wanted is None and attempt is not None:
        wanted = config.why.references.get(attempt)
    if wanted is None:
        named = f"attempt={attempt} has no reference in conf/why.yaml" if attempt else "No attempt was named"
        raise UserError(
            f"{named}. It must be one of {', '.join(config.why.references)}, or its knobs must be named. "
            "Type attempt=finetune_50, or 'why.put_back=[optimizer.lr=1e-3]', for example."
        )
    knobs = list(wanted) if OmegaConf.is_list(wanted) else []
    if not knobs or not all(isinstance(knob, str) and "=" in knob for knob in knobs):
        raise UserError(
            f"why.put_back was {wanted}. It must be a list of settings. Type 'why.put_back=[optimizer.lr=1e-3]', for"
            " example."
        )
    return tuple(knobs)


def _seeds(config: DictConfig) -> list[int]:
    seeds = list(config.why.seeds) if OmegaConf.is_list(config.why.seeds) else []
    if not seeds or len(set(seeds)) < len(seeds) or not all(type(seed) is int and seed >= 0 for seed in seeds):
        raise UserError(
            f"why.seeds was {config.why.seeds}. It must be a list of different whole numbers of 0 or more. Type"
            " 'why.seeds=[0,1,2]', for example."
        )
    return seeds


if __name__ == "__main__":
    cli.main(task, "why", goes_on=True)
