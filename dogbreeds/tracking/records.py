"""What is known of attempts: how each came about, what was recorded of it, and what its network said."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow.entities import Run as MlflowRun

    from dogbreeds.evaluation.results import Predictions

# Artifacts of a run.
MODEL_FOLDER, MODEL_FILE, PREDICTIONS, HEAD = "model", "model.keras", "predictions", "head/head.weights.h5"
RANKING = "best/val_accuracy"
# The sweep's parent run, for the processes that run its jobs
SWEEP = "DOGBREEDS_SWEEP_RUN"
# And the id of a run whose result a sweep took over: a tag of the sweep's run
REUSED = "reused."


class Pruned(Exception):
    """A search has given up an attempt, whose run stays unfinished. `best` is its best validation accuracy, in [0, 1]."""

    def __init__(self, best: float):
        super().__init__()
        self.best = best


@dataclass(frozen=True)
class RunOrigin:
    """How Hydra came to a run.

    Attributes:
        yaml: the config.
        overrides: what was typed.
        name: for people.
        folder: where Hydra's own files are.
        choices: the option chosen of groups that are looked for by it: attempt, model, data.
        changed: what differs from the attempt that was named, such as `optimizer.lr=0.1`; empty where nothing does.
        key: of the settings.
        identity: of settings, photos and weights.
    """

    yaml: str
    overrides: tuple[str, ...]
    name: str
    folder: Path
    choices: Mapping[str, str] = field(default_factory=dict)
    changed: tuple[str, ...] = ()
    key: str = ""
    identity: str = ""


@dataclass(frozen=True)
class PriorRuns:
    """What is recorded of attempts with the same settings as one that is about to run.

    Attributes:
        finished: the newest that ended with the same identity.
        unfinished: the newest with the same identity that was cut off.
        others: short ids of those with the same settings on other photos or weights.
    """

    finished: "Record | None" = None
    unfinished: "Record | None" = None
    others: tuple[str, ...] = ()


@dataclass(frozen=True)
class Parent:
    """The frozen attempt that a fine-tune goes on from.

    Attributes:
        run_id: its MLflow run.
        head: file of its head's best weights.
        accuracy: its best validation accuracy.
        predictions: what it said of each photo, by split.
        baseline: the metrics of its zero-training baseline; empty where it has none.
        baseline_said: what that is, or why there is none; empty where it was not recorded, as by earlier versions.
    """

    run_id: str
    head: Path
    accuracy: float
    predictions: "dict[str, Predictions]"
    baseline: dict[str, float] = field(default_factory=dict)
    baseline_said: str = ""


@dataclass(frozen=True)
class Record:
    """An attempt, as it was recorded.

    Attributes:
        run_id: its MLflow run.
        name: for people.
        started: seconds since 1970.
        status: as MLflow has it.
        params, metrics, tags: by name.
        experiment_id: of the experiment that it belongs to.
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
    """The beginning of a run's id, for people: at least 8 digits, and more where Hydra would read them as a number when they are typed."""
    length = 8
    while length < len(run_id) and re.fullmatch(r"\d+(e\d+)?", run_id[:length]):
        length += 1
    return run_id[:length]


# What does not decide a result, but for the features' precision.
ELSEWHERE = ("tracking", "features", "preflight", "baseline", "strategy", "checkpoint_steps", "checkpoint_dir", "rerun")


def record_of(run: "MlflowRun") -> Record:
    """What MLflow has of a run."""
    info, data = run.info, run.data
    return Record(
        info.run_id,
        info.run_name,
        info.start_time / 1000,
        info.status,
        data.params,
        data.metrics,
        data.tags,
        info.experiment_id,
    )


def plain(value: Any) -> str:
    """A hyper-parameter as it is recorded."""
    return (
        "null"
        if value is None
        else (
            str(list(value))
            if isinstance(value, tuple)
            else str(value).lower()
            if isinstance(value, bool)
            else str(value)
        )
    )
