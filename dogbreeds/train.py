"""The command: `python -m dogbreeds.train`. It only wires: config -> Run -> attempt -> objective."""

import hydra
from omegaconf import DictConfig

from dogbreeds import cli
from dogbreeds.core.paths import home
from dogbreeds.experiments import launcher
from dogbreeds.experiments.compose import _composition, from_config


@hydra.main(version_base="1.3", config_path=str(home() / "conf"), config_name="train")
def task(config: DictConfig) -> float:
    """One job; returns the best validation accuracy, for sweepers."""
    launcher.arrive()
    run = from_config(config)
    from dogbreeds.experiments.attempt import execute

    return execute(run, _composition(config, run)).objective


if __name__ == "__main__":
    cli.main(task, "train", goes_on=True)
