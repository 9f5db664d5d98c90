"""Command `python -m dogbreeds.train`: run an attempt, a sweep of them, or a search."""

import hydra
from omegaconf import DictConfig

from dogbreeds import cli
from dogbreeds.core import signals
from dogbreeds.core.paths import config_folder
from dogbreeds.experiments import launcher
from dogbreeds.experiments.compose import from_config, run_origin


@hydra.main(version_base="1.3", config_path=str(config_folder()), config_name="train")
@cli.job
def task(config: DictConfig) -> float:
    """Run one attempt, and return its objective for sweepers."""
    launcher.enter_job()
    run = from_config(config)
    # Imports much, and errors of the config should not wait for it.
    from dogbreeds.experiments.attempt import execute

    with signals.job_scope():
        return execute(run, run_origin(config, run)).objective


if __name__ == "__main__":
    cli.main(task, "train", resumable=True)
