"""Estimated cost of a grid of runs with EfficientNet-B4 at 380 px.

Run: make bench-grid.

The guide states one time: 49 minutes for 20 epochs of the frozen run on its GPU, each a pass over 16,508 training and
4,072 validation images. This script measures which share of a forward pass lies above the cut of a fine-tune, and what
a step of the head costs, on random weights, which cost the same; both are medians over rounds. Passes, bytes and hours
follow from these. A training step counts as three forward passes: one forward, two backward. Heads are timed on this
machine's cores.
"""

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from dogbreeds.core.console import quiet_stderr
from dogbreeds.experiments import compose
from dogbreeds.experiments.compose import from_config
from dogbreeds.experiments.run import Run
from dogbreeds.models.assembly import assemble
from dogbreeds.models.network import Network

# Time and size of the guide's frozen run.
MINUTES, FROZEN_EPOCHS, TRAIN, VAL = 49, 20, 16_508, 4_072
# Seconds of one image's forward pass on its GPU, decoding included.
IMAGE_SECONDS = MINUTES * 60 / FROZEN_EPOCHS / (TRAIN + VAL)
NUM_RUNS = (1, 10, 100, 1000)
HEAD_BATCH, NUM_CLASSES = 32, 120


@dataclass(frozen=True)
class Kind:
    """A kind of run.

    Attributes:
        name: for the printed table.
        settings: overrides that choose it.
        epochs: epochs of the guide's own run.
    """

    name: str
    settings: tuple[str, ...]
    epochs: int


KINDS = (
    Kind("frozen", (), 20),
    Kind("fine-tune of the top 20 layers", ("attempt=finetune_20",), 12),
    Kind("fine-tune of the top 50 layers", ("attempt=finetune_50",), 26),
)


@dataclass(frozen=True)
class Workload:
    """What is timed, and how often. The defaults are what `make bench-grid` reports.

    Attributes:
        model: overrides that choose the backbone.
        change: change to every run that no override can make.
        kinds: kinds of runs; the head of the first one is timed.
        batch: images of a forward pass.
        rounds: timed rounds, of which the median counts.
        head_images: images that the head trains on in a round.
    """

    model: tuple[str, ...] = ("model=effnetb4", "model.weights=null")
    change: Callable[[Run], Run] = lambda run: run
    kinds: tuple[Kind, ...] = KINDS
    batch: int = 8
    rounds: int = 5
    head_images: int = 4096


FULL = Workload()


def main(workload: Workload = FULL) -> None:
    """Print a table of costs for each kind of run."""
    with quiet_stderr():
        import tensorflow  # noqa: F401
    print(
        f"a pass of one image on the guide's GPU: {1000 * IMAGE_SECONDS:.1f} ms; of all {TRAIN + VAL:,}:"
        f" {IMAGE_SECONDS * (TRAIN + VAL) / 60:.1f} min"
    )
    head = head_seconds(*build_network(workload.kinds[0], workload), workload)
    print(f"a head's step on this machine, per image: {1000 * head:.2f} ms\n")
    for kind in workload.kinds:
        _, network = build_network(kind, workload)
        above = suffix_share(network, workload)
        size = feature_bytes(network)
        print(
            f"{kind.name}, {kind.epochs} epochs: {100 * above:.1f} % of the backbone's time lies above the cut; "
            f"in float16 {size / 1024:.1f} KiB are cached per image, {size * (TRAIN + VAL) / 1e9:.2f} GB in all"
        )
        print(
            f"{'runs':>8} {'whole passes':>14} {'GPU hours':>10} | {'whole passes':>14} {'GPU hours':>10}"
            f" {'head hours':>10} | {'ratio':>6}"
        )
        for runs in NUM_RUNS:
            print(format_row(kind, above, head, runs))
        print()


def format_row(kind: Kind, above: float, head: float, runs: int) -> str:
    """Format image passes through the backbone and hours, without and with the feature cache.

    Args:
        kind: kind of the runs.
        above: share of a forward pass that lies above the cut.
        head: seconds of a training step of the head, per image.
        runs: number of runs.
    """
    images = TRAIN + VAL
    uncached = runs * kind.epochs * (images + 2 * TRAIN * above)
    cached = images * (1 - above) + runs * kind.epochs * (images + 2 * TRAIN) * above
    head_hours = runs * kind.epochs * TRAIN * head / 3600
    uncached_hours, cached_hours = (passes * IMAGE_SECONDS / 3600 for passes in (uncached, cached))
    return (
        f"{runs:8,} {uncached:14,.0f} {uncached_hours:10,.2f} | {cached:14,.0f} {cached_hours:10,.2f}"
        f" {head_hours:10,.2f} | {(uncached_hours + head_hours) / (cached_hours + head_hours):6.1f}"
    )


def build_network(kind: Kind, workload: Workload) -> tuple[Run, Network]:
    """Compose a run of this kind and build its network."""
    run = workload.change(
        from_config(
            compose.compose_config(
                "train", [*workload.model, "data=miniature", "tracking=none", "tracking.folder=null", *kind.settings]
            )
        )
    )
    backbone = run.model.build(0)
    return run, assemble(
        backbone,
        run.preprocessing,
        run.unfreeze.plan(backbone.blocks),
        lambda features: run.head.build(features, NUM_CLASSES, 0),
    )


def feature_bytes(network: Network) -> int:
    """Return the bytes of one image's features in float16."""
    return int(np.prod(network.prefix.shape)) * 2


def suffix_share(network: Network, workload: Workload) -> float:
    """Measure the suffix's share of a forward pass: prefix and suffix compiled, in inference mode, timed in turns."""
    if network.suffix is None:
        return 0.0
    import tensorflow as tf

    rng = np.random.default_rng(0)
    images = tf.constant(rng.uniform(0, 255, (workload.batch, *network.prefix.graph.input.shape[1:])), tf.float32)
    cached = tf.constant(rng.normal(size=(workload.batch, *network.prefix.shape)), tf.float32)
    prefix = tf.function(lambda inputs: network.prefix.graph(inputs, training=False))
    suffix = tf.function(lambda inputs: network.suffix(inputs, training=False))
    # The first round traces the functions and does not count.
    seconds = [(timed(lambda: prefix(images)), timed(lambda: suffix(cached))) for _ in range(workload.rounds + 1)][1:]
    return statistics.median(above / (below + above) for below, above in seconds)


def head_seconds(run: Run, network: Network, workload: Workload) -> float:
    """Measure the seconds of a training step of the head on cached features, per image."""
    from dogbreeds.training.step import Step

    step, rng = Step(network, run.optimizer), np.random.default_rng(0)
    inputs = rng.normal(size=(HEAD_BATCH, *network.prefix.shape)).astype(np.float32)
    labels = rng.integers(0, NUM_CLASSES, HEAD_BATCH).astype(np.int32)
    steps = workload.head_images // HEAD_BATCH
    rounds = [
        timed(lambda: [step(network.plan.layers_at(0), 1e-3, inputs, labels) for _ in range(steps)])
        for _ in range(workload.rounds + 1)
    ][1:]
    return statistics.median(rounds) / (steps * HEAD_BATCH)


def timed(work: Callable[[], object]) -> float:
    """Measure the seconds that a call takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
