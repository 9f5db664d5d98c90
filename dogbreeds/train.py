"""Command `python -m dogbreeds.train`: run an attempt, a sweep of them, or a search."""

import logging
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from dogbreeds import cli
from dogbreeds.core import signals
from dogbreeds.core.paths import config_folder
from dogbreeds.experiments import launcher
from dogbreeds.experiments.compose import from_config, run_origin
from dogbreeds.experiments.recipe import Recipe, run_recipe

log = logging.getLogger(__name__)


@hydra.main(version_base="1.3", config_path=str(config_folder()), config_name="train")
@cli.job
def task(config: DictConfig) -> float:
    """Run one attempt, and return its objective for sweepers."""
    launcher.enter_job()
    recipe = Recipe.of(config)
    if recipe is not None:
        with signals.job_scope():
            hydra_config = HydraConfig.get()
            folder = Path(hydra_config.runtime.output_dir)
            return run_recipe(config, recipe, hydra_config.overrides.task, folder=folder).objective
    run = from_config(config)
    origin = run_origin(config, run)
    log.info("run '%s'", origin.name)
    # Imports much. Neither the first line nor errors of the config should wait for it.
    from dogbreeds.experiments.attempt import execute

    with signals.job_scope():
        return execute(run, origin).objective


if __name__ == "__main__":
    cli.main(task, "train", resumable=True)
