"""Command `python -m dogbreeds.extract`: fill the feature cache for later runs, in one job or in shards.

Any launcher can run the shards as jobs. They write to the feature cache only, and nothing is recorded in MLflow. The
first run that needs the arrays, or this command without shards, joins the shards.
"""

import logging

import hydra
from omegaconf import DictConfig

from dogbreeds import cli
from dogbreeds.core import signals
from dogbreeds.core.paths import config_folder
from dogbreeds.experiments import launcher
from dogbreeds.experiments.compose import from_config
from dogbreeds.experiments.training_inputs import extract_features
from dogbreeds.features.cache import FeatureCache
from dogbreeds.features.features import ShardSpec

log = logging.getLogger(__name__)


@hydra.main(version_base="1.3", config_path=str(config_folder()), config_name="extract")
@cli.job
def task(config: DictConfig) -> None:
    """Compute one shard, or everything that is missing."""
    launcher.enter_job()
    shard_spec = ShardSpec(shards=config.shards, shard=config.shard)
    run = from_config(config)
    log.info("features of %s: shard %d of %d", run.model.architecture, shard_spec.shard, shard_spec.shards)
    with signals.job_scope():
        try:
            extract_features(run, shard_spec)
        finally:
            FeatureCache.release()


if __name__ == "__main__":
    cli.main(task, "extract", resumable=True)
