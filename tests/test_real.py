"""On real photos and weights: DOGBREEDS_REAL_DATA names the folder with `stanford_dogs_224/` and `weights/`."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dogbreeds.data.dataset import Dataset
from dogbreeds.experiments.attempt import execute
from dogbreeds.experiments.recorded_runs import Only, open_network
from dogbreeds.experiments.result import Result
from dogbreeds.tracking.records import RunOrigin
from dogbreeds.tracking.saved_run import Nothing

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif("DOGBREEDS_REAL_DATA" not in os.environ, reason="DOGBREEDS_REAL_DATA names no folder"),
]

MODELS = {
    "effnetb0": ("efficientnetb0_notop.weights.h5", (), 0.70),
    "mobilenetv2": ("mobilenetv2_035_notop.weights.h5", ("model.alpha=0.35",), 0.58),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_guide_s_head_learns_and_collapses(composed, tmp_path: Path, name: str) -> None:
    place = Path(os.environ["DOGBREEDS_REAL_DATA"]).resolve()
    weights, more, least = MODELS[name]
    common = (
        f"model={name}",
        f"model.weights={place}/weights/{weights}",
        *more,
        "data=folder",
        f"data.root={place}/stanford_dogs_224",
        "tracking=none",
    )
    learned = execute(composed(*common), RunOrigin("", (), name, tmp_path))
    assert learned.test is not None
    assert learned.objective >= least
    assert learned.test.accuracy.n == 2400
    assert learned.test.accuracy.value >= least
    collapsed = execute(composed(*common, "optimizer.lr=1e-2"), RunOrigin("", (), name, tmp_path)).history
    assert collapsed.best is not None
    assert collapsed.best.number == 1
    assert collapsed.epochs[-1].val.accuracy.value < 0.5 * learned.objective


# Largest difference of a probability that the decoder may cause, as docs/pages/concepts/decoding.md states it.
DECODER_ALLOWANCE = 0.05


@pytest.mark.parametrize(
    ("name", "mode"),
    [("effnetb0", "stretch"), ("mobilenetv2", "stretch"), ("mobilenetv2", "crop"), ("mobilenetv2", "pad")],
)
def test_probabilities_of_photos_hardly_depend_on_the_decoder(composed, tmp_path: Path, name: str, mode: str) -> None:
    import tensorflow as tf

    place = Path(os.environ["DOGBREEDS_REAL_DATA"]).resolve()
    weights, more, _ = MODELS[name]
    rng = np.random.default_rng(0)
    parts: dict[str, tuple[list[Path], list[str]]] = {"train": ([], []), "test": ([], [])}
    for folder in sorted((place / "stanford_dogs_224/train").iterdir())[:20]:
        for split, count in {"train": 20, "test": 10}.items():
            for photo in sorted((place / "stanford_dogs_224" / split / folder.name).iterdir())[:count]:
                # Files of other sizes and aspect ratios: at 224 px nothing is resized.
                size = tuple(int(side) for side in rng.integers(180, 520, 2))
                file = tmp_path / split / f"{folder.name}-{photo.stem}.jpg"
                file.parent.mkdir(exist_ok=True)
                Image.open(photo).resize(size, Image.Resampling.BICUBIC).save(file, quality=92)
                parts[split][0].append(file)
                parts[split][1].append(folder.name)
    dataset = Dataset.from_files(train=parts["train"], test=parts["test"])
    run = composed(
        f"model={name}",
        f"model.weights={place}/weights/{weights}",
        *more,
        "data=folder",
        "data.root=unused",
        f"data.resize={mode}",
        "head=linear",
        "phase.epochs=8",
        "preflight=none",
        "tracking=none",
    )
    run = replace(run, tracking=Nothing(folder=str(tmp_path / "runs")))
    result = execute(run, RunOrigin("", (), name, tmp_path), dataset)
    assert isinstance(result, Result)
    with open_network(run.tracking, str(result.folder), Only(model=None, data=None)) as (_, classifier, _):
        assert classifier.decoder == "pillow"
        loaders = list(dataset.test.source.loaders())
        by_decoder = classifier.probabilities(np.stack([classifier.decode(load) for load in loaders]))
        saved_network = tf.function(classifier.model, reduce_retracing=True)
        by_network = np.concatenate([saved_network(load()[None])["probabilities"].numpy() for load in loaders])
    assert len(by_decoder) == 200
    differences = np.abs(by_decoder - by_network).max(axis=1)
    other_class = by_decoder.argmax(axis=1) != by_network.argmax(axis=1)
    print(f"{name}, {mode}: largest {differences.max():.4f}, mean {differences.mean():.4f}, {other_class.sum()} others")
    assert differences.max() <= DECODER_ALLOWANCE
    # Only where the two classes are as probable as each other.
    assert other_class.sum() <= 4
    first, second = np.sort(by_network[other_class], axis=1)[:, :-3:-1].T
    assert (first - second <= DECODER_ALLOWANCE).all()
