"""The run: one frozen object that holds all an attempt needs to know. The only place that knows of Hydra's and OmegaConf's config."""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from typing import Any

from dogbreeds.core.spec import Spec, boolean, integer, text
from dogbreeds.data.augment import Augment
from dogbreeds.data.dataset import Data
from dogbreeds.features.features import Features
from dogbreeds.models.head import Head
from dogbreeds.models.model import Model
from dogbreeds.models.preprocessing import Preprocessing
from dogbreeds.models.strategy import Strategy
from dogbreeds.models.unfreeze import Unfreeze
from dogbreeds.tracking.records import ELSEWHERE
from dogbreeds.tracking.tracking import Tracking
from dogbreeds.training.baseline import Baseline
from dogbreeds.training.optimizer import Optimizer
from dogbreeds.training.phase import LrRange, Training
from dogbreeds.training.preflight import Preflight
from dogbreeds.training.schedule import Schedule


@dataclass(frozen=True, kw_only=True)
class _Alone(Spec):
    """Settings that belong to no group."""

    group = ""
    seed: int = integer(at_least=0, example=0)
    stop_on_collapse: bool = boolean()
    checkpoint_steps: int | None = integer(at_least=1, example=100, optional=True)
    checkpoint_dir: str = text(example="multirun/checkpoints")
    rerun: bool = boolean()


ALONE = tuple(field.name for field in dataclasses.fields(_Alone))


@dataclass(frozen=True, kw_only=True)
class Run:
    """One attempt, wholly described. Field names are those of the config groups and of the modules."""

    data: Data
    preprocessing: Preprocessing
    augment: Augment
    model: Model
    head: Head
    phase: Training | LrRange
    unfreeze: Unfreeze
    optimizer: Optimizer
    schedule: Schedule
    preflight: Preflight
    baseline: Baseline
    features: Features
    strategy: Strategy
    tracking: Tracking
    seed: int
    stop_on_collapse: bool
    checkpoint_steps: int | None
    checkpoint_dir: str
    rerun: bool

    @property
    def key(self) -> str:
        """A digest of what decides the result: the same key is the same attempt."""
        deciding = {name: value for name, value in self.parameters().items() if name.split(".")[0] not in ELSEWHERE}
        deciding["features.dtype"] = self.features.dtype
        return hashlib.blake2b(json.dumps(deciding, sort_keys=True).encode(), digest_size=8).hexdigest()

    def identity(self, data_fingerprint: str) -> str:
        """A digest of all that decides the result: the settings, the photos, the backbone's weights. The same identity gives the same numbers;
        a fine-tune's with the same parent.

        Args:
            data_fingerprint: of the opened data.
        """
        return hashlib.blake2b(
            f"{self.key} {data_fingerprint} {self.model.weights_digest()}".encode(), digest_size=12
        ).hexdigest()

    def parameters(self) -> dict[str, Any]:
        """Every hyper-parameter by its dotted name; each group's own name stands for the option chosen."""
        flat: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Spec):
                flat[field.name] = type(value).__name__
                flat |= {f"{field.name}.{name}": inner for name, inner in dataclasses.asdict(value).items()}
            else:
                flat[field.name] = value
        return flat
