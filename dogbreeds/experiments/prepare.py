"""All that an attempt needs before it trains."""

import gc
import logging
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dogbreeds.core.console import quiet_stderr
from dogbreeds.data.dataset import Dataset
from dogbreeds.evaluation.results import ZeroShotBaseline
from dogbreeds.experiments.run import Run
from dogbreeds.models.model import Backbone
from dogbreeds.models.network import Network, assemble
from dogbreeds.tracking.records import Parent, Record
from dogbreeds.training import preflight
from dogbreeds.training.baseline import Nothing
from dogbreeds.training.batchnorm_statistics import PixelFit
from dogbreeds.training.checkpoint import Checkpoints
from dogbreeds.training.phase import Finetune, Training

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Prepared:
    """All that is there before the first step."""

    run: Run
    dataset: Dataset
    checkpoints: Checkpoints
    network: Network
    facts: dict[str, str]
    parent: Parent | None
    untrained: ZeroShotBaseline
    untrained_network: Network | None
    fit: PixelFit | None
    findings: list[preflight.Finding]
    started: float

    @property
    def native(self) -> bool | None:
        """Whether the pixels are the backbone's own; None where that cannot be told."""
        if self.fit is None or not self.fit.remembers:
            return None
        return not any(finding.check == "pixels" and finding.clear for finding in self.findings)


def _prepare(
    run: Run, dataset: Dataset, checkpoints: Checkpoints, unfinished: Record | None, started: float
) -> _Prepared:
    backbone, network, fit, findings = assembled(run, dataset)
    facts = {"model.fingerprint": backbone.fingerprint, "data.fingerprint": dataset.fingerprint}
    parent = None
    if isinstance(run.phase, Finetune):
        wanted = run.phase.parent if unfinished is None else unfinished.tags.get("parent", run.phase.parent)
        parent = _go_on_from_parent(run, wanted, facts, network)
    untrained, untrained_network = untrained_of(run, backbone, network, parent, dataset.class_names)
    return _Prepared(
        run, dataset, checkpoints, network, facts, parent, untrained, untrained_network, fit, findings, started
    )


def assembled(run: Run, dataset: Dataset) -> tuple[Backbone, Network, PixelFit | None, list[preflight.Finding]]:
    """The backbone, the network on it with a new head, and what the preflight found; what can be refused before anything is spent is refused
    here, the cheapest first."""
    for note in dataset.notes:
        log.warning(note)
    log.info(_headline(run, dataset))
    findings = run.preflight.check_data(dataset)
    run.preflight.report(findings)

    first = "tensorflow" not in sys.modules
    with quiet_stderr():
        import keras
        import tensorflow as tf

        # Looked for now, while remarks on their absence are held back
        for gpu in tf.config.list_physical_devices("GPU"):
            # Other jobs may share it
            tf.config.experimental.set_memory_growth(gpu, True)
    if first:
        # What has been imported stays: looking for garbage among it took most of the time before a further job's first
        # epoch
        gc.freeze()
    # Before TensorFlow begins to use the devices
    replicas = run.strategy.build()
    # Jobs of a sweep share a process
    keras.backend.clear_session()
    keras.config.set_dtype_policy("float32")
    keras.utils.set_random_seed(run.seed)
    backbone = run.model.build(run.seed)
    fit = run.preflight.fit(backbone, dataset, run.data, run.features.store())
    if fit is not None:
        log.info(preflight.said(fit, run.preprocessing.mode))
        mismatches = preflight.judge(fit, run.preprocessing.mode, run.model.pixels)
        run.preflight.report(mismatches)
        findings += mismatches
    plan = run.unfreeze.plan(backbone.blocks)
    classes = len(dataset.class_names)
    # Again: whether the backbone was built just now or in an earlier job makes no difference
    keras.utils.set_random_seed(run.seed)
    network = assemble(
        backbone,
        run.preprocessing,
        plan,
        lambda features: run.head.build(features, classes, _head_seed(run.seed)),
        replicas,
    )
    return backbone, network, fit, findings


def untrained_of(
    run: Run, backbone: Backbone, network: Network, parent: Parent | None, class_names: Sequence[str]
) -> tuple[ZeroShotBaseline, Network | None]:
    """The zero-training baseline and the network that it is yet to be measured by, or a fine-tune's, which its frozen attempt has measured."""
    if parent is not None:
        sizes = {split: len(predictions.ids) for split, predictions in parent.predictions.items()}
        return run.baseline.inherit(parent.baseline_said, parent.baseline, sizes, class_names), None
    # A range test has no result that could be held against it
    wanted = run.baseline if isinstance(run.phase, Training) else Nothing()
    return wanted.build(run.model, backbone, run.preprocessing, network, class_names)


def _head_seed(seed: int) -> int:
    return int(np.random.SeedSequence([seed, 1]).generate_state(1)[0] >> 2)


def _headline(run: Run, dataset: Dataset) -> str:
    sizes = ", ".join(f"{len(split.rows):,} {name}" for name, split in dataset.splits.items())
    return (
        f"{run.model.architecture} at {run.model.image_size} px on {dataset.name}: {len(dataset.class_names)} breeds,"
        f" {sizes} photos"
    )


def _go_on_from_parent(run: Run, wanted: str | None, facts: dict[str, str], network: Network) -> Parent:
    """Gives the head the weights of the frozen attempt that is wanted, or that matches."""
    head = {name: value for name, value in run.parameters().items() if name.split(".")[0] == "head"}
    pixels = {
        "preprocessing.mode": run.preprocessing.mode,
        "data.resize": run.data.resize,
        "model.image_size": run.model.image_size,
    }
    with tempfile.TemporaryDirectory() as folder:
        parent = run.tracking.parent(wanted, facts | head | pixels, run.seed, Path(folder))
        network.head.load_weights(parent.head)
    return parent
