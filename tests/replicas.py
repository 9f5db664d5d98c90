"""Train cases on one device and on several logical devices of the CPU, and write the results of both to files.

It is a process of its own, because logical devices must be created before TensorFlow starts to use the CPU.

python -m tests.replicas <folder> <number of devices> <case>...
"""

import json
import sys
from pathlib import Path

import numpy as np

from dogbreeds.experiments import attempt, compose
from dogbreeds.experiments.compose import from_config
from dogbreeds.experiments.result import Result
from dogbreeds.tracking.records import RunOrigin
from tests.losses import recorded

FOLDER = Path(sys.argv[1])
NUM_DEVICES = int(sys.argv[2])
NAMES = sys.argv[3:]
DEVICES = tuple(f"CPU:{number}" for number in range(NUM_DEVICES))
# 45 images in batches of 11: two devices get 5 and 6 of them, and the last batch of each epoch is a single image.
COMMON = (
    "tracking=none",
    "tracking.folder=null",
    "preflight=none",
    "data.classes=5",
    "data.train_per_class=9",
    "phase.epochs=3",
    "phase.batch_size=11",
    "rerun=true",
)
TOP = ("unfreeze=blocks", "unfreeze.top=2")
CASES = {
    "linear": ("head=linear", "head.dropout=0"),
    "mlp": ("head=mlp", "head.dropout=0"),
    "dropout": ("head=mlp", "head.dropout=0.5"),
    "batchnorm_head": ("head=batchnorm", "head.dropout=0.2"),
    "frozen": (*TOP, "unfreeze.batchnorm=frozen", "optimizer.layer_decay=0.8"),
    "affine": (*TOP, "unfreeze.batchnorm=affine", "optimizer=adamw"),
    # The last batch of each epoch has two images, fewer than three devices. A single image would give only four values
    # per channel, whose variance Keras' synchronised BatchNorm computes from squares. On some processors the rounding
    # then changes the loss by 1e-5.
    "trainable": (
        *TOP,
        "unfreeze.batchnorm=trainable",
        "optimizer=sgd",
        "data.train_per_class=10",
        "phase.batch_size=12",
    ),
    "drop_connect": (*TOP, "unfreeze.drop_connect=on"),
    "gradual": ("unfreeze=gradual", "unfreeze.top=2", "unfreeze.every_epochs=1", "optimizer=rmsprop"),
    "clipped": ("head=mlp", "head.dropout=0", "optimizer=sgd", "optimizer.clipnorm=0.05"),
    "mixed": (*TOP, "head.dropout=0.5", "precision=mixed_float16", "optimizer.layer_decay=0.8"),
    "images": ("unfreeze=all", "augment=guide", "phase.epochs=2"),
}


def train(name: str, *strategy: str) -> None:
    """Train a case, and write its losses, metrics and weights to files."""
    kind = "mirrored" if strategy else "single"
    folders = (f"features.dir={FOLDER}/cache", f"checkpoint_dir={FOLDER}/{name}.{kind}")
    run = from_config(compose.compose_config("train", [*COMMON, *folders, *CASES[name], *strategy]))
    with recorded() as losses:
        result = attempt.execute(run, RunOrigin("", (), name, FOLDER, {}, ()))
    assert isinstance(result, Result)
    measured = {
        "losses": losses,
        "verdict": result.verdict.name,
        "key": run.key,
        "metrics": [epoch.metrics() for epoch in result.history.epochs],
    }
    (FOLDER / f"{name}.{kind}.json").write_text(json.dumps(measured))
    np.savez(FOLDER / f"{name}.{kind}.npz", *result.history.best_weights)


def compute_features() -> None:
    """Compute the features of fewer and of more images than devices, on one device and on several."""
    from dogbreeds.models.network import Prefix

    run = from_config(compose.compose_config("train", COMMON))
    graph = run.model.build(0).network
    images = np.stack([read() for read in run.data.open().train.source.loaders()][:7])
    one, several = Prefix(graph, ""), Prefix(graph, "", DEVICES)
    for count in (1, 2, 7):
        np.savez(FOLDER / f"features.{count}.npz", one.compiled(images[:count]), several.compiled(images[:count]))


# Mirrored first: it must create its logical devices before TensorFlow starts.
for case in NAMES:
    train(case, "strategy=mirrored", f"strategy.devices=[{','.join(DEVICES)}]")
    train(case)
compute_features()
