"""The run: one frozen object that holds all an attempt needs to know. The only place that knows of Hydra's and OmegaConf's config."""

import dataclasses
import hashlib
import json
import sys
from dataclasses import dataclass
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dogbreeds.augment import Augment
from dogbreeds.baseline import Baseline
from dogbreeds.data import Data
from dogbreeds.features import Features
from dogbreeds.head import Head
from dogbreeds.model import Model
from dogbreeds.optimizer import Optimizer
from dogbreeds.phase import LrRange, Training
from dogbreeds.preflight import Preflight
from dogbreeds.preprocessing import Preprocessing
from dogbreeds.schedule import Schedule
from dogbreeds.spec import Refused, Spec, boolean, integer, text
from dogbreeds.strategy import Strategy
from dogbreeds.tracking import Tracking
from dogbreeds.unfreeze import Unfreeze

# What does not decide a result, but for the features' precision.
ELSEWHERE = ("tracking", "features", "preflight", "baseline", "strategy", "checkpoint_steps", "checkpoint_dir", "rerun")
_HYDRAS = ("_target_", "_args_", "_partial_", "_convert_", "_recursive_")


@dataclass(frozen=True, kw_only=True)
class _Alone(Spec):
    """Settings that belong to no group."""

    group = ""
    seed: int = integer(at_least=0, example=0)
    stop_on_collapse: bool = boolean()
    checkpoint_steps: int | None = integer(at_least=1, example=100, optional=True)
    checkpoint_dir: str = text(example="multirun/checkpoints")
    rerun: bool = boolean()


ALONE = tuple(field.name for field in dataclasses.fields(_Alone))


@dataclass(frozen=True, kw_only=True)
class Run:
    """One attempt, wholly described. Field names are those of the config groups and of the modules."""

    data: Data
    preprocessing: Preprocessing
    augment: Augment
    model: Model
    head: Head
    phase: Training | LrRange
    unfreeze: Unfreeze
    optimizer: Optimizer
    schedule: Schedule
    preflight: Preflight
    baseline: Baseline
    features: Features
    strategy: Strategy
    tracking: Tracking
    seed: int
    stop_on_collapse: bool
    checkpoint_steps: int | None
    checkpoint_dir: str
    rerun: bool

    @property
    def key(self) -> str:
        """A digest of what decides the result: the same key is the same attempt."""
        deciding = {name: value for name, value in self.parameters().items() if name.split(".")[0] not in ELSEWHERE}
        deciding["features.dtype"] = self.features.dtype
        return hashlib.blake2b(json.dumps(deciding, sort_keys=True).encode(), digest_size=8).hexdigest()

    def identity(self, data_fingerprint: str) -> str:
        """A digest of all that decides the result: the settings, the photos, the backbone's weights. The same identity gives the same numbers;
        a fine-tune's with the same parent.

        Args:
            data_fingerprint: of the opened data.
        """
        return hashlib.blake2b(f"{self.key} {data_fingerprint} {self.model.weights_digest()}".encode(), digest_size=12).hexdigest()

    def parameters(self) -> dict[str, Any]:
        """Every hyper-parameter by its dotted name; each group's own name stands for the option chosen."""
        flat: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Spec):
                flat[field.name] = type(value).__name__
                flat |= {f"{field.name}.{name}": inner for name, inner in dataclasses.asdict(value).items()}
            else:
                flat[field.name] = value
        return flat


def from_config(config: DictConfig) -> Run:
    """The run that a composed config describes.

    Raises:
        Refused: where a value is not allowed, a key is unknown, or a target lies outside the package.
    """
    parts: dict[str, Any] = {field.name: part(config, field.name) for field in dataclasses.fields(Run) if field.name not in ALONE}
    whole = _plain(config)
    missing = [name for name in ALONE if name not in whole]
    if missing:
        raise Refused(f"{missing[0]} was not given. Every setting needs a value. Type {missing[0]}=<value>, or leave out ~{missing[0]}.")
    return Run(**parts, **dataclasses.asdict(_Alone(**{name: whole[name] for name in ALONE})))


def part(config: DictConfig, name: str) -> Any:
    """One group's spec, of a config that may lack others.

    Raises:
        Refused: as `from_config`.
    """
    group = _plain(config).get(name)
    _check_target(name, group)
    settings = {key: value for key, value in group.items() if key != "_target_"}
    # Hydra sees the class alone: it would resolve the settings once more, and what they then came to name was not there to be checked.
    return instantiate({"_target_": group["_target_"], "_partial_": True})(**settings)


def _plain(config: DictConfig) -> Any:
    try:
        return OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        raise Refused(
            f"The config cannot be resolved ({str(error).splitlines()[0]}). Every ${{…}} must name a key that is there. "
            "Type python -m dogbreeds.train --cfg job to see it whole."
        ) from error


def _check_target(name: str, group: Any) -> None:
    """Refuses a group whose target is not one of ours, whose keys are not its target's, or that names a target further in."""
    target = group.get("_target_") if isinstance(group, dict) else None
    kind = _spec(name, target)
    if kind is None:
        raise Refused(
            f"{name}._target_ was {target!r}. It must be a class of dogbreeds.{name}, as in the files of conf/{name}/. "
            f"Type {name}=<option>; python -m dogbreeds.train --help lists them."
        )
    known = {field.name for field in dataclasses.fields(kind)}
    for key, value in group.items():
        if key != "_target_" and key not in known:
            raise Refused(
                f"{name}.{key} is not a setting of {kind.__name__}. It has {', '.join(sorted(known))}. "
                "Type one of those, or leave out the attempt that sets it."
            )
        _check_value(f"{name}.{key}", value)
    missing = sorted(known - group.keys())
    if missing:
        raise Refused(
            f"{name}.{missing[0]} was not given. {kind.__name__} has {', '.join(sorted(known))}, and needs them all. "
            f"Type {name}=<option>, whose file gives them; python -m dogbreeds.train --help lists the options."
        )


def _spec(name: str, target: Any) -> type[Spec] | None:
    """The class that a target names, where it is a spec of that very group and module."""
    module, _, last = target.rpartition(".") if isinstance(target, str) else ("", "", "")
    found = vars(sys.modules[module]).get(last) if module == f"dogbreeds.{name}" else None
    ours = isinstance(found, type) and issubclass(found, Spec) and found.__module__ == module and found.group == name
    return found if ours else None


def _check_value(key: str, value: Any) -> None:
    """Refuses what Hydra would call, however deep it lies."""
    if isinstance(value, dict):
        for inner in value:
            if inner in _HYDRAS:
                raise Refused(
                    f"{key} has a key {inner} ({value[inner]!r}). Only a group itself names a class, and its settings are plain values. "
                    f"Type {key}=<value>."
                )
            _check_value(f"{key}.{inner}", value[inner])
    elif isinstance(value, list):
        for inner in value:
            _check_value(key, inner)
