"""The command `python -m dogbreeds.soup`: the average of the weights of fine-tunes of one parent, as a run."""

import logging
from dataclasses import dataclass, fields
from typing import Any

import hydra
from omegaconf import DictConfig

from dogbreeds import cli
from dogbreeds.core import signals
from dogbreeds.core.paths import config_folder
from dogbreeds.core.spec import Spec, boolean, text, texts
from dogbreeds.experiments import soup_members
from dogbreeds.experiments.plugins import import_plugins, named_plugins
from dogbreeds.training.phase import soup_interpolations, soup_method

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Settings(Spec):
    """Settings of the command.

    Attributes:
        members: the fine-tunes, by the beginnings of their ids; none for all of one parent.
        parent: beginning of the id of their parent; None for that of the best fine-tune.
        method: `greedy` or `uniform`.
        interpolations: steps from the parent to the soup.
        refit: whether the saved network averages the fine-tunes trained again, on training and validation images.
    """

    group = ""
    members: tuple[str, ...] = texts(example="[3f2a9c41,8d01b7e2]")
    parent: str | None = text(example="3f2a9c41", optional=True)
    method: str = soup_method()
    interpolations: int = soup_interpolations()
    refit: bool = boolean()


@hydra.main(version_base="1.3", config_path=str(config_folder()), config_name="soup")
@cli.job
def task(config: DictConfig) -> None:
    """Find the members, and run the soup."""
    values: dict[str, Any] = {field.name: cli.typed_value(config, field.name) for field in fields(Settings)}
    settings = Settings(**values | {"members": _listed(values["members"])})
    plugins = named_plugins(config)
    import_plugins(plugins)
    run, origin = soup_members.compose_from(
        config,
        settings.members,
        settings.parent,
        method=settings.method,
        interpolations=settings.interpolations,
        refit=settings.refit,
    )
    log.info("run '%s'", origin.name)
    # Imports much. Errors of the settings should not wait for it.
    from dogbreeds.experiments.attempt import execute

    with signals.job_scope():
        execute(run, origin)


def _listed(members: Any) -> Any:
    """Return ids as a list of strings: Hydra reads one of digits alone as a number."""
    return [] if members is None else list(map(str, members)) if isinstance(members, (list, tuple)) else members


if __name__ == "__main__":
    cli.main(task, "soup", resumable=True)
