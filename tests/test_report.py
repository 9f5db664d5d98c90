"""An evaluation as files, of sets of photos that are small or odd."""

import csv
from pathlib import Path

import numpy as np
import pytest

from dogbreeds.evaluation.results import Mistake
from dogbreeds.evaluation.summary import evaluate
from dogbreeds.reports.evaluation_report import FILES, Report
from dogbreeds.reports.figures import confusion

NAMES = ("cost_$5_or_$6", r"$\q$", "<b>akita</b>")


def report(labels: np.ndarray, called: np.ndarray, mistakes: int = 0) -> Report:
    logits = 3.0 * np.eye(len(NAMES))[called]
    shown = tuple(
        Mistake(np.zeros((8, 8, 3), np.uint8), NAMES[label], NAMES[said], 0.9)
        for label, said in zip(labels, called, strict=True)
    )
    found = evaluate(logits, labels, NAMES, None, 0)
    ids = [f"photo {number}" for number in range(len(labels))]
    return Report("title", ("about",), {"run": "x"}, found, NAMES, ids, labels, logits, shown[:mistakes])


def test_names_that_are_no_formulas_and_no_html_are_shown_as_they_are(tmp_path: Path) -> None:
    report(np.array([0, 1, 2, 0]), np.array([1, 1, 2, 2]), mistakes=2).write(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == set(FILES)
    page = (tmp_path / "report.html").read_text()
    assert "cost $5 or $6" in page
    assert "&lt;b&gt;akita&lt;/b&gt;" in page
    assert "<b>akita" not in page


def test_without_mistakes_there_is_no_sheet_and_the_tables_have_heads(tmp_path: Path) -> None:
    report(np.array([0, 1, 2]), np.array([0, 1, 2])).write(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == set(FILES) - {"mistakes.jpg"}
    page = (tmp_path / "report.html").read_text()
    assert "None: every photo was called what it is." in page
    assert "mistakes" not in page
    assert list(csv.reader((tmp_path / "confusions.csv").open())) == [["first", "second", "there", "back"]]


@pytest.mark.filterwarnings("error")
def test_a_single_photo_is_evaluated_without_scaling(tmp_path: Path) -> None:
    found = report(np.array([1]), np.array([1]))
    found.write(tmp_path)
    assert found.evaluation.calibration.temperature == 1.0
    assert "is not shown to lower" in found.evaluation.calibration.said


def test_breeds_that_only_were_called_are_in_the_matrix() -> None:
    drawn = confusion(np.array([[3, 0, 1], [0, 0, 0], [0, 0, 0]]), ("akita", "beagle", "collie"))
    assert sorted(label.get_text() for label in drawn.axes[0].get_yticklabels()) == ["akita", "collie"]
