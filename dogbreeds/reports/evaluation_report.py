"""Evaluation report: a self-contained HTML page, its figures, and tables as CSV and JSON."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dogbreeds.core.text import csv_rows
from dogbreeds.data.class_names import display_name
from dogbreeds.evaluation.class_scores import ClassScore, ConfusedClasses
from dogbreeds.evaluation.metrics import PAIRED_LEVEL, Proportion, probabilities
from dogbreeds.evaluation.results import Mistake
from dogbreeds.evaluation.summary import Evaluation, Measure
from dogbreeds.reports import figures, pages, tables
from dogbreeds.reports.tables import Column

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FILES = (
    "scores.json",
    "report.html",
    "reliability.png",
    "confusion.png",
    "mistakes.jpg",
    "classes.csv",
    "confusions.csv",
    "images.csv",
)
# Includes the names that two of the files had before version 0.2.0, so that a new report leaves no stale ones.
OWNED_FILES = (*FILES, "breeds.csv", "photos.csv")
# Rows of the page's table of confused classes.
_MAX_CONFUSIONS = 15
_DPI = 130


@dataclass(frozen=True)
class EvaluationReport:
    """An evaluation, with what its report shows.

    Attributes:
        title: heading of the page.
        about: sentences on top of the page: which network, which images, and the limits of the numbers.
        facts: provenance at the end of the page, text by name.
        evaluation: the scores.
        class_names: in the order of the logits.
        image_ids: name of each image.
        labels: [n] int, true classes.
        logits: [n, classes] float.
        mistakes: the most confident ones, most confident first; may be empty.
    """

    title: str
    about: tuple[str, ...]
    facts: Mapping[str, str]
    evaluation: Evaluation
    class_names: tuple[str, ...]
    image_ids: Sequence[str]
    labels: np.ndarray
    logits: np.ndarray
    mistakes: tuple[Mistake, ...]

    def write(self, folder: Path) -> None:
        """Write all `FILES` into a folder; `mistakes.jpg` only if there are mistakes."""
        drawn = self._draw_figures()
        for name, figure in drawn.items():
            figure.savefig(folder / name, dpi=_DPI, pil_kwargs={"quality": 88} if name.endswith(".jpg") else {})
        metrics = self.evaluation.metrics()
        (folder / "scores.json").write_text(
            json.dumps({name: metrics[name] for name in sorted(metrics)}, indent=1) + "\n"
        )
        _write_csv(folder / "classes.csv", self._class_records())
        _write_csv(
            folder / "confusions.csv",
            [asdict(confusion) for confusion in self.evaluation.confusions],
            [field.name for field in fields(ConfusedClasses)],
        )
        _write_csv(folder / "images.csv", self._image_records())
        # The page embeds mistakes.jpg, which is written by now.
        (folder / "report.html").write_text(self._page(folder, drawn), encoding="utf-8")

    def _draw_figures(self) -> "dict[str, Figure]":
        calibration = self.evaluation.calibration
        drawn = {
            "reliability.png": figures.reliability_diagram(
                calibration.bins_before, calibration.bins_after, calibration.temperature
            ),
            "confusion.png": figures.confusion_matrix(
                self.evaluation.matrix, [display_name(name) for name in self.class_names]
            ),
        }
        if self.mistakes:
            drawn["mistakes.jpg"] = figures.contact_sheet(self.mistakes)
        return drawn

    def _class_records(self) -> list[dict[str, object]]:
        records: list[dict[str, object]] = []
        for score in self.evaluation.classes:
            low, high = score.correct.interval
            records.append(
                {
                    "class": score.name,
                    "n": score.correct.n,
                    "right": score.correct.correct,
                    "recall": score.correct.value,
                    "recall_low": low,
                    "recall_high": high,
                    "precision": score.precision,
                    "f1": score.f1,
                    "mistaken_for": score.mistaken_for,
                    "mistaken_n": score.mistaken_n,
                }
            )
        return records

    def _image_records(self) -> list[dict[str, object]]:
        predicted = self.logits.argmax(axis=1)
        return [
            {
                "image": image_id,
                "class": self.class_names[label],
                "called": self.class_names[prediction],
                "probability": f"{row[prediction]:.6f}",
                "class_probability": f"{row[label]:.6f}",
            }
            for image_id, label, prediction, row in zip(
                self.image_ids, self.labels, predicted, probabilities(self.logits), strict=True
            )
        ]

    def _page(self, folder: Path, drawn: "Mapping[str, Figure]") -> str:
        confusions = self.evaluation.confusions[:_MAX_CONFUSIONS]
        return pages.render(
            "evaluation",
            title=self.title,
            about=self.about,
            scores=score_rows(self.evaluation),
            augmentation=tta_summary(self.evaluation),
            calibration=self.evaluation.calibration.description,
            reliability_diagram=drawn["reliability.png"],
            confusions=[
                (display_name(each.first), display_name(each.second), str(each.there), str(each.back))
                for each in confusions
            ],
            confusion_matrix=drawn["confusion.png"],
            mistakes="; ".join(f"{mistake.label} predicted as {mistake.predicted}" for mistake in self.mistakes),
            contact_sheet=(folder / "mistakes.jpg").read_bytes() if self.mistakes else b"",
            classes=[_class_cells(score) for score in self.evaluation.classes],
            facts=self.facts,
        )


class ScoreRow(NamedTuple):
    """One score, formatted.

    Attributes:
        name: such as `accuracy`.
        value: with its unit.
        interval: the 95 % interval.
        n: number of images.
    """

    name: str
    value: str
    interval: str
    n: str


def score_rows(evaluation: Evaluation) -> list[ScoreRow]:
    """Format each score of an evaluation."""
    calibration = evaluation.calibration
    scaled = f", temperature {calibration.temperature:.2f}"
    rows = [
        _proportion_row("accuracy", evaluation.scores.accuracy),
        *([_proportion_row("top-5 accuracy", top5)] if (top5 := evaluation.scores.top5) is not None else []),
        _percent_row("macro F1", evaluation.macro_f1),
        _nats_row("log loss", evaluation.log_loss),
        _percent_row("calibration error", calibration.before),
        _percent_row(f"calibration error{scaled}", calibration.after),
        _nats_row(f"log loss{scaled}", calibration.log_loss_after),
    ]
    if evaluation.augmented is not None:
        views = f", {evaluation.augmented.views} views"
        rows += [
            _proportion_row(f"accuracy{views}", evaluation.augmented.accuracy),
            _nats_row(f"log loss{views}", evaluation.augmented.log_loss),
        ]
    return rows


def _proportion_row(name: str, proportion: Proportion) -> ScoreRow:
    return _percent_row(name, Measure(proportion.value, *proportion.interval, proportion.n))


def _percent_row(name: str, measure: Measure) -> ScoreRow:
    return ScoreRow(
        name,
        value=f"{100 * measure.value:.1f} %",
        interval=f"{100 * measure.low:.1f}–{100 * measure.high:.1f}",
        n=f"{measure.n:,}",
    )


def _nats_row(name: str, measure: Measure) -> ScoreRow:
    return ScoreRow(
        name,
        value=f"{measure.value:.3f} nats",
        interval=f"{measure.low:.3f}–{measure.high:.3f}",
        n=f"{measure.n:,}",
    )


def tta_summary(evaluation: Evaluation) -> str:
    """State the gain and the cost of test-time augmentation in two sentences; empty if the evaluation has none."""
    if evaluation.augmented is None:
        return ""
    augmented = evaluation.augmented
    significance = "significant" if augmented.pair.p_value < PAIRED_LEVEL else "not significant"
    return (
        f"Averaging {augmented.views} views of each image changes the accuracy by {augmented.pair}: {significance} at"
        f" level {PAIRED_LEVEL:g}. It takes {augmented.cost:.1f} times as long."
    )


def scores_text(evaluation: Evaluation, width: int | None) -> str:
    """Render the scores as a text table.

    Args:
        evaluation: the scores.
        width: the terminal's width in columns; None if the text goes elsewhere.
    """
    columns = [Column(min_width=12), Column(numeric=True), Column(numeric=True), Column()]
    rows = [(row.name, row.value, row.interval, f"n = {row.n}") for row in score_rows(evaluation)]
    return tables.text_table(columns, rows, width)


def _class_cells(score: ClassScore) -> list[str]:
    low, high = score.correct.interval
    return [
        display_name(score.name),
        f"{100 * score.correct.value:.0f} %",
        f"{score.correct.correct} of {score.correct.n}",
        f"{100 * low:.0f}–{100 * high:.0f}",
        f"{100 * score.precision:.0f} %" if not math.isnan(score.precision) else "–",
        f"{100 * score.f1:.0f} %",
        f"{display_name(score.mistaken_for)} ({score.mistaken_n})" if score.mistaken_n else "–",
    ]


def _write_csv(path: Path, rows: Sequence[dict[str, object]], columns: Sequence[str] = ()) -> None:
    """Write rows by column name; `columns` names the columns where there may be no row."""
    headings = columns or list(rows[0])
    path.write_text(csv_rows([headings, *(row.values() for row in rows)]), encoding="utf-8")
