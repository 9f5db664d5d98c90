"""Faults around an attempt: each gets a message, and nothing is lost, half-written or silently reused."""

import logging
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from dogbreeds.core.errors import MissingFileError, UserError
from dogbreeds.experiments.attempt import execute
from dogbreeds.experiments.result import Result, Skipped
from dogbreeds.experiments.run import Run
from dogbreeds.features.cache import FeatureCache
from dogbreeds.tracking.records import SWEEP_RUN_ENV, RunOrigin, short

pytestmark = [pytest.mark.slow, pytest.mark.own_cache]

SETTINGS = (
    "data=folder",
    "phase.epochs=2",
    "tracking.system_metrics_seconds=0",
    "tracking.model=none",
    "data.max_corrupt_fraction=0.2",
)


@dataclass
class Place:
    """A folder with images, and with the records, checkpoints and cache of attempts on them.

    Attributes:
        root: the folder.
        images: folder of the images.
        composed: function from overrides to a run in this folder.
        patch: undoes the faults that are patched in.
    """

    root: Path
    images: Path
    composed: Callable[..., Run]
    patch: pytest.MonkeyPatch

    def attempt(self, *overrides: str) -> Result | Skipped:
        run = self.run(*overrides)
        # Another process would verify the arrays again.
        FeatureCache._verified.clear()
        return execute(run, RunOrigin("", overrides, "an attempt", self.root))

    def run(self, *overrides: str) -> Run:
        return self.composed(*SETTINGS, f"data.root={self.images}", *overrides)

    @property
    def records(self):
        client, experiment = self.run().tracking.connect()
        return client.search_runs([experiment])

    @property
    def features(self) -> list[Path]:
        return sorted((self.root / "cache").glob("features-*/rows.npy"))


@pytest.fixture
def place(tmp_path: Path, write_images, composed, monkeypatch: pytest.MonkeyPatch) -> Place:
    return Place(tmp_path, write_images(), composed, monkeypatch)


def raise_disk_full(*_: object, **__: object) -> None:
    raise OSError(28, "No space left on device")


def disk_full_for_features(place: Place) -> tuple[str, ...]:
    place.patch.setattr(os, "posix_fallocate", raise_disk_full)
    return ()


def disk_full_for_checkpoints(place: Place) -> tuple[str, ...]:
    place.patch.setattr(np, "savez", raise_disk_full)
    return ()


def disk_full_for_records(place: Place) -> tuple[str, ...]:
    import mlflow

    place.patch.setattr(mlflow.MlflowClient, "log_artifact", raise_disk_full)
    return ()


def cache_folder_below_a_file(place: Place) -> tuple[str, ...]:
    (place.root / "file").write_text("")
    return (f"features.dir={place.root}/file/folder",)


def checkpoint_folder_below_a_file(place: Place) -> tuple[str, ...]:
    (place.root / "file").write_text("")
    return (f"checkpoint_dir={place.root}/file/folder",)


def store_that_is_no_database(place: Place) -> tuple[str, ...]:
    place.run()
    (place.root / "mlruns/mlflow.db").write_bytes(b"not a database" * 1000)
    return ()


def truncated_store(place: Place) -> tuple[str, ...]:
    place.run()
    database = place.root / "mlruns/mlflow.db"
    database.write_bytes(database.read_bytes()[:9000])
    return ()


def weights_of_another_model(place: Place) -> tuple[str, ...]:
    import keras

    other = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    other.save_weights(place.root / "other.weights.h5")
    return (f"model.weights={place.root}/other.weights.h5",)


def weights_that_are_noise(place: Place) -> tuple[str, ...]:
    (place.root / "noise.weights.h5").write_bytes(os.urandom(5000))
    return (f"model.weights={place.root}/noise.weights.h5",)


def missing_weights(place: Place) -> tuple[str, ...]:
    return (f"model.weights={place.root}/nowhere.weights.h5",)


def file_that_is_no_image(place: Place) -> tuple[str, ...]:
    (place.images / "train/breed_1/0.jpg").write_bytes(b"no image")
    return ()


def truncated_image(place: Place) -> tuple[str, ...]:
    image = place.images / "train/breed_1/0.jpg"
    image.write_bytes(image.read_bytes()[:-400])
    return ()


def class_without_images(place: Place) -> tuple[str, ...]:
    (place.images / "train/breed_9").mkdir()
    return ()


def target_outside_the_package(place: Place) -> tuple[str, ...]:
    return ("head._target_=os.system",)


MESSAGES = {
    disk_full_for_features: (
        r"cache has no room for [\d.]+ [KM]?B of features \(No space left on device\)\. .*\."
        r" Set features\.dir=<folder>,"
    ),
    disk_full_for_checkpoints: (
        r"^The checkpoint in .* cannot be written \(No space left on device\)\. .*\. Free some space and "
    ),
    disk_full_for_records: (
        r"^tracking\.uri=sqlite.* cannot be used \(\[Errno 28\] No space left on device\)\. .* free space, .* again\.$"
    ),
    cache_folder_below_a_file: (
        r"/file/folder cannot be written \(Not a directory\)\. .*\. Set features\.dir=<folder>, .*the same command"
    ),
    checkpoint_folder_below_a_file: (
        r"^The checkpoint in .* cannot be locked \(.*\)\. .* writable folder.* set checkpoint_dir=<folder>\."
    ),
    store_that_is_no_database: (
        r"^tracking\.uri=sqlite.* cannot be used \(.*is not a database.*\)\. It must be .*, undamaged .* again\.$"
    ),
    truncated_store: (
        r"^tracking\.uri=sqlite.* cannot be used \(.*malformed.*\)\. It must be .*, undamaged .* again\.$"
    ),
    weights_of_another_model: (
        r"other\.weights\.h5 does not fit Miniature \(.*\)\. It must hold the weights of .*\. Type model\.weights="
    ),
    weights_that_are_noise: (
        r"noise\.weights\.h5 does not fit Miniature \(.*\)\. It must hold the weights of .*\. Type model\.weights="
    ),
    missing_weights: (
        r"^model\.weights=.*nowhere\.weights\.h5 is not a file\. It must be imagenet, .*\. Type model\.weights="
    ),
    file_that_is_no_image: (
        r"breed_1/0\.jpg cannot be read as an image .*\. Images must be complete .* files\. Replace the file, or type "
    ),
    truncated_image: (
        r"breed_1/0\.jpg cannot be read as an image .*\. Images must be complete .* files\. Replace the file, or type "
    ),
    class_without_images: (
        r"breed_9 has no images\. Every class folder needs files ending in .*\. Add images, or remove the folder\."
    ),
    target_outside_the_package: (
        r"^head\._target_ was 'os\.system'\. It must be a class of dogbreeds\.head, .*\. Type head=<option>; "
    ),
}


# A full disk for checkpoints or records is tested with every change.
@pytest.mark.parametrize(
    "fault",
    [pytest.param(fault, marks=pytest.mark.long) if fault is disk_full_for_features else fault for fault in MESSAGES],
    ids=lambda fault: fault.__name__,
)
def test_fault_gets_a_message_and_leaves_nothing_half_written(fault, place: Place) -> None:
    with pytest.raises((UserError, MissingFileError)) as error:
        place.attempt(*fault(place))
    message = str(error.value)
    assert re.search(MESSAGES[fault], message), message
    place.patch.undo()
    assert [path for path in place.root.rglob("*") if ".part" in path.name or path.name == "aside"] == []
    if fault in (store_that_is_no_database, truncated_store):
        return
    assert "RUNNING" not in {record.info.status for record in place.records}
    # Once the disk has room again, the same command finishes in the same run.
    if fault in (disk_full_for_features, disk_full_for_checkpoints, disk_full_for_records):
        assert place.attempt().history.best is not None
        assert [record.info.status for record in place.records] == ["FINISHED"]


def rename_a_class(place: Place) -> None:
    for part in ("train", "test"):
        (place.images / part / "breed_1").rename(place.images / part / "breed_one")


def change_an_image(place: Place) -> None:
    other = (place.images / "train/breed_2/0.jpg").read_bytes()
    (place.images / "train/breed_1/0.jpg").write_bytes(other)


def replace_the_weights(place: Place) -> None:
    import h5py

    with h5py.File(place.root / "own.weights.h5", "r+") as file:
        kernels: list[h5py.Dataset] = []
        file.visititems(
            lambda _, item: kernels.append(item) if isinstance(item, h5py.Dataset) and item.ndim == 4 else None
        )
        kernels[0][...] = kernels[0][...] * 1.01


NOT_REUSED = "has the same settings but other images, class names or weights: its results are not reused"


@pytest.mark.parametrize(
    "change",
    [change_an_image, *(pytest.param(each, marks=pytest.mark.long) for each in (rename_a_class, replace_the_weights))],
    ids=lambda change: change.__name__,
)
def test_changed_images_classes_or_weights_are_not_reused(
    change, place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    from dogbreeds.models.model import SHIPPED_WEIGHTS

    shutil.copy(SHIPPED_WEIGHTS, place.root / "own.weights.h5")
    client, experiment = place.run().tracking.connect()
    place.patch.setenv(SWEEP_RUN_ENV, client.create_run(experiment).info.run_id)
    own = (f"model.weights={place.root}/own.weights.h5",)
    first = place.attempt(*own)
    assert isinstance(place.attempt(*own), Skipped)
    before = place.features
    change(place)
    from dogbreeds.models import model

    # Another process would build the backbone again.
    model._build.cache_clear()
    with caplog.at_level(logging.WARNING):
        again = place.attempt(*own)
    assert f"run {short(first.run_id)}" in caplog.text
    assert NOT_REUSED in caplog.text
    assert isinstance(again, Result)
    assert again.run_id != first.run_id
    assert set(before) < set(place.features)


def damage_features(place: Place) -> str:
    file = place.features[0]
    content = bytearray(file.read_bytes())
    content[-5] ^= 8
    file.write_bytes(content)
    return f"{file.parent} is damaged: recomputing it"


@pytest.mark.parametrize("damage", [damage_features], ids=lambda damage: damage.__name__)
def test_damaged_features_are_recomputed_to_the_same_result(
    damage, place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    first = place.attempt()
    warning = damage(place)
    with caplog.at_level(logging.WARNING):
        again = place.attempt()
    assert warning in caplog.text
    assert [epoch.metrics() for epoch in again.history.epochs] == [epoch.metrics() for epoch in first.history.epochs]


@pytest.mark.parametrize("lr", ["1e38"])
def test_divergence_is_recorded_with_step_and_rate_and_its_last_checkpoint_is_saved(place: Place, lr: str) -> None:
    result = place.attempt(
        "optimizer=sgd", f"optimizer.lr={lr}", "head=linear", "checkpoint_steps=1", "phase.batch_size=6"
    )
    (record,) = place.records
    assert record.data.tags["verdict"] == "diverged"
    assert re.fullmatch(
        r"the (loss was (nan|inf)|gradient was not finite) at step \d+ \(epoch 1\), lr 1e\+38",
        record.data.tags["verdict.reason"],
    )
    with np.load(Path(record.data.tags["checkpoint"])) as stored:
        assert all(np.isfinite(stored[name]).all() for name in stored.files if name.startswith("weights."))
    assert result.history.diverged
