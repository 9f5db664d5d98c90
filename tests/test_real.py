"""On real photos and weights: DOGBREEDS_REAL_DATA names the folder with `stanford_dogs_224/` and `weights/`."""

import os
from pathlib import Path

import pytest

from dogbreeds.experiments.attempt import execute
from dogbreeds.tracking.records import RunOrigin

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
