"""Every field of every spec, with values of all kinds: a message of three sentences, or a value that can be used."""

import importlib
import math
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given, settings
from hypothesis import strategies as st

from dogbreeds.core.errors import UserError
from dogbreeds.core.paths import home
from dogbreeds.core.spec import Check, Spec
from dogbreeds.core.text import UNPRINTABLE, received
from dogbreeds.data import miniature
from dogbreeds.data.augment import Guide
from dogbreeds.data.stanford_dogs import StanfordDogs
from dogbreeds.experiments.run import Ungrouped
from dogbreeds.experiments.search import Settings as SearchSettings
from dogbreeds.features.features import Features, ShardSpec
from dogbreeds.models.head import MLP
from dogbreeds.models.model import Model
from dogbreeds.tracking.connection import MlflowStore
from dogbreeds.tracking.mlflow_backend import Mlflow
from dogbreeds.training.optimizer import Adam, Optimizer
from dogbreeds.training.phase import LrRange
from dogbreeds.training.schedule import Schedule

for module in (home() / "dogbreeds").rglob("*.py"):
    if "dogbreeds.core.spec import" in module.read_text():
        importlib.import_module(".".join(module.relative_to(home()).with_suffix("").parts))


def _specs(base: type[Spec]) -> Iterator[type[Spec]]:
    for cls in base.__subclasses__():
        if cls.__module__.startswith("dogbreeds."):
            yield cls
        yield from _specs(cls)


def _key(cls: type[Spec], name: str) -> str:
    return f"{cls.group}.{name}" if getattr(cls, "group", "") else name


def _check_of(cls: type[Spec], name: str) -> Check:
    return next(field.metadata["check"] for field in fields(cls) if field.name == name)


def _advised(cls: type[Spec], name: str) -> Any:
    """Return the value that the message about a wrong value says to type, as Hydra parses it."""
    key = _key(cls, name)
    with pytest.raises(UserError) as refusal:
        _check_of(cls, name)(key, object())
    typed = re.search(rf" Type '?({re.escape(key)}=(?:\[.*\]|[^ ,']*[^ ,'.]))", str(refusal.value))
    assert typed is not None, refusal.value
    return OverridesParser.create().parse_override(typed[1]).value()


def _valid(cls: type[Spec], name: str) -> Any:
    """Return null where it is allowed, since some settings exclude each other; else the value that is advised."""
    try:
        return _check_of(cls, name)(name, None)
    except UserError:
        return _advised(cls, name)


# Valid values of the fields, by class.
SPECS = {cls: {field.name: _valid(cls, field.name) for field in fields(cls)} for cls in _specs(Spec)}


@pytest.mark.parametrize("cls", SPECS, ids=lambda cls: f"{cls.__module__}.{cls.__name__}")
def test_spec_accepts_the_values_that_its_messages_say_to_type(cls: type[Spec]) -> None:
    for name, valid in SPECS[cls].items():
        advised = _advised(cls, name)
        assert getattr(cls(**SPECS[cls] | {name: advised}), name) is not None, (name, valid)


def _seed_generators(seed: int) -> None:
    np.random.RandomState(seed)
    np.random.Philox(key=[seed, 1])


def _use_guide(spec: Guide) -> None:
    assert np.isfinite(spec.draw_parameters(3, min(spec.copies, 7), 0, 224).transform).all()


def _use_adam(spec: Adam) -> None:
    assert 1 - np.float32(spec.beta_1) > 0
    assert 1 - np.float32(spec.beta_2) > 0
    assert np.float32(spec.epsilon) > 0


def _use_schedule(spec: Schedule) -> None:
    rates = [spec.lr(1e-3, progress, 20, [2.0, 1.0, 1.0, 1.0, 1.0]) for progress in (0.0, 0.5, 7.0, 20.0)]
    assert all(0 <= rate <= 1e-3 for rate in rates)


def _use_range(spec: LrRange) -> None:
    assert math.isfinite(spec.max_lr / spec.min_lr)


def _use_mlp(spec: MLP) -> None:
    assert sum(16 * first * second for first, second in zip(spec.widths, spec.widths[1:], strict=False)) < 2**39


def _use_miniature(spec: miniature.Miniature) -> None:
    per_class = spec.train_per_class + spec.val_per_class + spec.test_per_class
    assert spec.classes * per_class < 10_000_000


def _use_store(spec: MlflowStore) -> None:
    assert spec._address
    assert 60 * spec.patience_minutes < threading.TIMEOUT_MAX


def _use_shards(spec: ShardSpec) -> None:
    assert 0 <= spec.of(1000, 32).first <= spec.of(1000, 32).end <= 1000


def _use_optimizer(spec: Optimizer) -> None:
    assert 0 < np.float32(spec.lr) < math.inf


USES: dict[type[Spec], Callable[[Any], Any]] = {
    Ungrouped: lambda spec: _seed_generators(spec.seed),
    SearchSettings: lambda spec: (_seed_generators(spec.seed), np.zeros(spec.n_jobs)),
    StanfordDogs: lambda spec: (_seed_generators(spec.split_seed), _seed_generators(spec.guide_seed)),
    Features: lambda spec: spec.open_cache(),
    Model: lambda spec: np.empty((spec.image_size, spec.image_size, 3), np.uint8),
    Mlflow: lambda spec: threading.Event().wait(min(spec.system_metrics_seconds, threading.TIMEOUT_MAX) * 0),
    Guide: _use_guide,
    Adam: _use_adam,
    Schedule: _use_schedule,
    LrRange: _use_range,
    MLP: _use_mlp,
    miniature.Miniature: _use_miniature,
    MlflowStore: _use_store,
    ShardSpec: _use_shards,
    Optimizer: _use_optimizer,
}


def _use(value: Any) -> None:
    """Use a value as the rest does: floats in float32, and whole numbers and texts as others store them."""
    if isinstance(value, tuple):
        for item in value:
            _use(item)
    elif isinstance(value, str):
        assert value.encode()
    elif isinstance(value, float):
        assert math.isfinite(np.float32(value))
        assert (np.float32(value) == 0) == (value == 0)
    elif value is not None and not isinstance(value, bool):
        assert type(value) is int
        assert np.int64(value) == value


ODD: list[Any] = [
    *(sign * 10**digits for digits in (9, 10, 18, 20, 400, 5000) for sign in (1, -1)),
    *(2**bits + change for bits in (31, 32, 63, 64) for change in (-1, 0, 1)),
    *(0.0, -0.0, 1e-50, 1e-45, 1e-39, 1e39, 1e308, 0.9999999999, 1.0000001, 5e-324, 2.0, 7),
    *("\0", "a\0b", "a\udcff", "x" * 5000, f"a/{'x' * 300}", f"{'a/' * 1900}b", "~nosuchuser/a", "~", "é" * 200),
    *("http://[", "http://a]b", "sqlite:///x", "latest", "1e5", "null", "[1,2]", "💥", "\u2028"),
    *([], [1], [0], [10**9], [10**5000], [1] * 1000, [[1]], ["a"], ["\0"], ["GPU:0"], ["CPU:99999999"], [True]),
    *({}, {"a": 1}, {"_target_": "os.system"}, b"a"),
]
PLAIN = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(st.characters(exclude_categories=())),
)


def _check(value: Any) -> None:
    """Give a value to every field, and check what becomes of it."""
    for cls, examples in SPECS.items():
        # Inherited fields are those of a base class, which is in the list too.
        for name in vars(cls).get("__annotations__", {}).keys() & examples.keys():
            try:
                spec = cls(**examples | {name: value})
            except UserError as error:
                message = str(error)
                assert not UNPRINTABLE.search(message)
                sentences = re.split(r"\. (?=[A-Z])", message.replace(received(value), "VALUE"))
                assert len(sentences) == 3, message
                assert re.match(r"(Type|Set|Leave) ", sentences[2]), message
            else:
                used_value = getattr(spec, name)
                kind = _check_of(cls, name).__qualname__.partition(".")[0]
                if kind != "any_path":
                    _use(used_value)
                if kind == "path" and used_value is not None and "://" not in used_value:
                    Path(used_value).expanduser().is_file()
                for used, use in USES.items():
                    if isinstance(spec, used):
                        use(spec)


@pytest.mark.parametrize("value", ODD, ids=range(len(ODD)))
def test_every_field_of_every_spec_can_be_used_or_says_what_to_type_for_an_odd_value(value: Any) -> None:
    _check(value)


@settings(max_examples=40, derandomize=True, deadline=None, database=None)
@given(st.one_of(PLAIN, st.lists(PLAIN, max_size=4)))
def test_every_field_of_every_spec_can_be_used_or_says_what_to_type_for_any_value(value: Any) -> None:
    _check(value)
