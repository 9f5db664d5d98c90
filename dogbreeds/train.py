"""The command: `python -m dogbreeds.train`. It only wires: config -> Run -> attempt -> objective."""

from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from dogbreeds import command, launcher
from dogbreeds.record import Composition
from dogbreeds.run import Run, from_config
from dogbreeds.spec import home


@hydra.main(version_base="1.3", config_path=str(home() / "conf"), config_name="train")
def task(config: DictConfig) -> float:
    """One job; returns the best validation accuracy, for sweepers."""
    launcher.arrive()
    run = from_config(config)
    from dogbreeds.attempt import execute

    return execute(run, _composition(config, run)).objective


# What makes an attempt the one it is named after: on which model and photos, with which augmentation and schedule, and for how long is left open.
_DEFINING = ("preprocessing", "head", "unfreeze", "optimizer", "phase.batch_size")


def _composition(config: DictConfig, run: Run) -> Composition:
    hydra_config = HydraConfig.get()
    overrides = tuple(hydra_config.overrides.task)
    choices = {group: option for group, option in hydra_config.runtime.choices.items() if option and not group.startswith("hydra")}
    others = [item for item in overrides if not item.startswith(("model=", "phase=", "attempt="))]
    name = " ".join([choices["model"], choices.get("attempt", choices["phase"]), *others])
    changed = _changed(run, choices) if "attempt" in choices else ()
    sought = {group: option for group, option in choices.items() if group in ("attempt", "model", "data")}
    return Composition(OmegaConf.to_yaml(config), overrides, name[:250], Path(hydra_config.runtime.output_dir), sought, changed)


def _changed(run: Run, choices: dict[str, str]) -> tuple[str, ...]:
    """What the command line made different from the attempt that it names."""
    named = command.composed("train", [f"{group}={choices[group]}" for group in ("attempt", "model", "data")])
    here, there = run.parameters(), from_config(named).parameters()
    return tuple(f"{key}={here[key]}" for key in here if key.startswith(_DEFINING) and here[key] != there.get(key))


if __name__ == "__main__":
    command.main(task, "train", goes_on=True)
