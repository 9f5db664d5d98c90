"""What can break around an attempt, one row a fault: the sentence that the user gets, and that nothing is lost, half-written or silently reused."""

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
from dogbreeds.tracking.records import SWEEP, RunOrigin, short

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
    """A folder with photos, records and everything that an attempt keeps."""

    root: Path
    photos: Path
    composed: Callable[..., Run]
    patch: pytest.MonkeyPatch

    def attempt(self, *overrides: str) -> Result | Skipped:
        run = self.run(*overrides)
        # As in another process
        FeatureCache._verified.clear()
        return execute(run, RunOrigin("", overrides, "an attempt", self.root))

    def run(self, *overrides: str) -> Run:
        return self.composed(*SETTINGS, f"data.root={self.photos}", *overrides)

    @property
    def records(self):
        client, experiment = self.run().tracking.connect()
        return client.search_runs([experiment])

    @property
    def features(self) -> list[Path]:
        return sorted((self.root / "cache").glob("features-*/rows.npy"))


@pytest.fixture
def place(tmp_path: Path, photos, composed, monkeypatch: pytest.MonkeyPatch) -> Place:
    return Place(tmp_path, photos(), composed, monkeypatch)


def full(*_: object, **__: object) -> None:
    raise OSError(28, "No space left on device")


def no_room_for_features(place: Place) -> tuple[str, ...]:
    place.patch.setattr(os, "posix_fallocate", full)
    return ()


def no_room_for_checkpoints(place: Place) -> tuple[str, ...]:
    place.patch.setattr(np, "savez", full)
    return ()


def no_room_for_records(place: Place) -> tuple[str, ...]:
    import mlflow

    place.patch.setattr(mlflow.MlflowClient, "log_artifact", full)
    return ()


def a_place_for_features_that_is_a_file(place: Place) -> tuple[str, ...]:
    (place.root / "file").write_text("")
    return (f"features.dir={place.root}/file/kept",)


def a_place_for_checkpoints_that_is_a_file(place: Place) -> tuple[str, ...]:
    (place.root / "file").write_text("")
    return (f"checkpoint_dir={place.root}/file/kept",)


def a_store_that_is_none(place: Place) -> tuple[str, ...]:
    place.run()
    (place.root / "mlruns/mlflow.db").write_bytes(b"not a database" * 1000)
    return ()


def a_store_that_was_cut_off(place: Place) -> tuple[str, ...]:
    place.run()
    database = place.root / "mlruns/mlflow.db"
    database.write_bytes(database.read_bytes()[:9000])
    return ()


def weights_of_another_model(place: Place) -> tuple[str, ...]:
    import keras

    other = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    other.save_weights(place.root / "other.weights.h5")
    return (f"model.weights={place.root}/other.weights.h5",)


def weights_that_are_none(place: Place) -> tuple[str, ...]:
    (place.root / "noise.weights.h5").write_bytes(os.urandom(5000))
    return (f"model.weights={place.root}/noise.weights.h5",)


def weights_that_are_not_there(place: Place) -> tuple[str, ...]:
    return (f"model.weights={place.root}/nowhere.weights.h5",)


def bytes_that_are_no_photo(place: Place) -> tuple[str, ...]:
    (place.photos / "train/breed_1/0.jpg").write_bytes(b"no photo")
    return ()


def a_photo_that_is_cut_off(place: Place) -> tuple[str, ...]:
    photo = place.photos / "train/breed_1/0.jpg"
    photo.write_bytes(photo.read_bytes()[:-400])
    return ()


def a_class_without_photos(place: Place) -> tuple[str, ...]:
    (place.photos / "train/breed_9").mkdir()
    return ()


def a_target_outside_the_package(place: Place) -> tuple[str, ...]:
    return ("head._target_=os.system",)


REFUSED = {
    no_room_for_features: (
        r"cache has no room for .* GB of features \(No space left on device\)\. They need a disk that does\. Type "
    ),
    no_room_for_checkpoints: (
        r"^The checkpoint in .* cannot be written \(No space left on device\)\. It needs a folder .*\. Make room and "
    ),
    no_room_for_records: (
        r"^tracking\.uri=sqlite.* cannot be used \(\[Errno 28\] No space left on device\)\. .* with room, .* again\.$"
    ),
    a_place_for_features_that_is_a_file: (
        r"/file/kept cannot be written \(Not a directory\)\. Features need .*\. Type features\.dir=<folder>\."
    ),
    a_place_for_checkpoints_that_is_a_file: (
        r"^The checkpoint in .* cannot be locked \(.*\)\. It needs a folder .* type checkpoint_dir=<folder>\."
    ),
    a_store_that_is_none: (
        r"^tracking\.uri=sqlite.* cannot be used \(.*is not a database.*\)\. It must be .*, whole .* again\.$"
    ),
    a_store_that_was_cut_off: (
        r"^tracking\.uri=sqlite.* cannot be used \(.*malformed.*\)\. It must be .*, whole .* again\.$"
    ),
    weights_of_another_model: (
        r"other\.weights\.h5 does not fit Miniature \(.*\)\. It must hold the weights of .*\. Type model\.weights="
    ),
    weights_that_are_none: (
        r"noise\.weights\.h5 does not fit Miniature \(.*\)\. It must hold the weights of .*\. Type model\.weights="
    ),
    weights_that_are_not_there: (
        r"^model\.weights=.*nowhere\.weights\.h5 is not a file\. It must be imagenet, .*\. Type model\.weights="
    ),
    bytes_that_are_no_photo: (
        r"breed_1/0\.jpg cannot be read as a photo .*\. Photos must be whole .* files\. Replace the file, or type "
    ),
    a_photo_that_is_cut_off: (
        r"breed_1/0\.jpg cannot be read as a photo .*\. Photos must be whole .* files\. Replace the file, or type "
    ),
    a_class_without_photos: (
        r"breed_9 has no photos\. Every class folder needs files ending in .*\. Add photos, or remove the folder\."
    ),
    a_target_outside_the_package: (
        r"^head\._target_ was 'os\.system'\. It must be a class of dogbreeds\.head, .*\. Type head=<option>; "
    ),
}


@pytest.mark.parametrize("fault", REFUSED, ids=lambda fault: fault.__name__)
def test_a_fault_is_said_in_sentences_and_leaves_nothing_half_written(fault, place: Place) -> None:
    with pytest.raises((UserError, MissingFileError)) as refusal:
        place.attempt(*fault(place))
    said = str(refusal.value)
    assert re.search(REFUSED[fault], said), said
    place.patch.undo()
    assert [path for path in place.root.rglob("*") if ".part" in path.name or path.name == "aside"] == []
    if fault in (a_store_that_is_none, a_store_that_was_cut_off):
        return
    assert "RUNNING" not in {record.info.status for record in place.records}
    # Mended: the same command ends well, in the same record
    if fault in (no_room_for_features, no_room_for_checkpoints, no_room_for_records):
        assert place.attempt().outcome.best is not None
        assert [record.info.status for record in place.records] == ["FINISHED"]


def rename_a_class(place: Place) -> None:
    for part in ("train", "test"):
        (place.photos / part / "breed_1").rename(place.photos / part / "breed_one")


def change_a_photo(place: Place) -> None:
    photo = place.photos / "train/breed_1/0.jpg"
    other = (place.photos / "train/breed_2/0.jpg").read_bytes()
    photo.write_bytes(other)


def put_other_weights_under_the_same_name(place: Place) -> None:
    import h5py

    with h5py.File(place.root / "own.weights.h5", "r+") as file:
        found: list[h5py.Dataset] = []
        file.visititems(
            lambda _, item: found.append(item) if isinstance(item, h5py.Dataset) and item.ndim == 4 else None
        )
        found[0][...] = found[0][...] * 1.01


OTHERS = (
    "has the same settings, but its photos, class names or weights were others: its results are not used, all is"
    " computed anew"
)


@pytest.mark.parametrize(
    "change",
    [pytest.param(rename_a_class, marks=pytest.mark.long), change_a_photo, put_other_weights_under_the_same_name],
    ids=lambda change: change.__name__,
)
def test_what_was_computed_from_something_else_is_not_reused(
    change, place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    from dogbreeds.models.model import SHIPPED

    shutil.copy(SHIPPED, place.root / "own.weights.h5")
    client, experiment = place.run().tracking.connect()
    place.patch.setenv(SWEEP, client.create_run(experiment).info.run_id)
    own = (f"model.weights={place.root}/own.weights.h5",)
    first = place.attempt(*own)
    assert isinstance(place.attempt(*own), Skipped)
    before = place.features
    change(place)
    from dogbreeds.models import model

    # As in another process
    model._build.cache_clear()
    with caplog.at_level(logging.WARNING):
        again = place.attempt(*own)
    assert f"run {short(first.run_id)}" in caplog.text
    assert OTHERS in caplog.text
    assert isinstance(again, Result)
    assert again.run_id != first.run_id
    assert set(before) < set(place.features)


def damage_features(place: Place) -> str:
    file = place.features[0]
    content = bytearray(file.read_bytes())
    content[-5] ^= 8
    file.write_bytes(content)
    return f"{file.parent} was damaged and is computed anew"


@pytest.mark.parametrize("damage", [damage_features], ids=lambda damage: damage.__name__)
def test_what_is_damaged_is_noticed_and_the_result_is_the_same(
    damage, place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    first = place.attempt()
    said = damage(place)
    with caplog.at_level(logging.WARNING):
        again = place.attempt()
    assert said in caplog.text
    assert [epoch.metrics() for epoch in again.outcome.epochs] == [epoch.metrics() for epoch in first.outcome.epochs]


@pytest.mark.parametrize("lr", ["1e38"])
def test_a_loss_that_is_no_number_is_recorded_with_step_and_rate_and_the_last_good_state_stays(
    place: Place, lr: str
) -> None:
    done = place.attempt(
        "optimizer=sgd", f"optimizer.lr={lr}", "head=linear", "checkpoint_steps=1", "phase.batch_size=6"
    )
    (record,) = place.records
    assert record.data.tags["verdict"] == "diverged"
    assert re.fullmatch(
        r"the (loss was (nan|inf)|gradient was not finite) at step \d+ \(epoch 1\), lr 1e\+38",
        record.data.tags["verdict.reason"],
    )
    kept = Path(record.data.tags["checkpoint"])
    with np.load(kept) as stored:
        assert all(np.isfinite(stored[name]).all() for name in stored.files if name.startswith("weights."))
    assert done.outcome.diverged
