"""What the random search draws: data sets, the settings of runs, and cases with a name."""

import math
from dataclasses import dataclass

import numpy as np

from tests.bench.faults.backbones import CLASSES, IMAGES_PER_CLASS

# Images of each class that neither a run nor its verdict sees.
TRUTH_PER_CLASS = 8
# Optimizer steps of a run, at most: a draw with more gets larger batches.
_MAX_STEPS = 3000
_HEADS = (
    ("head=mlp",),
    ("head=mlp", "head.dropout=0"),
    ("head=mlp", "head.widths=[64]", "head.dropout=0.1"),
    ("head=mlp", "head.widths=[1024,512,256]"),
    ("head=linear",),
    ("head=linear", "head.dropout=0.3"),
    ("head=batchnorm",),
)
_HEAD_SHARES = (0.34, 0.1, 0.1, 0.06, 0.2, 0.06, 0.14)
_OPTIMIZERS = (
    ("optimizer=adam",),
    ("optimizer=adamw",),
    ("optimizer=rmsprop",),
    ("optimizer=sgd",),
    ("optimizer=sgd", "optimizer.momentum=0.0"),
)
_OPTIMIZER_SHARES = (0.4, 0.15, 0.15, 0.2, 0.1)
# Decimal logarithms of learning rates: all, and what `conf/optimizer/` and `conf/model/` recommend for a head.
_RATES, _RECOMMENDED, _RECOMMENDED_SGD = (-5.0, -1.0), (-3.5, -2.5), (-2.0, -1.0)
_BATCH_SIZES = (8, 16, 32, 64, 128, 256)


@dataclass(frozen=True)
class DataDraw:
    """A data set of the study.

    Attributes:
        classes: number of classes.
        train_per_class: training images of each.
        val_per_class: validation images of each.
        test_per_class: test images of each that the run sees; 0 for no test split, so that validation decides.
        noise: share of the labels that are permuted, in every split that the run sees; 1: random labels.
        pixels: pixel convention; `native` for the right one.
    """

    classes: int
    train_per_class: int
    val_per_class: int
    test_per_class: int = 0
    noise: float = 0.0
    pixels: str = "native"


def draw_data(seed: int, native: str, classes: int = CLASSES) -> DataDraw:
    """Draw a data set.

    Args:
        seed: of the draw.
        native: right pixel convention of the backbone.
        classes: classes that there are.
    """
    rng = np.random.default_rng([seed, 0])
    drawn = classes if rng.random() < 0.25 else _log_integer(rng, 2, classes)
    train = _log_integer(rng, 5, 40)
    free = IMAGES_PER_CLASS - TRUTH_PER_CLASS - train
    val = _log_integer(rng, 1, min(20, free - 2))
    test = _log_integer(rng, 2, min(20, free - val)) if rng.random() < 0.5 else 0
    noise = [0.0, round(rng.uniform(0.1, 0.5), 2), 1.0][rng.choice(3, p=(0.82, 0.1, 0.08))]
    # One wrong convention for each backbone, since each needs a pass over all images.
    wrong = "torch" if native != "torch" else "raw"
    return DataDraw(drawn, train, val, test, noise, wrong if rng.random() < 0.1 else "native")


def draw_settings(rng: np.random.Generator, num_train: int, is_recommended: bool = False) -> tuple[str, ...]:
    """Draw the settings of a run.

    Args:
        rng: random generator.
        num_train: number of training images.
        is_recommended: whether the rate is one that the optimizer's config recommends, for ten epochs or more. Most
            others are far from it, and a verdict must be right about sound runs too.
    """
    head = _HEADS[rng.choice(len(_HEADS), p=_HEAD_SHARES)]
    optimizer = _OPTIMIZERS[rng.choice(len(_OPTIMIZERS), p=_OPTIMIZER_SHARES)]
    recommended = _RECOMMENDED_SGD if "optimizer=sgd" in optimizer else _RECOMMENDED
    lr = 10 ** rng.uniform(*(recommended if is_recommended else _RATES))
    epochs = int(rng.integers(10 if is_recommended else 3, 21))
    batch_size = next(
        size
        for size in (*_BATCH_SIZES[rng.integers(len(_BATCH_SIZES)) :], num_train)
        if epochs * math.ceil(num_train / size) <= _MAX_STEPS
    )
    schedule = ("constant", "cosine", "plateau")[rng.choice(3, p=(0.7, 0.2, 0.1))]
    patience = "5" if rng.random() < 0.5 else "null"
    return (
        *head,
        *optimizer,
        f"optimizer.lr={lr:.3g}",
        f"phase.epochs={epochs}",
        f"phase.batch_size={batch_size}",
        f"phase.patience_epochs={patience}",
        f"schedule={schedule}",
        f"seed={rng.integers(1000)}",
    )


def _log_integer(rng: np.random.Generator, low: int, high: int) -> int:
    """Draw an integer log-uniformly."""
    return min(high, int(math.exp(rng.uniform(math.log(low), math.log(high + 1)))))


GUIDE = ("head=mlp", "phase.batch_size=32", "phase.patience_epochs=null")
# Runs that verdicts were wrong on, as data and settings.
CASES: dict[str, tuple[DataDraw, tuple[str, ...]]] = {
    "the guide's head, Adam 1e-2, 120 classes, n = 480": (
        DataDraw(120, 20, 4),
        (*GUIDE, "optimizer.lr=1e-2", "phase.epochs=6"),
    ),
    "the guide's head, Adam 4e-3, 120 classes, n = 480": (
        DataDraw(120, 20, 4),
        (*GUIDE, "optimizer.lr=4e-3", "phase.epochs=6"),
    ),
    "the guide's head, Adam 1e-2, 120 classes, n = 120": (
        DataDraw(120, 10, 1),
        (*GUIDE, "optimizer.lr=1e-2", "phase.epochs=6"),
    ),
    "random labels, 2 classes, 72 images": (
        DataDraw(2, 36, 12, noise=1.0),
        (*GUIDE, "head.dropout=0", "optimizer.lr=1e-3", "phase.epochs=12"),
    ),
    "random labels, 3 classes, 36 images": (
        DataDraw(3, 12, 4, noise=1.0),
        (*GUIDE, "head.dropout=0", "optimizer.lr=5e-3", "phase.epochs=12"),
    ),
    "slow SGD, 120 classes": (
        DataDraw(120, 20, 4),
        ("head=linear", "optimizer=sgd", "optimizer.lr=1e-3", "phase.epochs=8"),
    ),
    "slow SGD, 5 classes": (
        DataDraw(5, 20, 10),
        ("head=mlp", "optimizer=sgd", "optimizer.lr=1e-4", "phase.epochs=8"),
    ),
    "fast SGD, 120 classes": (DataDraw(120, 20, 4), (*GUIDE, "optimizer=sgd", "optimizer.lr=1e-1", "phase.epochs=8")),
    "fast SGD, BatchNorm head, 120 classes": (
        DataDraw(120, 20, 4),
        ("head=batchnorm", "optimizer=sgd", "optimizer.lr=1e-1", "phase.epochs=8"),
    ),
    "slow Adam, linear head, 120 classes": (
        DataDraw(120, 20, 4),
        ("head=linear", "optimizer.lr=1e-4", "phase.epochs=4"),
    ),
    "fast Adam, BatchNorm head, 120 classes": (
        DataDraw(120, 20, 4),
        ("head=batchnorm", "optimizer.lr=1e-1", "phase.epochs=6"),
    ),
    "few images: 10 classes, 5 each, 10 for validation": (
        DataDraw(10, 5, 1),
        ("head=linear", "optimizer.lr=1e-3", "phase.epochs=10"),
    ),
    "few images: 2 classes, 5 each, 4 for validation": (
        DataDraw(2, 5, 2),
        ("head=linear", "optimizer.lr=1e-3", "phase.epochs=10"),
    ),
    "sound: the guide's head, Adam 1e-3, 120 classes": (
        DataDraw(120, 20, 4),
        (*GUIDE, "optimizer.lr=1e-3", "phase.epochs=12"),
    ),
    "sound: linear head, 2 classes": (
        DataDraw(2, 30, 10),
        ("head=linear", "optimizer.lr=1e-3", "phase.epochs=12"),
    ),
}
