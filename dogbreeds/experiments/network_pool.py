"""Networks that a process keeps after a run, so that a further run of the same shape builds and compiles nothing.

Learning rate, seed and initial weights are values of variables, which a further run sets to what they are in a new
network: its results are those that it has in a process of its own, bit for bit. Networks on another backbone, with
other layers to train or another head are of another shape. Parts of plugins may depend on anything, so the network of a
run with one is never kept.

A network that is in use is not in the pool, so two runs never share one. What the pool holds is bounded: the networks
are on the most recent backbone, few, and small.
"""

import random
from collections.abc import Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dogbreeds.core.source import is_foreign
from dogbreeds.experiments.run import GROUPS, Run
from dogbreeds.models.assembly import assemble
from dogbreeds.models.network import Network, Prefix

if TYPE_CHECKING:
    from dogbreeds.models.model import Backbone
    from dogbreeds.models.replicas import OneDevice
    from dogbreeds.models.strategy import Strategy
    from dogbreeds.models.unfreeze import Plan

_MAX_NETWORKS = 4
_MAX_BYTES = 256 << 20
# Initial weights and an optimizer's momenta are kept too.
_COPIES = 4


@dataclass
class PooledNetwork:
    """A network, and what a further run needs to start with it as with a new one.

    Attributes:
        network: the network.
        backbone: the backbone that its frozen part belongs to.
        key: settings that decide its shape; None if it must not be kept.
        seed: seed of the initial weights.
        initial: the variables of suffix and head as they were built with that seed.
    """

    network: Network
    backbone: "Backbone"
    key: Hashable | None
    seed: int
    initial: list[np.ndarray]

    @property
    def size_bytes(self) -> int:
        """Memory that the weights and their copies take."""
        return _COPIES * sum(value.nbytes for value in self.initial)


# The networks, the most recently used last.
_pool: dict[Hashable, PooledNetwork] = {}
# How many networks this process has built.
_num_built = 0
# The devices of the networks, which a process claims once.
_devices: "dict[Strategy, OneDevice]" = {}


def devices(strategy: "Strategy") -> "OneDevice":
    """Return the devices of a strategy: those that an earlier run claimed, if it had the same strategy."""
    if strategy not in _devices:
        built = strategy.build()
        release()
        _devices[strategy] = built
    return _devices[strategy]


def set_random_seed(run: Run, num_classes: int) -> None:
    """Set the seeds of Python, NumPy, Keras and, unless the run finds its network in the pool, TensorFlow.

    TensorFlow drops what it has compiled when its own seed is set. A network in the pool does not draw by it: Keras'
    layers draw by generators of their own.
    """
    import keras
    from keras.src.backend.common import global_state

    if _key(run, num_classes) not in _pool:
        keras.utils.set_random_seed(run.seed)
        return
    global_state.set_global_attribute("global_random_seed", run.seed)
    global_state.set_global_attribute("global_seed_generator", None)
    random.seed(run.seed)
    np.random.seed(run.seed)


def take(
    run: Run, backbone: "Backbone", plan: "Plan", depths: tuple[int, ...], num_classes: int, head_seed: int
) -> PooledNetwork:
    """Return a network for a run, as new: taken out of the pool, or built.

    Args:
        run: settings.
        backbone: pretrained backbone.
        plan: where to cut it, and what trains.
        depths: as of `Network`.
        num_classes: of the head.
        head_seed: seed of the head's initial weights.
    """
    # An earlier run may have built the backbone, and then no random numbers were drawn for it here.
    set_random_seed(run, num_classes)
    key = _key(run, num_classes)
    pooled = _pool.pop(key, None)

    def build(prefix: Prefix | None = None) -> Network:
        global _num_built
        _num_built += 1
        return assemble(
            backbone,
            run.preprocessing,
            plan,
            lambda features: run.head.build(features, num_classes, head_seed),
            devices(run.strategy),
            prefix,
            depths,
            run.augment.train_size(run.model.image_size),
        )

    if pooled is None or pooled.backbone is not backbone:
        network = build()
        return PooledNetwork(network, backbone, key, run.seed, _values(network))
    if pooled.seed != run.seed:
        # Keras draws the weights while it builds the layers.
        pooled.seed, pooled.initial = run.seed, _values(build(pooled.network.prefix))
    for variable, value in zip(pooled.network.variables, pooled.initial, strict=True):
        variable.assign(value)
    return pooled


def keep(pooled: PooledNetwork) -> None:
    """Keep a network for further runs, as long as it and the others are few and small."""
    if pooled.key is None:
        return
    if any(other.backbone is not pooled.backbone for other in _pool.values()):
        _pool.clear()
    _pool[pooled.key] = pooled
    while len(_pool) > _MAX_NETWORKS or sum(kept.size_bytes for kept in _pool.values()) > _MAX_BYTES:
        del _pool[next(iter(_pool))]


def release() -> None:
    """Forget all networks."""
    _pool.clear()
    _devices.clear()


def num_built() -> int:
    """Return how many networks this process has built for runs. Only those leave something for garbage collection."""
    return _num_built


def _key(run: Run, num_classes: int) -> Hashable | None:
    """Return what decides the shape of a run's network; None if a plugin has a part in the run."""
    if any(is_foreign(type(getattr(run, group))) for group in GROUPS):
        return None
    train_size = run.augment.train_size(run.model.image_size)
    parts = (run.model, run.preprocessing, run.unfreeze, run.features.layers, run.head, run.strategy)
    return *parts, train_size, num_classes


def _values(network: Network) -> list[np.ndarray]:
    return [variable.numpy() for variable in network.variables]
