"""Plain data about recorded runs: where a run comes from, what MLflow has of it, and the names of its artifacts."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dogbreeds.core.former_names import with_new_names

if TYPE_CHECKING:
    from mlflow.entities import Run as MlflowRun

    from dogbreeds.evaluation.results import Predictions

# Artifact paths of a run.
MODEL_FOLDER = "model"
MODEL_FILE = "model.keras"
PREDICTIONS_FOLDER = "predictions"
HEAD_WEIGHTS = "head/head.weights.h5"
# The metric that runs are ranked by.
RANKING_METRIC = "best/val_accuracy"
# Environment variable with the id of the sweep's run. The processes of the sweep's jobs read it.
SWEEP_RUN_ENV = "DOGBREEDS_SWEEP_RUN"
# A sweep's run has a tag `reused.<run id>` for each finished run whose result it took over.
REUSED_TAG_PREFIX = "reused."
# Settings outside a run's key, by the first part of their names: they do not change its result. `features.dtype` does,
# and the key adds it.
NOT_IN_RUN_KEY = (
    "tracking",
    "features",
    "preflight",
    "baseline",
    "strategy",
    "checkpoint_steps",
    "checkpoint_dir",
    "rerun",
)
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
        changed: overrides that differ from the named attempt, such as `optimizer.lr=0.1`; empty without a difference.
        key: digest of the settings.
        identity: digest of settings, images and weights.
    """

    yaml: str
    overrides: tuple[str, ...]
    name: str
    folder: Path | None
    choices: Mapping[str, str] = field(default_factory=dict)
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
        run_id: its MLflow run.
        head: file with its head's best weights.
        accuracy: its best validation accuracy, in [0, 1].
        predictions: its predictions, by split.
        baseline: metrics of its zero-shot baseline, by name; empty without one.
        baseline_description: what the baseline is, or why there is none; empty in runs of versions that did not
            record it.
    """

    run_id: str
    head: Path
    accuracy: float
    predictions: "dict[str, Predictions]"
    baseline: dict[str, float] = field(default_factory=dict)
    baseline_description: str = ""


@dataclass(frozen=True)
class Record:
    """A recorded run.

    Attributes:
        run_id: its MLflow run.
        name: display name.
        started: start time in seconds since 1970.
        status: MLflow's status, such as FINISHED.
        params, metrics, tags: by name; parameters that were renamed have their present names.
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


def short(run_id: str) -> str:
    """Shorten a run id for display.

    Returns:
        The first 8 characters, or more where Hydra would parse them as a number when they are typed in an override.
    """
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
        params=with_new_names(run.data.params),
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
