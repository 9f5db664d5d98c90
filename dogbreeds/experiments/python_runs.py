"""Runs of a Python caller: own data, a parent in hand, and sweeps in this process."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob
from omegaconf import OmegaConf

from dogbreeds.core.errors import MissingFileError, UserError
from dogbreeds.data.dataset import Dataset, Provided
from dogbreeds.experiments.compose import compose_run
from dogbreeds.experiments.result import Ending, Result, Skipped
from dogbreeds.experiments.run import Run
from dogbreeds.experiments.sweep import Sweep, sweep_origin
from dogbreeds.tracking.mlflow_backend import Mlflow
from dogbreeds.tracking.records import RunOrigin
from dogbreeds.training.phase import Finetune


def check_composed(run: Run) -> None:
    """Raise `UserError` unless a run is as it was composed: what it was composed from is recorded."""
    if run.origin is None or compose_run(run.origin.overrides, run.origin.sources) != run:
        raise UserError(
            "The run was not composed, or was changed afterwards. fit records what a run was composed from. Type"
            " dogbreeds.compose([...]) with all its settings."
        )


def with_dataset(run: Run) -> Run:
    """Return a run of the same settings on data that the caller gives.

    Args:
        run: composed run. Of its data only the settings that all data sets have are used.
    """
    data = provided_data(run)
    target = f"{Provided.__module__}.{Provided.__qualname__}"
    origin = _changed_config(origin_of(run), {"data": {"_target_": target, **dataclasses.asdict(data)}})
    choices = {group: option for group, option in origin.choices.items() if group != "data"}
    return dataclasses.replace(run, data=data, origin=dataclasses.replace(origin, choices=choices))


def provided_data(run: Run) -> Provided:
    """Return the data spec of a run on images that the caller gives, with the settings that all data sets have."""
    return Provided(**{field.name: getattr(run.data, field.name) for field in dataclasses.fields(Provided)})


def with_parent(run: Run, parent: Result | Skipped | str | Path) -> Run:
    """Return a fine-tune that starts from a named frozen run, as `phase.parent` would name it.

    Args:
        run: composed run.
        parent: result of the frozen run, its id, or its folder.

    Raises:
        UserError: the run is no fine-tune, or the parent was not saved.
    """
    if not isinstance(run.phase, Finetune):
        raise UserError(
            f"parent was given for a run of the phase {type(run.phase).__name__}. Only a fine-tune starts from another"
            " run. Type dogbreeds.compose([..., 'phase=finetune'])."
        )
    name = run_name(parent)
    origin = _changed_config(origin_of(run), {"phase": {"parent": name}})
    typed = [override for override in origin.overrides if override.split("=")[0] != "phase.parent"]
    escaped = name.replace("'", "\\'")
    origin = dataclasses.replace(origin, overrides=(*typed, f"phase.parent='{escaped}'"))
    return dataclasses.replace(run, phase=dataclasses.replace(run.phase, parent=name), origin=origin)


def run_name(run: Result | Skipped | str | Path) -> str:
    """Return a run's id, or the path of its folder, as a command takes it.

    Raises:
        UserError: the run was not saved.
    """
    if isinstance(run, str):
        return run
    if isinstance(run, Path):
        return str(run.absolute())
    if run.run_id:
        return run.run_id
    if isinstance(run, Result) and run.folder is not None:
        return str(run.folder)
    raise UserError(
        "The run was not saved: it was trained with tracking=none and tracking.folder=null. Its network is needed."
        " Train it without tracking.folder=null."
    )


def origin_of(run: Run) -> RunOrigin:
    """Return what a run was composed from, after `check_composed`."""
    return cast(RunOrigin, run.origin)


def _changed_config(origin: RunOrigin, changes: Mapping[str, Any]) -> RunOrigin:
    """Return an origin with other values in its config; a group with a `_target_` is replaced as a whole."""
    config: Any = OmegaConf.create(origin.yaml)
    for group, values in changes.items():
        config[group] = values if "_target_" in values else {**config[group], **values}
    return dataclasses.replace(origin, yaml=OmegaConf.to_yaml(config))


# --- sweeps -------------------------------------------------------------------


def split_jobs(overrides: Sequence[str]) -> list[list[str]]:
    """Return the overrides of each job of a sweep, as Hydra's basic sweeper does for `--multirun`.

    Raises:
        UserError: an override configures Hydra, or does not list its values.
        HydraException: an override cannot be parsed.
    """
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    for override in parsed:
        listed = not override.is_sweep_override() or (
            override.is_discrete_sweep() and not isinstance(override.value(), Glob)
        )
        if re.match(r"hydra[./]", override.key_or_group) or not listed:
            raise UserError(
                f"{override.input_line} was given. A sweep in Python runs one job after another, for each combination"
                " of the values that are listed. Type python -m dogbreeds.train --multirun to search, or to run jobs in"
                " parallel."
            )
    (jobs,) = BasicSweeper.split_arguments(parsed, max_batch_size=None)
    return jobs


def run_sweep(runs: Sequence[Run], overrides: Sequence[str], dataset: Dataset | None) -> list[Ending]:
    """Run the jobs of a sweep one after another; those that have finished before are skipped.

    As with `--multirun`, a job that fails does not stop the others.

    Args:
        runs: the jobs.
        overrides: of the whole sweep, as they were typed.
        dataset: data of all jobs; None for those of their settings.

    Raises:
        MissingFileError, UserError: the error of the first job that failed, after the others have run.
        KeyboardInterrupt: after SIGINT or SIGTERM, once the checkpoint is written.
    """
    from dogbreeds.experiments.attempt import execute

    endings: list[Ending] = []
    failed: list[UserError | MissingFileError] = []
    tracking = runs[0].tracking
    if isinstance(tracking, Mlflow):
        Sweep.open(tracking, _sweep_origin(runs, overrides))
    status = "FAILED"
    try:
        for run in runs:
            try:
                endings.append(execute(run, origin_of(run), dataset))
            except (UserError, MissingFileError) as error:
                failed.append(error)
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        Sweep.close(status)
    if failed:
        raise failed[0]
    return endings


def _sweep_origin(runs: Sequence[Run], overrides: Sequence[str]) -> RunOrigin:
    """Describe a sweep by the config of its first job: it differs from that of the others in what is swept only."""
    config: Any = OmegaConf.create(origin_of(runs[0]).yaml)
    return sweep_origin(config, overrides, folder=None)
