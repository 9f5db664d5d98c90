"""The command `python -m dogbreeds.audit data=…`: what is wrong with these images."""

from dataclasses import dataclass
from pathlib import Path

import hydra
from omegaconf import DictConfig

from dogbreeds import cli
from dogbreeds.core import signals
from dogbreeds.core.paths import config_folder, home
from dogbreeds.core.spec import Spec, path
from dogbreeds.experiments.audit import FILES, audit_dataset, write
from dogbreeds.experiments.compose import from_config
from dogbreeds.features.cache import FeatureCache
from dogbreeds.reports import audit_page


@dataclass(frozen=True, kw_only=True)
class Settings(Spec):
    """Settings of the command.

    Attributes:
        output: folder of the table and the page; None for `multirun/audit`.
    """

    group = ""
    output: str | None = path(example="audit", optional=True)


@hydra.main(version_base="1.3", config_path=str(config_folder()), config_name="audit")
@cli.job
def task(config: DictConfig) -> None:
    """Audit the images, and write the table and the page."""
    settings = Settings(output=config.output)
    run = from_config(config)
    folder = Path(settings.output).expanduser() if settings.output else home() / "multirun/audit"
    with signals.job_scope():
        try:
            audit, images = audit_dataset(run)
            write(audit, images, folder)
        finally:
            FeatureCache.release()
    print(audit_page.as_text(audit), end="")
    for name in reversed(FILES):
        print(folder / name)


if __name__ == "__main__":
    cli.main(task, "audit", resumable=True)
