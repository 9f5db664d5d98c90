"""Tests of corrections of a data set: images that a table leaves out or relabels."""

import logging
from pathlib import Path

import mlflow
import numpy as np
import pytest

import dogbreeds as db
from dogbreeds.core.errors import MissingFileError, UserError
from dogbreeds.core.text import csv_rows
from dogbreeds.data.corrections import open_corrected
from dogbreeds.data.dataset import Data, Dataset, Provided
from dogbreeds.data.subset import sample_dataset, with_own_sources


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    images = np.random.default_rng(0).integers(0, 256, (24, 8, 8, 3), dtype=np.uint8)
    labels = np.arange(24) % 3
    return Dataset.from_arrays(
        (images[:12], labels[:12]), test=(images[12:], labels[12:]), class_names=["a", "b", "=c"], name="noise"
    )


def table(folder: Path, *rows: tuple[str, ...], header: tuple[str, ...] = ("image", "finding", "suggestion")) -> str:
    """Write a table as an audit does, and return its path."""
    path = folder / "audit.csv"
    path.write_text(csv_rows([header, *rows]), encoding="utf-8")
    return str(path)


def settings(**given: str | None) -> Data:
    return Provided(resize="stretch", decoder="pillow", on_corrupt="stop", max_corrupt_fraction=0.0, **given)  # type: ignore[arg-type]


def names(dataset: Dataset) -> dict[str, list[str]]:
    return {name: [split.source.ids[row] for row in split.rows] for name, split in dataset.splits.items()}


def test_without_tables_the_data_set_is_the_one_given(dataset: Dataset) -> None:
    assert open_corrected(settings(), dataset) is dataset


def test_exclude_leaves_images_of_any_split_out_and_changes_the_fingerprint(dataset: Dataset, tmp_path: Path) -> None:
    train, val = names(dataset)["train"], names(dataset)["val"]
    left_out = [train[2], val[0], "test/5"]
    rows = [(name, "near_duplicate", "train/0") for name in [*left_out, train[2]]]
    corrected = open_corrected(settings(exclude=table(tmp_path, *rows)), dataset)
    expected = {name: [image for image in images if image not in left_out] for name, images in names(dataset).items()}
    assert names(corrected) == expected
    assert corrected.num_excluded == 3
    assert corrected.notes == ("3 images left out by data.exclude",)
    assert corrected.fingerprint != dataset.fingerprint
    # Arrays in the cache are those of the source.
    assert corrected.train.source.fingerprint == dataset.train.source.fingerprint


def test_relabel_gives_label_errors_their_class_and_keeps_the_cached_arrays(dataset: Dataset, tmp_path: Path) -> None:
    image = names(dataset)["train"][0]
    before = dataset.class_names[dataset.train.labels[0]]
    assert before == "a"
    path = table(tmp_path, (image, "label_error", "=c"), ("test/0", "outlier", "b"))
    corrected = open_corrected(settings(relabel=path), dataset)
    assert corrected.class_names[corrected.train.labels[0]] == "=c"
    assert corrected.test is not None and dataset.test is not None
    np.testing.assert_array_equal(corrected.test.labels, dataset.test.labels)
    assert (corrected.num_relabelled, corrected.num_excluded) == (1, 0)
    assert corrected.fingerprint != dataset.fingerprint
    assert corrected.train.source.fingerprint == dataset.train.source.fingerprint
    # The data set itself is as it was.
    assert dataset.class_names[dataset.train.labels[0]] == "a"


def test_one_table_for_both_relabels_label_errors_and_leaves_the_rest_out(dataset: Dataset, tmp_path: Path) -> None:
    wrong, copy = names(dataset)["train"][:2]
    path = table(tmp_path, (wrong, "label_error", "b"), (copy, "near_duplicate", wrong))
    corrected = open_corrected(settings(exclude=path, relabel=path), dataset)
    assert wrong in names(corrected)["train"]
    assert copy not in names(corrected)["train"]
    assert (corrected.num_excluded, corrected.num_relabelled) == (1, 1)
    assert corrected.notes == ("1 image left out by data.exclude, 1 image relabelled by data.relabel",)


def test_a_table_of_ones_own_needs_no_findings(dataset: Dataset, tmp_path: Path) -> None:
    path = table(tmp_path, ("test/0", "b"), header=("image", "suggestion"))
    assert open_corrected(settings(relabel=path), dataset).num_relabelled == 1
    # A label that is right already is no change.
    path = table(tmp_path, ("test/0", "a"), header=("image", "suggestion"))
    corrected = open_corrected(settings(relabel=path), dataset)
    assert corrected.num_relabelled == 0
    assert corrected.fingerprint == dataset.fingerprint


def test_samples_of_a_relabelled_data_set_have_the_new_labels(dataset: Dataset, tmp_path: Path) -> None:
    images = names(dataset)["train"]
    path = table(tmp_path, *((image, "b") for image in images), header=("image", "suggestion"))
    corrected = open_corrected(settings(relabel=path), dataset)
    own = with_own_sources(sample_dataset(corrected, 6, seed=0))
    assert set(own.train.labels.tolist()) == {1}
    assert own.num_relabelled == corrected.num_relabelled
    assert own.fingerprint != with_own_sources(sample_dataset(dataset, 6, seed=0)).fingerprint


@pytest.mark.parametrize(
    ("rows", "header", "setting", "message"),
    [
        ([("x.jpg", "outlier", "")], None, "exclude", "names 1 image that noise does not have, such as 'x.jpg'"),
        ([("test/0",)], ("file",), "exclude", "has no column image, only file"),
        ([("test/0", "outlier")], ("image", "finding"), "relabel", "has no column suggestion"),
        ([("test/0", "label_error", "d")], None, "relabel", "the class 'd', which noise does not have"),
        ([("test/0", "label_error", "a"), ("test/0", "label_error", "b")], None, "relabel", "two classes"),
        ([(f"test/{number}", "outlier", "") for number in range(12)], None, "exclude", "leaves out all images of test"),
    ],
)
def test_wrong_tables_are_errors(
    dataset: Dataset, tmp_path: Path, rows: list[tuple[str, ...]], header: tuple[str, ...], setting: str, message: str
) -> None:
    path = table(tmp_path, *rows, header=header or ("image", "finding", "suggestion"))
    with pytest.raises(UserError, match=message):
        open_corrected(settings(**{setting: path}), dataset)


def test_a_table_that_is_missing_or_no_text_is_an_error(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"data.exclude=.*none.csv is not a file"):
        open_corrected(settings(exclude=str(tmp_path / "none.csv")), dataset)
    (tmp_path / "audit.csv").write_bytes(b"\xff\xfe\x00image\x81")
    with pytest.raises(UserError, match="cannot be read as a CSV file"):
        open_corrected(settings(relabel=str(tmp_path / "audit.csv")), dataset)


def test_a_corrected_run_is_another_run_says_so_and_needs_no_new_pass(
    tmp_path: Path, make_home, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("DOGBREEDS_HOME", str(make_home(tmp_path / "home")))
    monkeypatch.setenv("DOGBREEDS_CACHE", str(tmp_path / "cache"))
    overrides = ["data.classes=3", "data.train_per_class=4", "data.val_per_class=2", "data.test_per_class=2"]
    overrides += ["phase.epochs=1", "head=linear", "preflight=none", "baseline=none"]
    overrides += ["tracking.system_metrics_seconds=0"]
    run = db.compose(overrides)
    plain = db.fit(run)
    arrays = sorted(tmp_path.glob("cache/features-*"))
    images = run.data.open()
    first, second = (images.train.source.ids[row] for row in images.train.rows[:2])
    other = images.class_names[(images.train.labels[0] + 1) % 3]
    path = table(tmp_path, (first, "label_error", other), (second, "outlier", ""))
    with caplog.at_level(logging.INFO):
        corrected = db.fit(db.compose([*overrides, f"data.exclude={path}", f"data.relabel={path}"]))
    assert isinstance(plain, db.Result) and isinstance(corrected, db.Result)
    assert corrected.run_id != plain.run_id
    said = "1 image left out by data.exclude, 1 image relabelled by data.relabel"
    assert said in caplog.text
    assert sorted(tmp_path.glob("cache/features-*")) == arrays
    recorded = mlflow.MlflowClient(run.tracking.uri).get_run(corrected.run_id)
    assert (recorded.data.params["data.num_excluded"], recorded.data.params["data.num_relabelled"]) == ("1", "1")
    assert recorded.data.params["data.images.train"] == "11"
    assert said in recorded.data.tags["mlflow.note.content"]
    # The images of a recorded run are found again, corrected.
    evaluation = db.load(corrected).evaluate(split="train")
    assert evaluation.scores.accuracy.n == 11
