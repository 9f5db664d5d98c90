"""The command that computes beforehand what attempts will keep, as jobs of real launchers, and what an attempt then does with it."""

import re
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from dogbreeds.core.errors import UserError
from dogbreeds.experiments.run import Run
from dogbreeds.experiments.training_inputs import extract
from dogbreeds.features.cache import FeatureCache
from dogbreeds.features.features import ALL, Share

pytestmark = pytest.mark.own_cache

SMALL = ("data.breeds=4", "data.train_per_breed=12", "features.batch_size=16", "baseline=none")


def kept_in(place: Path) -> dict[str, bytes]:
    """All arrays of a cache, and what is said of them."""
    return {f"{file.parent.name}/{file.name}": file.read_bytes() for file in sorted(place.glob("*/*"))}


def test_a_shard_beyond_the_last_is_refused() -> None:
    with pytest.raises(UserError) as refused:
        Share(shards=4, shard=4)
    assert (
        str(refused.value)
        == "shard was 4 and shards 4. Shards are counted from 0 to shards - 1. Type shard=3, or --multirun"
        " 'shard=range(4)' for all of them."
    )
    with pytest.raises(UserError, match=r"^shards was 0\. It must be a whole number of 1 or more\. Type shards=8"):
        Share(shards=0, shard=0)


@pytest.mark.parametrize(
    ("settings", "kinds", "shards"),
    [
        # two epochs see the views 0 and 1 of three; the photos of a source are decoded once for all its views
        pytest.param(
            ("phase.epochs=2", "augment=guide", "augment.copies=3"),
            {"features": 4, "photos": 3, "preflight": 1},
            {"features": 12, "photos": 9},
            marks=pytest.mark.slow,
            id="views",
        ),
        # 32 photos at a time: one of three has none
        pytest.param(
            ("phase.epochs=2", "unfreeze=all"),
            {"photos": 3, "preflight": 1},
            {"photos": 6},
            marks=pytest.mark.long,
            id="nothing is frozen",
        ),
        pytest.param(
            ("phase=lr_range",),
            {"features": 1, "photos": 1, "preflight": 1},
            {"features": 3, "photos": 3},
            marks=pytest.mark.slow,
            id="a range test",
        ),
    ],
)
def test_what_an_attempt_needs_is_the_same_in_shards(
    composed: Callable[..., Run],
    tmp_path: Path,
    settings: tuple[str, ...],
    kinds: dict[str, int],
    shards: dict[str, int],
) -> None:
    def counts(place: Path) -> dict[str, int]:
        found = [listed.name.split("-")[0] for listed in FeatureCache(place, 1).entries()]
        return {kind: found.count(kind) for kind in sorted(set(found))}

    run = composed(*SMALL, *settings, "tracking=none")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    extract(replace(run, features=replace(run.features, dir=str(whole))), ALL)
    assert counts(whole) == kinds
    in_parts = replace(run, features=replace(run.features, dir=str(parts)))
    for shard in range(3):
        extract(in_parts, Share(shards=3, shard=shard))
        FeatureCache.release()
    assert counts(parts) == shards | {"preflight": 1}
    extract(in_parts, ALL)
    FeatureCache.release()
    assert kept_in(parts) == kept_in(whole)


@pytest.mark.parametrize(
    "launcher",
    [
        pytest.param("basic", marks=pytest.mark.slow),
        *(pytest.param(name, marks=pytest.mark.long) for name in ("joblib", "ray")),
    ],
)
def test_an_attempt_takes_all_from_the_shards_of_a_launcher_s_jobs(
    command: Callable[..., subprocess.CompletedProcess[str]],
    of_ray: dict[str, str],
    tmp_path: Path,
    empty_store: Path,
    launcher: str,
) -> None:
    import mlflow

    if launcher != "basic":
        pytest.importorskip(f"hydra_plugins.hydra_{launcher}_launcher")
    small = [*SMALL, "phase.epochs=2"]
    jobs = command(
        "extract", "--multirun", "shards=4", "shard=range(4)", f"hydra/launcher={launcher}", *small, **of_ray
    )
    assert jobs.returncode == 0, jobs.stderr
    assert [path.name for path in (tmp_path / "home/mlruns").iterdir()] == ["mlflow.db"]
    # MLflow was left alone
    assert (tmp_path / "home/mlruns/mlflow.db").read_bytes() == empty_store.read_bytes()
    listed = command("cache")
    assert "64 px, stretch, float32, shard 0–16 of 40 rows" in listed.stdout
    recorded = ("tracking.system_metrics_seconds=0", "tracking.model=none")
    sharded = command("train", *small, *recorded)
    assert sharded.returncode == 0, sharded.stderr
    said = sharded.stdout + sharded.stderr
    assert "features: 48 of 48 rows are taken from 3 shards" in said
    assert "images/s" not in said
    whole = command("train", *small, *recorded, DOGBREEDS_CACHE=str(tmp_path / "unsharded"))
    assert len(re.findall(r"features of \w+: \d+ in .* images/s", whole.stdout + whole.stderr)) == 3
    assert kept_in(tmp_path / "cache") == kept_in(tmp_path / "unsharded")
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/home/mlruns/mlflow.db")
    runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    measured = [{name: value for name, value in run.data.metrics.items() if "seconds" not in name} for run in runs]
    assert len(measured) == 2
    assert "test/loss" in measured[0]
    assert measured[0] == measured[1]


@pytest.mark.slow
def test_what_cannot_be_extracted_is_said_before_anything_is_spent(
    command: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    beyond = command("extract", "shards=2", "shard=2", *SMALL)
    assert (beyond.returncode, beyond.stderr.splitlines()[-1]) == (
        1,
        (
            "error: shard was 2 and shards 2. Shards are counted from 0 to shards - 1. Type shard=1, or --multirun"
            " 'shard=range(2)' for all of them."
        ),
    )
    pixels = command("extract", "preprocessing=torch", *SMALL)
    assert pixels.returncode == 1
    assert "Type preprocessing=" in pixels.stderr
    assert [path.name.split("-")[0] for path in (tmp_path / "cache").iterdir() if path.is_dir()] == ["preflight"]
