"""An evaluation as a page that needs nothing else, and as files."""

import csv
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dogbreeds.data.class_names import spoken
from dogbreeds.evaluation.metrics import Proportion, probabilities
from dogbreeds.evaluation.results import Mistake
from dogbreeds.evaluation.summary import Breed, Confusion, Evaluation, Measure
from dogbreeds.evaluation.verdict import PAIRED_LEVEL
from dogbreeds.reports import figures, html

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FILES = (
    "scores.json",
    "report.html",
    "reliability.png",
    "confusion.png",
    "mistakes.jpg",
    "breeds.csv",
    "confusions.csv",
    "photos.csv",
)
# Of the most confused breeds
_PAIRS = 15
_DPI = 130


@dataclass(frozen=True)
class Report:
    """An evaluation and what it is of.

    Attributes:
        title: for people.
        about: sentences: which network on which photos, and what to keep in mind.
        facts: by name, for the end of the page.
        evaluation: the numbers.
        names: of the classes.
        ids: a name for each photo.
        labels: [n] int.
        logits: [n, classes].
        mistakes: the most confident ones, the most confident first.
    """

    title: str
    about: tuple[str, ...]
    facts: dict[str, str]
    evaluation: Evaluation
    names: tuple[str, ...]
    ids: Sequence[str]
    labels: np.ndarray
    logits: np.ndarray
    mistakes: tuple[Mistake, ...]

    def write(self, folder: Path) -> None:
        """Writes `report.html`, its pictures and its tables into a folder."""
        found = self.evaluation
        drawn: dict[str, Figure] = {
            "reliability.png": figures.reliability(
                found.calibration.bins_before, found.calibration.bins_after, found.calibration.temperature
            ),
            "confusion.png": figures.confusion(found.matrix, [spoken(name) for name in self.names]),
        }
        if self.mistakes:
            drawn["mistakes.jpg"] = figures.contact_sheet(self.mistakes)
        for name, figure in drawn.items():
            figure.savefig(folder / name, dpi=_DPI, pil_kwargs={"quality": 88} if name.endswith(".jpg") else {})
        numbers = found.metrics()
        (folder / "scores.json").write_text(
            json.dumps({name: numbers[name] for name in sorted(numbers)}, indent=1) + "\n"
        )
        _write_csv(folder / "breeds.csv", self._breed_rows())
        _write_csv(
            folder / "confusions.csv",
            [asdict(confusion) for confusion in found.confusions],
            [field.name for field in fields(Confusion)],
        )
        _write_csv(folder / "photos.csv", self._photo_rows())
        (folder / "report.html").write_text(self._page(folder, drawn), encoding="utf-8")

    def _breed_rows(self) -> list[dict[str, object]]:
        rows = []
        for breed in self.evaluation.breeds:
            low, high = breed.right.interval
            numbers = {
                "recall": breed.right.value,
                "recall_low": low,
                "recall_high": high,
                "precision": breed.precision,
                "f1": breed.f1,
            }
            rows.append(
                {"breed": breed.name, "n": breed.right.n, "right": breed.right.correct}
                | numbers
                | dict(zip(_MISTAKEN, breed.mistaken, strict=True))
            )
        return rows

    def _photo_rows(self) -> list[dict[str, object]]:
        shares, called = probabilities(self.logits), self.logits.argmax(axis=1)
        return [
            {
                "photo": name,
                "breed": self.names[label],
                "called": self.names[said],
                "probability": f"{share[said]:.6f}",
                "of_breed": f"{share[label]:.6f}",
            }
            for name, label, said, share in zip(self.ids, self.labels, called, shares, strict=True)
        ]

    def _page(self, folder: Path, drawn: "dict[str, Figure]") -> str:
        found = self.evaluation
        parts = [f"<p>{escape(sentence)}</p>" for sentence in self.about]
        parts += ["<h2>Scores</h2>", html.table(("measure", "value", "95 % interval", "n"), self._score_rows())]
        if found.augmented is not None:
            parts += ["<h2>Test-time augmentation</h2>", f"<p>{escape(augmented_said(found))}</p>"]
        parts += [
            "<h2>Can its confidence be believed?</h2>",
            f"<p>{escape(found.calibration.said)} {_HOW_CALIBRATED}</p>",
        ]
        parts.append(
            f"<figure>{html.svg(drawn['reliability.png'], 'accuracy over confidence, before and after scaling')}</figure>"
        )
        parts += ["<h2>Which breeds are taken for each other?</h2>", self._pairs()]
        parts.append(f"<figure>{html.svg(drawn['confusion.png'], 'confusion matrix')}</figure>")
        if self.mistakes:
            parts.append("<h2>The most confident mistakes</h2>")
            alt = "; ".join(f"{mistake.breed} called {mistake.called}" for mistake in self.mistakes)
            parts.append(
                f"<p>{_HOW_MISTAKEN}</p><figure>{html.image((folder / 'mistakes.jpg').read_bytes(), 'jpeg', alt)}</figure>"
            )
        parts += [
            "<h2>Breed by breed, the worst first</h2>",
            html.table(_BREED_HEADINGS, map(_breed_cells, found.breeds)),
        ]
        parts += [
            "<h2>What this is of</h2>",
            html.table(
                ("", ""), ((html.cell(escape(name)), html.cell(escape(said))) for name, said in self.facts.items())
            ),
        ]
        return html.page(self.title, "\n".join(parts))

    def _score_rows(self) -> list[list[str]]:
        return [
            [html.cell(escape(name)), *(html.cell(said, "number") for said in cells)]
            for name, *cells in score_lines(self.evaluation)
        ]

    def _pairs(self) -> str:
        pairs = self.evaluation.confusions[:_PAIRS]
        if not pairs:
            return "<p>None: every photo was called what it is.</p>"
        rows = (
            [
                html.cell(escape(spoken(pair.first))),
                html.cell(escape(spoken(pair.second))),
                html.cell(str(pair.there), "number"),
                html.cell(str(pair.back), "number"),
            ]
            for pair in pairs
        )
        return html.table(("breed", "taken for", "photos", "the other way round"), rows)


_MISTAKEN = ("mistaken_for", "mistaken_n")
_BREED_HEADINGS = ("breed", "right", "of them", "95 % interval", "precision", "F1", "most often called instead")
_HOW_CALIBRATED = (
    "Each dot is photos of about the same confidence; the line through it is the 95 % interval of their accuracy, the"
    " red bar how far that is from the confidence. On the dashed line, a network is right as often as it thinks."
)
_HOW_MISTAKEN = (
    "Red is what the network said and how sure it was, green what the photo is. Some of these are the labels' mistakes,"
    " not the network's."
)


def score_lines(found: Evaluation) -> list[tuple[str, str, str, str]]:
    """Name, value, interval and n of each score, as people read them."""
    lines = [_share("accuracy", found.scores.accuracy), _share("top-5 accuracy", found.scores.top5)]
    lines.append(_measure("macro F1", found.macro_f1, 100, " %", 1))
    lines.append(_measure("log loss", found.log_loss, 1, " nats", 3))
    lines.append(_measure("calibration error", found.calibration.before, 100, " %", 1))
    scaled = f", temperature {found.calibration.temperature:.2f}"
    lines.append(_measure(f"calibration error{scaled}", found.calibration.after, 100, " %", 1))
    lines.append(_measure(f"log loss{scaled}", found.calibration.log_loss_after, 1, " nats", 3))
    if found.augmented is not None:
        views = f", {found.augmented.views} views"
        lines += [
            _share(f"accuracy{views}", found.augmented.accuracy),
            _measure(f"log loss{views}", found.augmented.log_loss, 1, " nats", 3),
        ]
    return lines


def augmented_said(found: Evaluation) -> str:
    """What test-time augmentation gains and costs, in two sentences; the evaluation must have one."""
    if found.augmented is None:
        return ""
    pair, views = found.augmented.pair, found.augmented.views
    shown = (
        f"{'a' if pair.p_value < PAIRED_LEVEL else 'no'} difference that these photos show at the level of"
        f" {PAIRED_LEVEL:g}"
    )
    return (
        f"{views} views of each photo change the accuracy by {pair}: {shown}. They take {found.augmented.cost:.1f}"
        " times as long."
    )


def _share(name: str, share: Proportion) -> tuple[str, str, str, str]:
    return _measure(name, Measure(share.value, *share.interval, share.n), 100, " %", 1)


def _measure(name: str, measure: Measure, times: float, unit: str, digits: int) -> tuple[str, str, str, str]:
    value, low, high = (f"{times * number:.{digits}f}" for number in (measure.value, measure.low, measure.high))
    return name, f"{value}{unit}", f"{low}–{high}", f"{measure.n:,}"


def _breed_cells(breed: Breed) -> list[str]:
    low, high = breed.right.interval
    called = f"{spoken(breed.mistaken[0])} ({breed.mistaken[1]})" if breed.mistaken[1] else "–"
    precision = f"{100 * breed.precision:.0f} %" if not math.isnan(breed.precision) else "–"
    numbers = (
        f"{100 * breed.right.value:.0f} %",
        f"{breed.right.correct} of {breed.right.n}",
        f"{100 * low:.0f}–{100 * high:.0f}",
        precision,
    )
    cells = [*numbers, f"{100 * breed.f1:.0f} %"]
    return [
        html.cell(escape(spoken(breed.name))),
        *(html.cell(said, "number") for said in cells),
        html.cell(escape(called)),
    ]


def _write_csv(file: Path, rows: Sequence[dict[str, object]], columns: Sequence[str] = ()) -> None:
    with file.open("w", newline="", encoding="utf-8") as opened:
        writer = csv.DictWriter(opened, columns or list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
