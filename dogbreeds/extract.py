"""The command `python -m dogbreeds.extract`: what the attempts to come will keep is computed beforehand, by one job or by many.

Any launcher runs the shards as jobs. They write nothing but kept arrays; whoever needs one of these first, an attempt or this command without
shards, joins its shards. Nothing is recorded in MLflow.
"""

import logging
import time

import hydra
from omegaconf import DictConfig

from dogbreeds import command, interruption, launcher
from dogbreeds.features import ALL, Share
from dogbreeds.kept import Store
from dogbreeds.phase import Finetune, Training
from dogbreeds.run import Run, from_config
from dogbreeds.spec import home

log = logging.getLogger(__name__)


@hydra.main(version_base="1.3", config_path=str(home() / "conf"), config_name="extract")
def task(config: DictConfig) -> None:
    """One shard, or all that is still missing."""
    launcher.arrive()
    share, run = Share(shards=config.shards, shard=config.shard), from_config(config)
    with interruption.job():
        try:
            extract(run, share)
        finally:
            Store.release()


def extract(run: Run, share: Share) -> None:
    """Computes a share of the kept arrays that an attempt with these settings would compute.

    Raises:
        Missing, Refused: as the attempt, of what is looked at before it trains.
    """
    started = time.perf_counter()
    run.baseline.weights_file()
    dataset = run.data.open()  # what can be refused without TensorFlow is refused before it is imported

    from dogbreeds.attempt import assembled, untrained_of
    from dogbreeds.shown import Shown

    backbone, network, _, _ = assembled(run, dataset)
    shown = Shown(run, dataset, network)
    epochs = run.phase.epochs if isinstance(run.phase, Training) else 1
    for epoch in range(min(epochs, max(1, run.augment.views()))):
        shown.compute(dataset.train, share, epoch)
    judged = [split for name, split in dataset.splits.items() if name != "train" and isinstance(run.phase, Training)]
    for split in judged:
        shown.compute(split, share)
    untrained = None if isinstance(run.phase, Finetune) else untrained_of(run, backbone, network, None, dataset.class_names).network
    if untrained is not None:  # a fine-tune inherits what its frozen attempt measured
        for split in judged:
            Shown(run, dataset, untrained).compute(split, share)
    part = "all" if share == ALL else f"shard {share.shard} of {share.shards}"
    log.info("%s is kept in %s, after %.1f s", part, run.features.store().root, time.perf_counter() - started)


if __name__ == "__main__":
    command.main(task, "extract", goes_on=True)
