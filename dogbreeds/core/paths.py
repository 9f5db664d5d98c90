"""Locations of the checkout, the config folder, and the folder of runs."""

import os
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]


def checkout() -> Path | None:
    """Return the checkout that the package is part of, or None if the package was installed from a wheel."""
    # A wheel holds the config folder within the package.
    return None if (_PACKAGE / "conf").is_dir() else _PACKAGE.parent


def config_folder() -> Path:
    """Return the folder with the configs of all commands."""
    return (checkout() or _PACKAGE) / "conf"


def home() -> Path:
    """Return the folder that contains `multirun/` and `mlruns/`.

    It is the value of the environment variable DOGBREEDS_HOME if that is set, else the checkout, else the current
    folder.
    """
    return Path(os.environ.get("DOGBREEDS_HOME") or checkout() or Path.cwd())
