"""Audit of images: planted copies and labels are found, and hostile names stay text."""

import csv
import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

import dogbreeds as db
from dogbreeds.core.errors import UserError
from dogbreeds.data.alignment import grey_images
from dogbreeds.data.image_quality import quality_findings
from dogbreeds.data.near_duplicates import find_copies, groups_of
from dogbreeds.evaluation import label_errors
from dogbreeds.evaluation.audit import Audit, Finding, confusable_pairs, copy_to_leave_out
from dogbreeds.evaluation.image_outliers import find_outliers
from dogbreeds.evaluation.label_errors import find_label_errors
from dogbreeds.evaluation.neighbours import directions, nearest
from dogbreeds.reports import audit_page
from tests.bench import audit_study

HOSTILE = '=<script>alert("x")</script>&\u202e.jpg'


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    """Twelve pictures of blobs, [12, 128, 128, 3] uint8."""
    noise = np.random.default_rng(0).normal(size=(12, 128, 128, 1))
    smooth = gaussian_filter(noise, (0, 4, 4, 0))
    return np.repeat(np.clip(128 + 900 * smooth, 0, 255), 3, axis=3).astype(np.uint8)


def changed(picture: np.ndarray, kind: str) -> np.ndarray:
    image = Image.fromarray(picture)
    if kind == "encoded":
        with io.BytesIO() as file:
            image.save(file, "JPEG", quality=20)
            image = Image.open(file).convert("RGB")
    elif kind == "resized":
        image = image.resize((70, 55))
    elif kind == "cropped":
        image = image.crop((25, 4, 121, 100))
    else:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(image.resize((128, 128)))


@pytest.mark.parametrize(
    ("kind", "named"),
    [("encoded", "copy"), ("resized", "copy"), ("cropped", "crop"), ("mirrored", "mirrored copy")],
)
def test_find_copies_finds_each_kind_and_nothing_else(pictures: np.ndarray, kind: str, named: str) -> None:
    both = np.concatenate([pictures[:4], [changed(picture, kind) for picture in pictures[:2]]])
    grey = grey_images(both, np.arange(6))
    found = find_copies(grey, np.argwhere(np.triu(np.ones((6, 6)), 1)))
    assert sorted((each.first, each.second, each.kind) for each in found) == [(0, 4, named), (1, 5, named)]
    assert groups_of(found, 6).tolist() == [0, 1, 2, 3, 0, 1]


@pytest.mark.slow
def test_find_label_errors_finds_planted_ones_alone_and_copies_do_not_vouch_for_each_other() -> None:
    generator = np.random.default_rng(0)
    truth = np.repeat(np.arange(5), 40)
    features = 6 * np.eye(5, 16)[truth] + generator.normal(size=(200, 16))
    given = truth.copy()
    planted = generator.choice(200, 10, replace=False)
    given[planted] = (truth[planted] + 1) % 5
    found = find_label_errors(features, given, np.arange(200), 6)
    # Confident learning reports what it is sure of: no right label here, and not every wrong one.
    assert set(found.images.tolist()) <= set(planted.tolist())
    assert len(found.images) >= 8
    assert (found.suggested == truth[found.images]).all()
    assert found.interval[0] <= found.share <= found.interval[1]
    assert 0.02 < found.share < 0.09
    groups = np.arange(200) // 2
    folds = label_errors.folds_of(given, groups)
    assert (folds[::2] == folds[1::2]).all()


def test_find_outliers_does_not_take_copies_for_neighbours() -> None:
    generator = np.random.default_rng(0)
    features = np.ones((60, 8)) * 4 + generator.normal(size=(60, 8)) * [0.2, 0.2, 0.2, 0.2, 0.2, 0.2, 0.2, 3]
    features[:2] = [-9, 9, -9, 9, -9, 9, -9, 0]
    points = directions(features)
    found, distances = find_outliers(nearest(points, 8), np.array([0, 0, *range(2, 60)]))
    assert set(found.tolist()) >= {0, 1}
    assert (np.diff(distances) <= 0).all()


def test_quality_findings_name_what_is_the_matter(pictures: np.ndarray) -> None:
    grey = grey_images(pictures, np.arange(12))
    grey = np.concatenate(
        [grey, grey[:1] * 0.1, gaussian_filter(grey[:1], (0, 12, 12)) * 5 - 500, np.full_like(grey[:1], 99)]
    )
    sizes = np.full((15, 2), 128)
    sizes[3], sizes[4] = (20, 30), (900, 100)
    found = {image: text for image, _, text in quality_findings(grey, sizes, 128)}
    assert found.keys() >= {3, 4, 12, 14}
    assert found[3] == "tiny: 20 × 30 pixels"
    assert found[4] == "odd shape: 900 × 100 pixels"
    assert found[12].startswith("dark")
    assert found[14] == "shows nothing"
    assert 5 not in found


def test_confusable_pairs_and_copy_to_leave_out() -> None:
    probabilities = np.eye(3)[[0, 1, 1, 1, 2, 0]]
    (pair,) = confusable_pairs(probabilities, np.array([0, 0, 0, 1, 2, 1]))
    assert (pair.first, pair.second, pair.confused, pair.n) == (0, 1, 3, 5)
    splits = np.array(["test", "train", "val"])
    assert [copy_to_leave_out(*each, splits) for each in ((0, 1), (1, 2), (0, 2))] == [(1, 0), (1, 2), (2, 0)]


def hostile_audit(images: int = 8) -> Audit:
    """An audit with hostile names of images and classes."""
    labels = np.arange(images) % 2
    probabilities = np.eye(2, dtype=np.float32)[1 - labels]
    return Audit(
        data=HOSTILE,
        backbone="B0",
        class_names=(HOSTILE, "@SUM(1)"),
        ids=tuple(f"{HOSTILE}{number}" for number in range(images)),
        splits=np.array(["train", "test"] * (images // 2)),
        labels=labels,
        findings=(
            Finding(0, "near_duplicate", 0.9, f"{HOSTILE}1", 1),
            Finding(2, "label_error", 0.8, "@SUM(1)"),
            Finding(3, "quality", 0.7, "dark"),
        ),
        labels_found=label_errors.LabelErrors(
            probabilities, np.array([2]), np.array([1]), np.array([0.2]), 0.1, (0.0, 0.2)
        ),
        confusable=confusable_pairs(probabilities, labels),
        inflation=None,
        places=np.random.default_rng(0).random((images, 2)),
        neighbours=np.zeros((images, 2), np.int32),
        seconds=1.0,
    )


def test_hostile_names_stay_text_in_page_and_table(pictures: np.ndarray) -> None:
    audit = hostile_audit()
    page = audit_page.as_html(audit, pictures)
    assert "<script>alert" not in page
    assert "=&lt;script&gt;alert" in page
    # The page's own scripts alone.
    assert len(re.findall(r"<script\b", page)) == 2
    images = re.findall(r"<img [^>]*>", page)
    assert len(images) == 4
    assert all('alt="=&lt;' in image for image in images)
    rows = list(csv.reader(io.StringIO(audit_page.as_csv(audit))))
    assert rows[0] == ["image", "finding", "score", "suggestion"]
    assert [row[1] for row in rows[1:]] == ["near_duplicate", "label_error", "quality"]
    assert rows[1][0] == f"'{HOSTILE}0"
    assert rows[2][3] == "'@SUM(1)"


def test_audit_without_cleanlab_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"dogbreeds\[audit\]"):
        label_errors.check_cleanlab()


@pytest.mark.slow
def test_audit_of_drawn_dogs_finds_planted_copies_and_writes_page_and_table(tmp_path: Path, shared_cache: Path) -> None:
    dataset = db.compose(["data.classes=6"]).data.open()
    loaded = {
        name: [load() for row, load in enumerate(split.source.loaders()) if row in set(split.rows.tolist())]
        for name, split in dataset.splits.items()
    }
    labels = {name: split.labels.tolist() for name, split in dataset.splits.items()}
    train = [*loaded["train"], np.ascontiguousarray(loaded["test"][0][:, ::-1])]
    given = db.Dataset.from_arrays(
        train=(train, [*labels["train"], labels["test"][0]]),
        val=(loaded["val"], labels["val"]),
        test=(loaded["test"], labels["test"]),
    )
    audit = db.audit_dataset([f"features.dir={shared_cache}"], dataset=given, output=tmp_path / "audit")
    across = [(each.image, each.other) for each in audit.across]
    copy = len(train) - 1
    assert (copy, len(train) + len(loaded["val"])) in across
    assert audit.inflation is not None
    assert audit.inflation.n == len(loaded["test"])
    assert sorted(path.name for path in (tmp_path / "audit").iterdir()) == ["audit.csv", "audit.html"]


@pytest.mark.long
def test_audit_study_reports_copies_and_both_kinds_of_labels(shared_cache: Path, tmp_path: Path) -> None:
    lines = audit_study.main(["data.classes=4", f"features.dir={shared_cache}"], output=tmp_path)
    assert [line.split(":")[0] for line in lines[:5]] == [f"copies, {kind}" for kind in (*audit_study.KINDS, "all")]
    assert sum("moved to" in line for line in lines) == 4
    assert sum("trained without" in line for line in lines) == 4
    assert (tmp_path / "audit.html").exists()


def test_planted_labels_are_wrong_where_they_are_said_to_be() -> None:
    labels = np.repeat(np.arange(4), 50)
    given, wrong = audit_study.plant_labels(labels, 4, np.random.default_rng(0), np.array([1, 0, 3, 2]))
    assert wrong.sum() == 10
    assert ((given != labels) == wrong).all()
