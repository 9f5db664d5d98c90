"""Predictions of two runs, for a paired comparison: where they come from, and the split that both have."""

from collections.abc import Mapping
from pathlib import Path

from dogbreeds.core.errors import UserError
from dogbreeds.evaluation import paired_comparison
from dogbreeds.evaluation.metrics import PairedOutcome
from dogbreeds.evaluation.paired_comparison import Comparison
from dogbreeds.evaluation.results import Predictions
from dogbreeds.experiments.recorded_runs import Only, find_record
from dogbreeds.experiments.result import Result, Skipped
from dogbreeds.tracking.mlflow_backend import Mlflow
from dogbreeds.tracking.records import Record, is_path, short
from dogbreeds.tracking.saved_run import SavedRun


def recorded_predictions(tracking: Mlflow, record: Record, key: str) -> dict[str, Predictions]:
    """Return the predictions of a run, by split.

    Args:
        tracking: where the run is recorded.
        record: the run.
        key: name of the setting that the run comes from, for errors.

    Raises:
        UserError: the run has none.
    """
    predictions = tracking.predictions(record.run_id)
    if not predictions:
        raise UserError(
            f"{key}, run {short(record.run_id)} ({record.tags['verdict'].replace('_', ' ')}), has no predictions:"
            f" it finished no epoch, or they were deleted. Both runs need predictions. Type {key}=<another run>."
        )
    return predictions


def predictions_of(
    run: Result | Skipped | str | Path, tracking: Mlflow, only: Only, key: str
) -> dict[str, Predictions]:
    """Return the predictions of a run that a Python caller names, by split.

    Args:
        run: a result, a run's id, `latest`, `best`, or the folder that a run with `tracking=none` left.
        tracking: where runs are recorded.
        only: filter of the runs among which `latest` and `best` are found.
        key: `first` or `second`, for errors.

    Raises:
        MissingFileError, UserError: there is no such run, or it has no predictions.
    """
    if isinstance(run, Result) and run.predictions:
        return run.predictions
    if isinstance(run, Path) or (isinstance(run, str) and is_path(run)):
        return SavedRun.read(str(run)).predictions()
    name = run if isinstance(run, str) else run.run_id
    return recorded_predictions(tracking, find_record(tracking, name, only, key, needs_network=False), key)


def compare_predictions(
    first: Mapping[str, Predictions], second: Mapping[str, Predictions], split: str | None
) -> Comparison:
    """Compare two runs on a split that both have.

    Args:
        first: predictions of the run to compare with, by split.
        second: predictions of the run that is compared with it.
        split: `val` or `test`; None for test if both runs have it, else val.

    Raises:
        UserError: the split is not recorded for both, or images or classes do not match.
    """
    common = sorted(first.keys() & second.keys())
    split = split or ("test" if "test" in common else "val")
    if split not in common:
        raise UserError(
            f"split={split} is not recorded for both runs. They have {' and '.join(common)} in common. Type"
            f" split={common[0]}."
        )
    return paired_comparison.compare(first[split], second[split], split)


def pair_runs(tracking: Mlflow, first: Record, second: Record, split: str | None = None) -> PairedOutcome | None:
    """Compare two recorded runs image by image; None if one has no predictions.

    Args:
        tracking: where they are recorded.
        first: the run to compare with.
        second: the run that is compared with it.
        split: `val` or `test`; None for test if both have it, else val.
    """
    before, now = (tracking.predictions(record.run_id) for record in (first, second))
    return compare_predictions(before, now, split).pair if before and now else None
