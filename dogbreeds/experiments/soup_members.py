"""The members of a soup: which recorded fine-tunes it averages, and the run that averages them."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from dogbreeds.core.errors import UserError
from dogbreeds.core.text import counted
from dogbreeds.experiments.compose import from_config
from dogbreeds.experiments.recorded_runs import Only, find_record, has_network, mlflow_tracking, recorded_config
from dogbreeds.experiments.run import Run
from dogbreeds.tracking.mlflow_backend import Mlflow
from dogbreeds.tracking.records import RANKING_METRIC, Record, RunOrigin, short

# Parameters that all members share: their weights are of one network.
_SHARED = ("model.fingerprint", "data.fingerprint", "head", "features.layers", "model.image_size", "preprocessing.mode")


# Of any model and data.
ANY = Only(model=None, data=None)


def find(tracking: Mlflow, runs: Sequence[str], parent: str | None, only: Only) -> list[Record]:
    """Find the members of a soup.

    Args:
        tracking: where they are recorded.
        runs: beginnings of their ids; none for all fine-tunes of one parent.
        parent: beginning of the parent's id; None for that of the best fine-tune.
        only: filter of the runs among which the best fine-tune is found.

    Returns:
        The runs, the best on validation first: two or more, or the one that is named.

    Raises:
        UserError: there is none, or one that is not named; or they are not fine-tunes of one parent with one backbone
            and head.
    """
    if runs:
        members = [find_record(tracking, run, only, key="members") for run in dict.fromkeys(runs)]
    else:
        members = _fine_tunes(tracking, parent, only)
        _check_several(members)
    _check_alike(members)
    return sorted(members, key=lambda record: (-record.metrics.get(RANKING_METRIC, 0.0), record.started))


def _fine_tunes(tracking: Mlflow, parent: str | None, only: Only) -> list[Record]:
    """Return the fine-tunes of one parent that have a saved network."""
    found = [
        record
        for record in tracking.records()
        if record.params.get("phase") == "Finetune" and has_network(record) and only.holds(record)
    ]
    if parent is not None:
        return [record for record in found if record.tags.get("parent", "").startswith(parent.lower())]
    if not found:
        return []
    best = max(found, key=lambda record: record.metrics.get(RANKING_METRIC, 0.0))
    alike = [record for record in found if not _differences(record, best)]
    return [record for record in alike if record.tags.get("parent") == best.tags.get("parent")]


def _check_several(members: Sequence[Record]) -> None:
    """Raise `UserError` unless there are two members or more."""
    if len(members) < 2:
        found = f"run {short(members[0].run_id)} alone" if members else "no fine-tune with a saved network"
        raise UserError(
            f"A soup needs two fine-tunes of one parent, and there is {found}. A sweep saves only its best network"
            " unless tracking.model=all. Type phase=finetune tracking.model=all optimizer.lr=3e-5 for"
            " another one, for example."
        )


def _check_alike(members: Sequence[Record]) -> None:
    """Raise `UserError` unless members are fine-tunes of one parent, backbone and head."""
    first = members[0]
    for record in members:
        if record.params.get("phase") != "Finetune":
            raise UserError(
                f"members has {short(record.run_id)}, a run of the phase {record.params.get('phase')}. A soup averages"
                " fine-tunes. Type members=[], which takes those of the best one's parent."
            )
        parents = [short(each.tags.get("parent", "none")) for each in (first, record)]
        if parents[0] != parents[1]:
            raise UserError(
                f"members has {short(first.run_id)} with the parent {parents[0]}, and {short(record.run_id)} with"
                f" {parents[1]}. Weights can be averaged if they start from the same ones. Type parent={parents[0]}"
                " members=[], for example."
            )
        others = _differences(record, first)
        if others:
            raise UserError(
                f"members has {short(first.run_id)} and {short(record.run_id)}, which differ in {', '.join(others)}."
                " A soup averages networks of one backbone and one head. Type members=[], which takes those that fit."
            )


def _differences(record: Record, other: Record) -> list[str]:
    names = [name for name in record.params if name.startswith("head.")]
    return [name for name in (*_SHARED, *names) if record.params.get(name) != other.params.get(name)]


def compose_from(
    config: DictConfig, members: Sequence[str], parent: str | None, *, method: str, interpolations: int, refit: bool
) -> tuple[Run, RunOrigin]:
    """Find the members of a soup, and compose its run.

    Args:
        config: config of the command, which decides on tracking, plugins and the filter `only`.
        members, parent: as `runs` and `parent` of `find`.
        method, interpolations, refit: as of `phase.Soup`.

    Raises:
        UserError: as of `find`, or runs are not tracked.
    """
    tracking = mlflow_tracking(config, "A soup averages networks that MLflow has.")
    found = find(tracking, members, parent, Only.of(config))
    return compose(tracking, found, config, method=method, interpolations=interpolations, refit=refit)


def compose(
    tracking: Mlflow, members: Sequence[Record], config: DictConfig, *, method: str, interpolations: int, refit: bool
) -> tuple[Run, RunOrigin]:
    """Compose the run of a soup: the settings of the member with the most unfrozen layers, in another phase.

    Args:
        tracking: where the members are recorded.
        members: as of `find`.
        config: config of the command, which decides on tracking and plugins.
        method, interpolations, refit: as of `phase.Soup`.
    """
    base = max(members, key=lambda record: int(record.params["unfreeze.layers_trained"]))
    recorded = recorded_config(tracking, base)
    changes: dict[str, Any] = {
        "tracking": config.tracking,
        "plugins": config.plugins,
        "rerun": False,
        # Candidates are no course of training, which could collapse.
        "stop_on_collapse": False,
        "phase": {
            "_target_": "dogbreeds.training.phase.Soup",
            "members": [record.run_id for record in members],
            "method": method,
            "interpolations": interpolations,
            "refit": refit,
            "monitor": recorded.phase.get("monitor", "accuracy"),
            "parent": base.tags["parent"],
            "batch_size": 64,
            "epochs": 1,
            "patience_epochs": None,
        },
    }
    for name, value in changes.items():
        recorded[name] = value
    run = from_config(recorded)
    overrides = (f"members=[{','.join(short(record.run_id) for record in members)}]", f"method={method}")
    choices = {
        name.removeprefix("choice."): value
        for name, value in base.tags.items()
        if name in ("choice.model", "choice.data")
    }
    name = f"{method} soup of {counted(len(members), 'fine-tune')} of {short(base.tags['parent'])}"
    origin = RunOrigin(OmegaConf.to_yaml(recorded), overrides, name, folder=None, choices=choices)
    return dataclasses.replace(run, origin=origin), origin
