"""Plain data about recorded runs: where a run comes from, what MLflow has of it, and the names of its artifacts."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dogbreeds.core.errors import UserError
from dogbreeds.core.former_names import IMPLIED_PARAMS, with_new_names

if TYPE_CHECKING:
    from mlflow.entities import Run as MlflowRun

    from dogbreeds.evaluation.results import Predictions

# Artifact paths of a run.
MODEL_FOLDER = "model"
MODEL_FILE = "model.keras"
PREDICTIONS_FOLDER = "predictions"
# Predictions of the saved network, where that is not the one that the run's own predictions are of.
REFITTED_PREDICTIONS_FOLDER = "refitted_predictions"
HEAD_WEIGHTS = "head/head.weights.h5"
# Tag of a run whose saved network was fitted again: the splits that it was fitted to.
REFITTED_TAG = "refitted"
# The metric that runs are ranked by.
RANKING_METRIC = "best/val_accuracy"
# The metric of the reference probe to compare it with.
REFERENCE_METRIC = "reference/val_accuracy"
# Environment variable with the id of the sweep's run. The processes of the sweep's jobs read it.
SWEEP_RUN_ENV = "DOGBREEDS_SWEEP_RUN"
# A sweep's run has a tag `reused.<run id>` for each finished run whose result it took over.
REUSED_TAG_PREFIX = "reused."
# Settings outside a run's key, by the first part of their names: they do not change its result.
NOT_IN_RUN_KEY = (
    "tracking",
    "features",
    "preflight",
    "baseline",
    "strategy",
    "steps_per_execution",
    "checkpoint_steps",
    "checkpoint_dir",
    "rerun",
)
# Those of these groups that do change it.
FEATURES_IN_RUN_KEY = ("features.dtype", "features.runtime", "features.precision", "features.layers")
# Ends the name of the parameter with the module and the source of a plugin's class. No setting has such a name.
SOURCE_SUFFIX = ".class.source"
# Fewest characters of a run id in messages.
_SHORT_ID_LENGTH = 8


class Pruned(Exception):
    """A search pruned the run, which stays unfinished.

    Attributes:
        best: best validation accuracy so far, in [0, 1].
    """

    def __init__(self, best: float):
        super().__init__()
        self.best = best


@dataclass(frozen=True)
class RunOrigin:
    """What a run was composed from.

    Attributes:
        yaml: the composed config.
        overrides: the overrides that were typed.
        name: display name.
        folder: folder of Hydra's own files; None if no Hydra job composed the run.
        choices: chosen option of each group that runs are searched by: attempt, model, data.
        sources: where its configs were found, besides `conf/`.
        changed: overrides that differ from the named attempt, such as `optimizer.lr=0.1`; empty without a difference.
        key: digest of the settings.
        identity: digest of settings, images and weights.
    """

    yaml: str
    overrides: tuple[str, ...]
    name: str
    folder: Path | None
    choices: Mapping[str, str] = field(default_factory=dict)
    sources: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    key: str = ""
    identity: str = ""


@dataclass(frozen=True)
class PriorRuns:
    """Recorded runs with the same settings as a run that is about to start.

    Attributes:
        finished: newest finished run with the same identity.
        unfinished: newest interrupted run with the same identity.
        others: short ids of runs with the same settings on other images or weights.
    """

    finished: "Record | None" = None
    unfinished: "Record | None" = None
    others: tuple[str, ...] = ()

    @property
    def newest_is_finished(self) -> bool:
        """Whether no interrupted run is newer than the finished one."""
        if self.finished is None:
            return False
        return self.unfinished is None or self.unfinished.started < self.finished.started


@dataclass(frozen=True)
class Parent:
    """The frozen run that a fine-tune starts from.

    Attributes:
        run_id: its MLflow run, or the path of its folder.
        head: file with its head's best weights.
        accuracy: its best validation accuracy, in [0, 1].
        predictions: its predictions, by split.
        baseline: metrics of its zero-shot baseline, by name; empty without one.
        baseline_description: what the baseline is, or why there is none; empty in runs of versions that did not
            record it.
        reference: metrics of its reference probe, by name; empty without one.
        reference_description: the probe's method, or why there is none; empty likewise.
        verdict: name of its verdict; empty if it is not known.
    """

    run_id: str
    head: Path
    accuracy: float
    predictions: "dict[str, Predictions]"
    baseline: dict[str, float] = field(default_factory=dict)
    baseline_description: str = ""
    reference: dict[str, float] = field(default_factory=dict)
    reference_description: str = ""
    verdict: str = ""


@dataclass(frozen=True)
class Record:
    """A recorded run.

    Attributes:
        run_id: its MLflow run.
        name: display name.
        started: start time in seconds since 1970.
        status: MLflow's status, such as FINISHED.
        params, metrics, tags: by name; parameters that were renamed or implied have their present names.
        experiment_id: MLflow experiment of the run.
    """

    run_id: str
    name: str
    started: float
    status: str
    params: dict[str, str]
    metrics: dict[str, float]
    tags: dict[str, str]
    experiment_id: str = ""


def is_path(run: str) -> bool:
    """Return whether the name of a run is the path of a saved run's folder, or of a file in it, rather than an id."""
    return "/" in run


def differing(params: Mapping[str, str], expected: Mapping[str, str]) -> list[str]:
    """Return the names of a run's parameters that are not as expected."""
    return [name for name, value in expected.items() if _recorded(params, name) != value]


def _recorded(params: Mapping[str, str], name: str) -> str:
    """Return a parameter. One that a run lacks has no value, as that of a plugin's class, or the one it implied."""
    return params.get(name, IMPLIED_PARAMS.get(name, param_text(None)))


def describe_differences(params: Mapping[str, str], expected: Mapping[str, str]) -> str:
    """List the parameters of a run that are not as expected, with both values; empty if all are."""
    names = differing(params, expected)
    # The settings of another class are others anyway.
    groups = {name for name in names if "." not in name}
    return "; ".join(
        f"{name} is {_recorded(params, name)} there and {expected[name]} here"
        for name in names
        if name in groups or name.partition(".")[0] not in groups
    )


def check_parent(name: str, params: Mapping[str, str], expected: Mapping[str, str]) -> None:
    """Check that a named run can be the parent of a fine-tune.

    Args:
        name: the run, as `phase.parent` may name it.
        params: its parameters.
        expected: parameters that must be the same in both runs.

    Raises:
        UserError: one of them differs.
    """
    values = describe_differences(params, expected)
    if values:
        other = (
            "phase.parent=<another folder>" if is_path(name) else "phase.parent=null to use the best run that matches"
        )
        raise UserError(
            f"phase.parent={name} cannot be the parent: {values}. A fine-tune needs the weights, pixels, head and data"
            f" of its frozen run. Type {other}, or make the settings the same."
        )


def short(run_id: str) -> str:
    """Shorten a run id for display.

    Returns:
        The first 8 characters, or more where Hydra would parse them as a number when they are typed in an override. The
        path of a saved run's folder stays as it is.
    """
    if is_path(run_id):
        return run_id
    length = _SHORT_ID_LENGTH
    while length < len(run_id) and re.fullmatch(r"\d+(e\d+)?", run_id[:length]):
        length += 1
    return run_id[:length]


def record_of(run: "MlflowRun") -> Record:
    """Convert MLflow's run to a `Record`."""
    return Record(
        run_id=run.info.run_id,
        name=run.info.run_name,
        started=run.info.start_time / 1000,
        status=run.info.status,
        params=IMPLIED_PARAMS | with_new_names(run.data.params),
        metrics=run.data.metrics,
        tags=run.data.tags,
        experiment_id=run.info.experiment_id,
    )


def param_text(value: Any) -> str:
    """Format a hyper-parameter as it is recorded: None as `null`, booleans in lower case, tuples as lists."""
    if value is None:
        return "null"
    if isinstance(value, tuple):
        return str(list(value))
    if isinstance(value, bool):
        return str(value).lower()
    return str(value)
