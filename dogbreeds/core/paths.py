"""Location of the project folder."""

import os
from pathlib import Path


def home() -> Path:
    """Return the folder that contains `conf/`, `multirun/` and `mlruns/`.

    It is the value of the environment variable DOGBREEDS_HOME if that is set, else the checkout.
    """
    return Path(os.environ.get("DOGBREEDS_HOME") or Path(__file__).resolve().parents[2])
