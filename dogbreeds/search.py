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

from dogbreeds.photo import digest
from dogbreeds.spec import Refused, Spec, home, integer, text
from dogbreeds.trial import EPOCHS, PRUNED, PRUNER, SECONDS, TRIAL, storage

if TYPE_CHECKING:
    import optuna
    from hydra.core.override_parser.types import Override
    from hydra.core.utils import JobReturn
    from hydra.plugins.launcher import Launcher

log = logging.getLogger(__name__)

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
            Refused: where nothing is searched, or an interval is none.
        """
        searched = {override.get_key_element(): _distribution(override) for override in overrides if override.is_sweep_override()}
        if not searched:
            raise Refused(
                "hydra/sweeper=optuna was asked for and no setting was given a range. A search needs interval(low,high), range(low,high) or "
                f"choice(one,other) of at least one setting. Type {_EXAMPLE}, for example."
            )
        fixed = (override for override in overrides if not override.is_sweep_override())
        return cls(searched, tuple(f"{override.get_key_element()}={override.get_value_element_as_str()}" for override in fixed))

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
                return IntDistribution(steps[0], steps[-1], step=steps.step)
        return CategoricalDistribution(list(override.sweep_string_iterator()))
    except (ValueError, IndexError) as error:
        raise Refused(
            f"{override.input_line} is no range to search ({str(error).splitlines()[0]}). It must be interval(low,high), of whole numbers with "
            f"int(…) around it, range(low,high) or choice(one,other). Type '{key}=interval(1e-5,1e-1)', for example."
        ) from error


class Search:
    """A study, and the launcher that runs its trials.

    Args:
        settings: how it is done.
        space: what is searched.
        about: the composed config, without Hydra's own; with the space it names the study.
        rerun: whether to begin the study anew.
    """

    def __init__(self, settings: Settings, space: Space, about: str, rerun: bool = False):
        import optuna

        self._settings, self._space = settings, space
        said = json.dumps({key: optuna.distributions.distribution_to_json(of) for key, of in space.searched.items()}, sort_keys=True)
        self.name = settings.study_name or f"search-{digest(f'{about}{said}{space.fixed}'.encode())[:12]}"
        place = settings.storage
        self._place = place if "://" in place else str(Path(place).expanduser().resolve() / f"{self.name}.journal")
        self._said, self._rerun = said, rerun

    def run(self, launcher: "Launcher") -> "list[JobReturn]":
        """Runs what is missing of the trials; the same search goes on with what an earlier command has begun.

        Raises:
            Refused: where the study is of another space, or is being searched by another command.
        """
        from optuna.trial import TrialState

        returns: list[JobReturn] = []
        with self._alone():
            study = self._study()
            cut_off = study.get_trials(states=[TrialState.RUNNING])
            done = len(study.get_trials(deepcopy=False, states=[TrialState.COMPLETE, TrialState.PRUNED]))
            if done or cut_off:
                log.info(
                    "search %s: %d of %d trials are there, %d go on; rerun=true begins anew", self.name, done, self._settings.n_trials, len(cut_off)
                )
            while cut_off or done < self._settings.n_trials:
                room = min(self._settings.n_jobs, max(self._settings.n_trials - done, len(cut_off)))
                batch = [(trial.number, trial.params) for trial in cut_off[:room]]
                cut_off = cut_off[room:]
                while len(batch) < room and done + len(batch) < self._settings.n_trials:
                    asked = self._asked(study)
                    batch.append((asked.number, asked.params))
                returns += self._launched(study, launcher, batch)
                done += len(batch)
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
        before = study.user_attrs.get("space", self._said)
        if before != self._said:
            raise Refused(
                f"hydra.sweeper.study_name={self.name} names a study of other ranges, of {', '.join(json.loads(before))}. A study goes on with the "
                "ranges that it began with. Type the same ranges, another hydra.sweeper.study_name, or rerun=true to forget that study."
            )
        study.set_user_attr("space", self._said)
        study.set_user_attr(PRUNER, [self._settings.n_startup_trials, self._settings.n_warmup_steps])
        return study

    def _asked(self, study: "optuna.Study") -> "optuna.Trial":
        """A new trial. The sampler is made anew for each, so that a search that was cut off asks for what the whole one would have."""
        from optuna.samplers import TPESampler

        number = len(study.get_trials(deepcopy=False))
        # Trials side by side should not all try the same: those that are not done count as bad ones.
        study.sampler = TPESampler(seed=self._settings.seed + number, n_startup_trials=max(1, self._settings.n_startup_trials), constant_liar=True)
        return study.ask(self._space.searched)

    def _launched(self, study: "optuna.Study", launcher: "Launcher", batch: list[tuple[int, dict[str, Any]]]) -> "Sequence[JobReturn]":
        from hydra.core.override_parser.types import Quote, QuotedString
        from hydra.core.utils import JobStatus
        from optuna.trial import TrialState

        jobs = []
        for number, params in batch:
            about = QuotedString(json.dumps({"place": self._place, "study": self.name, "number": number}), Quote.single).with_quotes()
            jobs.append([*self._space.overrides(params), f"hydra.job.env_set.{TRIAL}={about}"])
        results = launcher.launch(jobs, initial_job_idx=batch[0][0])
        trials = study.get_trials(deepcopy=False)
        for (number, _), result in zip(batch, results, strict=True):
            if result.status != JobStatus.COMPLETED:
                study.tell(number, state=TrialState.FAIL)
            elif PRUNED in trials[number].user_attrs:
                study.tell(number, state=TrialState.PRUNED)
            else:
                study.tell(number, result.return_value)
        for result in results:
            _ = result.return_value  # raises what ended a job, after the others have been told of
        return results

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """One command at a time asks for trials: another would take those that are running for cut off."""
        place = home() / "multirun" / "studies" / self.name if "://" in self._place else Path(self._place)
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            lock = open(place.with_suffix(".lock"), "a+b")  # noqa: SIM115 - closed below
        except OSError as error:
            raise Refused(
                f"hydra.sweeper.storage={self._settings.storage} cannot be written ({error.strerror}). A study is kept in a folder, or in a database "
                "that Optuna knows. Type hydra.sweeper.storage=<folder>."
            ) from error
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Refused(
                    f"The study {self.name} is being searched by another command. One command at a time asks for trials, and runs as many of them "
                    "side by side as hydra.sweeper.n_jobs says. Wait for it, or type hydra.sweeper.study_name=<another name>."
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
    costs = {key: [[trial.user_attrs[key] for trial in those if key in trial.user_attrs] for those in (full, pruned)] for key in (EPOCHS, SECONDS)}
    if all(costs[EPOCHS]):
        (long, short), (slow, quick) = ([statistics.mean(those) for those in costs[key]] for key in (EPOCHS, SECONDS))
        lines.append(f"cost  a pruned trial {short:.1f} epochs and {quick:.1f} s, one to its end {long:.1f} epochs and {slow:.1f} s")
    return lines
