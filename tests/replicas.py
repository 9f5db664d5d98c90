"""Trains cases on one device and on parts of the processor, and writes down every step of both: the parts must be made before TensorFlow begins.

python -m tests.replicas <folder> <parts> <case>...
"""

import json
import sys
from pathlib import Path

import numpy as np

from dogbreeds.experiments import attempt, compose
from dogbreeds.experiments.compose import from_config
from dogbreeds.tracking.records import RunOrigin
from tests.losses import recorded

FOLDER, PARTS, NAMES = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
# 45 photos in batches of 11: parts of 5 and 6, and at the end of each epoch a batch of one photo.
COMMON = (
    "tracking=none",
    "preflight=none",
    "data.breeds=5",
    "data.train_per_breed=9",
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
    # At the end of an epoch two photos, fewer than three devices. One would be four values a channel, and Keras' synchronised BatchNorm has their
    # variance from squares: some processors lose so many digits there that the loss is 1e-5 off.
    "trainable": (
        *TOP,
        "unfreeze.batchnorm=trainable",
        "optimizer=sgd",
        "data.train_per_breed=10",
        "phase.batch_size=12",
    ),
    "drop_connect": (*TOP, "unfreeze.drop_connect=on"),
    "gradual": ("unfreeze=gradual", "unfreeze.top=2", "unfreeze.every_epochs=1", "optimizer=rmsprop"),
    "photos": ("unfreeze=all", "augment=guide", "phase.epochs=2"),
}


def trained(name: str, *strategy: str) -> None:
    """One case; what was measured goes to a file."""
    kind = "mirrored" if strategy else "single"
    places = (f"features.dir={FOLDER}/kept", f"checkpoint_dir={FOLDER}/{name}.{kind}")
    run = from_config(compose.composed("train", [*COMMON, *places, *CASES[name], *strategy]))
    with recorded() as losses:
        result = attempt.execute(run, RunOrigin("", (), name, FOLDER, {}, ()))
    assert isinstance(result, result.Result)
    said = {
        "losses": losses,
        "verdict": result.verdict.name,
        "key": run.key,
        "metrics": [epoch.metrics() for epoch in result.outcome.epochs],
    }
    (FOLDER / f"{name}.{kind}.json").write_text(json.dumps(said))
    np.savez(FOLDER / f"{name}.{kind}.npz", *result.outcome.best_weights)


def features() -> None:
    """What the frozen part says of few photos and of more, on one device and on the parts."""
    from dogbreeds.models.network import Prefix

    run = from_config(compose.composed("train", COMMON))
    graph, devices = run.model.build(0).network, tuple(f"CPU:{number}" for number in range(PARTS))
    photos = np.stack([photo() for photo in run.data.open().train.source.read()][:7])
    one, several = Prefix(graph, ""), Prefix(graph, "", devices)
    for count in (1, 2, 7):
        np.savez(FOLDER / f"features.{count}.npz", one.compiled(photos[:count]), several.compiled(photos[:count]))


for case in NAMES:
    trained(case, "strategy=mirrored", f"strategy.devices=[{','.join(f'CPU:{number}' for number in range(PARTS))}]")
    trained(case)
features()
