"""Transfer-learning experiments in Keras: configured with Hydra, recorded in MLflow, diagnosed by the framework.

A run checks the preprocessing against the pretrained weights before it trains, caches the features of the frozen part
of the backbone, and ends with a verdict. Each command is a module, such as `python -m dogbreeds.train`. In Python:

    import dogbreeds as db

    result = db.fit(db.compose(["phase.epochs=3"]))
    print(result.verdict.name, result.verdict.reason)
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dogbreeds.api import compose, fit, judge_history, load, paired, preflight, runs, sweep
    from dogbreeds.core.errors import MissingFileError, UserError
    from dogbreeds.data.dataset import Dataset
    from dogbreeds.experiments.classifier import Classifier
    from dogbreeds.experiments.result import Result
    from dogbreeds.experiments.run import Run

__all__ = [
    "Classifier",
    "Dataset",
    "MissingFileError",
    "Result",
    "Run",
    "UserError",
    "compose",
    "fit",
    "judge_history",
    "load",
    "paired",
    "preflight",
    "runs",
    "sweep",
]
# Module of each public name. They are imported at their first use (PEP 562), since TensorFlow and MLflow take seconds.
_MODULES = {
    "Classifier": "experiments.classifier",
    "Dataset": "data.dataset",
    "MissingFileError": "core.errors",
    "Result": "experiments.result",
    "Run": "experiments.run",
    "UserError": "core.errors",
    "compose": "api",
    "fit": "api",
    "judge_history": "api",
    "load": "api",
    "paired": "api",
    "preflight": "api",
    "runs": "api",
    "sweep": "api",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
