"""The command `python -m dogbreeds.extract`: what the attempts to come will keep is computed beforehand, by one job or by many.

Any launcher runs the shards as jobs. They write nothing but kept arrays; whoever needs one of these first, an attempt or this command without
shards, joins its shards. Nothing is recorded in MLflow.
"""

import hydra
from omegaconf import DictConfig

from dogbreeds import cli
from dogbreeds.core import signals
from dogbreeds.core.paths import home
from dogbreeds.experiments import launcher
from dogbreeds.experiments.compose import from_config
from dogbreeds.experiments.training_inputs import extract
from dogbreeds.features.cache import FeatureCache
from dogbreeds.features.features import Share


@hydra.main(version_base="1.3", config_path=str(home() / "conf"), config_name="extract")
def task(config: DictConfig) -> None:
    """One shard, or all that is still missing."""
    launcher.arrive()
    share, run = Share(shards=config.shards, shard=config.shard), from_config(config)
    with signals.job():
        try:
            extract(run, share)
        finally:
            FeatureCache.release()


if __name__ == "__main__":
    cli.main(task, "extract", goes_on=True)
