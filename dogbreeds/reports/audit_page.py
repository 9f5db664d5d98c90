"""The page of an audit: one self-contained HTML file with the findings, and a map of all images."""

import base64
import io
from typing import Protocol

import numpy as np

from dogbreeds.core.text import csv_rows, visible
from dogbreeds.evaluation.audit import COLUMNS, FINDINGS, LABEL_ERROR, NEAR_DUPLICATE, OUTLIER, QUALITY, Audit, Finding
from dogbreeds.evaluation.results import SPLIT_NAMES
from dogbreeds.reports import pages

# Findings of a kind that have images on the page; the table has all.
_MOST_SHOWN = 60
_SHOWN_SIDE = 128
# Sides of the images on the map, of which the largest is taken whose sheets are small enough.
_MAP_SIDES = (64, 48, 40, 32, 24, 16)
_MAP_BYTES = 14_000_000
# Images of a sheet, which the page decodes when one of them is pointed at.
_SHEET_COLUMNS, _SHEET_ROWS = 20, 20
_SHEET_QUALITY, _SHOWN_QUALITY = 60, 78
_TITLES = {
    NEAR_DUPLICATE: "Near-duplicates",
    LABEL_ERROR: "Likely label errors",
    OUTLIER: "Outliers",
    QUALITY: "Low quality",
}


class Pixels(Protocol):
    """Decoded images, read one by one."""

    def __getitem__(self, image: int) -> np.ndarray:
        """Return an image, [h, w, 3] uint8 RGB."""


def as_csv(audit: Audit) -> str:
    """Render the findings as CSV. Names that a spreadsheet would run as formulas are neutralised."""
    return csv_rows([COLUMNS, *audit.rows()])


def as_text(audit: Audit) -> str:
    """Render what was found in a few lines."""
    lines = [f"{audit.data}: {len(audit.ids):,} images of {len(audit.class_names)} classes, seen by {audit.backbone}"]
    lines += [f"  {_TITLES[kind].lower()}: {len(audit.of(kind)):,}" for kind in FINDINGS]
    return "\n".join([*lines, *(f"  {line}" for line in _notes(audit)), ""])


def as_html(audit: Audit, pixels: Pixels) -> str:
    """Render the page.

    Args:
        audit: what was found.
        pixels: the images, in the order of the audit.
    """
    side, sheets = _sheets(len(audit.ids), pixels)
    findings = np.zeros(len(audit.ids), int)
    for each in audit.findings:
        findings[each.image] |= 1 << FINDINGS.index(each.finding)
    splits = list(dict.fromkeys(audit.splits.tolist()))
    likely = audit.labels_found.probabilities.argmax(axis=1)
    data = {
        "x": np.round(audit.places[:, 0], 4).tolist(),
        "y": np.round(audit.places[:, 1], 4).tolist(),
        "label": audit.labels.tolist(),
        "likely": likely.tolist(),
        "finding": findings.tolist(),
        "split": [splits.index(split) for split in audit.splits.tolist()],
        "near": audit.neighbours.tolist(),
        "ids": [visible(name) for name in audit.ids],
        "classes": [visible(name) for name in audit.class_names],
        "splits": splits,
        "kinds": [_TITLES[kind] for kind in FINDINGS],
        "side": side,
        "columns": _SHEET_COLUMNS,
        "per": _SHEET_COLUMNS * _SHEET_ROWS,
        "sheets": sheets,
    }
    counts = audit.counts()
    return pages.render(
        "audit",
        title=f"audit of {audit.data}",
        about=f"{len(audit.ids):,} images of {len(audit.class_names)} classes, compared by the features of"
        f" {audit.backbone}. audit.csv lists all findings.",
        notes=_notes(audit),
        sections=[_section(audit, kind, pixels) for kind in FINDINGS],
        confusable=[
            (audit.class_names[pair.first], audit.class_names[pair.second], f"{pair.confused} of {pair.n}")
            for pair in audit.confusable
        ],
        splits=[SPLIT_NAMES.get(name, name) for name in splits],
        counts=[(name, *(str(by_split[split]) for split in splits)) for name, by_split in counts.items()],
        data=data,
    )


def _notes(audit: Audit) -> list[str]:
    found = audit.labels_found
    low, high = found.interval
    notes = [
        f"Share of wrong labels, estimated: {100 * found.share:.1f} % ({100 * low:.1f}–{100 * high:.1f}, 95 %)."
        " It counts what classifiers that have not seen an image confidently take for another class;"
        " classes that look alike raise it."
    ]
    across = len(audit.across)
    if audit.inflation is not None:
        low, high = audit.inflation.interval
        change = f"{100 * audit.inflation.difference:+.2f} points ({100 * low:+.2f} to {100 * high:+.2f})"
        notes.append(
            f"Pairs of copies in two splits: {across:,}. Training images that are copies of test images change the test"
            f" accuracy of a linear classifier by {change}, n = {audit.inflation.n:,}."
        )
    else:
        notes.append(f"Pairs of copies in two splits: {across:,}; none is of a training and a test image.")
    if audit.findings:
        notes.append(
            "To train without some of these images, keep their rows in audit.csv and type data.exclude=audit.csv;"
            " data.relabel=audit.csv gives label errors their likely class."
        )
    return notes


def _section(audit: Audit, kind: str, pixels: Pixels) -> dict[str, object]:
    findings = audit.of(kind)
    shown = [_shown(audit, finding, pixels) for finding in findings[:_MOST_SHOWN]]
    more = f", of which the first {len(shown)} are shown" if len(shown) < len(findings) else ""
    return {"title": _TITLES[kind], "count": f"{len(findings):,}{more}", "shown": shown}


def _shown(audit: Audit, finding: Finding, pixels: Pixels) -> dict[str, object]:
    """Return what the page shows of a finding."""
    images = [finding.image] if finding.other < 0 else [finding.image, finding.other]
    given = audit.class_names[audit.labels[finding.image]]
    text = {
        NEAR_DUPLICATE: f"correlation {finding.score:.2f}",
        LABEL_ERROR: f"given {given}, likely {finding.suggestion} ({100 * finding.score:.0f} %)",
    }.get(finding.finding, finding.suggestion)
    return {
        "text": visible(text),
        "pictures": [
            {
                "source": pages.data_uri(_jpeg(pixels[image], _SHOWN_SIDE, _SHOWN_QUALITY), "jpeg"),
                "name": visible(audit.ids[image]),
                "about": visible(f"{audit.splits[image]}, {audit.class_names[audit.labels[image]]}"),
            }
            for image in images
        ],
    }


def _jpeg(pixels: np.ndarray, side: int, quality: int) -> bytes:
    from PIL import Image

    with io.BytesIO() as file:
        image = Image.fromarray(np.asarray(pixels))
        image.thumbnail((side, side))
        image.save(file, "JPEG", quality=quality)
        return file.getvalue()


def _sheets(images: int, pixels: Pixels) -> tuple[int, list[str]]:
    """Draw all images onto sheets that are small enough: the side of an image, and the sheets as base64 JPEG."""
    per_sheet = _SHEET_COLUMNS * _SHEET_ROWS
    for side in _MAP_SIDES:
        sheets: list[bytes] = []
        for first in range(0, images, per_sheet):
            sheets.append(_sheet(range(first, min(first + per_sheet, images)), pixels, side))
            # As many bytes a sheet as the first ones.
            if sum(map(len, sheets)) / len(sheets) * images / per_sheet * 4 / 3 > _MAP_BYTES and side > _MAP_SIDES[-1]:
                break
        else:
            break
    return side, [base64.b64encode(sheet).decode() for sheet in sheets]


def _sheet(images: range, pixels: Pixels, side: int) -> bytes:
    from PIL import Image

    sheet = Image.new("RGB", (side * _SHEET_COLUMNS, side * _SHEET_ROWS))
    for place, image in enumerate(images):
        small = Image.fromarray(np.asarray(pixels[image])).resize((side, side), Image.Resampling.BOX)
        sheet.paste(small, (place % _SHEET_COLUMNS * side, place // _SHEET_COLUMNS * side))
    with io.BytesIO() as file:
        sheet.save(file, "JPEG", quality=_SHEET_QUALITY)
        return file.getvalue()
