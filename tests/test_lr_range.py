import math
from pathlib import Path

import numpy as np
import pytest

from dogbreeds.core.errors import UserError
from dogbreeds.evaluation.results import Range, suggest
from dogbreeds.experiments.attempt import execute
from dogbreeds.tracking.records import RunOrigin

# Twenty learning rates per decade.
LRS = [10**power for power in np.linspace(-6, 1, 141).tolist()]


def v_shaped(lowest: float, low: float = 1.0, high: float = 5.0) -> list[float]:
    """Return losses that fall linearly with the logarithm of the rate until `lowest`, then rise."""
    distances = [abs(math.log10(lr / lowest)) for lr in LRS]
    return [low + (high - low) * distance / max(distances) for distance in distances]


@pytest.mark.parametrize("lowest", [1e-4, 1e-2, 1e-1])
def test_suggest_returns_a_tenth_of_the_rate_with_the_lowest_loss(lowest: float) -> None:
    assert suggest(LRS, v_shaped(lowest)) == pytest.approx(lowest / 10)


@pytest.mark.parametrize(
    "smoothed",
    [
        [],
        [4.79],
        [4.79] * 100,
        [4.79 + 0.01 * step for step in range(100)],
        [4.79 * 0.97, *[4.79] * 50],
        [5.0 - 0.002 * step for step in range(100)],
    ],
    ids=["nothing", "one", "flat", "rising", "rising at once", "falling by a twenty-fifth"],
)
def test_suggest_returns_none_if_the_loss_never_falls(smoothed: list[float]) -> None:
    assert suggest(LRS, smoothed) is None


def test_range_ends_the_smoothed_curve_at_a_nan_loss() -> None:
    losses = [*v_shaped(1e-3)[:80], math.nan, *[0.0] * 60]
    found = Range(tuple(LRS), tuple(losses))
    assert len(found.smoothed) == 80
    assert all(math.isfinite(loss) for loss in found.smoothed)
    assert found.suggestion is not None
    assert found.suggestion < LRS[80] / 10
    assert found.objective == found.suggestion


def test_range_smoothing_is_unbiased() -> None:
    assert Range(tuple(LRS[:50]), (3.0,) * 50).smoothed == pytest.approx([3.0] * 50)
    smoothed = Range(tuple(LRS[:2]), (2.0, 4.0)).smoothed
    # The newer loss has weight 1, the older one 0.95.
    assert smoothed == pytest.approx([2.0, (0.95 * 2 + 4) / 1.95])
    assert Range((1e-6,), (math.inf,)).smoothed == ()
    assert Range((1e-6,), (math.inf,)).objective == 0.0


def test_range_suggests_nothing_if_the_loss_falls_to_the_end() -> None:
    falling = Range(tuple(LRS), tuple(5.0 - step / 50 for step in range(len(LRS))))
    assert falling.falling
    assert falling.suggestion is None
    assert not Range(tuple(LRS), tuple(v_shaped(1e-3))).falling


@pytest.mark.slow
def test_range_test_is_recorded_and_stops_when_the_loss_diverges(composed, tmp_path: Path) -> None:
    run = composed("phase=lr_range", "data.classes=6", "phase.steps=120", "tracking.system_metrics_seconds=0")
    found = execute(run, RunOrigin("", (), "a range test", tmp_path))
    assert isinstance(found, Range)
    client, experiment = run.tracking.connect()
    record = client.search_runs([experiment])[0]
    assert record.info.status == "FINISHED"
    assert record.data.params["phase"] == "LrRange"
    assert record.data.metrics["suggested/lr"] == found.suggestion == found.objective
    # This head learns at 1e-3, and collapses at 3e-1.
    assert 1e-4 < found.suggestion < 3e-2
    assert "lr_range.png" in [item.path for item in client.list_artifacts(record.info.run_id)]
    lrs = [point.value for point in client.get_metric_history(record.info.run_id, "lr")]
    losses = [point.value for point in client.get_metric_history(record.info.run_id, "train/loss")]
    assert tuple(lrs) == found.lrs
    assert len(losses) == sum(math.isfinite(loss) for loss in found.losses)
    assert (lrs[0], lrs[1] / lrs[0]) == pytest.approx((1e-6, 1e7 ** (1 / 119)))
    # The loss diverged before the largest rate.
    assert len(found.lrs) < 120
    assert found.smoothed[-1] > 2 * min(found.smoothed) or not math.isfinite(found.losses[-1])
    # The first loss is that of the new head.
    assert found.losses[0] == pytest.approx(math.log(6), rel=0.5)


@pytest.mark.parametrize(("low", "high"), [("1", "1"), ("1e-2", "1e-3")])
def test_lr_range_with_max_lr_not_above_min_lr_raises_a_user_error(composed, low: str, high: str) -> None:
    received = rf"^phase\.max_lr={float(high):g} is not above phase\.min_lr={float(low):g}\. "
    with pytest.raises(UserError, match=received + r".* Set phase\.min_lr=1e-6 phase\.max_lr=1, for example\.$"):
        composed("phase=lr_range", f"phase.min_lr={low}", f"phase.max_lr={high}")
