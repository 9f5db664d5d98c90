"""Source of classes from outside the package: a digest that tells whether their code was edited."""

import dataclasses
import hashlib
import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from dogbreeds.core.errors import UserError
from dogbreeds.core.text import digest

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_PACKAGE = __name__.partition(".")[0]
# Digest of each class that was asked for.
_digests: dict[type, str] = {}


def is_foreign(cls: type) -> bool:
    """Return whether a class was defined outside the package."""
    return top_level(cls.__module__) != _PACKAGE


def top_level(module: str) -> str:
    """Return the package at the top of a module's dotted name, or the module itself."""
    return module.partition(".")[0]


def source_digest(cls: type) -> str:
    """Return a digest of the source of a class from outside the package; empty for a class of the package.

    It covers all modules of the package that defines the class, since the class may use each of them, and of those that
    define its base classes. It is computed once for each class: the code that the process has imported decides, and
    not a later edit.

    Raises:
        UserError: if a class has no source file, as in a notebook.
    """
    if not is_foreign(cls):
        return ""
    if cls not in _digests:
        _digests[cls] = _compute_digest(cls)
    return _digests[cls]


def _compute_digest(cls: type) -> str:
    packages = {top_level(base.__module__) for base in cls.__mro__} - {_PACKAGE} - sys.stdlib_module_names
    parts = [f"{cls.__module__}.{cls.__name__}", *(package_digest(package) for package in sorted(packages))]
    return hashlib.blake2b("\n".join(parts).encode(), digest_size=12).hexdigest()


def plugin_source(spec: object) -> dict[str, str]:
    """Return what the source of a plugin adds to the identity of a cached array; nothing for a class of the package.

    Args:
        spec: part of a run that decides the array.
    """
    found = source_digest(type(spec))
    return {"source": found} if found else {}


def plugin_digest(spec: "DataclassInstance", *ignored: str) -> str:
    """Return a digest of source and settings of a spec, after a colon, if its class is a plugin's; else an empty text.

    It is appended to what identifies the result of a class of the package.

    Args:
        spec: part of a run.
        ignored: fields that are left out.
    """
    if not is_foreign(type(spec)):
        return ""
    settings = {name: value for name, value in dataclasses.asdict(spec).items() if name not in ignored}
    return f":{digest(json.dumps([source_digest(type(spec)), settings], sort_keys=True).encode())}"


def package_digest(name: str) -> str:
    """Return a digest of the sources of a top-level package or module, without importing it.

    Raises:
        UserError: if it has no source file.
    """
    state = hashlib.blake2b(digest_size=12)
    files = sorted(_source_files(name))
    if not files:
        raise UserError(
            f"{name} has no source file. The source of a class enters the key of its runs, so that edited code does not"
            " resume earlier results. Save the class in a module, such as parts.py, and type plugins=[parts]."
        )
    for relative, path in files:
        content = path.read_bytes()
        state.update(f"{relative} {len(content)}\n".encode())
        state.update(content)
    return state.hexdigest()


def _source_files(name: str) -> Iterator[tuple[str, Path]]:
    """Yield each source file of a top-level package or module: its path below the package, and its path."""
    try:
        # The main module of a process, such as a notebook's, is another one in each process.
        spec = importlib.util.find_spec(name) if name != "__main__" else None
    except ValueError:
        # A module that was not imported from a file.
        spec = None
    if spec is None:
        return
    if spec.submodule_search_locations is not None:
        for folder in spec.submodule_search_locations:
            for path in Path(folder).rglob("*.py"):
                yield path.relative_to(folder).as_posix(), path
    elif spec.has_location and spec.origin:
        yield name, Path(spec.origin)
