"""Everything that happens before an attempt's first training step."""

import contextlib
import gc
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dogbreeds.core import process
from dogbreeds.core.console import quiet_stderr
from dogbreeds.core.errors import UserError
from dogbreeds.core.source import is_foreign
from dogbreeds.core.spec import AUTO
from dogbreeds.data.dataset import Dataset
from dogbreeds.evaluation.results import ZeroShotBaseline
from dogbreeds.experiments import network_pool
from dogbreeds.experiments.network_pool import PooledNetwork
from dogbreeds.experiments.parents import load_parent
from dogbreeds.experiments.run import Run
from dogbreeds.models.depths import find_depths, with_depths
from dogbreeds.models.model import Backbone
from dogbreeds.models.network import Network
from dogbreeds.tracking.records import Parent, Record
from dogbreeds.training import preflight
from dogbreeds.training.baseline import Nothing
from dogbreeds.training.checkpoint import Checkpoints
from dogbreeds.training.phase import Finetune, Training
from dogbreeds.training.pixel_fit import PixelFit

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Assembly:
    """A backbone, the network on it with a new head, and what the preflight found.

    Attributes:
        backbone: pretrained backbone.
        pooled: the network, which the pool may keep afterwards.
        pixel_fit: how well each pixel convention fits the backbone; None if the preflight is off.
        findings: findings of the preflight so far.
    """

    backbone: Backbone
    pooled: PooledNetwork
    pixel_fit: PixelFit | None
    findings: list[preflight.Finding]

    @property
    def network(self) -> Network:
        """The backbone, cut at the unfreeze policy's block boundary, with a new head."""
        return self.pooled.network

    def facts(self, dataset: Dataset) -> dict[str, str]:
        """Return the fingerprints of backbone and data, by parameter name."""
        return {"model.fingerprint": self.backbone.fingerprint, "data.fingerprint": dataset.fingerprint}


@dataclass(frozen=True)
class PreparedRun:
    """A run that is ready for its first training step.

    Attributes:
        run: settings.
        dataset: opened dataset.
        checkpoints: checkpoints of the run.
        pooled: the network to train, which the pool may keep afterwards.
        facts: fingerprints of backbone and data, by parameter name.
        parent: frozen attempt that a fine-tune starts from; None for other phases.
        baseline: zero-training baseline, without accuracies if `baseline_network` is yet to be measured.
        baseline_network: network that measures the baseline; None if there is nothing to measure.
        pixel_fit: how well each pixel convention fits the backbone; None if the preflight is off.
        findings: findings of the preflight before training.
        started: `time.perf_counter()` at the start of the attempt.
    """

    run: Run
    dataset: Dataset
    checkpoints: Checkpoints
    pooled: PooledNetwork
    facts: dict[str, str]
    parent: Parent | None
    baseline: ZeroShotBaseline
    baseline_network: Network | None
    pixel_fit: PixelFit | None
    findings: list[preflight.Finding]
    started: float

    @property
    def network(self) -> Network:
        """The network to train; its head has the parent's weights in a fine-tune."""
        return self.pooled.network

    @property
    def native(self) -> bool | None:
        """Whether the pixels match the pretrained weights; None if the backbone cannot tell."""
        if any(finding.check == "pixels" and finding.certain for finding in self.findings):
            return False
        # Without BatchNorm, no finding means only that no other convention is better beyond noise.
        return True if self.pixel_fit is not None and self.pixel_fit.has_statistics else None


def prepare(
    run: Run,
    dataset: Dataset,
    checkpoints: Checkpoints,
    unfinished: Record | None,
    started: float,
    assembly: Assembly | None = None,
) -> PreparedRun:
    """Build everything that training needs, and run the preflight.

    Args:
        run: settings.
        dataset: opened dataset.
        checkpoints: checkpoints of the run.
        unfinished: recorded run to resume; a fine-tune keeps that run's parent. None for a new run.
        started: `time.perf_counter()` at the start of the attempt.
        assembly: backbone and network, if they are built already.

    Raises:
        MissingFileError, UserError: if a file is missing, or if settings, weights, pixels or data do not fit.
    """
    assembly = assembly or assemble_network(run, dataset)
    _check_saved_layers(run, assembly.network)
    facts = assembly.facts(dataset)
    parent = None
    if isinstance(run.phase, Finetune):
        parent_id = run.phase.parent if unfinished is None else unfinished.tags.get("parent", run.phase.parent)
        parent = load_parent(run, parent_id, facts, assembly.network)
    baseline, baseline_network = build_baseline(run, assembly.backbone, assembly.network, parent, dataset.class_names)
    return PreparedRun(
        run=run,
        dataset=dataset,
        checkpoints=checkpoints,
        pooled=assembly.pooled,
        facts=facts,
        parent=parent,
        baseline=baseline,
        baseline_network=baseline_network,
        pixel_fit=assembly.pixel_fit,
        findings=assembly.findings,
        started=started,
    )


def assemble_network(run: Run, dataset: Dataset) -> Assembly:
    """Build the network and run the preflight, the cheapest checks first.

    Raises:
        MissingFileError, UserError: if a file is missing, or if settings, weights, pixels or data do not fit.
    """
    for note in dataset.notes:
        log.warning(note)
    log.info(_headline(run, dataset))
    findings = run.preflight.check_data(dataset)
    run.preflight.report(findings)
    if "tensorflow" not in sys.modules:
        log.info("loading TensorFlow and the weights of %s", run.model.architecture)
    _import_tensorflow()

    import keras

    # TensorFlow must not use the devices before the strategy has configured them.
    network_pool.devices(run.strategy)
    keras.config.set_dtype_policy("float32")
    classes = len(dataset.class_names)
    network_pool.set_random_seed(run, classes)
    backbone = run.model.build(run.seed)
    pixel_fit = run.preflight.measure_pixel_fit(backbone, dataset, run.data, run.features.open_cache())
    if pixel_fit is not None:
        log.info(preflight.pixel_fit_line(pixel_fit, run.preprocessing.mode))
        mismatches = preflight.check_pixels(pixel_fit, run.preprocessing.mode, run.model.pixels)
        run.preflight.report(mismatches)
        findings += mismatches
    if len(backbone.blocks) == 1:
        log.info("%s is one block: it has no place to be cut, so all of it is frozen, or none", run.model.architecture)
    return Assembly(backbone, build_network(run, backbone, classes), pixel_fit, findings)


def build_network(run: Run, backbone: Backbone, num_classes: int) -> PooledNetwork:
    """Return a network on a backbone, as new: built, or taken out of the pool.

    Args:
        run: settings.
        backbone: pretrained backbone.
        num_classes: of the head.

    Raises:
        UserError: if settings and layers do not fit.
    """
    depths = find_depths(run.features.layers, backbone.blocks)
    plan = with_depths(run.unfreeze.plan(backbone.blocks), depths, backbone.blocks)
    pooled = network_pool.take(run, backbone, plan, depths, num_classes, head_seed(run.seed))
    shape = pooled.network.prefix.shape
    if run.mix.needs_maps and len(shape) != 3:
        raise UserError(
            f"mix=cutmix was given, and the inputs of what trains are {list(shape)} for an image. It exchanges"
            " rectangles of images or feature maps [h, w, channels]. Type mix=mixup."
        )
    if AUTO not in (run.features.runtime, run.features.precision):
        pooled.network = pooled.network.with_runtime(run.features.runtime, run.features.precision)
    return pooled


def _import_tensorflow() -> None:
    """Import TensorFlow without its messages on stderr, and let GPU memory grow as needed."""
    first_import = "tensorflow" not in sys.modules
    with quiet_stderr():
        import keras  # noqa: F401 - its import logs too
        import tensorflow as tf

        # Devices are listed here because TensorFlow logs the absence of GPUs.
        for gpu in tf.config.list_physical_devices("GPU"):
            # Other jobs may share the GPU. A Python caller that already uses or has split it decides this itself.
            with contextlib.suppress(RuntimeError, ValueError):
                tf.config.experimental.set_memory_growth(gpu, True)
    if first_import and process.is_command():
        # Modules are never freed. Without this, garbage collection took most of the time before a later job's first
        # epoch.
        gc.freeze()


def build_baseline(
    run: Run, backbone: Backbone, network: Network, parent: Parent | None, class_names: Sequence[str]
) -> tuple[ZeroShotBaseline, Network | None]:
    """Build the zero-training baseline, or take a fine-tune's from its parent.

    Args:
        run: settings.
        backbone: pretrained backbone.
        network: network to train.
        parent: frozen attempt that a fine-tune starts from; None for other phases.
        class_names: of the dataset.

    Returns:
        The baseline, and the network that measures it; None if there is nothing to measure.
    """
    if parent is not None:
        sizes = {split: len(predictions.ids) for split, predictions in parent.predictions.items()}
        return run.baseline.inherit(parent.baseline_description, parent.baseline, sizes, class_names), None
    # A range test has no accuracy to compare with a baseline.
    baseline = run.baseline if isinstance(run.phase, Training) else Nothing()
    return baseline.build(run.model, backbone, run.preprocessing, network, class_names)


def _check_saved_layers(run: Run, network: Network) -> None:
    """Check that a network that will be saved can be loaded where the plugins of its parts are not installed.

    Raises:
        UserError: if a layer is not Keras' own.
    """
    from_plugins = any(is_foreign(type(spec)) for spec in (run.preprocessing, run.model, run.head))
    if not from_plugins or not run.tracking.saves_networks or not isinstance(run.phase, Training):
        return
    layers = network.custom_layers()
    if layers:
        raise UserError(
            f"The network has the layer {layers[0]}, which is not Keras' own, or calls a function that is not. A saved"
            " network must load where its plugin is not installed. Build it of layers of keras.layers and of functions"
            " by name, such as activation='gelu', or type tracking.model=none to train without saving it."
        )


def head_seed(seed: int) -> int:
    """Derive the seed of the head's initial weights and dropout from the run's seed."""
    return int(np.random.SeedSequence([seed, 1]).generate_state(1)[0] >> 2)


def _headline(run: Run, dataset: Dataset) -> str:
    sizes = ", ".join(f"{len(split.rows):,} {name}" for name, split in dataset.splits.items())
    return (
        f"{run.model.architecture} at {run.model.image_size} px on {dataset.name}: {len(dataset.class_names)} classes,"
        f" {sizes} images"
    )
