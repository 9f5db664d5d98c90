"""HTML pages: self-contained, escaped, reproducible."""

import base64
import io
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import jinja2
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from dogbreeds.evaluation import paired_comparison
from dogbreeds.evaluation.results import Mistake, Predictions
from dogbreeds.evaluation.summary import evaluate
from dogbreeds.reports import attempts_rendering, comparison_rendering
from dogbreeds.reports.attempts_table import build_tables
from dogbreeds.reports.evaluation_report import EvaluationReport
from dogbreeds.reports.pages import environment, render, svg
from dogbreeds.reports.run_comparison import RunComparison
from dogbreeds.tracking.records import Record

HOSTILE = '<script>alert("1")</script>'


class PageParser(HTMLParser):
    """Collects what a browser would fetch, the tags, and the text."""

    def __init__(self, text: str):
        super().__init__()
        self.sources: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attributes
        self.sources += [
            value or "" for name, value in attributes if name == "src" or (tag == "link" and name == "href")
        ]

    def handle_data(self, data: str) -> None:
        self.text += data


def figure(height: float) -> Figure:
    drawn = Figure()
    drawn.subplots().plot([0, 1], [0, height])
    return drawn


def rendered(source: str, **values: object) -> str:
    """Render a template that is not in a file."""
    return environment().from_string(source).render(values)


def test_page_embeds_figures_and_images_and_fetches_nothing() -> None:
    with io.BytesIO() as file:
        Image.new("RGB", (3, 2), (9, 8, 7)).save(file, "PNG")
        picture = file.getvalue()
    content = (
        '{% extends "base.html.j2" %}{% from "macros.html.j2" import figure %}{% block content %}'
        '{{ figure(drawn, "a line & more") }}<img alt="{{ alt }}" src="{{ picture | data_uri("png") }}">{% endblock %}'
    )
    parsed = PageParser(rendered(content, title="a < b & c", drawn=figure(1), picture=picture, alt='a "dog"'))
    assert parsed.tags.count("svg") == 1
    assert "a < b & c" in parsed.text
    assert ("aria-label", "a line & more") in parsed.attributes
    assert ("alt", 'a "dog"') in parsed.attributes
    assert "script" not in parsed.tags
    (source,) = parsed.sources
    assert source.startswith("data:image/png;base64,")
    assert base64.b64decode(source.partition(",")[2]) == picture


def test_svg_of_the_same_figure_is_the_same_text() -> None:
    assert svg(figure(1), "") == svg(figure(1), "") != svg(figure(2), "")
    assert svg(figure(1), "a line & more").startswith('<svg role="img" aria-label="a line &amp; more"')


def test_table_escapes_text_and_aligns_numeric_columns() -> None:
    source = '{% from "macros.html.j2" import text_table %}{{ text_table(headings, rows, numeric) }}'
    element = rendered(source, headings=("class<", "n"), rows=[("<b>", "20"), ("y", "3.5 %")], numeric=[1])
    assert '<th>class&lt;</th><th class="number">n</th>' in element
    assert '<td>&lt;b&gt;</td><td class="number">20</td>' in element
    # A number and its unit stay on one line.
    assert '<td>y</td><td class="number">3.5&nbsp;%</td>' in element
    assert "<th>n</th>" in rendered(source, headings=("n",), rows=[], numeric=[])


def test_a_missing_value_is_an_error() -> None:
    with pytest.raises(jinja2.UndefinedError, match="title"):
        render("base")


@pytest.mark.parametrize("name", sorted(environment().list_templates()))
def test_templates_embed_only_figures_and_literals_without_escaping(name: str) -> None:
    source = Path(str(environment().get_template(name).filename)).read_text()
    # The only text that is marked as safe is the template's own.
    assert source.count("safe") == source.count('"&nbsp;%" | safe')
    assert "autoescape" not in source


def hostile_record(run_id: str) -> Record:
    params = {
        "model.architecture": HOSTILE,
        "data.name": HOSTILE,
        "data.images.val": "3",
        "data.images.train": "9",
        "data.classes": HOSTILE,
        "phase": HOSTILE,
        "preprocessing.mode": HOSTILE,
        "optimizer.lr": "0.001",
        "unfreeze": "LastN",
        "unfreeze.layers_trained": HOSTILE,
        "unfreeze.layers_asked": HOSTILE,
        "unfreeze.batchnorm": HOSTILE,
        "seed": "0",
        f"head.{HOSTILE}": f"{HOSTILE}{run_id}",
    }
    tags = {"verdict": HOSTILE, "choice.model": HOSTILE, "choice.data": HOSTILE, "baseline": HOSTILE}
    return Record(run_id, HOSTILE, 0, "FINISHED", params, {"best/val_accuracy": 0.5}, tags, HOSTILE)


def hostile_url(record: Record) -> str:
    return f'http://x/"{HOSTILE}'


def attempts_page(folder: Path) -> str:
    changed = hostile_record("a" * 32)
    changed.tags.update({"choice.attempt": "frozen", "attempt.changed": HOSTILE})
    tables = build_tables([changed, hostile_record("b" * 32)], lambda run_id: [0.4, 0.5], all_runs=True)
    return attempts_rendering.as_html(tables, hostile_url)


def sweep_page(folder: Path) -> str:
    tables = build_tables(
        [hostile_record("a" * 32), hostile_record("b" * 32)], lambda run_id: [0.4, 0.5], all_runs=True
    )
    return attempts_rendering.as_html(tables, hostile_url, title=HOSTILE, runs_only=True)


def comparison_page(folder: Path) -> str:
    labels = np.array([0, 0, 0, 1])
    names = (HOSTILE, f"{HOSTILE} 2")
    first, second = (
        Predictions(["a", "b", "c", HOSTILE], labels, np.eye(2)[predicted], names)
        for predicted in ([0, 0, 0, 1], [1, 1, 1, 1])
    )
    paired = paired_comparison.compare(first, second, "val")
    comparison = RunComparison(hostile_record("a" * 32), hostile_record("b" * 32), paired, alpha=0.05, max_classes=5)
    return comparison_rendering.as_html(comparison, hostile_url)


def evaluation_page(folder: Path) -> str:
    labels, names = np.array([0, 1, 1]), (HOSTILE, f"{HOSTILE} 2")
    logits = 3.0 * np.eye(2)[[0, 0, 0]]
    evaluation = evaluate(logits, labels, names, None, 0)
    EvaluationReport(
        title=HOSTILE,
        about=(HOSTILE,),
        facts={HOSTILE: HOSTILE},
        evaluation=replace(evaluation, calibration=replace(evaluation.calibration, fitted_on=HOSTILE)),
        class_names=names,
        image_ids=[HOSTILE] * 3,
        labels=labels,
        logits=logits,
        mistakes=(Mistake(np.zeros((8, 8, 3), np.uint8), f'"{HOSTILE}', HOSTILE, 0.9),),
    ).write(folder)
    return (folder / "report.html").read_text()


@pytest.mark.parametrize("build", [attempts_page, sweep_page, comparison_page, evaluation_page])
def test_page_shows_hostile_names_as_text(build, tmp_path: Path) -> None:
    page = build(tmp_path)
    parsed = PageParser(page)
    assert "script" not in parsed.tags
    assert "<script" not in page
    # More than a few: names are shown in the title, in tables, in sentences and in figures.
    assert parsed.text.count(HOSTILE) >= 5
    # No attribute was ended by a quotation mark.
    assert all(not name.startswith(("<", '"')) and "script" not in name for name, _ in parsed.attributes)
    hrefs = {value for name, value in parsed.attributes if name == "href" and not value.startswith("#")}
    assert hrefs == (set() if build is evaluation_page else {hostile_url(hostile_record("a"))})
