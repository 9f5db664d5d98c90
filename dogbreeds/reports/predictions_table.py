"""Predictions as aligned lines for people."""

from collections.abc import Sequence
from typing import Protocol

from dogbreeds.core.text import visible
from dogbreeds.data.class_names import display_name
from dogbreeds.reports.tables import fitted

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
_RESET = "\x1b[0m"


class Prediction(Protocol):
    """The prediction of an image, or why there is none."""

    @property
    def image(self) -> str:
        """Name of the image."""

    @property
    def top(self) -> Sequence[tuple[str, float]]:
        """Most probable classes and their probabilities in [0, 1], the most probable first."""

    @property
    def error(self) -> str:
        """Message; empty if the image was read."""


class PredictionsTable:
    """Formats a prediction as one aligned line; an unreadable image has no line.

    Predictions are printed as they arrive, so the widths of the columns are fixed in advance, and a line takes
    microseconds.

    Args:
        class_names: of all classes.
        top: classes per line, as far as the width allows.
        width: of the terminal, in columns; None if the output is not a terminal, and nothing is shortened.
        styled: whether the most probable class is bold and the others are dim.
    """

    heading = ""

    def __init__(self, class_names: Sequence[str], top: int, width: int | None, styled: bool):
        from rich.cells import cell_len

        self._shorten = width is not None
        self._styled = styled
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
            self._cell(name, probability, _BOLD if number == 0 else _DIM)
            for number, (name, probability) in enumerate(prediction.top[: self._top])
        ]
        return _GAP.join([self._fitted(prediction.image, self._name_width), *cells]).rstrip() + "\n"

    def _cell(self, class_name: str, probability: float, style: str) -> str:
        name = self._fitted(display_name(class_name), self._class_width)
        cell = f"{name} {f'{100 * probability:.1f} %':>{_PROBABILITY}}"
        return f"{style}{cell}{_RESET}" if self._styled else cell

    def _fitted(self, text: str, width: int) -> str:
        text = visible(text)
        return fitted(text, width) if self._shorten else text.ljust(width)
