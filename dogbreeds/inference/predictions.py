"""Predictions as text: a table for people, JSON lines or CSV for programs."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass

from dogbreeds.data.class_names import display_name

# Widths are in terminal columns. Largest width of an image name and of a class name.
_MAX_NAME = 48
_MAX_CLASS = 24
# Width of a probability: `100.0 %`.
_PROBABILITY = 7
# A terminal narrower than this gets shorter class names: at 80 columns two classes fit.
_NARROW = 130
_MAX_CLASS_NARROW = 18
# Largest part of a terminal's width for the image name.
_NAME_FRACTION = 0.3
_GAP = "  "
_DIM = "\x1b[2m"
_BOLD = "\x1b[1m"
_GREEN = "\x1b[32m"
_YELLOW = "\x1b[33m"
_RESET = "\x1b[0m"


@dataclass(frozen=True)
class Prediction:
    """The prediction of an image, or why there is none.

    Attributes:
        image: its name.
        top: most probable classes and their probabilities in [0, 1], the most probable first.
        error: message; empty if the image was read.
        overlay: path of the Grad-CAM overlay, if one was drawn.
    """

    image: str
    top: tuple[tuple[str, float], ...] = ()
    error: str = ""
    overlay: str | None = None


class JsonLines:
    """Formats a prediction as one JSON object on a line."""

    heading = ""

    def __call__(self, prediction: Prediction) -> str:
        return json.dumps(_json_object(prediction), ensure_ascii=False) + "\n"


def _json_object(prediction: Prediction) -> dict[str, object]:
    if prediction.error:
        return {"image": prediction.image, "error": prediction.error}
    top = [{"class": name, "probability": _rounded(probability)} for name, probability in prediction.top]
    overlay = {"explained": prediction.overlay} if prediction.overlay else {}
    return {"image": prediction.image, **top[0], "top": top} | overlay


def _rounded(probability: float) -> float:
    return float(f"{probability:.6g}")


class Csv:
    """Formats a prediction as one CSV row.

    Args:
        top: classes per row.
        overlays: whether there is a column for overlay paths.
    """

    def __init__(self, top: int, overlays: bool):
        self._top = top
        self._overlays = overlays
        suffixes = ["", *(f"_{number}" for number in range(2, top + 1))]
        columns = [f"{name}{suffix}" for suffix in suffixes for name in ("class", "probability")]
        self.heading = _csv_row(["image", *columns, *(["explained"] if overlays else []), "error"])

    def __call__(self, prediction: Prediction) -> str:
        cells = [str(cell) for name, probability in prediction.top for cell in (name, _rounded(probability))]
        overlay = [prediction.overlay or ""] if self._overlays else []
        return _csv_row([prediction.image, *(cells or [""] * (2 * self._top)), *overlay, prediction.error])


def _csv_row(cells: Sequence[str]) -> str:
    with io.StringIO() as file:
        csv.writer(file, lineterminator="\n").writerow(cells)
        return file.getvalue()


class Table:
    """Formats a prediction as one aligned line for people; an unreadable image has no line.

    Args:
        class_names: of all classes.
        top: classes per line, as far as the width allows.
        width: of the terminal, in columns; None if the output is not a terminal, and nothing is shortened.
        coloured: whether to use ANSI colours.
    """

    heading = ""

    def __init__(self, class_names: Sequence[str], top: int, width: int | None, coloured: bool):
        from rich.cells import cell_len

        self._shorten = width is not None
        self._coloured = coloured
        self._name_width = _MAX_NAME
        self._class_width = max(cell_len(display_name(name)) for name in class_names)
        self._top = top
        if width is not None:
            self._name_width = min(_MAX_NAME, int(_NAME_FRACTION * width))
            remaining = width - self._name_width
            overhead = len(_GAP) + 1 + _PROBABILITY
            longest = _MAX_CLASS_NARROW if width < _NARROW else _MAX_CLASS
            self._class_width = max(1, min(self._class_width, longest, remaining - overhead))
            self._top = max(1, min(top, remaining // (self._class_width + overhead)))

    def __call__(self, prediction: Prediction) -> str:
        if prediction.error:
            return ""
        cells = [
            self._cell(name, probability, first=number == 0)
            for number, (name, probability) in enumerate(prediction.top[: self._top])
        ]
        return _GAP.join([self._fitted(prediction.image, self._name_width), *cells]).rstrip() + "\n"

    def _cell(self, class_name: str, probability: float, first: bool) -> str:
        name = self._fitted(display_name(class_name), self._class_width)
        percent = f"{100 * probability:.1f} %".rjust(_PROBABILITY)
        if not self._coloured:
            return f"{name} {percent}"
        if not first:
            return f"{_DIM}{name} {percent}{_RESET}"
        return f"{_BOLD}{name}{_RESET} {_GREEN if probability >= 0.5 else _YELLOW}{percent}{_RESET}"

    def _fitted(self, text: str, width: int) -> str:
        return fitted(text, width) if self._shorten else text.ljust(width)


def fitted(text: str, width: int) -> str:
    """Fit a text into a number of terminal columns, by padding it or shortening its middle.

    Some characters take two columns.
    """
    from rich.cells import cell_len, set_cell_size

    if cell_len(text) <= width:
        return set_cell_size(text, width)
    end = (width - 1) // 2
    shortened = f"{set_cell_size(text, width - 1 - end)}…{set_cell_size(text[::-1], end)[::-1]}"
    return set_cell_size(shortened, width)
