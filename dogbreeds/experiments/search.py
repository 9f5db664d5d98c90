"""Hyper-parameter search with Optuna: each trial is a job of a Hydra sweep, and so an MLflow run below the sweep's.

Optuna has no integration with Hydra. Hydra's released plugin requires Optuna 2 and cannot prune, because its jobs do
not know which trial they run. So this is a sweeper on Hydra's plugin interface: Hydra's grammar declares the search
space, Optuna samples, prunes and stores the study, and a launcher runs the trials.
"""

import contextlib
import json
import logging
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from dogbreeds.core import locks, signals
from dogbreeds.core.countdown import Countdown
from dogbreeds.core.errors import UserError
from dogbreeds.core.paths import home
from dogbreeds.core.spec import Spec, integer, path, seed, text
from dogbreeds.core.text import digest
from dogbreeds.experiments.search_space import Space
from dogbreeds.experiments.trial import (
    EPOCHS_ATTRIBUTE,
    PRUNED_ATTRIBUTE,
    PRUNER_ATTRIBUTE,
    SECONDS_ATTRIBUTE,
    TRIAL_ENV,
    open_storage,
    study_errors,
)

if TYPE_CHECKING:
    import optuna
    from hydra.core.utils import JobReturn
    from hydra.plugins.launcher import Launcher

log = logging.getLogger(__name__)

# User attribute of a study: its search space and a digest of its other settings.
_DEFINITION_ATTRIBUTE = "search"
# User attribute of a trial whose job has failed once.
_FAILED_ATTRIBUTE = "failed"


@dataclass(frozen=True, kw_only=True)
class Settings(Spec):
    """Settings of a search.

    Attributes:
        n_trials: trials in all, including pruned ones.
        n_jobs: trials that the launcher runs at a time.
        n_startup_trials: trials that are sampled at random, before TPE samples and the median prunes.
        n_warmup_steps: epochs of each trial before the median may prune it.
        seed: seed of the sampler.
        study_name: name of the study; None derives it from what is searched.
        storage: folder of the studies, or address of a database.
    """

    group = "hydra.sweeper"
    n_trials: int = integer(at_least=1, at_most=100_000, example=40)
    n_jobs: int = integer(at_least=1, at_most=1000, example=2)
    n_startup_trials: int = integer(at_least=0, example=8)
    n_warmup_steps: int = integer(at_least=0, example=1)
    seed: int = seed()
    study_name: str | None = text(example="learning-rates", optional=True)
    storage: str = path(example="multirun/studies")


class _SampledTrial(NamedTuple):
    """A trial that is to run: its number in the study, and the sampled value of each setting."""

    number: int
    params: dict[str, Any]


class Search:
    """A study, and the trials that a launcher runs for it.

    Args:
        settings: settings of the search.
        space: search space.
        config: composed config as YAML, without Hydra's part and `rerun`. Together with the space it names the study.
        rerun: whether to delete the study and to start over.
    """

    def __init__(self, settings: Settings, space: Space, config: str, rerun: bool = False):
        import optuna

        self._settings = settings
        self._space = space
        self._rerun = rerun
        ranges = {
            key: optuna.distributions.distribution_to_json(distribution)
            for key, distribution in space.distributions.items()
        }
        others = [override for override in space.fixed if not override.startswith("rerun=")]
        # All commands that work on the study must agree in this.
        self._definition = {"ranges": ranges, "others": digest(f"{config}{sorted(others)}".encode())[:12]}
        definition_digest = digest(json.dumps(self._definition, sort_keys=True).encode())[:12]
        self.name = settings.study_name or f"search-{definition_digest}"
        self._place = settings.storage
        if "://" not in settings.storage:
            self._place = str(Path(settings.storage).expanduser().resolve() / f"{self.name}.journal")

    def run(self, launcher: "Launcher") -> "list[JobReturn]":
        """Run the remaining trials; a search that was interrupted resumes.

        Args:
            launcher: runs the trials as jobs.

        Raises:
            UserError: if the study has another definition, or if another command is working on it.
        """
        from optuna.trial import TrialState

        returns: list[JobReturn] = []
        with self._locked():
            with study_errors(self._place):
                study = self._open_study()
                interrupted = self._interrupted_trials(study)
                done = len(study.get_trials(deepcopy=False, states=[TrialState.COMPLETE, TrialState.PRUNED]))
            if done or interrupted:
                log.info(
                    "Resuming search %s: %d of %d trials done, %d interrupted (rerun=true starts over)",
                    self.name,
                    done,
                    self._settings.n_trials,
                    len(interrupted),
                )
            countdown = Countdown("trials", self._settings.n_trials, completed=done)
            while interrupted or done < self._settings.n_trials:
                if interrupted:
                    batch, interrupted = self._next_batch(interrupted)
                else:
                    size = min(self._settings.n_jobs, self._settings.n_trials - done)
                    with study_errors(self._place):
                        batch = [self._sample(study) for _ in range(size)]
                jobs = [self._job_overrides(trial) for trial in batch]
                results = launcher.launch(jobs, initial_job_idx=batch[0].number)
                with study_errors(self._place):
                    self._report_results(study, batch, results)
                for result in results:
                    # Raises a failed job's error, now that the results of all jobs are stored.
                    _ = result.return_value
                returns += results
                done += len(batch)
                countdown.advance(len(batch))
            with study_errors(self._place):
                for line in _summary_lines(study):
                    log.info(line)
        return returns

    def _open_study(self) -> "optuna.Study":
        """Create or load the study, and check that it is the same search."""
        import optuna

        storage = open_storage(self._place)
        if self._rerun:
            with contextlib.suppress(KeyError):
                optuna.delete_study(study_name=self.name, storage=storage)
        study = optuna.create_study(study_name=self.name, storage=storage, direction="maximize", load_if_exists=True)
        stored = study.user_attrs.get(_DEFINITION_ATTRIBUTE, self._definition)
        if stored != self._definition:
            raise UserError(
                f"hydra.sweeper.study_name={self.name} names a study of {', '.join(stored['ranges'])} with other ranges"
                " or settings. A study can only be resumed with those it was created with. Type the same command,"
                " another hydra.sweeper.study_name, or rerun=true to delete that study."
            )
        study.set_user_attr(_DEFINITION_ATTRIBUTE, self._definition)
        study.set_user_attr(PRUNER_ATTRIBUTE, [self._settings.n_startup_trials, self._settings.n_warmup_steps])
        return study

    def _interrupted_trials(self, study: "optuna.Study") -> list[_SampledTrial]:
        """Return the trials that an earlier command did not finish; one whose sampling was interrupted is failed."""
        from optuna.trial import TrialState

        running = study.get_trials(deepcopy=False, states=[TrialState.RUNNING])
        for trial in running:
            if not self._is_fully_sampled(trial):
                study.tell(trial.number, state=TrialState.FAIL)
        return [_SampledTrial(trial.number, trial.params) for trial in running if self._is_fully_sampled(trial)]

    def _next_batch(self, trials: list[_SampledTrial]) -> tuple[list[_SampledTrial], list[_SampledTrial]]:
        """Split off trials to run at once. A launcher numbers its jobs consecutively, so their numbers must be too."""
        size = 1
        while size < min(self._settings.n_jobs, len(trials)) and trials[size].number == trials[0].number + size:
            size += 1
        return trials[:size], trials[size:]

    def _sample(self, study: "optuna.Study") -> _SampledTrial:
        """Sample a new trial.

        Each trial gets a new sampler with a seed of its own, so that an interrupted search samples the same trials as
        an uninterrupted one.
        """
        from optuna.samplers import TPESampler

        sampled_before = sum(self._is_fully_sampled(trial) for trial in study.get_trials(deepcopy=False))
        study.sampler = TPESampler(
            seed=self._settings.seed + sampled_before,
            n_startup_trials=max(1, self._settings.n_startup_trials),
            # Counts unfinished trials as bad ones, so that parallel trials differ.
            constant_liar=True,
        )
        with signals.deferred():
            trial = study.ask(self._space.distributions)
        return _SampledTrial(trial.number, trial.params)

    def _is_fully_sampled(self, trial: "optuna.trial.FrozenTrial") -> bool:
        return trial.params.keys() == self._space.distributions.keys()

    def _job_overrides(self, trial: _SampledTrial) -> list[str]:
        """Return the overrides of a trial's job, including the variable that tells it its trial."""
        from hydra.core.override_parser.types import Quote, QuotedString

        variable = json.dumps({"place": self._place, "study": self.name, "number": trial.number})
        quoted = QuotedString(variable, Quote.single).with_quotes()
        return [*self._space.overrides(trial.params), f"hydra.job.env_set.{TRIAL_ENV}={quoted}"]

    def _report_results(
        self, study: "optuna.Study", batch: list[_SampledTrial], results: "Sequence[JobReturn]"
    ) -> None:
        """Store how the trials of a batch ended."""
        from hydra.core.utils import JobStatus
        from optuna.trial import TrialState

        trials = study.get_trials(deepcopy=False)
        for (number, _), result in zip(batch, results, strict=True):
            if result.status != JobStatus.COMPLETED:
                self._mark_failed(study, number)
            elif trials[number].user_attrs.get(PRUNED_ATTRIBUTE):
                study.tell(number, state=TrialState.PRUNED)
            else:
                study.tell(number, result.return_value)

    def _mark_failed(self, study: "optuna.Study", number: int) -> None:
        """Leave a trial to be resumed after its first failure, and fail it after the second.

        The user may remove the cause of the first failure and run the same command again.
        """
        import optuna

        trial = study.get_trials(deepcopy=False)[number]
        if _FAILED_ATTRIBUTE in trial.user_attrs:
            study.tell(number, state=optuna.trial.TrialState.FAIL)
        else:
            optuna.trial.Trial(study, trial._trial_id).set_user_attr(_FAILED_ATTRIBUTE, True)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the study's lock: another command would take the running trials for interrupted ones.

        Raises:
            UserError: if another command holds it, or if the lock file cannot be created.
        """
        path = home() / "multirun" / "studies" / self.name if "://" in self._place else Path(self._place)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # The name must not end in .lock, which is the lock of Optuna's journal.
            lock = locks.exclusive(Path(f"{path}.command"), waiting_for=None)
        except locks.LockHeldError:
            raise UserError(
                f"Another command is working on the study {self.name}. Only one command at a time may do so; it runs"
                " hydra.sweeper.n_jobs trials in parallel. Wait for it, or type hydra.sweeper.study_name=<another"
                " name>."
            ) from None
        except OSError as error:
            raise UserError(
                f"hydra.sweeper.storage={self._settings.storage} cannot be written ({error.strerror}). Studies need a"
                " writable folder, or a database that Optuna supports. Type hydra.sweeper.storage=<folder>."
            ) from error
        with lock:
            yield


def _summary_lines(study: "optuna.Study") -> list[str]:
    """Format the best trial, and what the pruned trials cost compared with the complete ones."""
    from optuna.trial import TrialState

    complete = study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
    pruned = study.get_trials(deepcopy=False, states=[TrialState.PRUNED])
    lines = [f"search {study.study_name}: {len(complete)} trials complete, {len(pruned)} pruned"]
    if complete:
        best = study.best_trial
        settings = " ".join(f"{key}={value}" for key, value in best.params.items())
        lines.append(f"best  {100 * study.best_value:.1f} % in trial {best.number}: {settings}")
    if _user_attrs(complete, EPOCHS_ATTRIBUTE) and _user_attrs(pruned, EPOCHS_ATTRIBUTE):
        lines.append(f"cost  {_mean_cost(pruned)} per pruned trial, {_mean_cost(complete)} per complete trial")
    return lines


def _mean_cost(trials: "Sequence[optuna.trial.FrozenTrial]") -> str:
    epochs = statistics.mean(_user_attrs(trials, EPOCHS_ATTRIBUTE))
    seconds = statistics.mean(_user_attrs(trials, SECONDS_ATTRIBUTE))
    return f"{epochs:.1f} epochs and {seconds:.1f} s"


def _user_attrs(trials: "Sequence[optuna.trial.FrozenTrial]", name: str) -> list[float]:
    """Return a user attribute of the trials that have it."""
    return [trial.user_attrs[name] for trial in trials if name in trial.user_attrs]
