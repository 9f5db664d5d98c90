"""Command `python -m dogbreeds.why attempt=…`: an ablation that finds which settings of an attempt caused its result.

A factor is a setting in which the attempt differs from its reference attempt. The attempt is run as it is, with each
factor alone reverted to the reference's value, with all but one reverted, and with all reverted, over several seeds.
With `why.cells=removed` each factor is an ingredient, and only its removal is run. Runs that have finished are taken
from MLflow.
"""

import logging
import re
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from dogbreeds import cli
from dogbreeds.core import console
from dogbreeds.core.countdown import Countdown
from dogbreeds.core.errors import UserError
from dogbreeds.core.paths import config_folder
from dogbreeds.core.spec import MAX_SEED
from dogbreeds.evaluation.ablation import Cell, cells
from dogbreeds.evaluation.metrics import PairedOutcome
from dogbreeds.experiments.ablation_runs import find_or_run, replace_overrides
from dogbreeds.experiments.compose import from_config, settings_of
from dogbreeds.experiments.paired_runs import pair_runs
from dogbreeds.experiments.run import Run
from dogbreeds.experiments.sweep import Sweep
from dogbreeds.reports.ablation_report import AblationReport
from dogbreeds.reports.removal_report import Removal, RemovalReport
from dogbreeds.tracking.mlflow_backend import Mlflow
from dogbreeds.tracking.records import RANKING_METRIC, Record, RunOrigin
from dogbreeds.training.phase import LrRange

log = logging.getLogger(__name__)

# Within a list, Hydra accepts an = between quotes only.
_EXAMPLE = "\"why.reverts=['optimizer.lr=1e-3']\""


@hydra.main(version_base="1.3", config_path=str(config_folder()), config_name="why")
@cli.job
def task(config: DictConfig) -> None:
    """Run what has not been run yet, then print and record how much each factor explains."""
    hydra_config = HydraConfig.get()
    choices = {
        group: option
        for group, option in hydra_config.runtime.choices.items()
        if option and not group.startswith("hydra")
    }
    typed = [override for override in hydra_config.overrides.task if not override.startswith("why.")]
    attempt = choices.get("attempt")
    run = from_config(config)
    settings_of(config, "why", "seeds", "reverts", "references", "cells")
    removes_only = _removes_only(config)
    settings_of(config, "why.references")
    factors = _factors(config, attempt)
    seeds = _seeds(config)
    tracking = _check(run)
    log.info("%d factors of %s: %s", len(factors), attempt or "this run", " ".join(factors))
    folder = Path(hydra_config.runtime.output_dir)
    origin = RunOrigin(
        yaml=OmegaConf.to_yaml(config),
        overrides=tuple(typed),
        name=f"why {attempt or 'this'}: {' '.join(factors)}"[:250],
        folder=folder,
    )
    run_id = Sweep.open(tracking, origin)
    wanted = [Cell(), *(Cell({factor}) for factor in factors)] if removes_only else cells(factors)
    records = _run_cells(tracking, wanted, seeds, typed, choices, folder)
    report: AblationReport | RemovalReport
    if removes_only:
        report = _removal_report(tracking, factors, records)
        changes = {removal.factor: [-change for change in report.changes(removal)] for removal in report.removals}
    else:
        report = _ablation_report(factors, records)
        changes = {effect.factor: list(effect.explains) for effect in report.effects}
    width = console.terminal_width(sys.stdout)
    print(f"\n{report.as_markdown() if width is None else report.as_text(width)}")
    metrics = {
        f"why/{re.sub(r'[^A-Za-z0-9_. -]', '_', factor.split('=')[0])}": statistics.mean(values)
        for factor, values in changes.items()
    }
    tracking.add_text(run_id, "why.md", report.as_markdown(), metrics)
    log.info(tracking.run_link(tracking.record(run_id)).line("open"))


def _check(run: Run) -> Mlflow:
    """Return where runs are recorded.

    Raises:
        UserError: with a range test, or tracking=none.
    """
    if isinstance(run.phase, LrRange):
        raise UserError(
            "phase=lr_range was given. A range test has no accuracy to explain. Type phase=frozen or phase=finetune."
        )
    if not isinstance(run.tracking, Mlflow):
        raise UserError("tracking=none was given. why compares runs that are recorded in MLflow. Type tracking=mlflow.")
    return run.tracking


def _run_cells(
    tracking: Mlflow,
    wanted: Sequence[Cell],
    seeds: Sequence[int],
    typed: Sequence[str],
    choices: Mapping[str, str],
    folder: Path,
) -> dict[Cell, list[Record]]:
    """Run each cell of the ablation once for each seed; return the records of each, in the order of the seeds."""
    records: dict[Cell, list[Record]] = {}
    todo = [(cell, seed) for seed in seeds for cell in wanted]
    countdown = Countdown("runs", len(todo))
    for number, (cell, seed) in enumerate(todo, 1):
        changes = [*sorted(cell), f"seed={seed}"]
        log.info("--- %d of %d: %s", number, len(todo), " ".join(changes))
        record = find_or_run(tracking, replace_overrides(typed, changes), choices, folder)
        records.setdefault(cell, []).append(record)
        countdown.advance()
    return records


def _ablation_report(factors: Sequence[str], records: Mapping[Cell, Sequence[Record]]) -> AblationReport:
    accuracies = {cell: [_accuracy(record) for record in found] for cell, found in records.items()}
    verdicts = {cell: [record.tags["verdict"] for record in found] for cell, found in records.items()}
    return AblationReport(factors, accuracies, verdicts)


def _removal_report(
    tracking: Mlflow, factors: Sequence[str], records: Mapping[Cell, Sequence[Record]]
) -> RemovalReport:
    """Compare the runs without each ingredient with the whole ones, on validation: the test split is for the end."""
    whole = records[Cell()]

    def removal(factor: str, found: Sequence[Record], pairs: Sequence[PairedOutcome]) -> Removal:
        seconds = tuple(record.metrics.get("seconds/total", 0.0) for record in found)
        return Removal(factor, tuple(map(_accuracy, found)), seconds, tuple(pairs))

    removals = []
    for factor in factors:
        found = records[Cell({factor})]
        pairs = [pair_runs(tracking, first, second, "val") for first, second in zip(whole, found, strict=True)]
        removals.append(removal(factor, found, [pair for pair in pairs if pair is not None]))
    return RemovalReport(removal("", whole, []), removals)


def _accuracy(record: Record) -> float:
    return record.metrics.get(RANKING_METRIC, 0.0)


def _removes_only(config: DictConfig) -> bool:
    """Return whether each factor is only removed, rather than explained."""
    if config.why.cells not in ("all", "removed"):
        raise UserError(
            f"why.cells was {config.why.cells!r}. It must be all or removed. Type why.cells=removed to remove each"
            " factor alone."
        )
    return bool(config.why.cells == "removed")


def _factors(config: DictConfig, attempt: str | None) -> tuple[str, ...]:
    """Return the overrides that revert each factor: those that were typed, else those of the attempt's reference."""
    reverts = config.why.reverts
    if reverts is None and attempt is not None:
        reverts = config.why.references.get(attempt)
    if reverts is None:
        received = f"attempt={attempt} has no reference in conf/why.yaml" if attempt else "No attempt was named"
        raise UserError(
            f"{received}. It must be one of {', '.join(config.why.references)}, or the settings to revert must be"
            f" listed. Type attempt=finetune_50, or {_EXAMPLE}, for example."
        )
    factors = list(reverts) if OmegaConf.is_list(reverts) else []
    if not factors or not all(isinstance(factor, str) and "=" in factor for factor in factors):
        raise UserError(f"why.reverts was {reverts}. It must be a list of settings. Type {_EXAMPLE}, for example.")
    return tuple(factors)


def _seeds(config: DictConfig) -> list[int]:
    seeds = list(config.why.seeds) if OmegaConf.is_list(config.why.seeds) else []
    if (
        not seeds
        or len(set(seeds)) < len(seeds)
        or not all(type(seed) is int and 0 <= seed <= MAX_SEED for seed in seeds)
    ):
        raise UserError(
            f"why.seeds was {config.why.seeds}. It must be a list of different whole numbers from 0 to {MAX_SEED}."
            " Type 'why.seeds=[0,1,2]', for example."
        )
    return seeds


if __name__ == "__main__":
    cli.main(task, "why", resumable=True)
