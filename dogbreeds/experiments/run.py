"""The run: one frozen object with every setting of an attempt.

The parts that it is made of know nothing of Hydra's or OmegaConf's config; `compose` builds a run from one.
"""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from typing import Any

from dogbreeds.core.errors import UserError
from dogbreeds.core.former_names import stored_name
from dogbreeds.core.source import is_foreign, source_digest
from dogbreeds.core.spec import AUTO, Spec, boolean, integer, one_of, path, seed
from dogbreeds.data.augment import Augment
from dogbreeds.data.dataset import Data
from dogbreeds.data.mix import Mix
from dogbreeds.data.mix import Nothing as NoMix
from dogbreeds.features.features import Features
from dogbreeds.models.head import Head, Logistic
from dogbreeds.models.model import Model
from dogbreeds.models.precision import FLOAT32, PRECISIONS
from dogbreeds.models.preprocessing import Preprocessing
from dogbreeds.models.strategy import Strategy
from dogbreeds.models.unfreeze import Nothing, Unfreeze
from dogbreeds.tracking.records import FEATURES_IN_RUN_KEY, NOT_IN_RUN_KEY, SOURCE_SUFFIX, RunOrigin
from dogbreeds.tracking.tracking import Tracking
from dogbreeds.training.baseline import Baseline
from dogbreeds.training.ema import Ema
from dogbreeds.training.logistic import strengths
from dogbreeds.training.loss import CrossEntropy
from dogbreeds.training.optimizer import Optimizer
from dogbreeds.training.phase import Finetune, LrRange, Soup, Training
from dogbreeds.training.preflight import Preflight
from dogbreeds.training.schedule import Schedule


@dataclass(frozen=True, kw_only=True)
class Ungrouped(Spec):
    """Settings that belong to no config group.

    Attributes:
        seed: seed of the split, the order, the initial weights, dropout and augmentation.
        stop_on_collapse: whether to stop once the validation accuracy has collapsed.
        precision: in which the layers that train compute, as Keras' dtype policies are called. Weights, logits and loss
            are float32 with each of them, and so is everything that is measured, predicted and saved.
        steps_per_execution: training steps in one call of TensorFlow, at most; None for as many as take a quarter of a
            second. The result is the same with each.
        checkpoint_steps: steps between two checkpoints within an epoch; None for a checkpoint after each epoch only.
        checkpoint_dir: folder of the checkpoints of all runs.
        rerun: whether to ignore checkpoints and finished runs, and to start over.
    """

    group = ""
    implied = {"precision": FLOAT32, "steps_per_execution": None}
    seed: int = seed()
    stop_on_collapse: bool = boolean()
    precision: str = one_of(*PRECISIONS)
    steps_per_execution: int | None = integer(at_least=1, example=10, optional=True)
    checkpoint_steps: int | None = integer(at_least=1, example=100, optional=True)
    checkpoint_dir: str = path(example="multirun/checkpoints")
    rerun: bool = boolean()


UNGROUPED = tuple(field.name for field in dataclasses.fields(Ungrouped))


@dataclass(frozen=True, kw_only=True)
class Run:
    """Every setting of one attempt, as `compose` returns it.

    Examples:
        >>> faster = db.compose(["optimizer.lr=1e-2"])
        >>> faster.optimizer.lr, faster.phase.epochs, faster.parameters()["model.architecture"]
        (0.01, 20, 'Miniature')
        >>> faster.key == db.compose(["optimizer.lr=0.01", "preflight=none"]).key
        True

    Field names are those of the config groups and of the modules; `UNGROUPED` settings follow the groups.
    """

    data: Data
    preprocessing: Preprocessing
    augment: Augment
    mix: Mix
    model: Model
    head: Head
    phase: Training | LrRange
    unfreeze: Unfreeze
    optimizer: Optimizer
    loss: CrossEntropy
    ema: Ema
    schedule: Schedule
    preflight: Preflight
    baseline: Baseline
    features: Features
    strategy: Strategy
    tracking: Tracking
    seed: int
    stop_on_collapse: bool
    precision: str
    steps_per_execution: int | None
    checkpoint_steps: int | None
    checkpoint_dir: str
    rerun: bool
    # What the run was composed from; None in a job of Hydra, which describes its runs itself.
    origin: RunOrigin | None = dataclasses.field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.logistic_head is not None:
            self._check_logistic()
        self._check_sizes()
        if isinstance(self.phase, Soup) and not self.phase.members:
            raise UserError(
                "phase=soup was given without members. They are fine-tunes of one parent, which python -m"
                " dogbreeds.soup finds. Type python -m dogbreeds.soup, or 'phase.members=[<id>,<id>]'."
            )
        if self.mix.needs_maps and type(self.unfreeze) is Nothing:
            raise UserError(
                "mix=cutmix was given with a frozen backbone. It exchanges rectangles of images or feature maps,"
                " and the pooled features of a frozen backbone are vectors. Type mix=mixup, or phase=finetune."
            )

    @property
    def logistic_head(self) -> Logistic | None:
        """The head, if it is fitted as a logistic regression. In a fine-tune it trains as any other, and is None."""
        return self.head if isinstance(self.head, Logistic) and not isinstance(self.phase, Finetune) else None

    @property
    def num_epochs(self) -> int:
        """Number of epochs at most; 0 for a range test, which has none."""
        if self.logistic_head is not None:
            return len(strengths(self.logistic_head))
        if isinstance(self.phase, Soup):
            return self.phase.num_candidates
        return self.phase.epochs if isinstance(self.phase, Training) else 0

    def _check_logistic(self) -> None:
        """Raise `UserError` unless all that trains is the head, on features that do not change."""
        if isinstance(self.phase, LrRange):
            raise UserError(
                "head=logistic was given with phase=lr_range. It is fitted without a learning rate, so there is none to"
                " find. Type phase=frozen, or head=linear."
            )
        if type(self.unfreeze) is not Nothing:
            raise UserError(
                f"head=logistic was given with phase=frozen and an unfreeze policy ({type(self.unfreeze).__name__})."
                " It is fitted to the features of a frozen backbone. Type unfreeze=none, or phase=finetune, which"
                " starts from such a fit."
            )
        others = {
            "mix": self.mix.is_active,
            "loss.label_smoothing": self.loss.label_smoothing > 0,
            "ema.decay": self.ema.decay is not None,
        }
        given = [name for name, is_given in others.items() if is_given]
        if given:
            raise UserError(
                f"{given[0]} was given with head=logistic. L-BFGS fits whole images, each of one class, to the minimum."
                " Type mix=none loss.label_smoothing=0 ema.decay=null, or head=linear."
            )
        if self.augment.is_live:
            raise UserError(
                "augment.copies=null was given with head=logistic. It is fitted to cached features of copies."
                " Type augment.copies=2, or augment=flip."
            )

    def _check_sizes(self) -> None:
        """Raise `UserError` unless a backbone can train at the size of augmented images."""
        size = self.augment.train_size(self.model.image_size)
        if size == self.model.image_size:
            return
        wrong = [each for each in (size, self.model.image_size) if each % _SIZE_STEP]
        if wrong:
            raise UserError(
                f"augment.size={size} was given with model.image_size={self.model.image_size}. Where they differ,"
                f" both must be multiples of {_SIZE_STEP}, at which padding is the same. Type"
                f" augment.size={max(_SIZE_STEP, size // _SIZE_STEP * _SIZE_STEP)}"
                f" model.image_size={self.model.image_size // _SIZE_STEP * _SIZE_STEP}."
            )

    @property
    def key(self) -> str:
        """Digest of the settings that determine the result, 16 hex digits. The same key means the same attempt."""
        hashed = {stored_name(name): value for name, value in self.parameters().items() if self._is_hashed(name, value)}
        return hashlib.blake2b(json.dumps(hashed, sort_keys=True).encode(), digest_size=8).hexdigest()

    def _is_hashed(self, name: str, value: Any) -> bool:
        """Whether a setting with this value is part of the run's key."""
        if name in _CHOSEN_AT_START and value == AUTO:
            return False
        if name in FEATURES_IN_RUN_KEY:
            return value != Features.implied.get(name.removeprefix("features."))
        implied = self._implied()
        return name.split(".")[0] not in NOT_IN_RUN_KEY and (name not in implied or implied[name] != value)

    def _implied(self) -> dict[str, Any]:
        """Return the values that earlier versions implied, by dotted name."""
        values = {f"{group}.{name}": value for group in GROUPS for name, value in getattr(self, group).implied.items()}
        groups = {group: spec.__name__ for group, spec in IMPLIED_SPECS.items()}
        return {**values, **groups, **Ungrouped.implied}

    def identity(self, data_fingerprint: str) -> str:
        """Compute a digest of everything that determines the result: settings, images and the backbone's weights.

        Runs with the same identity give the same numbers; fine-tunes do if they also have the same parent.

        Args:
            data_fingerprint: fingerprint of the opened dataset.

        Returns:
            24 hex digits.
        """
        text = f"{self.key} {data_fingerprint} {self.model.weights_digest()}"
        return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()

    def parameters(self) -> dict[str, Any]:
        """Return every hyper-parameter by its dotted name, such as `optimizer.lr`.

        A group's own name, such as `optimizer`, maps to the name of the chosen class. For the class of a plugin,
        `optimizer.class.source` maps to its module and a digest of its source.
        """
        flat: dict[str, Any] = {}
        for group in GROUPS:
            spec = getattr(self, group)
            cls = type(spec)
            flat[group] = cls.__name__
            if is_foreign(cls):
                flat[f"{group}{SOURCE_SUFFIX}"] = f"{cls.__module__}@{source_digest(cls)}"
            flat |= {f"{group}.{name}": setting for name, setting in dataclasses.asdict(spec).items()}
        return flat | {name: getattr(self, name) for name in UNGROUPED}


# Spec that versions without a group implied, with its implied values, by group. As the fields in `Spec.implied`.
IMPLIED_SPECS: dict[str, type[Spec]] = {"loss": CrossEntropy, "mix": NoMix, "ema": Ema}
# Product of the strides of the usual backbones: at its multiples, every stride pads alike.
_SIZE_STEP = 32
# Settings that may be `auto` until the run starts: see `automatic_settings`.
_CHOSEN_AT_START = ("data.decoder", "features.runtime", "features.precision")
# Names of the config groups.
GROUPS = tuple(field.name for field in dataclasses.fields(Run) if field.name not in (*UNGROUPED, "origin"))
