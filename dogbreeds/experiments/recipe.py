"""Recipes of several runs: frozen runs, fine-tunes that start from the best one, and their soup, below one MLflow run.

A run that has finished is taken over, as in a sweep, and an interrupted one is resumed.
"""

import contextlib
import dataclasses
import logging
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from omegaconf import DictConfig, OmegaConf

from dogbreeds.core import signals
from dogbreeds.core.countdown import Countdown
from dogbreeds.core.errors import UserError
from dogbreeds.core.spec import Spec, boolean, one_of
from dogbreeds.core.text import counted
from dogbreeds.experiments import soup_members
from dogbreeds.experiments.ablation_runs import replace_overrides
from dogbreeds.experiments.compose import RECIPE, compose_run, job_config, settings_of
from dogbreeds.experiments.plugins import named_plugins
from dogbreeds.experiments.python_runs import with_dataset
from dogbreeds.experiments.result import Result, Skipped
from dogbreeds.experiments.sweep import sweep_origin
from dogbreeds.tracking.lifecycle import end_run_on_exit, find_ended_run, resume_or_start_run
from dogbreeds.tracking.mlflow_backend import Mlflow
from dogbreeds.tracking.records import RANKING_METRIC, SWEEP_RUN_ENV, RunOrigin, short
from dogbreeds.training.phase import soup_interpolations, soup_method

if TYPE_CHECKING:
    from dogbreeds.data.dataset import Dataset

log = logging.getLogger(__name__)

# Settings that the stages of a recipe choose.
_CHOSEN_BY_STAGES = ("phase", "attempt")
# The head that fine-tunes start from: the most regularised one within one standard error of the best on validation, or
# that one.
ONE_STANDARD_ERROR, BEST = "one_standard_error", "best"
STARTS = (ONE_STANDARD_ERROR, BEST)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choices(Spec):
    """The settings of a recipe that are no lists of overrides.

    Attributes:
        start: which head of a logistic regression the fine-tunes start from, one of `STARTS`. One whose loss is near 0
            leaves them nothing to learn but noise: with it, they were worse than the frozen network.
        soup: method of the soup, as of `phase.Soup`.
        interpolations, refit: of the soup.
    """

    group = RECIPE
    start: str = one_of(*STARTS)
    soup: str = soup_method()
    interpolations: int = soup_interpolations()
    refit: bool = boolean()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """A recipe of several runs.

    Attributes:
        shared: overrides of all its runs.
        probes: further ones of one frozen run each. Fine-tunes start from the best on validation.
        finetune: further ones of each fine-tune, which has those of that frozen run, too.
        runs: further ones of one fine-tune each.
        choices: the other settings.
    """

    shared: list[str]
    probes: list[list[str]]
    finetune: list[str]
    runs: list[list[str]]
    choices: Choices

    @classmethod
    def of(cls, config: DictConfig) -> "Recipe | None":
        """Return the recipe of several runs that a config names; None if it names none, or one of a single run.

        Raises:
            UserError: a value or a setting is not allowed.
        """
        if RECIPE not in config:
            return None
        choices = [field.name for field in dataclasses.fields(Choices)]
        names = ["shared", "probes", "finetune", "runs", *choices]
        values: Any = settings_of(config, RECIPE, *names)
        plain: dict[str, Any] = {
            name: OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
            for name, value in values.items()
        }
        missing = [name for name in names if name not in plain]
        if missing:
            raise UserError(
                f"recipe.{missing[0]} was not given. A recipe of several runs has the settings {', '.join(names)}. Type"
                " recipe=best, whose file sets them, or recipe=fast."
            )
        return cls(
            shared=_overrides("shared", plain["shared"]),
            probes=_of_runs("probes", plain["probes"]),
            finetune=_overrides("finetune", plain["finetune"]),
            runs=_of_runs("runs", plain["runs"]),
            choices=Choices(**{name: plain[name] for name in choices}),
        )


def _of_runs(name: str, value: Any) -> list[list[str]]:
    """Return the overrides of each run, which a file has under the run's name."""
    return [_overrides(name, run) for run in (value.values() if isinstance(value, dict) else [value])]


def _overrides(name: str, value: Any) -> list[str]:
    """Return overrides, which a file may group under names, as one list."""
    groups = list(value.values()) if isinstance(value, dict) else [value]
    flat = [override for group in groups for override in (group if isinstance(group, list) else [group])]
    if not all(isinstance(override, str) and re.match(r"[\w./+]+=", override) for override in flat):
        raise UserError(
            f"recipe.{name} was {value!r}. It must be lists of settings as they are typed, of fine-tunes each under a"
            " name. Type recipe=best, or edit its file in conf/recipe/."
        )
    return flat


def named_recipe(overrides: Sequence[str]) -> str:
    """Return the recipe that overrides name, as they were typed; empty if they name none."""
    named = [override.partition("=")[2] for override in overrides if re.match(rf"\+*{RECIPE}=", override)]
    return named[-1] if named else ""


def run_recipe(
    config: DictConfig,
    recipe: Recipe,
    overrides: Sequence[str],
    *,
    folder: Path | None = None,
    sources: Sequence[str] | None = None,
    dataset: "Dataset | None" = None,
) -> Result | Skipped:
    """Run all stages of a recipe; return the ending of the run whose network is best on validation.

    Args:
        config: composed config with the recipe.
        recipe: the recipe.
        overrides: what the config was composed from, as they were typed.
        folder: folder of Hydra's own files; None without one.
        sources: where to find configs besides `conf/`, as for `compose_config`.
        dataset: data of all runs; None opens that of the settings.

    Raises:
        UserError: with tracking=none, or a phase; or as the runs raise it.
    """
    choice = named_recipe(overrides)
    for override in overrides:
        if override.lstrip("+").split("=")[0] in _CHOSEN_BY_STAGES:
            raise UserError(
                f"{override} was given with recipe={choice}, which has runs of several phases. Its file in conf/recipe/"
                " has their settings. Leave one of the two out: type recipe=fast, or no recipe."
            )
    typed = [override for override in overrides if not re.match(rf"[+~]*{RECIPE}[.=]", override)]
    stages = _Stages(config, recipe, typed, folder, sources, dataset)
    origin = sweep_origin(job_config(config), tuple(overrides), folder, stages.plugins)
    others = " ".join(override for override in typed if "/" not in override)[:120]
    origin = dataclasses.replace(origin, name=f"recipe {choice} {others}".strip())
    log.info(origin.name)
    with _parent_run(stages.tracking, origin) as run_id:
        final = stages.run()
        # Nested runs belong to the recipe from here on only.
        client, _ = stages.tracking.connect()
        client.log_metric(run_id, RANKING_METRIC, final.objective)
        client.set_tag(run_id, "best_run", final.run_id)
    # A sweep around the recipe compares the networks that its recipes end with.
    stages.tracking.reuse(stages.tracking.record(final.run_id), origin)
    log.info("the network of the recipe is that of run %s: type run=%s", short(final.run_id), short(final.run_id))
    return final


class _Stages:
    """The runs of a recipe."""

    def __init__(
        self,
        config: DictConfig,
        recipe: Recipe,
        typed: Sequence[str],
        folder: Path | None,
        sources: Sequence[str] | None,
        dataset: "Dataset | None",
    ):
        self._recipe = recipe
        self._typed = typed
        self._folder = folder
        self._sources = sources
        self._dataset = dataset
        self._config = config
        self.plugins = named_plugins(config)
        # Checks the settings of all runs before the first one begins.
        probe, *_ = [self._compose(changes)[0] for changes in recipe.probes]
        for changes in recipe.probes:
            for run in recipe.runs:
                self._compose(self._finetune(changes, run))
        if not isinstance(probe.tracking, Mlflow):
            raise UserError(
                "tracking=none was given with a recipe of several runs. They find each other in MLflow. Type"
                " tracking=mlflow, or recipe=fast."
            )
        self.tracking: Mlflow = probe.tracking

    def run(self) -> Result | Skipped:
        """Run all stages; return what is best on validation, of equals the first."""
        countdown = Countdown("runs", len(self._recipe.probes) + len(self._recipe.runs) + bool(self._recipe.runs))
        probes = []
        for number, changes in enumerate(self._recipe.probes, 1):
            probes.append(self._execute(f"frozen {number}", changes))
            countdown.advance()
        number = max(range(len(probes)), key=lambda each: probes[each].objective)
        probe = probes[number]
        start, changes = self._start(probe, self._recipe.probes[number])
        members = []
        for number, run in enumerate(self._recipe.runs, 1):
            parent = f"phase.parent='{start.run_id}'"
            members.append(self._execute(f"fine-tune {number}", [*self._finetune(changes, run), parent]))
            countdown.advance()
        distinct = list({member.run_id: member for member in members}.values())
        if not distinct:
            return probe
        final = self._soup(distinct)
        countdown.advance()
        best = max((probe, final), key=lambda each: each.objective)
        if best is probe:
            log.info("no fine-tune, and no soup of them, is better on validation than the frozen network")
        return best

    def _start(self, probe: Result | Skipped, changes: list[str]) -> tuple[Result | Skipped, list[str]]:
        """Return the frozen run that the fine-tunes start from, and its changes: the probe, or with another `C`."""
        from dogbreeds.evaluation.logistic_regression import within_one_standard_error

        if self._recipe.choices.start == BEST:
            return probe, changes
        strengths = self.tracking.history(probe.run_id, "C")
        # Another head has no path of `C`.
        if not strengths:
            return probe, changes
        accuracies = self.tracking.history(probe.run_id, "val/accuracy")
        n = len(self.tracking.predictions(probe.run_id)["val"].labels)
        chosen = strengths[within_one_standard_error(accuracies, n)]
        if chosen == self.tracking.record(probe.run_id).metrics["best/C"]:
            return probe, changes
        changes = replace_overrides(changes, [f"head.C={chosen:.3g}"])
        return self._execute("start of the fine-tunes", changes), changes

    def _soup(self, members: Sequence[Result | Skipped]) -> Result | Skipped:
        found = soup_members.find(self.tracking, [member.run_id for member in members], None, soup_members.ANY)
        choices = self._recipe.choices
        log.info("--- %s soup of %s", choices.soup, counted(len(found), "fine-tune"))
        run, origin = soup_members.compose(
            self.tracking,
            found,
            self._config,
            method=choices.soup,
            interpolations=choices.interpolations,
            refit=choices.refit,
        )
        # The networks of its members are there already; its own is the one to keep.
        return self._trained(dataclasses.replace(run, tracking=self._saving(run.tracking)), origin)

    def _execute(self, name: str, changes: Sequence[str]) -> Result | Skipped:
        run, origin = self._compose(changes)
        log.info("--- %s: %s", name, origin.name)
        return self._trained(run, origin)

    def _trained(self, run: Any, origin: RunOrigin) -> Result | Skipped:
        from dogbreeds.experiments.attempt import execute

        # Range tests are no part of a recipe, and only searches prune.
        return cast("Result | Skipped", execute(run, origin, self._dataset))

    def _finetune(self, probe: Sequence[str], run: Sequence[str]) -> list[str]:
        """Return the changes of a fine-tune that starts from the frozen run with the changes `probe`."""
        return replace_overrides(probe, [*self._recipe.finetune, *run])

    def _compose(self, changes: Sequence[str]) -> tuple[Any, RunOrigin]:
        """Return a run of the recipe, and what it was composed from. What was typed wins over the recipe."""
        stage = replace_overrides(self._recipe.shared, changes)
        overrides = replace_overrides(stage, self._typed)
        run = compose_run(overrides, self._sources)
        if self._dataset is not None:
            run = with_dataset(run)
        origin = dataclasses.replace(cast(RunOrigin, run.origin), folder=self._folder)
        return dataclasses.replace(run, tracking=self._saving(run.tracking), origin=origin), origin

    @staticmethod
    def _saving(tracking: Any) -> Any:
        """Return a tracking that saves the network of each run, since the soup averages them."""
        return dataclasses.replace(tracking, model="all") if isinstance(tracking, Mlflow) else tracking


@contextlib.contextmanager
def _parent_run(tracking: Mlflow, origin: RunOrigin) -> Iterator[str]:
    """Open the run that the runs of the body are nested below, below that of a sweep if there is one; yield its id."""
    client, experiment_id = tracking.connect()
    outer = os.environ.get(SWEEP_RUN_ENV)
    ended = find_ended_run(client, experiment_id, origin)
    with contextlib.ExitStack() as stack:
        # A signal is raised at the end of the block, where it ends the run.
        with signals.deferred():
            run_id = resume_or_start_run(client, ended, origin, experiment_id, outer)
            stack.enter_context(end_run_on_exit(client, run_id))
        os.environ[SWEEP_RUN_ENV] = run_id
        try:
            yield run_id
        finally:
            if outer is None:
                del os.environ[SWEEP_RUN_ENV]
            else:
                os.environ[SWEEP_RUN_ENV] = outer
