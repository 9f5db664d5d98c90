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
    from dogbreeds.api import compose, fit, judge_history, load, paired, preflight, runs
    from dogbreeds.api_images import audit_dataset, probe_backbones
    from dogbreeds.api_sweeps import make_soup, run_recipe, sweep
    from dogbreeds.core.errors import MissingFileError, UserError
    from dogbreeds.core.spec import boolean, integer, integers, number, one_of, text, texts
    from dogbreeds.data.augment import Augment
    from dogbreeds.data.dataset import Data, Dataset, Source, Split
    from dogbreeds.experiments.classifier import Classifier
    from dogbreeds.experiments.result import Result
    from dogbreeds.experiments.run import Run
    from dogbreeds.models.head import Head
    from dogbreeds.models.model import Model
    from dogbreeds.models.preprocessing import Preprocessing
    from dogbreeds.models.unfreeze import Unfreeze
    from dogbreeds.training.optimizer import Optimizer
    from dogbreeds.training.phase import Training
    from dogbreeds.training.schedule import Schedule
    from dogbreeds.training.verdict_callback import VerdictCallback

__all__ = [
    "Augment",
    "Classifier",
    "Data",
    "Dataset",
    "Head",
    "MissingFileError",
    "Model",
    "Optimizer",
    "Preprocessing",
    "Result",
    "Run",
    "Schedule",
    "Source",
    "Split",
    "Training",
    "Unfreeze",
    "UserError",
    "VerdictCallback",
    "audit_dataset",
    "boolean",
    "compose",
    "fit",
    "integer",
    "integers",
    "judge_history",
    "load",
    "make_soup",
    "number",
    "one_of",
    "paired",
    "preflight",
    "probe_backbones",
    "run_recipe",
    "runs",
    "sweep",
    "text",
    "texts",
]
# Module of each public name. They are imported at their first use (PEP 562), since TensorFlow and MLflow take seconds.
_MODULES = {
    "Classifier": "experiments.classifier",
    "MissingFileError": "core.errors",
    "Result": "experiments.result",
    "Run": "experiments.run",
    "UserError": "core.errors",
    "VerdictCallback": "training.verdict_callback",
    "audit_dataset": "api_images",
    "compose": "api",
    "fit": "api",
    "judge_history": "api",
    "load": "api",
    "make_soup": "api_sweeps",
    "paired": "api",
    "preflight": "api",
    "probe_backbones": "api_images",
    "run_recipe": "api_sweeps",
    "runs": "api",
    "sweep": "api_sweeps",
    # Base classes of parts of one's own, and declarations of their fields.
    "Augment": "data.augment",
    "Data": "data.dataset",
    "Dataset": "data.dataset",
    "Head": "models.head",
    "Model": "models.model",
    "Optimizer": "training.optimizer",
    "Preprocessing": "models.preprocessing",
    "Schedule": "training.schedule",
    "Source": "data.dataset",
    "Split": "data.dataset",
    "Training": "training.phase",
    "Unfreeze": "models.unfreeze",
    "boolean": "core.spec",
    "integer": "core.spec",
    "integers": "core.spec",
    "number": "core.spec",
    "one_of": "core.spec",
    "text": "core.spec",
    "texts": "core.spec",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
