"""What a grid of attempts with EfficientNet-B4 at 380 px costs, on paper. `make bench-grid` runs it.

The guide gives one time: 49 minutes for 20 epochs of the frozen attempt on its GPU, each a pass over 16,508 training and 4,072 validation photos.
What of such a pass lies above the cut of a fine-tune, and what a head costs, is measured here, on random weights, which cost the same: medians of
rounds beside each other. From these follow passes, bytes and hours. A training step is taken for three forward ones, as is usual: one forward, two
backward. Heads are counted as they run on this machine's cores.
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
from dogbreeds.models.network import Network, assemble

# The guide's
MINUTES, FROZEN_EPOCHS, TRAIN, VAL = 49, 20, 16_508, 4_072
# A pass of one photo, decoding and all, on its GPU
PHOTO_SECONDS = MINUTES * 60 / FROZEN_EPOCHS / (TRAIN + VAL)
ATTEMPTS = (1, 10, 100, 1000)
HEAD_BATCH, BREEDS = 32, 120


@dataclass(frozen=True)
class Kind:
    """A kind of attempt, with the epochs that the guide's own ran for."""

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
    """What is timed, and how often; the defaults are what `make bench-grid` reports.

    Attributes:
        model: settings of the backbone.
        change: what is changed in every run that no setting can change.
        kinds: of attempts; the head's step is that of the first.
        batch: photos of a forward pass.
        rounds: of which the median counts.
        head_photos: that the head trains on in a round.
    """

    model: tuple[str, ...] = ("model=effnetb4", "model.weights=null")
    change: Callable[[Run], Run] = lambda run: run
    kinds: tuple[Kind, ...] = KINDS
    batch: int = 8
    rounds: int = 5
    head_photos: int = 4096


FULL = Workload()


def main(workload: Workload = FULL) -> None:
    """Print what attempts cost, a table a kind."""
    with quiet_stderr():
        import tensorflow  # noqa: F401
    print(
        f"a pass of one photo on the guide's GPU: {1000 * PHOTO_SECONDS:.1f} ms; of all {TRAIN + VAL:,}:"
        f" {PHOTO_SECONDS * (TRAIN + VAL) / 60:.1f} min"
    )
    head = head_seconds(*built(workload.kinds[0], workload), workload)
    print(f"a head's step on this machine, a photo: {1000 * head:.2f} ms\n")
    for kind in workload.kinds:
        _, network = built(kind, workload)
        above, size = share(network, workload), kept_bytes(network)
        print(
            f"{kind.name}, {kind.epochs} epochs: {100 * above:.1f} % of the backbone's time lies above the cut; "
            f"in float16 {size / 1024:.1f} KiB are kept a photo, {size * (TRAIN + VAL) / 1e9:.2f} GB in all"
        )
        print(
            f"{'attempts':>8} {'whole passes':>14} {'GPU hours':>10} | {'whole passes':>14} {'GPU hours':>10}"
            f" {'head hours':>10} | {'ratio':>6}"
        )
        for attempts in ATTEMPTS:
            print(row(kind, above, head, attempts))
        print()


def row(kind: Kind, above: float, head: float, attempts: int) -> str:
    """Passes of single photos through the backbone and hours: without and with what is frozen kept.

    Args:
        kind: of attempt.
        above: the share of a pass that lies above the cut.
        head: seconds of its step, a photo.
        attempts: how many.
    """
    shown = TRAIN + VAL
    without = attempts * kind.epochs * (shown + 2 * TRAIN * above)
    kept = shown * (1 - above) + attempts * kind.epochs * (shown + 2 * TRAIN) * above
    heads = attempts * kind.epochs * TRAIN * head / 3600
    before, after = (passes * PHOTO_SECONDS / 3600 for passes in (without, kept))
    return (
        f"{attempts:8,} {without:14,.0f} {before:10,.2f} | {kept:14,.0f} {after:10,.2f} {heads:10,.2f} |"
        f" {(before + heads) / (after + heads):6.1f}"
    )


def built(kind: Kind, workload: Workload) -> tuple[Run, Network]:
    run = workload.change(
        from_config(compose.composed("train", [*workload.model, "data=miniature", "tracking=none", *kind.settings]))
    )
    backbone = run.model.build(0)
    return run, assemble(
        backbone,
        run.preprocessing,
        run.unfreeze.plan(backbone.blocks),
        lambda features: run.head.build(features, BREEDS, 0),
    )


def kept_bytes(network: Network) -> int:
    """A photo, in float16."""
    return int(np.prod(network.prefix.shape)) * 2


def share(network: Network, workload: Workload) -> float:
    """The suffix' part of a forward pass: both in inference mode, compiled, side by side."""
    if network.suffix is None:
        return 0.0
    import tensorflow as tf

    rng = np.random.default_rng(0)
    photos = tf.constant(rng.uniform(0, 255, (workload.batch, *network.prefix.graph.input.shape[1:])), tf.float32)
    kept = tf.constant(rng.normal(size=(workload.batch, *network.prefix.shape)), tf.float32)
    below = tf.function(lambda shown: network.prefix.graph(shown, training=False))
    above = tf.function(lambda shown: network.suffix(shown, training=False))
    seconds = [(timed(lambda: below(photos)), timed(lambda: above(kept))) for _ in range(workload.rounds + 1)][1:]
    return statistics.median(high / (low + high) for low, high in seconds)


def head_seconds(run: Run, network: Network, workload: Workload) -> float:
    """Of a training step of the head, a photo: kept features in, weights moved."""
    from dogbreeds.training.loop import Step

    step, rng = Step(network, run.optimizer), np.random.default_rng(0)
    inputs = rng.normal(size=(HEAD_BATCH, *network.prefix.shape)).astype(np.float32)
    labels = rng.integers(0, BREEDS, HEAD_BATCH).astype(np.int32)
    steps = workload.head_photos // HEAD_BATCH
    rounds = [
        timed(lambda: [step(network.plan.at(0), 1e-3, inputs, labels) for _ in range(steps)])
        for _ in range(workload.rounds + 1)
    ][1:]
    return statistics.median(rounds) / (steps * HEAD_BATCH)


def timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
