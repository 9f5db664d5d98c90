"""A trial of a search, from the view of the job that runs it: it reports each epoch and learns when it is pruned.

There are two criteria for pruning: the verdict's, which recognises attempts that have collapsed or learned nothing, and
the median of the earlier trials, by Optuna's pruner. A pruned attempt is not lost: run by itself, it resumes from its
checkpoint.
"""

import contextlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dogbreeds.core.errors import UserError
from dogbreeds.core.text import mask_passwords, shorten
from dogbreeds.evaluation import verdict

if TYPE_CHECKING:
    import optuna

    from dogbreeds.evaluation.results import Epoch

log = logging.getLogger(__name__)

# Environment variable that tells a job its trial, as JSON: the study's place and name, and the trial's number.
TRIAL_ENV = "DOGBREEDS_TRIAL"
# User attribute of a study: n_startup_trials and n_warmup_steps of the pruner that its jobs build.
PRUNER_ATTRIBUTE = "pruner"
# User attributes of a trial. The first is the reason for pruning, null without one.
PRUNED_ATTRIBUTE = "pruned"
EPOCHS_ATTRIBUTE = "epochs"
SECONDS_ATTRIBUTE = "seconds"


@contextlib.contextmanager
def study_errors(place: str) -> Iterator[None]:
    """Turn errors of a study's storage into `UserError`.

    Args:
        place: file or database of the studies.
    """
    from optuna.exceptions import OptunaError
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    # The last three come from a missing database driver, a deleted study and a damaged file.
    except (OptunaError, SQLAlchemyError, OSError, ImportError, KeyError, json.JSONDecodeError) as error:
        reason = shorten(mask_passwords(str(error)), 200)
        raise UserError(
            f"The studies in {mask_passwords(place)} cannot be used ({reason}). hydra.sweeper.storage must be a"
            " writable folder, or the address of a database that Optuna supports. Type hydra.sweeper.storage=<folder>,"
            " or repair the storage and run the same command again."
        ) from error


def open_storage(place: str) -> "optuna.storages.BaseStorage":
    """Open the storage of studies.

    Args:
        place: address of a database, or a file; it is only appended to, which is safe for several processes and on
            shared storage.

    Raises:
        UserError: if it cannot be used.
    """
    import optuna
    from optuna.storages import journal

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with study_errors(place):
        if "://" in place:
            return optuna.storages.RDBStorage(place)
        Path(place).parent.mkdir(parents=True, exist_ok=True)
        return optuna.storages.JournalStorage(journal.JournalFileBackend(place))


class Trial:
    """A job outside a search: nothing is reported, and nothing is pruned. `_SearchTrial` overrides both.

    Attributes:
        tags: tags of the run, by which the trial's run is found.
    """

    tags: dict[str, str] = {}

    def prune_reason(self, epochs: "Sequence[Epoch]", setting: verdict.Setting, last: bool) -> str | None:
        """Report the epochs so far, and return why the attempt is to be pruned; None to continue.

        Args:
            epochs: finished epochs, in order.
            setting: facts about the attempt for the verdict.
            last: whether these are all epochs; then pruning would save nothing.
        """
        return None

    def finish(self, accuracies: Sequence[float], seconds: float, pruned: str | None = None) -> None:
        """Report how the trial ended.

        Args:
            accuracies: validation accuracy of each epoch, in [0, 1].
            seconds: duration of the attempt, including earlier processes.
            pruned: why it was pruned; None if it was not.
        """


class _SearchTrial(Trial):
    """A trial of an Optuna study.

    Args:
        place: file or database of the study.
        study: name of the study.
        number: number of the trial.
    """

    def __init__(self, place: str, study: str, number: int):
        import optuna

        self._place = place
        storage = open_storage(place)
        with study_errors(place):
            loaded = optuna.load_study(study_name=study, storage=storage)
            startup, warmup = loaded.user_attrs[PRUNER_ATTRIBUTE]
            # Optuna's steps are our epochs, which are counted from 1.
            loaded.pruner = optuna.pruners.MedianPruner(n_startup_trials=startup, n_warmup_steps=warmup + 1)
            trial_id = storage.get_trial_id_from_study_id_trial_number(storage.get_study_id_from_name(study), number)
            self._trial = optuna.trial.Trial(loaded, trial_id)
            # A resumed trial has steps that an earlier process reported.
            self._reported = set(storage.get_trial(trial_id).intermediate_values)
        self.tags = {"search": study, "search.trial": str(number)}

    def prune_reason(self, epochs: "Sequence[Epoch]", setting: verdict.Setting, last: bool) -> str | None:
        accuracies = [epoch.val.accuracy.value for epoch in epochs]
        try:
            with study_errors(self._place):
                self._report(accuracies)
                below_median = self._trial.should_prune()
        except UserError as error:
            # Training continues, and the next epoch reports this one too.
            log.warning("epoch %d is not reported to the search: %s", len(epochs), error)
            below_median = False
        if last:
            return None
        failure = verdict.early_failure(epochs, setting)
        if failure is not None:
            return f"{failure.name.replace('_', ' ')}: {failure.reason}"
        if below_median:
            return f"its best accuracy, {100 * max(accuracies):.1f} %, is below the median of the trials before"
        return None

    def finish(self, accuracies: Sequence[float], seconds: float, pruned: str | None = None) -> None:
        with study_errors(self._place):
            self._report(accuracies)
            self._trial.set_user_attr(EPOCHS_ATTRIBUTE, len(accuracies))
            self._trial.set_user_attr(SECONDS_ATTRIBUTE, seconds)
            self._trial.set_user_attr(PRUNED_ATTRIBUTE, pruned)

    def _report(self, accuracies: Sequence[float]) -> None:
        """Report the validation accuracy of each epoch that has not been reported yet."""
        for step, accuracy in enumerate(accuracies, 1):
            if step not in self._reported:
                self._trial.report(accuracy, step)
                self._reported.add(step)


def current_trial() -> Trial:
    """Return the trial that this process' job runs; outside a search, one that does nothing."""
    trial = os.environ.get(TRIAL_ENV)
    return _SearchTrial(**json.loads(trial)) if trial else Trial()
