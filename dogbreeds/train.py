"""The command: `python -m dogbreeds.train`. It only wires: config -> Run -> attempt -> objective."""

from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from dogbreeds import command
from dogbreeds.run import from_config
from dogbreeds.spec import home
from dogbreeds.tracking import Composition


@hydra.main(version_base="1.3", config_path=str(home() / "conf"), config_name="train")
def task(config: DictConfig) -> float:
    """One job; returns the best validation accuracy, for sweepers."""
    run = from_config(config)
    from dogbreeds.attempt import execute

    return execute(run, _composition(config)).objective


def _composition(config: DictConfig) -> Composition:
    hydra_config = HydraConfig.get()
    overrides = tuple(hydra_config.overrides.task)
    choices = hydra_config.runtime.choices
    others = [item for item in overrides if not item.startswith(("model=", "phase="))]
    name = " ".join([choices["model"], choices["phase"], *others])
    return Composition(OmegaConf.to_yaml(config), overrides, name[:250], Path(hydra_config.runtime.output_dir))


if __name__ == "__main__":
    command.main(task)
