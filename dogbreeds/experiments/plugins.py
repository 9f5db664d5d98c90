"""Plugins: modules outside the package whose classes the config groups may name.

A plugin is named by `plugins=[…]`, or by an installed package's entry point in the group `dogbreeds.plugins`. Configs
choose which code runs, so a class is imported only from a plugin: a config that was recorded with a run names none.
"""

import functools
import importlib
import importlib.metadata
import importlib.util
import sys
import sysconfig
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf

from dogbreeds.core.errors import UserError
from dogbreeds.core.source import package_digest, source_digest, top_level
from dogbreeds.core.spec import Spec, texts
from dogbreeds.core.text import digest, shorten, visible

# Group of the entry points of installed plugins, and provider of their config folders in Hydra's search path.
ENTRY_POINTS = "dogbreeds.plugins"
# What a module may raise while Python imports it.
_IMPORT_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    NameError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
)


@dataclass(frozen=True, kw_only=True)
class NamedPlugins(Spec):
    """The plugins that a command names.

    Attributes:
        plugins: modules, as Python imports them. Those below a package belong to it.
    """

    group = ""
    plugins: tuple[str, ...] = texts(example="[mydogs]")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.plugins:
            if not is_module_name(name):
                raise UserError(
                    f"plugins has {visible(name)!r}. It must list modules by name, as Python imports them, and not"
                    " files. Type 'plugins=[mydogs]' for the folder mydogs/ or the file mydogs.py, for example."
                )


def named_plugins(config: DictConfig) -> tuple[str, ...]:
    """Return the plugins that the config of a running command names; the recorded config of a run must not be given.

    Raises:
        UserError: if it does not list modules.
    """
    named = config.get("plugins", [])
    plugins: Any = OmegaConf.to_object(named) if OmegaConf.is_config(named) else named
    return NamedPlugins(plugins=plugins).plugins


def with_plugins(overrides: Sequence[str], plugins: Any) -> Sequence[str]:
    """Return the overrides of a command with plugins that a Python caller names.

    Raises:
        UserError: if it does not list modules.
    """
    named = NamedPlugins(plugins=plugins).plugins
    return [*overrides, f"plugins=[{','.join(named)}]"] if named else overrides


@functools.cache
def installed_plugins() -> tuple[str, ...]:
    """Return the modules that the entry points of installed packages name."""
    return tuple(sorted({entry.module for entry in importlib.metadata.entry_points(group=ENTRY_POINTS)}))


def is_module_name(name: str) -> bool:
    """Return whether a name could be that of a module, such as `mydogs.parts`."""
    return all(part.isidentifier() for part in name.split("."))


def is_allowed(target: str, named: Sequence[str]) -> bool:
    """Return whether a class belongs to a plugin, without importing it.

    Args:
        target: dotted path of the class.
        named: plugins that the command names.
    """
    return is_module_name(target) and any(target.startswith(f"{plugin}.") for plugin in (*named, *installed_plugins()))


def plugin_hint(target: object) -> str:
    """Return what to type so that a class of a module outside the package is allowed, for errors."""
    module = top_level(str(target))
    # None is a target that was removed, as by `~head`.
    known = (
        isinstance(target, str)
        and is_module_name(target)
        and module not in (top_level(__name__), *sys.stdlib_module_names)
    )
    plugin = module if known else "mydogs"
    return f"'plugins=[{plugin}]' allows the classes of the module {plugin}"


def sources_digest(named: Sequence[str]) -> str:
    """Return a digest of the sources of all plugins: those that a command names, and the installed ones.

    Returns:
        An empty text if there are none.
    """
    packages = sorted({top_level(plugin) for plugin in (*named, *installed_plugins())})
    return digest("\n".join(map(package_digest, packages)).encode()) if packages else ""


def import_plugins(named: Sequence[str]) -> None:
    """Import the plugins that a command names.

    Raises:
        UserError: if one is not on Python's path, or has an error in its source.
    """
    for plugin in named:
        _import_module(plugin, f"plugins has {plugin}")


def find_class(key: str, target: str, base: type[Spec]) -> type[Spec]:
    """Import a spec class of a plugin, which `is_allowed` has checked.

    Args:
        key: config key that names the class.
        target: dotted path of the class.
        base: base class of the group's specs.

    Raises:
        UserError: unless it is a subclass of the base whose fields are declared with checks.
    """
    module, _, name = target.rpartition(".")
    cls = getattr(_import_module(module, f"{key} was {target}"), name, None)
    if not (isinstance(cls, type) and issubclass(cls, base)):
        raise UserError(
            f"{key} was {target}, which is no {'class' if cls is None else f'subclass of {base.__name__}'}. A class of"
            f" the group {base.group} must derive from {base.__module__}.{base.__name__}. Correct the name, or the"
            f" class in {module}."
        )
    unchecked = [field.name for field in fields(cls) if "check" not in field.metadata]
    if unchecked:
        raise UserError(
            f"{key} was {target}, whose field {unchecked[0]} has no check. Each field of a spec is declared with its"
            f" allowed values, and its default is in the config file. Type {unchecked[0]}: float ="
            " dogbreeds.number(at_least=0, example=0.5), for example."
        )
    # Taken now, since a later edit of the file does not change the code that was imported.
    source_digest(cls)
    return cls


def _import_module(name: str, received: str) -> Any:
    try:
        return importlib.import_module(name)
    except _IMPORT_ERRORS as error:
        if isinstance(error, ModuleNotFoundError) and f"{name}.".startswith(f"{error.name}."):
            raise UserError(
                f"{received}, and there is no module {error.name}. A plugin must be installed, or lie in a folder where"
                f" Python looks for modules ({_search_path()}). Type PYTHONPATH=<folder with"
                f" {top_level(name)}> in front of the command, or pip install the plugin."
            ) from error
        raise UserError(
            f"{received}, and {name} cannot be imported: {_describe(error, name)}. A plugin is imported before anything"
            f" is computed. Correct it, and try it with python -c 'import {name}'."
        ) from error


def _search_path() -> str:
    """Return the folders where Python looks for modules, without those of Python itself."""
    own = Path(sysconfig.get_path("stdlib"))
    paths = [Path(entry).absolute() for entry in sys.path]
    folders = [str(path) for path in paths if path.is_dir() and path not in (own, own / "lib-dynload")]
    others = f" and {len(folders) - 3} more" if len(folders) > 3 else ""
    return f"{', '.join(folders[:3])}{others}"


def _describe(error: Exception, name: str) -> str:
    """Describe an error in the source of a plugin: where it is raised, and what it is."""
    frames = traceback.walk_tb(error.__traceback__)
    # The last frame within the plugin. What it calls may fail far from the mistake.
    own = [
        (frame.f_code.co_filename, line)
        for frame, line in frames
        if top_level(frame.f_globals.get("__name__", "")) == top_level(name)
    ]
    if isinstance(error, SyntaxError):
        own = [(error.filename or name, error.lineno or 0)]
    place = f"{own[-1][0]}, line {own[-1][1]}, raises " if own else ""
    message = error.msg if isinstance(error, SyntaxError) else shorten(str(error), 200)
    return f"{place}{type(error).__name__} ({message})"


class InstalledConfigs(SearchPathPlugin):
    """Adds the folder `conf/` of each installed plugin to Hydra's search path, after the package's own configs."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for plugin in installed_plugins():
            for folder in _config_folders(plugin):
                search_path.append(ENTRY_POINTS, f"file://{folder}")


def _config_folders(plugin: str) -> Iterator[Path]:
    """Yield the existing config folders of a plugin, without importing it."""
    package, *inner = plugin.split(".")
    spec = importlib.util.find_spec(package)
    for location in (spec.submodule_search_locations or ()) if spec is not None else ():
        folder = Path(location, *inner, "conf")
        if folder.is_dir():
            yield folder


# A module in the namespace `hydra_plugins` would be found by Hydra itself, but only where the package is installed.
Plugins.instance().register(InstalledConfigs)
