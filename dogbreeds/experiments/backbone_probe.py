"""Probe backbones on the same images: one pass each, then linear classifiers of their features.

With a sample, all are probed on it first, and those that are clearly behind are stopped: only the others see all
images. Features, the results of the probes and the speed of the pass are cached, so a second call computes none of it.
"""

import logging
import os
import platform
import statistics
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dogbreeds.core.errors import MissingFileError, UserError
from dogbreeds.core.text import digest
from dogbreeds.data.class_names import imagenet_outputs
from dogbreeds.data.corrections import open_corrected
from dogbreeds.data.dataset import Dataset, Split
from dogbreeds.data.subset import sample_dataset, with_own_sources
from dogbreeds.evaluation.backbone_probe import (
    BackboneProbe,
    FailedBackbone,
    ProbedBackbone,
    ProbedImages,
    StoppedBackbone,
    clearly_behind,
    ranked,
)
from dogbreeds.evaluation.logistic_regression import STRENGTHS, fit_tuned
from dogbreeds.evaluation.metrics import score
from dogbreeds.evaluation.reference_probe import NEAREST_MEAN, RIDGE, fit_probe
from dogbreeds.evaluation.results import ZeroShotBaseline
from dogbreeds.experiments.isolation import process_state_restored
from dogbreeds.experiments.probe_models import ProbeModel
from dogbreeds.experiments.run import Run
from dogbreeds.experiments.training_inputs import TrainingInputs
from dogbreeds.features.array_info import digest as array_digest
from dogbreeds.features.extraction import DecodedImages, features_identity, has_features
from dogbreeds.features.partial_array import Identity, Notes
from dogbreeds.models.network import Network, Prefix

log = logging.getLogger(__name__)

# Part of the identity of cached results. Increase it with any change of how the probes are fitted.
_VERSION = 1
_METHODS = (RIDGE, NEAREST_MEAN)
# A sample is probed first only if it has less than this share of all images: a backbone that passes it needs both.
_MAX_SAMPLE_SHARE = 0.5
# Passes over some batches whose duration is measured: more until that takes so many seconds.
_BATCHES_OF_PASS = 4
_MIN_TIMED_PASSES, _MAX_TIMED_PASSES, _TIMED_SECONDS = 3, 9, 2.0


def probe_backbones(models: Sequence[ProbeModel], images: int | None, dataset: Dataset | None = None) -> BackboneProbe:
    """Probe backbones on a sample, then those that are not clearly behind on all images.

    Args:
        models: the backbones, whose runs have the same data.
        images: size of the sample; None for all images at once.
        dataset: the data; None opens that of the runs.

    Raises:
        MissingFileError, UserError: if the data cannot be probed on, or no backbone can be.
    """
    run = models[0].run
    dataset = dataset or open_corrected(run.data)
    _check_data(models[0], dataset)
    # They were logged.
    dataset = replace(dataset, notes=())
    failed: dict[str, str] = {}
    remaining = list(models)
    stopped: tuple[StoppedBackbone, ...] = ()
    if _samples_first(models, images, dataset):
        sample = sample_dataset(dataset, images, run.seed)  # type: ignore[arg-type]
        on_sample = _probe_all(remaining, dataset, sample, failed)
        stopped = clearly_behind(on_sample)
        for each in stopped:
            log.info("%s is stopped: compared with %s, %s", each.probed.name, each.best, each.pair)
        left_out = {each.probed.name for each in stopped} | failed.keys()
        remaining = [model for model in models if model.name not in left_out]
    measured = _probe_all(remaining, dataset, dataset, failed)
    return BackboneProbe(
        data=dataset.name,
        classes=len(dataset.class_names),
        imagenet_classes=sum(output is not None for output in imagenet_outputs(dataset.class_names)),
        sizes={name: len(split.rows) for name, split in dataset.splits.items()},
        measured=tuple(ranked(measured)),
        stopped=stopped,
        failed=tuple(FailedBackbone(model.name, failed[model.name]) for model in models if model.name in failed),
    )


def _check_data(model: ProbeModel, dataset: Dataset) -> None:
    """Log notes on the data, and check it once for all backbones.

    Raises:
        UserError: if there are no validation images, or a finding of the preflight is certain.
    """
    for note in dataset.notes:
        log.warning(note)
    if not len(dataset.val.rows):
        raise UserError(
            f"{dataset.name} has no validation images. The regularisation of a linear probe is chosen on some. Give the"
            " data set a validation split, or type data.val_fraction=0.2 where it is held out."
        )
    model.run.preflight.report(model.run.preflight.check_data(dataset))


def _samples_first(models: Sequence[ProbeModel], images: int | None, dataset: Dataset) -> bool:
    """Whether a sample can spare backbones the pass over all images."""
    total = sum(len(split.rows) for split in dataset.splits.values())
    return images is not None and len(models) > 1 and images < _MAX_SAMPLE_SHARE * total


def _probe_all(
    models: Sequence[ProbeModel], dataset: Dataset, on: Dataset, failed: dict[str, str]
) -> list[ProbedBackbone]:
    """Probe backbones one after another; add those that cannot be built, or get wrong pixels, to `failed`.

    Args:
        models: the backbones.
        dataset: all images.
        on: the images to probe on: all of them, or a sample of them.
        failed: reasons by name.

    Raises:
        UserError: if all backbones have failed.
    """
    probed = []
    for number, model in enumerate(models, 1):
        log.info("--- %s: %d of %d%s", model.name, number, len(models), "" if on is dataset else ", on a sample")
        # Frees the network of the backbone before, too.
        with process_state_restored():
            try:
                built = _build(model, dataset)
            except (UserError, MissingFileError) as error:
                failed[model.name] = str(error)
                log.warning("%s cannot be probed: %s", model.name, error)
                continue
            probed.append(_probe(model, built, dataset, on))
    if not probed:
        name, reason = next(iter(failed.items()))
        raise UserError(reason if len(failed) == 1 else f"No backbone can be probed. {name}: {reason}")
    return probed


@dataclass(frozen=True)
class _Built:
    """A backbone that is ready for its pass.

    Attributes:
        run: its settings, none of them `auto`.
        network: backbone and head, of which only the frozen part is used.
        parameters: number of the backbone's weights.
        fingerprint: of the backbone.
        baseline: zero-shot baseline without its accuracies.
        baseline_network: network that measures it; None if there is nothing to measure.
    """

    run: Run
    network: Network
    parameters: int
    fingerprint: str
    baseline: ZeroShotBaseline
    baseline_network: Network | None


def _build(model: ProbeModel, dataset: Dataset) -> _Built:
    """Build a backbone and check its pixels.

    Raises:
        MissingFileError, UserError: if weights are missing or do not fit, or the pixels do not match them.
    """
    # Errors that need no TensorFlow are raised before it is imported.
    model.run.model.weights_file()
    model.run.baseline.weights_file()

    from dogbreeds.experiments.automatic_settings import resolve
    from dogbreeds.experiments.prepare import assemble_network, build_baseline

    run, assembly = resolve(model.run, dataset, looks_up_runs=False)
    assembly = assembly or assemble_network(run, dataset)
    backbone, network = assembly.backbone, assembly.network
    baseline, baseline_network = build_baseline(run, backbone, network, None, dataset.class_names)
    return _Built(run, network, backbone.network.count_params(), backbone.fingerprint, baseline, baseline_network)


def _probe(model: ProbeModel, built: _Built, dataset: Dataset, on: Dataset) -> ProbedBackbone:
    """Run the pass over the images that are not cached, and fit the probes."""
    run, prefix = built.run, built.network.prefix
    cache = run.features.open_cache()

    # A sample must not decode all images.
    own = on if on is dataset else with_own_sources(on)

    def images_of(split: Split) -> DecodedImages:
        return DecodedImages(split.source, run.data, run.model.image_size, cache)

    def source(network: Network) -> Dataset:
        """Return where to read features: those of all images need no pass if they are cached."""
        cached = (has_features(network.prefix, images_of(split), run.features) for split in on.splits.values())
        return on if all(cached) else own

    # Of the sample alone, wherever its features are read.
    identity = features_identity(prefix, images_of(own.train), run.features)
    splits, strength, method = _fit(run, built.network, source(built.network), identity | {"data": own.fingerprint})
    baseline = built.baseline
    if built.baseline_network is not None:
        baseline = _measure_baseline(run, baseline, built.baseline_network, source(built.baseline_network))
    return ProbedBackbone(
        name=model.name,
        architecture=run.model.architecture,
        image_size=run.model.image_size,
        parameters=built.parameters,
        images_per_second=_images_per_second(run, prefix, identity),
        strength=strength,
        method=method,
        splits=splits,
        baseline=baseline,
        fingerprints={"model.fingerprint": built.fingerprint, "data.fingerprint": dataset.fingerprint},
    )


def _fit(
    run: Run, network: Network, dataset: Dataset, features: Identity
) -> tuple[dict[str, ProbedImages], float, str]:
    """Fit both probes on the training images, or take their results from the cache.

    Args:
        run: settings.
        network: whose frozen part gives the features.
        dataset: the images.
        features: what their features, and the choice of images, depend on.

    Returns:
        Which images of each further split they classify correctly, the strength that was chosen, and the method of the
        reference probe.
    """
    inputs = TrainingInputs(run, dataset, network)
    train = inputs.plain_train()
    held_out = {name: inputs.rows(split) for name, split in dataset.splits.items() if name != "train"}
    class_weights = inputs.class_weights()
    identity = features | {
        "probe": _VERSION,
        "class_weights": None if class_weights is None else digest(class_weights.tobytes()),
    }

    def compute(correct: np.ndarray, _: int, notes: Notes) -> Generator[int, None, None]:
        classes = len(dataset.class_names)
        log.info("fitting the probes on %s training images", f"{len(train):,}")
        reference = fit_probe(train.array, train.labels, classes, train.indices, class_weights)
        val = held_out["val"]
        # Of two sources, if the data set has a validation part of its own.
        both = np.concatenate([train.array[train.indices], val.array[val.indices]])
        rows = np.arange(len(both))
        tuning = (rows[: len(train)], train.labels), (rows[len(train) :], val.labels)
        linear = fit_tuned(both, *tuning, classes, class_weights)[0]
        notes["strength"] = [STRENGTHS.index(linear.strength)]
        notes["method"] = [_METHODS.index(reference.method)]
        start = 0
        for split in held_out.values():
            for column, fit in enumerate((linear, reference)):
                predicted = fit.logits(split.array, split.indices).argmax(axis=1)
                correct[start : start + len(split), column] = predicted == split.labels
            start += len(split)
        yield start

    total = sum(map(len, held_out.values()))
    found = run.features.open_cache().get_or_compute("probe", identity, (total, 2), "bool", compute)
    parts = np.split(np.asarray(found.rows), np.cumsum([len(split) for split in held_out.values()])[:-1])
    splits = {name: ProbedImages(part[:, 0], part[:, 1]) for name, part in zip(held_out, parts, strict=True)}
    return splits, STRENGTHS[found.notes["strength"][0]], _METHODS[found.notes["method"][0]]


def _measure_baseline(run: Run, baseline: ZeroShotBaseline, network: Network, dataset: Dataset) -> ZeroShotBaseline:
    from dogbreeds.training.loop import predict

    inputs = TrainingInputs(run, dataset, network)
    rows = {name: inputs.rows(split) for name, split in dataset.splits.items() if name != "train"}
    accuracies = {name: score(predict(network, split), split.labels).accuracy for name, split in rows.items()}
    return replace(baseline, accuracies=accuracies)


def _images_per_second(run: Run, prefix: Prefix, features: Identity) -> float:
    """Measure the forward pass of the frozen part alone: once for a machine, or again with `rerun`.

    Args:
        run: settings.
        prefix: the frozen part.
        features: what its features of some source depend on.
    """
    cache = run.features.open_cache()
    batch_size = run.features.batch_size or prefix.batch_size()
    machine = f"{platform.node()}, {os.cpu_count()} cores, {len(prefix.devices)} devices"
    # The images do not matter.
    identity = {name: value for name, value in features.items() if name != "photos"}
    identity |= {"batch_size": batch_size, "machine": machine}

    def compute(rate: np.ndarray, _: int, notes: Notes) -> Generator[int, None, None]:
        size = prefix.graph.input.shape[1]
        images = np.random.default_rng(0).integers(0, 256, (batch_size, size, size, 3), dtype=np.uint8)

        def seconds_of_pass() -> float:
            """Return the duration of several batches: a runtime may compute some at a time."""
            started = time.perf_counter()
            for _ in prefix.stream([images] * _BATCHES_OF_PASS):
                pass
            return time.perf_counter() - started

        # The first one compiles.
        seconds_of_pass()
        seconds: list[float] = []
        while len(seconds) < _MIN_TIMED_PASSES or (len(seconds) < _MAX_TIMED_PASSES and sum(seconds) < _TIMED_SECONDS):
            seconds.append(seconds_of_pass())
        rate[0] = _BATCHES_OF_PASS * batch_size / statistics.median(seconds)
        yield 1

    if run.rerun:
        # The machine may have been busy.
        cache.remove(f"rate-{array_digest(identity)}")
    return float(cache.get_or_compute("rate", identity, (1,), "float64", compute).rows[0])
