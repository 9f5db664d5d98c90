"""Evaluation reports of small and odd sets of images."""

import csv
import io
import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font
from matplotlib.text import Text

from dogbreeds.evaluation.calibration import Bin
from dogbreeds.evaluation.metrics import Proportion
from dogbreeds.evaluation.results import Mistake
from dogbreeds.evaluation.summary import evaluate
from dogbreeds.reports import picture_text
from dogbreeds.reports.evaluation_report import FILES, EvaluationReport, scores_text
from dogbreeds.reports.figures import confusion_matrix, contact_sheet, reliability_diagram
from dogbreeds.reports.run_figures import ComparedRun, accuracy_curves

NAMES = ("cost_$5_or_$6", r"$\q$", "<b>akita</b>")


def report(labels: np.ndarray, predicted: np.ndarray, num_mistakes: int = 0) -> EvaluationReport:
    logits = 3.0 * np.eye(len(NAMES))[predicted]
    mistakes = tuple(
        Mistake(np.zeros((8, 8, 3), np.uint8), NAMES[label], NAMES[prediction], 0.9)
        for label, prediction in zip(labels, predicted, strict=True)
    )
    return EvaluationReport(
        title="title",
        about=("about",),
        facts={"run": "x"},
        evaluation=evaluate(logits, labels, NAMES, None, 0),
        class_names=NAMES,
        image_ids=[f"image {number}" for number in range(len(labels))],
        labels=labels,
        logits=logits,
        mistakes=mistakes[:num_mistakes],
    )


def test_report_escapes_mathtext_and_html_in_class_names(tmp_path: Path) -> None:
    report(np.array([0, 1, 2, 0]), np.array([1, 1, 2, 2]), num_mistakes=2).write(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == set(FILES)
    page = (tmp_path / "report.html").read_text()
    assert "cost $5 or $6" in page
    assert "&lt;b&gt;akita&lt;/b&gt;" in page
    assert "<b>akita" not in page
    # Neither its names nor its cells shrink on a narrow screen.
    assert '<figure class="whole"><svg role="img" aria-label="confusion matrix"' in page


def test_report_without_mistakes_has_no_contact_sheet_and_tables_with_headers(tmp_path: Path) -> None:
    report(np.array([0, 1, 2]), np.array([0, 1, 2])).write(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == set(FILES) - {"mistakes.jpg"}
    page = (tmp_path / "report.html").read_text()
    assert "None: all images were classified correctly." in page
    assert "mistakes" not in page
    assert list(csv.reader((tmp_path / "confusions.csv").open())) == [["first", "second", "there", "back"]]


@pytest.mark.parametrize("width", [40, 80, None])
def test_scores_fit_the_terminal_and_have_a_line_each_elsewhere(width: int | None) -> None:
    evaluation = report(np.array([0, 1, 2, 0] * 9), np.array([1, 1, 2, 2] * 9)).evaluation
    lines = scores_text(evaluation, width).splitlines()
    assert max(map(len, lines)) <= (width or 80)
    assert lines[0].split() == ["accuracy", "50.0", "%", "34.5–65.5", "n", "=", "36"]
    # Three classes have no top-5 accuracy.
    assert len(lines) == 6 or width == 40


@pytest.mark.filterwarnings("error")
def test_report_of_a_single_image_is_not_temperature_scaled(tmp_path: Path) -> None:
    single = report(np.array([1]), np.array([1]))
    single.write(tmp_path)
    assert single.evaluation.calibration.temperature == 1.0
    assert "does not significantly lower" in single.evaluation.calibration.description


def test_confusion_matrix_includes_classes_that_were_only_predicted() -> None:
    figure = confusion_matrix(np.array([[3, 0, 1], [0, 0, 0], [0, 0, 0]]), ("akita", "beagle", "collie"))
    assert sorted(label.get_text() for label in figure.axes[0].get_yticklabels()) == ["akita", "collie"]


# --- names in figures that the default font cannot draw -----------------------

DOG, HAN = "\N{DOG FACE}", "犬"
_OWN_FONTS = ("STIXGeneral", "DejaVu Sans")


@pytest.fixture
def no_other_fonts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Only Matplotlib's own fonts are installed, whatever this machine has."""
    installed = [entry for entry in fontManager.ttflist if entry.name in _OWN_FONTS]
    monkeypatch.setattr(fontManager, "ttflist", installed)
    for remembered in (picture_text._installed_glyphs, picture_text._fallback_font):
        remembered.cache_clear()
    yield
    for remembered in (picture_text._installed_glyphs, picture_text._fallback_font):
        remembered.cache_clear()


def only_in_stix() -> str:
    """A letter that Matplotlib's default font lacks, and that another of its fonts has."""
    stix, default = (set(get_font(findfont(FontProperties(family=[name]))).get_charmap()) for name in _OWN_FONTS)
    return next(chr(code) for code in sorted(stix - default) if chr(code).isalpha() and code < 0xE000)


@pytest.mark.filterwarnings("error")
def test_figures_draw_any_class_name_without_a_warning(no_other_fonts: None) -> None:
    letter = only_in_stix()
    names = (f"{DOG}\N{EMOJI MODIFIER FITZPATRICK TYPE-3} $5", HAN, f"{letter} \t")
    mistake = Mistake(np.zeros((8, 8, 3), np.uint8), names[0], names[1], 0.9)
    drawn = [
        confusion_matrix(np.eye(3), names),
        contact_sheet([mistake]),
        accuracy_curves(
            [ComparedRun(name, name, (0.1, 0.2), Proportion(1, 5), None, None, None, None) for name in names], names[0]
        ),
    ]
    for figure in drawn:
        figure.savefig(io.BytesIO(), format="png")
    labels = {label.get_text(): label.get_fontfamily() for label in drawn[0].axes[0].get_yticklabels()}
    assert labels == {
        r"[dog face] \$5": ["sans-serif"],
        r"\u72ac": ["sans-serif"],
        rf"{letter} \t": ["sans-serif", "STIXGeneral"],
    }


def test_name_that_the_default_font_has_is_drawn_as_it_is(no_other_fonts: None) -> None:
    assert picture_text.picture_text("Bärli–é ☺") == "Bärli–é ☺"


def text_points(figure: Figure) -> float:
    """Return the size of a figure's smallest text."""
    figure.draw_without_rendering()
    return min(text.get_fontsize() for text in figure.findobj(Text) if text.get_text() and text.get_visible())


@pytest.mark.parametrize("count", [1, 5])
def test_text_of_a_figure_of_the_page_is_legible_at_700_pixels(count: int) -> None:
    bins = [Bin((index + 0.5) / 10, 0.5, 3) for index in range(10)]
    mistake = Mistake(np.zeros((8, 8, 3), np.uint8), "a", "b", 0.9)
    for figure in (reliability_diagram(bins, bins, 0.9), contact_sheet([mistake] * count)):
        assert text_points(figure) * 700 / (72 * figure.get_figwidth()) >= 12


@pytest.mark.parametrize("classes", [2, 40, 120])
def test_class_names_of_the_confusion_matrix_are_legible_at_its_full_size(classes: int) -> None:
    figure = confusion_matrix(np.eye(classes), [f"class_{number}" for number in range(classes)])
    assert text_points(figure) / 0.75 >= 12
    boxes = [label.get_window_extent() for label in figure.axes[0].get_yticklabels()]
    assert len(boxes) == classes
    # From the first row down: none reaches into the next.
    assert all(upper.y0 >= lower.y1 for upper, lower in itertools.pairwise(boxes))
