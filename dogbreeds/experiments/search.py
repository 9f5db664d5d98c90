"""A search by Optuna: each trial is a job of a Hydra sweep, and so an MLflow run below the sweep's.

Optuna has no integration with Hydra, and Hydra's released one holds to Optuna 2 and cannot prune, since its jobs do not know which trial they are.
So this is a sweeper on Hydra's own interface: Hydra's grammar says what is searched, Optuna samples, judges and keeps, the launcher runs.
"""

import contextlib
import fcntl
import json
import logging
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dogbreeds.core import signals
from dogbreeds.core.errors import UserError
from dogbreeds.core.paths import home
from dogbreeds.core.spec import Spec, integer, text
from dogbreeds.core.text import digest
from dogbreeds.experiments.trial import EPOCHS, PRUNED, PRUNER, SECONDS, TRIAL, reached, storage

if TYPE_CHECKING:
    import optuna
    from hydra.core.override_parser.types import Override
    from hydra.core.utils import JobReturn
    from hydra.plugins.launcher import Launcher

log = logging.getLogger(__name__)

# A trial's number and parameters
Asked = tuple[int, dict[str, Any]]

# An attribute of a trial whose job has failed once
_FAILED = "failed"
_EXAMPLE = "'optimizer.lr=tag(log,interval(1e-5,1e-1))' 'head=choice(linear,mlp)'"


@dataclass(frozen=True, kw_only=True)
class Settings(Spec):
    """How a search is done; `conf/hydra/sweeper/optuna.yaml` explains each."""

    group = "hydra.sweeper"
    n_trials: int = integer(at_least=1, example=40)
    n_jobs: int = integer(at_least=1, example=2)
    n_startup_trials: int = integer(at_least=0, example=8)
    n_warmup_steps: int = integer(at_least=0, example=1)
    seed: int = integer(at_least=0, example=0)
    study_name: str | None = text(example="learning-rates", optional=True)
    storage: str = text(example="multirun/studies")


@dataclass(frozen=True)
class Space:
    """What is searched, and what all trials have in common.

    Attributes:
        searched: Optuna's distribution of each key.
        fixed: overrides of all trials.
    """

    searched: "dict[str, optuna.distributions.BaseDistribution]"
    fixed: tuple[str, ...]

    @classmethod
    def of(cls, overrides: "Sequence[Override]") -> "Space":
        """The space that parsed overrides describe.

        Raises:
            UserError: where nothing is searched, or an interval is none.
        """
        searched = {
            override.get_key_element(): _distribution(override)
            for override in overrides
            if override.is_sweep_override()
        }
        if not searched:
            raise UserError(
                "hydra/sweeper=optuna was asked for and no setting was given a range. A search needs"
                f" interval(low,high), range(low,high) or choice(one,other) of at least one setting. Type {_EXAMPLE},"
                " for example."
            )
        fixed = (override for override in overrides if not override.is_sweep_override())
        return cls(
            searched, tuple(f"{override.get_key_element()}={override.get_value_element_as_str()}" for override in fixed)
        )

    def overrides(self, params: dict[str, Any]) -> list[str]:
        """One trial's."""
        return [*(f"{key}={params[key]}" for key in self.searched), *self.fixed]


def _distribution(override: "Override") -> "optuna.distributions.BaseDistribution":
    from hydra.core.override_parser.types import IntervalSweep, RangeSweep
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    value, key = override.value(), override.get_key_element()
    try:
        if isinstance(value, IntervalSweep):
            low, high, on_log = value.start, value.end, "log" in value.tags
            kind = IntDistribution if isinstance(low, int) and isinstance(high, int) else FloatDistribution
            if low is None or high is None or low >= high:
                raise ValueError("its end is not above its beginning")
            return kind(low, high, log=on_log)
        if isinstance(value, RangeSweep) and not value.shuffle:
            steps = value.range()
            if isinstance(steps, range):
                return IntDistribution(min(steps), max(steps), step=abs(steps.step))
        return CategoricalDistribution(list(override.sweep_string_iterator()))
    except (ValueError, IndexError) as error:
        raise UserError(
            f"{override.input_line} is no range to search ({str(error).splitlines()[0]}). It must be"
            " interval(low,high), of whole numbers with int(…) around it, range(low,high) or choice(one,other). Type"
            f" '{key}=interval(1e-5,1e-1)', for example."
        ) from error


class Search:
    """A study, and the launcher that runs its trials.

    Args:
        settings: how it is done.
        space: what is searched.
        about: the composed config, without Hydra's own and without `rerun`; with the space it names the study.
        rerun: whether to begin the study anew.
    """

    def __init__(self, settings: Settings, space: Space, about: str, rerun: bool = False):
        import optuna

        self._settings, self._space, self._rerun = settings, space, rerun
        ranges = {key: optuna.distributions.distribution_to_json(of) for key, of in space.searched.items()}
        others = [override for override in space.fixed if not override.startswith("rerun=")]
        # What all commands of a study have in common
        self._said = {"ranges": ranges, "others": digest(f"{about}{sorted(others)}".encode())[:12]}
        self.name = settings.study_name or f"search-{digest(json.dumps(self._said, sort_keys=True).encode())[:12]}"
        place = settings.storage
        self._place = place if "://" in place else str(Path(place).expanduser().resolve() / f"{self.name}.journal")

    def run(self, launcher: "Launcher") -> "list[JobReturn]":
        """Runs what is missing of the trials; the same search goes on with what an earlier command has begun.

        Raises:
            UserError: where the study is of another search, or is being searched by another command.
        """
        from optuna.trial import TrialState

        returns: list[JobReturn] = []
        with self._alone():
            with reached(self._place):
                study = self._study()
                cut_off = self._cut_off(study)
                done = len(study.get_trials(deepcopy=False, states=[TrialState.COMPLETE, TrialState.PRUNED]))
            if done or cut_off:
                log.info(
                    "search %s: %d of %d trials are there, %d go on; rerun=true begins anew",
                    self.name,
                    done,
                    self._settings.n_trials,
                    len(cut_off),
                )
            while cut_off or done < self._settings.n_trials:
                if cut_off:
                    batch, cut_off = self._next(cut_off)
                else:
                    with reached(self._place):
                        batch = [
                            self._asked(study)
                            for _ in range(min(self._settings.n_jobs, self._settings.n_trials - done))
                        ]
                results = launcher.launch([self._job(*asked) for asked in batch], initial_job_idx=batch[0][0])
                with reached(self._place):
                    self._tell(study, batch, results)
                for result in results:
                    # Raises what ended a job, after the others have been told of
                    _ = result.return_value
                returns += results
                done += len(batch)
            with reached(self._place):
                for line in _summary(study):
                    log.info(line)
        return returns

    def _study(self) -> "optuna.Study":
        import optuna

        kept = storage(self._place)
        if self._rerun:
            with contextlib.suppress(KeyError):
                optuna.delete_study(study_name=self.name, storage=kept)
        study = optuna.create_study(study_name=self.name, storage=kept, direction="maximize", load_if_exists=True)
        before = study.user_attrs.get("search", self._said)
        if before != self._said:
            raise UserError(
                f"hydra.sweeper.study_name={self.name} names a study of {', '.join(before['ranges'])} with other ranges"
                " or settings. A study goes on with those that it began with. Type the same command, another"
                " hydra.sweeper.study_name, or rerun=true to forget that study."
            )
        study.set_user_attr("search", self._said)
        study.set_user_attr(PRUNER, [self._settings.n_startup_trials, self._settings.n_warmup_steps])
        return study

    def _cut_off(self, study: "optuna.Study") -> list[Asked]:
        """The trials that an earlier command has not ended; one that it was just asking for is given up."""
        from optuna.trial import TrialState

        running = study.get_trials(deepcopy=False, states=[TrialState.RUNNING])
        for trial in running:
            if not self._is_whole(trial):
                study.tell(trial.number, state=TrialState.FAIL)
        return [(trial.number, trial.params) for trial in running if self._is_whole(trial)]

    def _next(self, cut_off: list[Asked]) -> tuple[list[Asked], list[Asked]]:
        """Some that can run at once, and the others: a launcher numbers its jobs on from the first."""
        count = 1
        while count < min(self._settings.n_jobs, len(cut_off)) and cut_off[count][0] == cut_off[0][0] + count:
            count += 1
        return cut_off[:count], cut_off[count:]

    def _asked(self, study: "optuna.Study") -> Asked:
        """A new trial. The sampler is made anew for each, so that a search that was cut off asks for what the whole one would have."""
        from optuna.samplers import TPESampler

        before = sum(self._is_whole(trial) for trial in study.get_trials(deepcopy=False))
        # Trials side by side should not all try the same: those that are not done count as bad ones.
        study.sampler = TPESampler(
            seed=self._settings.seed + before,
            n_startup_trials=max(1, self._settings.n_startup_trials),
            constant_liar=True,
        )
        with signals.deferred():
            trial = study.ask(self._space.searched)
        return trial.number, trial.params

    def _is_whole(self, trial: "optuna.trial.FrozenTrial") -> bool:
        return trial.params.keys() == self._space.searched.keys()

    def _job(self, number: int, params: dict[str, Any]) -> list[str]:
        """The overrides of a trial's job, which tell it what it is."""
        from hydra.core.override_parser.types import Quote, QuotedString

        about = QuotedString(
            json.dumps({"place": self._place, "study": self.name, "number": number}), Quote.single
        ).with_quotes()
        return [*self._space.overrides(params), f"hydra.job.env_set.{TRIAL}={about}"]

    def _tell(self, study: "optuna.Study", batch: list[Asked], results: "Sequence[JobReturn]") -> None:
        """Notes how a batch's trials ended."""
        from hydra.core.utils import JobStatus
        from optuna.trial import TrialState

        trials = study.get_trials(deepcopy=False)
        for (number, _), result in zip(batch, results, strict=True):
            if result.status != JobStatus.COMPLETED:
                self._failed(study, number)
            elif trials[number].user_attrs.get(PRUNED):
                study.tell(number, state=TrialState.PRUNED)
            else:
                study.tell(number, result.return_value)

    def _failed(self, study: "optuna.Study", number: int) -> None:
        """What ended a job may be put right, and the same command then goes on with its trial; one that fails again is given up."""
        import optuna

        failed = study.get_trials(deepcopy=False)[number]
        if _FAILED in failed.user_attrs:
            study.tell(number, state=optuna.trial.TrialState.FAIL)
        else:
            optuna.trial.Trial(study, failed._trial_id).set_user_attr(_FAILED, True)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """One command at a time asks for trials: another would take those that are running for cut off."""
        place = home() / "multirun" / "studies" / self.name if "://" in self._place else Path(self._place)
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            lock = open(f"{place}.command", "a+b")  # noqa: SIM115 - closed below; .lock beside it is the lock of Optuna itself
        except OSError as error:
            raise UserError(
                f"hydra.sweeper.storage={self._settings.storage} cannot be written ({error.strerror}). A study is kept"
                " in a folder, or in a database that Optuna knows. Type hydra.sweeper.storage=<folder>."
            ) from error
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(
                    f"The study {self.name} is being searched by another command. One command at a time asks for"
                    " trials, and runs as many of them side by side as hydra.sweeper.n_jobs says. Wait for it, or type"
                    " hydra.sweeper.study_name=<another name>."
                ) from None
            yield


def _summary(study: "optuna.Study") -> list[str]:
    """The best trial, and what pruning has saved."""
    from optuna.trial import TrialState

    full = study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
    pruned = study.get_trials(deepcopy=False, states=[TrialState.PRUNED])
    lines = [f"search {study.study_name}: {len(full)} trials to their end, {len(pruned)} pruned"]
    if full:
        best = study.best_trial
        settings = " ".join(f"{key}={value}" for key, value in best.params.items())
        lines.append(f"best  {100 * study.best_value:.1f} % in trial {best.number}: {settings}")
    costs = {
        key: [[trial.user_attrs[key] for trial in those if key in trial.user_attrs] for those in (full, pruned)]
        for key in (EPOCHS, SECONDS)
    }
    if all(costs[EPOCHS]):
        (long, short), (slow, quick) = ([statistics.mean(those) for those in costs[key]] for key in (EPOCHS, SECONDS))
        lines.append(
            f"cost  a pruned trial {short:.1f} epochs and {quick:.1f} s, one to its end {long:.1f} epochs and"
            f" {slow:.1f} s"
        )
    return lines
