"""Transfer-learning experiments in Keras: configured with Hydra, recorded in MLflow, diagnosed by the framework.

A run checks the preprocessing against the pretrained weights before it trains, caches the features of the frozen part
of the backbone, and ends with a verdict. Each command is a module, such as `python -m dogbreeds.train`. In Python:

    import dogbreeds

    result = dogbreeds.fit(dogbreeds.compose(["phase.epochs=3"]))
    print(result.verdict.name, result.verdict.reason)
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dogbreeds.api import compose, fit
    from dogbreeds.core.errors import MissingFileError, UserError
    from dogbreeds.experiments.result import Result
    from dogbreeds.experiments.run import Run

__all__ = ["MissingFileError", "Result", "Run", "UserError", "compose", "fit"]
# Module of each public name. They are imported at their first use (PEP 562), since TensorFlow and MLflow take seconds.
_MODULES = {
    "MissingFileError": "core.errors",
    "Result": "experiments.result",
    "Run": "experiments.run",
    "UserError": "core.errors",
    "compose": "api",
    "fit": "api",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
