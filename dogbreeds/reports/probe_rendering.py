"""Rendering of probed backbones as text, Markdown, CSV and a self-contained HTML page."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dogbreeds.core.text import csv_rows, visible
from dogbreeds.evaluation.backbone_probe import BackboneProbe, ProbedBackbone, StoppedBackbone
from dogbreeds.evaluation.metrics import PAIRED_LEVEL, Proportion
from dogbreeds.evaluation.results import IMAGENET_OVERLAP, SPLIT_NAMES
from dogbreeds.reports import pages, tables
from dogbreeds.reports.figures import PAGE_INCHES, style_axes
from dogbreeds.reports.picture_text import picture_text, use_fallback_fonts
from dogbreeds.reports.tables import Column

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLUMNS = (
    "backbone",
    "linear probe",
    "reference",
    "zero-shot",
    "n",
    "images/s",
    "parameters",
    "MB",
    "status",
)
_CSV_COLUMNS = (
    "backbone",
    "architecture",
    "image_size",
    "status",
    "split",
    "n",
    "linear_probe",
    "linear_probe_low",
    "linear_probe_high",
    "reference",
    "reference_low",
    "reference_high",
    "zero_shot",
    "zero_shot_low",
    "zero_shot_high",
    "strength",
    "images_per_second",
    "parameters",
    "megabytes",
    "reason",
)
# A terminal of this width has room for all of `_COLUMNS`, with an interval for each accuracy.
_MIN_WIDTH_ALL_COLUMNS = 120
_NO_VALUE = "–"
_COLOUR = "#1f5fa8"


def as_text(probe: BackboneProbe, width: int | None) -> str:
    """Render the table as text, wrapped to the terminal.

    Args:
        probe: the results.
        width: the terminal's width in columns; None if the text goes elsewhere.
    """
    parts = [tables.paragraph(_title(probe), width, "bold")]
    if width is None or width >= _MIN_WIDTH_ALL_COLUMNS:
        names = _used_columns(probe)
        columns = [Column(name, numeric=name not in ("backbone", "status")) for name in names]
        parts.append(tables.text_table(columns, [[row[name] for name in names] for row in _rows(probe)], width))
    else:
        parts.append(_narrow_table(probe, width))
    parts.append(tables.paragraph(_conclusion(probe), width))
    return "".join([*parts, *(tables.paragraph(note, width, "dim", indent=2) for note in _notes(probe))])


def _narrow_table(probe: BackboneProbe, width: int) -> str:
    """Lay out two lines for each backbone: intervals below accuracies, megabytes below parameters."""
    from rich.text import Text

    names = [name for name in _used_columns(probe) if name not in ("n", "MB", "status")]
    columns = [Column(name, numeric=name != "backbone") for name in names]
    rows: list[list[tables.Cell]] = []
    for cells in _rows(probe):
        status = "" if cells["status"] == "measured" else cells["status"]
        second = f"{status}, n = {cells['n']}" if status and cells["n"] != _NO_VALUE else status
        cells = cells | {
            "backbone": f"{visible(cells['backbone'])}\n{second}".rstrip("\n"),
            "parameters": f"{cells['parameters']}\n{cells['MB']} MB" if cells["MB"] != _NO_VALUE else _NO_VALUE,
        }
        rows.append([Text(cells[name].replace(" (", "\n").replace(")", "")) for name in names])
    return tables.text_table(columns, rows, width)


def as_markdown(probe: BackboneProbe) -> str:
    """Render the table in Markdown."""
    names = _used_columns(probe)
    return "\n".join(
        [
            f"**{_title(probe)}**",
            "",
            tables.markdown_table(names, [[row[name] for name in names] for row in _rows(probe)]),
            "",
            _conclusion(probe),
            "",
            *(f"- {note}" for note in _notes(probe)),
            "",
        ]
    )


def as_csv(probe: BackboneProbe) -> str:
    """Render one row for each backbone, with accuracies and their intervals in [0, 1]."""
    rows: list[dict[str, object]] = [_csv_row(each, "measured") for each in probe.measured]
    rows += [_csv_row(each.probed, "stopped") | {"reason": str(each.pair)} for each in probe.stopped]
    rows += [{"backbone": each.name, "status": "failed", "reason": each.reason} for each in probe.failed]
    return csv_rows([_CSV_COLUMNS, *([row.get(name, "") for name in _CSV_COLUMNS] for row in rows)])


def _csv_row(probed: ProbedBackbone, status: str) -> dict[str, object]:
    row: dict[str, object] = {
        "backbone": probed.name,
        "architecture": probed.architecture,
        "image_size": probed.image_size,
        "status": status,
        "split": probed.split,
        "n": probed.linear.n,
        "strength": f"{probed.strength:g}",
        "images_per_second": f"{probed.images_per_second:.4g}",
        "parameters": probed.parameters,
        "megabytes": f"{probed.megabytes:.4g}",
    }
    for name, accuracy in (
        ("linear_probe", probed.linear),
        ("reference", probed.reference),
        ("zero_shot", probed.zero_shot),
    ):
        if accuracy is not None:
            numbers = (accuracy.value, *accuracy.interval)
            row |= {f"{name}{end}": f"{number:.6f}" for end, number in zip(("", "_low", "_high"), numbers, strict=True)}
    return row


def as_html(probe: BackboneProbe) -> str:
    """Render one self-contained page, with a figure of accuracy by speed."""
    names = _used_columns(probe)
    return pages.render(
        "probe",
        title=f"backbones on {probe.data}",
        about=_title(probe),
        conclusion=_conclusion(probe),
        headings=names,
        numeric=[index for index, name in enumerate(names) if name not in ("backbone", "status")],
        rows=[[row[name] for name in names] for row in _rows(probe)],
        chart=accuracy_by_speed(probe),
        notes=_notes(probe),
    )


def accuracy_by_speed(probe: BackboneProbe) -> "Figure":
    """Draw accuracy and its interval by images a second, of the backbones that saw all images."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(PAGE_INCHES, 3.6), layout="constrained")
    axes = figure.subplots()
    for probed in probe.measured:
        accuracy = 100 * probed.linear.value
        low, high = (100 * bound for bound in probed.linear.interval)
        axes.errorbar(
            probed.images_per_second, accuracy, [[accuracy - low], [high - accuracy]], fmt="o", color=_COLOUR, capsize=3
        )
        axes.annotate(
            picture_text(probed.name), (probed.images_per_second, accuracy), xytext=(6, 4), textcoords="offset points"
        )
    axes.set(xlabel="images a second", ylabel=f"linear probe, {SPLIT_NAMES[probe.best.split]} accuracy (%)")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("{x:g}")
    axes.margins(x=0.25)
    style_axes(axes)
    return use_fallback_fonts(figure)


# --- cells and sentences ------------------------------------------------------


def _title(probe: BackboneProbe) -> str:
    best = probe.best
    return (
        f"Backbones on {probe.data}: {probe.classes} classes, {probe.sizes['train']:,} training images,"
        f" n = {best.linear.n:,} {SPLIT_NAMES[best.split]} images"
    )


def _rows(probe: BackboneProbe) -> list[dict[str, str]]:
    """Return the cells of each backbone by column: those that saw all images, those that were stopped, and failed."""
    rows = [_cells(each, "measured") for each in probe.measured]
    rows += [_cells(each.probed, "stopped") for each in probe.stopped]
    empty = dict.fromkeys(_COLUMNS, _NO_VALUE)
    return rows + [empty | {"backbone": each.name, "status": "failed"} for each in probe.failed]


def _cells(probed: ProbedBackbone, status: str) -> dict[str, str]:
    return {
        "backbone": probed.name,
        "linear probe": _accuracy(probed.linear),
        "reference": _accuracy(probed.reference),
        "zero-shot": _accuracy(probed.zero_shot),
        "n": f"{probed.linear.n:,}",
        "images/s": f"{probed.images_per_second:,.0f}"
        if probed.images_per_second >= 10
        else f"{probed.images_per_second:.1f}",
        "parameters": f"{probed.parameters / 1e6:.1f} M",
        "MB": f"{probed.megabytes:.0f}" if probed.megabytes >= 10 else f"{probed.megabytes:.1f}",
        "status": status,
    }


def _accuracy(accuracy: Proportion | None) -> str:
    if accuracy is None:
        return _NO_VALUE
    low, high = accuracy.interval
    return f"{100 * accuracy.value:.1f} % ({100 * low:.1f}–{100 * high:.1f})"


def _used_columns(probe: BackboneProbe) -> list[str]:
    """Return the columns to show: that of zero-shot baselines only if there is one, and a status only if it differs."""
    results = [*probe.measured, *(each.probed for each in probe.stopped)]
    hidden = set() if any(probed.zero_shot for probed in results) else {"zero-shot"}
    hidden |= set() if probe.stopped or probe.failed else {"status"}
    return [name for name in _COLUMNS if name not in hidden]


def _conclusion(probe: BackboneProbe) -> str:
    """Say which backbones to choose from."""
    best, as_good = probe.best, probe.as_good
    if len(probe.measured) == 1 and not probe.stopped:
        return f"{best.name}: nothing to compare it with. Name more backbones in models."
    if not as_good:
        return f"{best.name} is best: significantly better than each of the others (p < {PAIRED_LEVEL:g})."
    fastest = max((best, *as_good), key=lambda each: each.images_per_second)
    others = _listed([each.name for each in as_good])
    return (
        f"{best.name} is best, and {others} {'is' if len(as_good) == 1 else 'are'} not significantly below it"
        f" (p ≥ {PAIRED_LEVEL:g}). The fastest of them is {fastest.name}."
    )


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _notes(probe: BackboneProbe) -> list[str]:
    methods = sorted({each.method for each in probe.measured})
    notes = [_stopped_note(each) for each in probe.stopped]
    notes += [f"{each.name} failed. {each.reason}" for each in probe.failed]
    chosen = (
        "its L2 penalty chosen on validation"
        if probe.best.split == "test"
        else "its L2 penalty chosen on the same validation images, so it is slightly optimistic: there is no test split"
    )
    notes.append(
        f"Linear probe: logistic regression on the frozen features, {chosen}. Reference: {_listed(methods)}, in closed"
        " form. Both with 95 % intervals (Wilson)."
    )
    notes.append("Images/s: the forward pass alone, on this machine. Parameters and MB (float32): without a head.")
    if probe.imagenet_classes:
        notes.append(f"{IMAGENET_OVERLAP}: what was pretrained on it has seen them, and its numbers are optimistic.")
    return notes


def _stopped_note(stopped: StoppedBackbone) -> str:
    return f"{stopped.probed.name} was stopped on the sample. Compared with {stopped.best}: {stopped.pair}."
