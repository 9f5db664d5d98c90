"""Where things lie."""

import os
from pathlib import Path


def home() -> Path:
    """The folder with `conf/`, `multirun/` and `mlruns/`: the checkout, or what the environment variable DOGBREEDS_HOME names."""
    return Path(os.environ.get("DOGBREEDS_HOME") or Path(__file__).resolve().parents[2])
