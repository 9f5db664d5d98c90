"""Composes configs by Hydra, and builds a `Run` of one."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dogbreeds.core.errors import UserError
from dogbreeds.core.paths import home
from dogbreeds.core.spec import Spec
from dogbreeds.data import folder, miniature, stanford_dogs  # noqa: F401 - options of the group `data`
from dogbreeds.experiments.run import ALONE, Run, _Alone
from dogbreeds.tracking import mlflow_backend  # noqa: F401 - an option of the group `tracking`
from dogbreeds.tracking.records import RunOrigin


def composed(name: str, overrides: Sequence[str] = ()) -> DictConfig:
    """A command's config as Hydra composes it, without running the command; a command that is running goes on undisturbed."""
    everyone = GlobalHydra.instance()
    running = everyone.hydra
    everyone.clear()
    try:
        with initialize_config_dir(str(home() / "conf"), version_base="1.3"):
            return compose(name, list(overrides))
    finally:
        everyone.hydra = running


_HYDRAS = ("_target_", "_args_", "_partial_", "_convert_", "_recursive_")


def from_config(config: DictConfig) -> Run:
    """The run that a composed config describes.

    Raises:
        UserError: where a value is not allowed, a key is unknown, or a target lies outside the package.
    """
    parts: dict[str, Any] = {
        field.name: part(config, field.name) for field in dataclasses.fields(Run) if field.name not in ALONE
    }
    whole = _plain(config)
    missing = [name for name in ALONE if name not in whole]
    if missing:
        raise UserError(
            f"{missing[0]} was not given. Every setting needs a value. Type {missing[0]}=<value>, or leave out"
            f" ~{missing[0]}."
        )
    return Run(**parts, **dataclasses.asdict(_Alone(**{name: whole[name] for name in ALONE})))


def part(config: DictConfig, name: str) -> Any:
    """One group's spec, of a config that may lack others.

    Raises:
        UserError: as `from_config`.
    """
    group = _plain(config).get(name)
    _check_target(name, group)
    settings = {key: value for key, value in group.items() if key != "_target_"}
    # Hydra sees the class alone: it would resolve the settings once more, and what they then came to name was not there to be checked.
    kind = _spec(name, group["_target_"])
    return instantiate({"_target_": f"{kind.__module__}.{kind.__qualname__}", "_partial_": True})(**settings)


def _plain(config: DictConfig) -> Any:
    try:
        return OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(
            f"The config cannot be resolved ({str(error).splitlines()[0]}). Every ${{…}} must name a key that is there."
            " Type python -m dogbreeds.train --cfg job to see it whole."
        ) from error


def _check_target(name: str, group: Any) -> None:
    """Refuses a group whose target is not one of ours, whose keys are not its target's, or that names a target further in."""
    target = group.get("_target_") if isinstance(group, dict) else None
    kind = _spec(name, target)
    if kind is None:
        raise UserError(
            f"{name}._target_ was {target!r}. It must be a class of dogbreeds.{name}, as in the files of conf/{name}/. "
            f"Type {name}=<option>; python -m dogbreeds.train --help lists them."
        )
    known = {field.name for field in dataclasses.fields(kind)}
    for key, value in group.items():
        if key != "_target_" and key not in known:
            raise UserError(
                f"{name}.{key} is not a setting of {kind.__name__}. It has {', '.join(sorted(known))}. "
                "Type one of those, or leave out the attempt that sets it."
            )
        _check_value(f"{name}.{key}", value)
    missing = sorted(known - group.keys())
    if missing:
        raise UserError(
            f"{name}.{missing[0]} was not given. {kind.__name__} has {', '.join(sorted(known))}, and needs them all. "
            f"Type {name}=<option>, whose file gives them; python -m dogbreeds.train --help lists the options."
        )


def _spec(name: str, target: Any) -> type[Spec] | None:
    """The class that a target names, where it is a spec of that very group; by its place, or as configs were recorded before it had packages."""
    return next(
        (kind for kind in _kinds(Spec) if getattr(kind, "group", None) == name and target in _paths(kind)), None
    )


def _kinds(base: type[Spec]) -> Iterator[type[Spec]]:
    for kind in base.__subclasses__():
        yield kind
        yield from _kinds(kind)


def _paths(kind: type[Spec]) -> tuple[str, ...]:
    return f"{kind.__module__}.{kind.__qualname__}", f"dogbreeds.{kind.group}.{kind.__qualname__}"


def _check_value(key: str, value: Any) -> None:
    """Refuses what Hydra would call, however deep it lies."""
    if isinstance(value, dict):
        for inner in value:
            if inner in _HYDRAS:
                raise UserError(
                    f"{key} has a key {inner} ({value[inner]!r}). Only a group itself names a class, and its settings"
                    f" are plain values. Type {key}=<value>."
                )
            _check_value(f"{key}.{inner}", value[inner])
    elif isinstance(value, list):
        for inner in value:
            _check_value(key, inner)


# What makes an attempt the one it is named after: on which model and photos, with which augmentation and schedule, and for how long is left open.
_DEFINING = ("preprocessing", "head", "unfreeze", "optimizer", "phase.batch_size")


def _composition(config: DictConfig, run: Run) -> RunOrigin:
    hydra_config = HydraConfig.get()
    overrides = tuple(hydra_config.overrides.task)
    choices = {
        group: option
        for group, option in hydra_config.runtime.choices.items()
        if option and not group.startswith("hydra")
    }
    others = [item for item in overrides if not item.startswith(("model=", "phase=", "attempt="))]
    name = " ".join([choices["model"], choices.get("attempt", choices["phase"]), *others])
    changed = _changed(run, choices) if "attempt" in choices else ()
    sought = {group: option for group, option in choices.items() if group in ("attempt", "model", "data")}
    return RunOrigin(
        OmegaConf.to_yaml(config), overrides, name[:250], Path(hydra_config.runtime.output_dir), sought, changed
    )


def _changed(run: Run, choices: dict[str, str]) -> tuple[str, ...]:
    """What the command line made different from the attempt that it names."""
    named = composed("train", [f"{group}={choices[group]}" for group in ("attempt", "model", "data")])
    here, there = run.parameters(), from_config(named).parameters()
    return tuple(f"{key}={here[key]}" for key in here if key.startswith(_DEFINING) and here[key] != there.get(key))
