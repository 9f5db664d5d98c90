"""Compose configs with Hydra, and build a `Run` from one."""

import dataclasses
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Quote, QuotedString
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dogbreeds.core.errors import MissingFileError, UserError
from dogbreeds.core.former_names import with_new_names, with_new_overrides
from dogbreeds.core.paths import config_folder, home
from dogbreeds.core.source import is_foreign
from dogbreeds.core.spec import Spec
from dogbreeds.core.text import printable
from dogbreeds.data import folder, miniature, random_augment, stanford_dogs, table, tfds  # noqa: F401 - options of the group `data`
from dogbreeds.experiments.plugins import (
    ENTRY_POINTS,
    find_class,
    import_plugins,
    is_allowed,
    named_plugins,
    plugin_hint,
)
from dogbreeds.experiments.run import GROUPS, IMPLIED_SPECS, UNGROUPED, Run, Ungrouped
from dogbreeds.experiments.run_name import SWEPT_ENV, run_name
from dogbreeds.models import hub, keras_file  # noqa: F401 - options of the group `model`
from dogbreeds.tracking import mlflow_backend, saved_run  # noqa: F401 - options of the group `tracking`
from dogbreeds.tracking.records import SOURCE_SUFFIX, RunOrigin

# Keys that Hydra's `instantiate` interprets.
_HYDRA_KEYS = ("_target_", "_args_", "_partial_", "_convert_", "_recursive_")
# Settings that define a named attempt. The model, the data, augmentation, schedule and epochs may vary within it.
_DEFINING = ("preprocessing", "head", "unfreeze", "optimizer", "loss", "phase.batch_size", "phase.monitor")
# Key of a recipe of several runs in a config.
RECIPE = "recipe"
# Providers of the config sources that every command has.
_COMMON_PROVIDERS = ("hydra", "main", ENTRY_POINTS, "schema")

# The configs say `${home:}` for the folder of runs.
OmegaConf.register_new_resolver("home", lambda: str(home()), replace=True)
# Recipes say `${larger:224}` for a size of 9/7 as many pixels a side, at which strides pad as at the original.
OmegaConf.register_new_resolver("larger", lambda size: 32 * round(size * 9 / 7 / 32), replace=True)


def compose_config(
    name: str, overrides: Sequence[str] = (), with_hydra: bool = False, sources: Sequence[str] | None = None
) -> DictConfig:
    """Compose a command's config without running the command.

    Works inside a running Hydra command too: its global state is restored afterwards.

    Args:
        name: name of the command and of its file in `conf/`.
        overrides: as they are typed on the command line; names of earlier versions are taken too.
        with_hydra: whether the config includes Hydra's own, under `hydra`.
        sources: where to find configs besides `conf/`, from `config_source`; None for where the running command does.
    """
    if sources is None:
        sources = _further_sources(HydraConfig.get()) if HydraConfig.initialized() else ()
    if sources:
        listed = ",".join(QuotedString(source, Quote.single).with_quotes() for source in sources)
        overrides = [*overrides, f"hydra.searchpath=[{listed}]"]
    global_hydra = GlobalHydra.instance()
    running = global_hydra.hydra
    global_hydra.clear()
    try:
        with initialize_config_dir(str(config_folder()), version_base="1.3"):
            return compose(name, with_new_overrides(overrides), return_hydra_config=with_hydra)
    finally:
        global_hydra.hydra = running


def job_config(config: DictConfig, *ignored: str) -> DictConfig:
    """Return the settings of a command alone, without Hydra's, for digests of them.

    Without plugins, the config is that of versions that did not know them.

    Args:
        config: config of the command.
        ignored: further settings that are left out.
    """
    left_out = {"hydra", *ignored, *([] if named_plugins(config) else ["plugins"])}
    return OmegaConf.masked_copy(config, [str(key) for key in config if key not in left_out])


def config_source(place: str | Path) -> str:
    """Return a folder of configs as a source for Hydra.

    Raises:
        MissingFileError: if the folder does not exist.
    """
    path = Path(place).expanduser().absolute()
    if not path.is_dir():
        raise MissingFileError(missing_config_folder(path))
    return f"file://{path}"


def config_sources(place: str | Path | None) -> list[str]:
    """Return a Python caller's folder of configs as sources for Hydra, as `config_source`; none without a folder."""
    return [config_source(place)] if place is not None else []


def missing_config_folder(place: str | Path) -> str:
    """Return the message for a folder of configs that does not exist."""
    return (
        f"The config folder {printable(str(place))} does not exist. It must contain a folder for each config group,"
        " such as head/, with its options. Type --config-dir <folder>, or config_dir=<folder> in Python."
    )


def _further_sources(hydra_config: Any) -> tuple[str, ...]:
    """Return the config sources that were named for a command, such as by `--config-dir`."""
    return tuple(
        f"{source.schema}://{source.path}"
        for source in hydra_config.runtime.config_sources
        if source.provider not in _COMMON_PROVIDERS
    )


def from_config(config: DictConfig) -> Run:
    """Build the run that the composed config of a command describes, with the plugins that it names.

    Raises:
        UserError: if a value is not allowed, a key is unknown, a plugin cannot be imported, or a target belongs neither
            to the package nor to a plugin.
    """
    if RECIPE in config:
        raise UserError(
            "A recipe of several runs was given where one run is needed. python -m dogbreeds.train runs all of it. Type"
            " recipe=fast, or python -m dogbreeds.train recipe=best; in Python, dogbreeds.run_recipe([...])."
        )
    plugins = named_plugins(config)
    import_plugins(plugins)
    # Once: it takes a while, and the first line of a command waits for it.
    resolved = _resolved(config)
    specs: dict[str, Any] = {group: _spec_of(resolved, group, plugins) for group in GROUPS}
    settings = {**Ungrouped.implied, **resolved}
    missing = [name for name in UNGROUPED if name not in settings]
    if missing:
        raise UserError(
            f"{missing[0]} was not given. Every setting needs a value. Type {missing[0]}=<value>, or leave out"
            f" ~{missing[0]}."
        )
    return Run(**specs, **dataclasses.asdict(Ungrouped(**{name: settings[name] for name in UNGROUPED})))


def build_spec(config: DictConfig, name: str, plugins: Sequence[str] = ()) -> Any:
    """Build the spec of one group; the config may lack other groups.

    Args:
        config: composed config with the group.
        name: name of the group, such as `optimizer`.
        plugins: modules whose classes the group may name, besides those of the package and of installed plugins. A
            recorded config must not decide them.

    Raises:
        UserError: as `from_config`.
    """
    return _spec_of(_resolved(config), name, plugins)


def _spec_of(resolved: Any, name: str, plugins: Sequence[str]) -> Any:
    group = resolved.get(name)
    if group is None and name in IMPLIED_SPECS:
        return IMPLIED_SPECS[name](**IMPLIED_SPECS[name].implied)
    if isinstance(group, dict):
        group = with_new_names(group, f"{name}.")
    cls = _check_group(name, group, plugins)
    return cls(**{**cls.implied, **{key: value for key, value in group.items() if key != "_target_"}})


def settings_of(config: DictConfig, key: str, *names: str) -> dict[str, Any]:
    """Return the settings below a key that is no group, such as `only`.

    Args:
        config: config of a command.
        key: dotted name.
        names: of the settings; none for any.

    Raises:
        UserError: a value was set in their place, or there is another setting.
    """
    values = config
    for part in key.split("."):
        values = values[part]
    if not isinstance(values, DictConfig):
        example = names[0] if names else "<name>"
        raise UserError(
            f"{key} was {values!r}. It is not a setting"
            f" itself, but has the settings {', '.join(names) or 'of its file'}. Type {key}.{example}=<value>."
        )
    settings: dict[str, Any] = {str(name): values[name] for name in values}
    for name in settings:
        if names and name not in names:
            raise UserError(
                f"{key}.{name} is not a setting. {key} has the settings {', '.join(names)}. Type"
                f" {key}.{names[0]}=<value>, for example."
            )
    return settings


def _resolved(config: DictConfig) -> Any:
    """Return a config as plain values, with its interpolations resolved."""
    try:
        return OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(
            f"The config cannot be resolved ({str(error).splitlines()[0]}). Every ${{…}} must name an existing key."
            " Type python -m dogbreeds.train --cfg job to see the whole config."
        ) from error


def _check_group(name: str, group: Any, plugins: Sequence[str]) -> type[Spec]:
    """Return the class that a group names.

    Raises:
        UserError: unless the group names one of its own specs and has exactly its settings, as plain values.
    """
    target = group.get("_target_") if isinstance(group, dict) else None
    cls = _find_spec_class(name, target)
    if cls is None and isinstance(target, str) and is_allowed(target, plugins):
        cls = find_class(f"{name}._target_", target, _base(name))
    if cls is None:
        raise UserError(
            f"{name}._target_ was {target!r}. It must be a class of dogbreeds.{name}, or of a plugin, as in the files"
            f" of conf/{name}/. Type {name}=<option>; {plugin_hint(target)}."
        )
    known = {field.name for field in dataclasses.fields(cls)}
    for key, value in group.items():
        if key != "_target_" and key not in known:
            raise UserError(
                f"{name}.{key} is not a setting of {cls.__name__}. Its settings are {', '.join(sorted(known))}. "
                "Type one of those, or leave out the attempt that sets it."
            )
        _check_plain(f"{name}.{key}", value)
    missing = sorted(known - group.keys() - cls.implied.keys())
    if missing:
        raise UserError(
            f"{name}.{missing[0]} was not given. {cls.__name__} needs all of {', '.join(sorted(known))}. "
            f"Type {name}=<option>, whose file sets them; python -m dogbreeds.train --help lists the options."
        )
    return cls


def _find_spec_class(name: str, target: Any) -> type[Spec] | None:
    """Return the package's spec class that a target names, by its current or its recorded path; None without one."""
    return next((cls for cls in _subclasses(_base(name)) if not is_foreign(cls) and target in _target_paths(cls)), None)


def _base(name: str) -> type[Spec]:
    """Return the base class of a group's specs."""
    return next(cls for cls in Spec.__subclasses__() if vars(cls).get("group") == name and not is_foreign(cls))


def _subclasses(base: type[Spec]) -> Iterator[type[Spec]]:
    """Yield a class and all classes that derive from it."""
    yield base
    for cls in base.__subclasses__():
        yield from _subclasses(cls)


def _target_paths(cls: type[Spec]) -> tuple[str, ...]:
    """Return the paths that name a spec class: the current one, and the one in configs recorded by version 0.1.0."""
    return f"{cls.__module__}.{cls.__qualname__}", f"dogbreeds.{cls.group}.{cls.__qualname__}"


def _check_plain(key: str, value: Any) -> None:
    """Raise `UserError` if a setting holds, at any depth, something that Hydra would call."""
    if isinstance(value, dict):
        for inner_key, inner_value in value.items():
            if inner_key in _HYDRA_KEYS:
                raise UserError(
                    f"{key} has a key {inner_key} ({inner_value!r}). Only a group itself names a class, and its"
                    f" settings are plain values. Type {key}=<value>."
                )
            _check_plain(f"{key}.{inner_key}", inner_value)
    elif isinstance(value, list):
        for item in value:
            _check_plain(key, item)


def run_origin(config: DictConfig, run: Run) -> RunOrigin:
    """Describe how the running Hydra job composed its run: config, overrides, output folder, name and chosen options.

    Args:
        config: config of the job.
        run: run that was built from it.
    """
    hydra_config = HydraConfig.get()
    return _run_origin(config, hydra_config, run, Path(hydra_config.runtime.output_dir))


def compose_run(overrides: Sequence[str] = (), sources: Sequence[str] | None = ()) -> Run:
    """Compose a run other than that of the running Hydra job, if there is one.

    Args:
        overrides: as they are typed on the command line.
        sources: where to find configs besides `conf/`, as for `compose_config`.

    Raises:
        UserError: as `from_config`.
        HydraException: if an override cannot be parsed, or names no setting or option.
    """
    composed = compose_config("train", overrides, with_hydra=True, sources=sources)
    config = OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])
    run = from_config(config)
    return dataclasses.replace(run, origin=_run_origin(config, composed.hydra, run, None))


def _run_origin(config: DictConfig, hydra_config: Any, run: Run, output_dir: Path | None) -> RunOrigin:
    overrides = tuple(hydra_config.overrides.task)
    choices = {
        group: option
        for group, option in hydra_config.runtime.choices.items()
        if option and not group.startswith("hydra")
    }
    sources = _further_sources(hydra_config)
    return RunOrigin(
        yaml=OmegaConf.to_yaml(config),
        overrides=overrides,
        name=run_name(choices, overrides, os.environ.get(SWEPT_ENV, "").split()),
        folder=output_dir,
        choices={group: option for group, option in choices.items() if group in ("attempt", "model", "data")},
        sources=sources,
        changed=_changes_to_attempt(run, choices, named_plugins(config), sources) if "attempt" in choices else (),
    )


def _changes_to_attempt(
    run: Run, choices: dict[str, str], plugins: Sequence[str], sources: Sequence[str]
) -> tuple[str, ...]:
    """Return the defining settings in which a run differs from the attempt that it names."""
    overrides = [f"{group}={choices[group]}" for group in ("attempt", "model", "data")]
    named = compose_config("train", [*overrides, f"plugins=[{','.join(plugins)}]"], sources=sources)
    ours = run.parameters()
    theirs = from_config(named).parameters()
    return tuple(
        f"{key}={ours[key]}"
        for key in ours
        if key.startswith(_DEFINING) and not key.endswith(SOURCE_SUFFIX) and ours[key] != theirs.get(key)
    )
