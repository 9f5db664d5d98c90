"""The command `python -m dogbreeds.probe models=[…] data=…`: which backbone suits these images."""

from dataclasses import dataclass, fields

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from dogbreeds import cli
from dogbreeds.core import signals
from dogbreeds.core.paths import config_folder
from dogbreeds.data.corrections import open_corrected
from dogbreeds.evaluation.backbone_probe import BackboneProbe
from dogbreeds.experiments.backbone_probe import probe_backbones
from dogbreeds.experiments.isolation import process_state_restored
from dogbreeds.experiments.probe_models import Probe, ProbeModels, compose_models, probe_origin
from dogbreeds.experiments.probe_recording import recorded
from dogbreeds.features.cache import FeatureCache
from dogbreeds.reports import probe_rendering
from dogbreeds.reports.output import Output


@dataclass(frozen=True, kw_only=True)
class Settings(ProbeModels, Output):
    """Settings of the command."""


@hydra.main(version_base="1.3", config_path=str(config_folder()), config_name="probe")
@cli.job
def task(config: DictConfig) -> None:
    """Probe the backbones, print or write the table, and record it."""
    overrides = HydraConfig.get().overrides.task
    own = OmegaConf.masked_copy(config, [field.name for field in fields(Settings)])
    settings = Settings(**OmegaConf.to_object(own))  # type: ignore[arg-type]
    sample = Probe.of(config)
    models = compose_models(settings.models, overrides)
    origin = probe_origin(config, overrides, models)
    with signals.job_scope(), process_state_restored():
        try:
            dataset = open_corrected(models[0].run.data)
            with recorded(models, origin) as record:
                probe = probe_backbones(models, sample.images, dataset)
                # Before it is recorded: the server may be away.
                settings.write_result(_render(probe, settings), "probe")
                record(probe)
        finally:
            FeatureCache.release()


def _render(probe: BackboneProbe, settings: Settings) -> str:
    if settings.format == "html":
        return probe_rendering.as_html(probe)
    if settings.format == "csv":
        return probe_rendering.as_csv(probe)
    if settings.format == "markdown":
        return probe_rendering.as_markdown(probe)
    return probe_rendering.as_text(probe, settings.terminal_width)


if __name__ == "__main__":
    cli.main(task, "probe", resumable=True)
