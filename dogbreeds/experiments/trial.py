"""A trial of a search, as the job that runs it sees it: it reports each epoch, and is told when to give up.

Whether to give up is judged twice: by what the verdicts know of an attempt that is lost, and by the median of the trials before, as Optuna's
pruner has it. What is pruned is not thrown away: asked for by itself, the attempt goes on from its checkpoint.
"""

import contextlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dogbreeds.core.errors import UserError
from dogbreeds.core.text import masked
from dogbreeds.evaluation import verdict

if TYPE_CHECKING:
    import optuna

    from dogbreeds.evaluation.results import Epoch

log = logging.getLogger(__name__)

# Which trial of which study a job is, for the process that runs it
TRIAL = "DOGBREEDS_TRIAL"
# The study's attribute that holds what the jobs' pruner is built of
PRUNER = "pruner"
# Attributes of a trial; the first is null where it was not
PRUNED, EPOCHS, SECONDS = "pruned", "epochs", "seconds"


@contextlib.contextmanager
def reached(place: str) -> Iterator[None]:
    """Turns what goes wrong with a study in the body into `UserError`."""
    from optuna.exceptions import OptunaError
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    # The last three are of the database's driver, of a study that is gone, and of a damaged file.
    except (OptunaError, SQLAlchemyError, OSError, ImportError, KeyError, json.JSONDecodeError) as error:
        why = masked(" ".join(str(error).split()))[:200]
        raise UserError(
            f"The studies in {masked(place)} cannot be used ({why}). hydra.sweeper.storage must be a folder that can be"
            " written, or the address of a database that Optuna knows. Type hydra.sweeper.storage=<folder>, or mend it"
            " and run the same command again."
        ) from error


def storage(place: str) -> "optuna.storages.BaseStorage":
    """Where studies are kept.

    Args:
        place: a file that is appended to, safe for several processes and on shared storage, or the address of a database.

    Raises:
        UserError: where it cannot be used.
    """
    import optuna
    from optuna.storages import journal

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with reached(place):
        if "://" in place:
            return optuna.storages.RDBStorage(place)
        Path(place).parent.mkdir(parents=True, exist_ok=True)
        return optuna.storages.JournalStorage(journal.JournalFileBackend(place))


class Trial:
    """Of no search: nothing is reported, and nothing pruned; what belongs to one overrides this.

    Attributes:
        tags: by which its run is found.
    """

    tags: dict[str, str] = {}

    def judged(self, epochs: "Sequence[Epoch]", setting: verdict.Setting, last: bool) -> str | None:
        """Reports the epochs so far, and says why the attempt is to be given up, if it is.

        Args:
            epochs: finished ones, in order.
            setting: of the attempt.
            last: whether these are all there will be: nothing would be saved any more.
        """
        return None

    def ended(self, accuracies: Sequence[float], seconds: float, pruned: str | None = None) -> None:
        """Notes validation accuracies of all epochs, in [0, 1], what the trial took, and why it was pruned, if it was."""


class _Searched(Trial):
    def __init__(self, place: str, study: str, number: int):
        import optuna

        self._place = place
        kept = storage(place)
        with reached(place):
            loaded = optuna.load_study(study_name=study, storage=kept)
            startup, warmup = loaded.user_attrs[PRUNER]
            # Optuna's steps are our epochs, which are counted from 1.
            loaded.pruner = optuna.pruners.MedianPruner(n_startup_trials=startup, n_warmup_steps=warmup + 1)
            trial_id = kept.get_trial_id_from_study_id_trial_number(kept.get_study_id_from_name(study), number)
            self._trial = optuna.trial.Trial(loaded, trial_id)
            # By an earlier process, if it goes on
            self._reported = set(kept.get_trial(trial_id).intermediate_values)
        self.tags = {"search": study, "search.trial": str(number)}

    def judged(self, epochs: "Sequence[Epoch]", setting: verdict.Setting, last: bool) -> str | None:
        accuracies = [epoch.val.accuracy.value for epoch in epochs]
        try:
            with reached(self._place):
                self._report(accuracies)
                worse = self._trial.should_prune()
        except UserError as error:
            # training goes on; the next epoch reports what is missing
            log.warning("epoch %d is not reported to the search: %s", len(epochs), error)
            worse = False
        if last:
            return None
        lost = verdict.lost(epochs, setting)
        if lost is not None:
            return f"{lost.name.replace('_', ' ')}: {lost.reason}"
        return f"its best, {100 * max(accuracies):.1f} %, is below the median of the trials before" if worse else None

    def ended(self, accuracies: Sequence[float], seconds: float, pruned: str | None = None) -> None:
        with reached(self._place):
            self._report(accuracies)
            for name, value in {EPOCHS: len(accuracies), SECONDS: seconds, PRUNED: pruned}.items():
                self._trial.set_user_attr(name, value)

    def _report(self, accuracies: Sequence[float]) -> None:
        for step, accuracy in enumerate(accuracies, 1):
            if step not in self._reported:
                self._trial.report(accuracy, step)
                self._reported.add(step)


def current() -> Trial:
    """The trial that this process' job is, or one of no search."""
    said = os.environ.get(TRIAL)
    return _Searched(**json.loads(said)) if said else Trial()
