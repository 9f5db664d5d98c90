"""Recipes of several runs: a frozen run, fine-tunes that start from it, and the soup of them, below one MLflow run.

A run that has finished is taken over, as in a sweep, and an interrupted one is resumed.
"""

import contextlib
import dataclasses
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from dogbreeds.core import signals
from dogbreeds.core.countdown import Countdown
from dogbreeds.core.errors import UserError
from dogbreeds.core.spec import Spec, integer, one_of, texts
from dogbreeds.experiments import soup_members
from dogbreeds.experiments.ablation_runs import replace_overrides
from dogbreeds.experiments.compose import RECIPE, compose_config, from_config, job_config
from dogbreeds.experiments.plugins import named_plugins
from dogbreeds.experiments.result import Result, Skipped
from dogbreeds.experiments.run_name import run_name
from dogbreeds.experiments.sweep import sweep_origin
from dogbreeds.tracking.lifecycle import close_orphaned_runs, end_run_on_exit, resume_run, start_run
from dogbreeds.tracking.mlflow_backend import Mlflow
from dogbreeds.tracking.records import RANKING_METRIC, SWEEP_RUN_ENV, Record, RunOrigin, short

log = logging.getLogger(__name__)

# Settings that the stages of a recipe choose.
_CHOSEN_BY_STAGES = ("phase", "attempt")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe(Spec):
    """A recipe of several runs.

    Attributes:
        shared: overrides of all its runs.
        probe: further ones of the frozen run.
        finetune: further ones of each fine-tune.
        runs: further ones of one fine-tune each, separated by spaces.
        soup: method of the soup, as of `phase.Soup`.
        interpolations: of the soup.
    """

    group = "recipe"
    shared: tuple[str, ...] = texts(example="[head=logistic]")
    probe: tuple[str, ...] = texts(example="[phase=frozen]")
    finetune: tuple[str, ...] = texts(example="[phase=finetune]")
    runs: tuple[str, ...] = texts(example="[optimizer.lr=1e-4,optimizer.lr=3e-4]")
    soup: str = one_of("greedy", "uniform")
    interpolations: int = integer(at_least=0, at_most=100, example=10)

    @classmethod
    def of(cls, config: DictConfig) -> "Recipe | None":
        """Return the recipe of several runs that a config names; None if it names none, or one of a single run.

        Raises:
            UserError: a value or a setting is not allowed.
        """
        if RECIPE not in config:
            return None
        values: Any = OmegaConf.to_container(config[RECIPE], resolve=True)
        names = [field.name for field in dataclasses.fields(cls)]
        wrong = [name for name in (values if isinstance(values, dict) else {"": 0}) if name not in names]
        if wrong or len(values) < len(names):
            raise UserError(
                f"recipe was {values!r}. It must have the settings {', '.join(names)} alone, each once. Type"
                " recipe=fast, or recipe=best."
            )
        runs = [" ".join(run) if isinstance(run, list) else run for run in values["runs"]]
        return cls(**values | {"runs": runs})


def run_recipe(config: DictConfig, recipe: Recipe) -> float:
    """Run all stages of a recipe, in a Hydra job; return the validation accuracy of its network, for sweepers.

    Args:
        config: config of the job.
        recipe: the recipe.

    Raises:
        UserError: with tracking=none, or a phase; or as the runs raise it.
    """
    hydra_config = HydraConfig.get()
    overrides = hydra_config.overrides.task
    choice = hydra_config.runtime.choices[RECIPE]
    for override in overrides:
        if override.lstrip("+").split("=")[0] in _CHOSEN_BY_STAGES:
            raise UserError(
                f"{override} was given with recipe={choice}, which has runs of several phases. Its file in conf/recipe/"
                " has their settings. Leave one of the two out: type recipe=fast, or no recipe."
            )
    typed = [override for override in overrides if not re.match(rf"\+*{RECIPE}[.=]", override)]
    stages = _Stages(config, recipe, typed)
    origin = sweep_origin(job_config(config), tuple(overrides), Path(hydra_config.runtime.output_dir), stages.plugins)
    others = " ".join(override for override in typed if "/" not in override)[:120]
    origin = dataclasses.replace(origin, name=f"recipe {choice} {others}".strip())
    log.info(origin.name)
    with _parent_run(stages.tracking, origin) as run_id:
        final = stages.run()
        # Nested runs belong to the recipe from here on only.
        accuracy = final.metrics.get(RANKING_METRIC, 0.0)
        client, _ = stages.tracking.connect()
        client.log_metric(run_id, RANKING_METRIC, accuracy)
        client.set_tag(run_id, "best_run", final.run_id)
    # A sweep around the recipe compares the networks that its recipes end with.
    stages.tracking.reuse(final, origin)
    log.info("the network of the recipe is that of run %s: type run=%s", short(final.run_id), short(final.run_id))
    return accuracy


class _Stages:
    """The runs of a recipe."""

    def __init__(self, config: DictConfig, recipe: Recipe, typed: Sequence[str]):
        self._recipe = recipe
        self._typed = typed
        self._folder = Path(HydraConfig.get().runtime.output_dir)
        self._config = config
        self.plugins = named_plugins(config)
        # Checks the settings of all runs before the first one begins.
        probe = self._compose(recipe.probe)[0]
        for number in range(len(recipe.runs)):
            self._compose(self._finetune(number))
        if not isinstance(probe.tracking, Mlflow):
            raise UserError(
                "tracking=none was given with a recipe of several runs. They find each other in MLflow. Type"
                " tracking=mlflow, or recipe=fast."
            )
        self.tracking: Mlflow = probe.tracking

    def run(self) -> Record:
        """Run all stages, and return the record of the last one."""
        countdown = Countdown("runs", len(self._recipe.runs) + 2)
        probe = self._execute("frozen", self._recipe.probe)
        countdown.advance()
        members = []
        for number in range(len(self._recipe.runs)):
            parent = f"phase.parent='{probe.run_id}'"
            members.append(self._execute(f"fine-tune {number + 1}", [*self._finetune(number), parent]))
            countdown.advance()
        distinct = list({record.run_id: record for record in members}.values())
        final = self._soup(distinct) if len(distinct) > 1 else distinct[0] if distinct else probe
        countdown.advance()
        return final

    def _soup(self, members: Sequence[Record]) -> Record:
        found = soup_members.find(self.tracking, [record.run_id for record in members], None, soup_members.ANY)
        log.info("--- %s soup of %d fine-tunes", self._recipe.soup, len(found))
        run, origin = soup_members.compose(
            self.tracking,
            found,
            self._config,
            method=self._recipe.soup,
            interpolations=self._recipe.interpolations,
        )
        # The networks of its members are there already; its own is the one to keep.
        return self._recorded(dataclasses.replace(run, tracking=self._saving(run.tracking)), origin)

    def _execute(self, name: str, changes: Sequence[str]) -> Record:
        run, origin = self._compose(changes)
        log.info("--- %s: %s", name, origin.name)
        return self._recorded(run, origin)

    def _recorded(self, run: Any, origin: RunOrigin) -> Record:
        from dogbreeds.experiments.attempt import execute

        # Range tests are no part of a recipe, and only searches prune.
        return self.tracking.record(cast("Result | Skipped", execute(run, origin)).run_id)

    def _finetune(self, number: int) -> list[str]:
        return [*self._recipe.finetune, *self._recipe.runs[number].split()]

    def _compose(self, changes: Sequence[str]) -> tuple[Any, RunOrigin]:
        """Return a run of the recipe, and what it was composed from. What was typed wins over the recipe."""
        stage = replace_overrides(self._recipe.shared, changes)
        overrides = replace_overrides(stage, self._typed)
        config = compose_config("train", overrides, with_hydra=True)
        choices: Mapping[str, str] = {
            group: option
            for group, option in config.hydra.runtime.choices.items()
            if option and not group.startswith("hydra")
        }
        own = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
        run = from_config(own)
        run = dataclasses.replace(run, tracking=self._saving(run.tracking))
        named = {group: option for group, option in choices.items() if group in ("model", "data")}
        name = run_name(choices, overrides)
        return run, RunOrigin(OmegaConf.to_yaml(own), tuple(overrides), name, self._folder, choices=named)

    @staticmethod
    def _saving(tracking: Any) -> Any:
        """Return a tracking that saves the network of each run, since the soup averages them."""
        return dataclasses.replace(tracking, model="all") if isinstance(tracking, Mlflow) else tracking


@contextlib.contextmanager
def _parent_run(tracking: Mlflow, origin: RunOrigin) -> Iterator[str]:
    """Open the run that the runs of the body are nested below, below that of a sweep if there is one; yield its id."""
    client, experiment_id = tracking.connect()
    close_orphaned_runs(client, experiment_id)
    outer = os.environ.get(SWEEP_RUN_ENV)
    same = client.search_runs([experiment_id], f"tags.identity = '{origin.identity}'") if origin.identity else []
    ended = [run for run in same if run.info.status != "RUNNING"]
    with contextlib.ExitStack() as stack:
        # A signal is raised at the end of the block, where it ends the run.
        with signals.deferred():
            if ended:
                run = resume_run(client, ended[0].info.run_id, origin, outer)
            else:
                run = start_run(client, experiment_id, origin, outer)
            stack.enter_context(end_run_on_exit(client, run.info.run_id))
        os.environ[SWEEP_RUN_ENV] = run.info.run_id
        try:
            yield run.info.run_id
        finally:
            if outer is None:
                del os.environ[SWEEP_RUN_ENV]
            else:
                os.environ[SWEEP_RUN_ENV] = outer
