"""Tests of the preflight's check for near-duplicates between training and test images."""

import logging
from pathlib import Path

import mlflow
import numpy as np
import pytest

import dogbreeds as db
from dogbreeds.cache import _list as list_arrays


@pytest.mark.slow
def test_near_duplicates_of_training_images_are_named_once_features_are_cached(
    tmp_path: Path, make_home, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capsys
) -> None:
    monkeypatch.setenv("DOGBREEDS_HOME", str(make_home(tmp_path / "home")))
    monkeypatch.setenv("DOGBREEDS_CACHE", str(tmp_path / "cache"))
    drawn = db.compose(["data.classes=4", "data.train_per_class=8"]).data.open()
    parts = {
        name: ([load() for load in split.source.loaders()], split.labels.tolist())
        for name, split in drawn.splits.items()
    }
    images, labels = parts["train"]
    mirrored = np.ascontiguousarray(parts["test"][0][3][:, ::-1])
    images.append(mirrored)
    labels.append(parts["test"][1][3])
    dataset = db.Dataset.from_arrays(**parts, class_names=drawn.class_names)
    run = db.compose(["phase.epochs=1", "baseline=none", "tracking.system_metrics_seconds=0"])
    with caplog.at_level(logging.INFO):
        db.fit(run, dataset=dataset)
        assert "near-duplicates" not in caplog.text
        again = db.fit(db.compose([*run.origin.overrides, "optimizer.lr=1e-4"]), dataset=dataset)
    said = f"1 of {len(dataset.test.rows)} images of test are near-duplicates of images of train"
    assert f"{said}, such as test/3 of train/{len(images) - 1}." in caplog.text
    recorded = mlflow.MlflowClient(run.tracking.uri).get_run(again.run_id)
    assert said in recorded.data.tags["preflight"]
    # The result is one of the arrays that the command lists.
    list_arrays(run.features.open_cache())
    assert "copies-" in capsys.readouterr().out
