"""A further run in a process reuses network and compiled steps, and gives the bits that it gives alone."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from dogbreeds.experiments import network_pool
from dogbreeds.experiments.attempt import execute
from dogbreeds.experiments.result import Result
from dogbreeds.models.network import Network
from dogbreeds.tracking.records import RunOrigin
from dogbreeds.training.step import Step

SMALL = (
    "data.classes=4", "data.train_per_class=9", "data.val_per_class=3", "data.test_per_class=2", "preflight=none",
    "phase.epochs=2", "phase.batch_size=11", "tracking=none", "rerun=true",
)  # fmt: skip
DROP_CONNECT = ("unfreeze=blocks", "unfreeze.top=1", "unfreeze.drop_connect=on", "unfreeze.batchnorm=trainable")
# Another set of layers in each epoch, a rate of its own for each depth, another augmented copy in each epoch.
GRADUAL = (
    "unfreeze=gradual", "unfreeze.top=2", "unfreeze.every_epochs=1", "optimizer=adamw", "optimizer.layer_decay=0.8",
    "augment=guide", "augment.copies=2", "schedule=cosine",
)  # fmt: skip


@pytest.fixture(autouse=True)
def empty_pool() -> Iterator[None]:
    network_pool.release()
    yield
    network_pool.release()


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Count the networks that are built and the steps that are compiled."""
    counts = {"networks": 0, "steps": 0}
    assemble, compile_steps = network_pool.assemble, Step._compile

    def count_network(*arguments) -> Network:
        counts["networks"] += 1
        return assemble(*arguments)

    def count_step(*arguments):
        counts["steps"] += 1
        return compile_steps(*arguments)

    monkeypatch.setattr(network_pool, "assemble", count_network)
    monkeypatch.setattr(Step, "_compile", count_step)
    return counts


@pytest.fixture
def run_bits(composed, tmp_path) -> Callable[..., tuple]:
    """A function that trains with overrides, and returns all that training gives."""

    def run(*overrides: str) -> tuple:
        result = execute(composed(*SMALL, *overrides), RunOrigin("", (), "", tmp_path))
        assert isinstance(result, Result)
        assert result.history.best_logits is not None
        return (
            [value.tobytes() for value in result.history.best_weights],
            result.history.best_logits.tobytes(),
            result.predictions["test"].logits.tobytes(),
            [epoch.metrics() for epoch in result.history.epochs],
        )

    return run


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings", [DROP_CONNECT, *(pytest.param(settings, marks=pytest.mark.long) for settings in ((), GRADUAL))]
)
def test_second_run_with_another_rate_and_seed_equals_the_same_run_alone(
    run_bits, built: dict[str, int], settings: tuple[str, ...]
) -> None:
    alone = run_bits(*settings, "optimizer.lr=3e-3", "seed=5")
    steps = built["steps"]
    network_pool.release()
    first = run_bits(*settings, "optimizer.lr=1e-2", "seed=4")
    built |= {"networks": 0, "steps": 0}
    assert run_bits(*settings, "optimizer.lr=3e-3", "seed=5") == alone != first
    # One is built for its weights, which depend on the seed.
    assert built == {"networks": 1, "steps": 0}
    assert run_bits(*settings, "optimizer.lr=3e-3", "seed=5", "steps_per_execution=1") == alone
    assert built == {"networks": 1, "steps": 0}
    assert steps > 0


@pytest.mark.long
def test_run_of_another_shape_or_optimizer_is_compiled_for_itself(run_bits, built: dict[str, int]) -> None:
    run_bits("head.widths=[8]")
    assert built == {"networks": 1, "steps": 1}
    run_bits("head.widths=[8]", "precision=mixed_bfloat16")
    run_bits("head.widths=[8]", "optimizer.clipnorm=1")
    assert built == {"networks": 1, "steps": 3}
    run_bits("head=linear")
    run_bits("head.widths=[8]")
    assert built == {"networks": 2, "steps": 5}


def pooled(key: str, backbone: object, size_bytes: int = 4) -> network_pool.PooledNetwork:
    return network_pool.PooledNetwork(None, backbone, key, 0, [np.zeros(size_bytes // 4, np.float32)])  # type: ignore[arg-type]


def test_pool_is_bounded_by_number_size_and_backbone() -> None:
    backbone = object()
    for number in range(6):
        network_pool.keep(pooled(str(number), backbone))
    assert list(network_pool._pool) == ["2", "3", "4", "5"]
    # Together with its copies it takes more than a quarter of the limit, so three of them fit.
    for number in range(6, 10):
        network_pool.keep(pooled(str(number), backbone, 20 << 20))
    assert list(network_pool._pool) == ["7", "8", "9"]
    network_pool.keep(pooled("huge", backbone, 100 << 20))
    assert list(network_pool._pool) == []
    network_pool.keep(pooled("a", backbone))
    network_pool.keep(pooled("b", object()))
    assert list(network_pool._pool) == ["b"]
    network_pool.keep(pooled(None, backbone))  # type: ignore[arg-type]
    assert list(network_pool._pool) == ["b"]


def test_network_of_a_run_with_a_plugin_is_never_pooled(composed) -> None:
    import dataclasses

    from dogbreeds.training.optimizer import SGD

    class Foreign(SGD):
        pass

    run = composed()
    assert network_pool._key(run, 3) is not None
    assert (
        network_pool._key(
            dataclasses.replace(run, optimizer=Foreign(lr=1, momentum=0, layer_decay=1, clipnorm=None)), 3
        )
        is None
    )
