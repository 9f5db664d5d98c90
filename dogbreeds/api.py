"""The Python API: what `import dogbreeds` offers."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dogbreeds.core.errors import UserError
from dogbreeds.experiments.compose import compose_run
from dogbreeds.experiments.run import Run

if TYPE_CHECKING:
    from dogbreeds.evaluation.results import Range
    from dogbreeds.experiments.result import PrunedResult, Result, Skipped


def compose(overrides: Sequence[str] = ()) -> Run:
    """Compose a run from `conf/`, as `python -m dogbreeds.train` does.

    Example: `run = dogbreeds.compose(["model=effnetb4", "data=folder", "data.root=photos"])`

    Args:
        overrides: as they are typed on the command line.

    Raises:
        UserError: if a value is not allowed, or an option or a setting does not exist.
    """
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from dogbreeds.cli import error_message

    try:
        return compose_run(overrides)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(error_message(error, "train")) from error


def fit(run: Run) -> "Result | Range | Skipped | PrunedResult":
    """Train a run and record it; resume it if it was interrupted.

    Signal handlers, environment, Keras' dtype policy and all random states are afterwards as they were before, also
    after an interruption, which raises `KeyboardInterrupt` and leaves a checkpoint. While another process trains the
    same run, this one waits, says so, and takes over the result; with `rerun=true` it then trains.

    Example: `result = dogbreeds.fit(run); print(result.verdict.name, result.verdict.advice)`

    Args:
        run: from `compose`.

    Returns:
        The result; of a learning-rate range test (`phase=lr_range`) its curve. `Skipped`, with the run's id, if another
        process has finished the same run while this one waited for it.

    Raises:
        MissingFileError, UserError: if a file is missing, or if settings, weights, pixels or data do not fit.
    """
    from dogbreeds.experiments.attempt import execute

    if run.origin is None or compose_run(run.origin.overrides) != run:
        raise UserError(
            "The run was not composed, or was changed afterwards. fit records what a run was composed from. Type"
            " dogbreeds.compose([...]) with all its settings."
        )
    return execute(run, run.origin)
