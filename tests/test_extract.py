"""The extract command: shards as jobs of real launchers, joined by the next run to the same bytes."""

import re
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from dogbreeds.core.errors import UserError
from dogbreeds.experiments.run import Run
from dogbreeds.experiments.training_inputs import extract_features
from dogbreeds.features.cache import FeatureCache
from dogbreeds.features.features import UNSHARDED, ShardSpec

pytestmark = pytest.mark.own_cache

SMALL = ("data.classes=4", "data.train_per_class=12", "features.batch_size=16", "baseline=none")


def cache_files(place: Path) -> dict[str, bytes]:
    """Return the files of all cached arrays, by folder and name."""
    return {f"{file.parent.name}/{file.name}": file.read_bytes() for file in sorted(place.glob("*/*"))}


def test_shard_spec_rejects_a_shard_beyond_the_last() -> None:
    with pytest.raises(
        UserError,
        match=r"^shard was 4 and shards was 4\. .*from 0 to .*\. Type shard=3, or --multirun 'shard=range\(4\)'",
    ):
        ShardSpec(shards=4, shard=4)
    with pytest.raises(UserError, match=r"^shards was 0\. It must be a whole number of 1 or more\. Type shards=8"):
        ShardSpec(shards=0, shard=0)


@pytest.mark.parametrize(
    ("settings", "kinds", "shards"),
    [
        # Two epochs use copies 0 and 1 of three, and the reference probe the plain images; the images of a source are
        # decoded once for all of them.
        pytest.param(
            ("phase.epochs=2", "augment=guide", "augment.copies=3"),
            {"features": 5, "photos": 3, "preflight": 1},
            {"features": 15, "photos": 9},
            marks=pytest.mark.slow,
            id="views",
        ),
        pytest.param(
            ("phase.epochs=2", "augment=guide", "augment.copies=2", "features.runtime=openvino"),
            {"features": 5, "photos": 3, "preflight": 1},
            {"features": 15, "photos": 9},
            marks=pytest.mark.long,
            id="views by OpenVINO",
        ),
        # Images are decoded 32 at a time: one of three shards has none.
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
            marks=pytest.mark.long,
            id="a range test",
        ),
    ],
)
def test_sharded_extraction_gives_the_bytes_of_unsharded_extraction(
    composed: Callable[..., Run],
    tmp_path: Path,
    settings: tuple[str, ...],
    kinds: dict[str, int],
    shards: dict[str, int],
) -> None:
    def counts(place: Path) -> dict[str, int]:
        found = [info.name.split("-")[0] for info in FeatureCache(place, 1).entries()]
        return {kind: found.count(kind) for kind in sorted(set(found))}

    run = composed(*SMALL, *settings, "tracking=none")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    extract_features(replace(run, features=replace(run.features, dir=str(whole))), UNSHARDED)
    assert counts(whole) == kinds
    in_parts = replace(run, features=replace(run.features, dir=str(parts)))
    for shard in range(3):
        extract_features(in_parts, ShardSpec(shards=3, shard=shard))
        FeatureCache.release()
    assert counts(parts) == shards | {"preflight": 1}
    extract_features(in_parts, UNSHARDED)
    FeatureCache.release()
    assert cache_files(parts) == cache_files(whole)


@pytest.mark.long
@pytest.mark.parametrize("launcher", ["basic", "joblib", "ray"])
def test_run_takes_all_features_from_the_shards_of_launched_jobs(
    command: Callable[..., subprocess.CompletedProcess[str]],
    ray_environment: dict[str, str],
    tmp_path: Path,
    empty_store: Path,
    launcher: str,
) -> None:
    import mlflow

    if launcher != "basic":
        pytest.importorskip(f"hydra_plugins.hydra_{launcher}_launcher")
    small = [*SMALL, "phase.epochs=2"]
    jobs = command(
        "extract", "--multirun", "shards=4", "shard=range(4)", f"hydra/launcher={launcher}", *small, **ray_environment
    )
    assert jobs.returncode == 0, jobs.stderr
    assert [path.name for path in (tmp_path / "home/mlruns").iterdir()] == ["mlflow.db"]
    # Nothing was recorded in MLflow.
    assert (tmp_path / "home/mlruns/mlflow.db").read_bytes() == empty_store.read_bytes()
    listed = command("cache")
    assert "64 px, stretch, float32, shard 0–16 of 40 rows" in listed.stdout
    recorded = ("tracking.system_metrics_seconds=0", "tracking.model=none")
    sharded = command("train", *small, *recorded)
    assert sharded.returncode == 0, sharded.stderr
    output = sharded.stdout + sharded.stderr
    assert "features: 48 of 48 rows copied from 3 cached shards" in output
    assert "images/s" not in output
    whole = command("train", *small, *recorded, DOGBREEDS_CACHE=str(tmp_path / "unsharded"))
    assert len(re.findall(r"features of \w+: \d+ in .* images/s", whole.stdout + whole.stderr)) == 3
    assert cache_files(tmp_path / "cache") == cache_files(tmp_path / "unsharded")
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/home/mlruns/mlflow.db")
    runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    measured = [{name: value for name, value in run.data.metrics.items() if "seconds" not in name} for run in runs]
    assert len(measured) == 2
    assert "test/loss" in measured[0]
    assert measured[0] == measured[1]


@pytest.mark.slow
def test_extract_command_rejects_wrong_settings_before_computing(
    command: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    beyond = command("extract", "shards=2", "shard=2", *SMALL)
    assert beyond.returncode == 1
    assert re.fullmatch(
        r"error: shard was 2 and shards was 2\. .*from 0 to .*\. Type shard=1, or --multirun 'shard=range\(2\)'.*",
        beyond.stderr.splitlines()[-1],
    )
    pixels = command("extract", "preprocessing=torch", *SMALL)
    assert pixels.returncode == 1
    assert re.search(r"(Set|Type) preprocessing=", pixels.stderr)
    assert [path.name.split("-")[0] for path in (tmp_path / "cache").iterdir() if path.is_dir()] == ["preflight"]
