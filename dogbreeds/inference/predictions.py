"""What was said of each photo, as lines: a table for people, JSON lines or CSV for programs."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass

from dogbreeds.data.class_names import spoken

# Columns that a name, a breed and a share take at most: `100.0 %`
_NAME, _BREED, _SHARE = 48, 24, 7
# Columns of a terminal that has no room for that, and what a breed takes there: at 80, two breeds fit
_NARROW, _SHORT_BREED = 130, 18
# Of a terminal's width goes to photos' names at most
_PHOTO = 0.3
_GAP = "  "
_DIM, _BOLD, _SURE, _UNSURE, _PLAIN = "\x1b[2m", "\x1b[1m", "\x1b[32m", "\x1b[33m", "\x1b[0m"


@dataclass(frozen=True)
class Prediction:
    """What a network said of a photo, or why it could not.

    Attributes:
        photo: its name.
        top: breeds by the names that the network has for them, and their probabilities in [0, 1], the first breed first.
        error: sentences; empty where it was read.
        explained: the picture's path, if one was drawn.
    """

    photo: str
    top: tuple[tuple[str, float], ...] = ()
    error: str = ""
    explained: str | None = None


class JsonLines:
    """An object a line."""

    heading = ""

    def __call__(self, answer: Prediction) -> str:
        return json.dumps(_described(answer), ensure_ascii=False) + "\n"


def _described(answer: Prediction) -> dict[str, object]:
    if answer.error:
        return {"photo": answer.photo, "error": answer.error}
    top = [{"breed": breed, "probability": _rounded(probability)} for breed, probability in answer.top]
    return {"photo": answer.photo, **top[0], "top": top} | ({"explained": answer.explained} if answer.explained else {})


def _rounded(probability: float) -> float:
    return float(f"{probability:.6g}")


class Csv:
    """A row a photo.

    Args:
        top: breeds a photo.
        explained: whether there is a column for pictures.
    """

    def __init__(self, top: int, explained: bool):
        self._top, self._explained = top, explained
        ends = ["", *(f"_{number}" for number in range(2, top + 1))]
        columns = [f"{name}{end}" for end in ends for name in ("breed", "probability")]
        self.heading = _row(["photo", *columns, *(["explained"] if explained else []), "error"])

    def __call__(self, answer: Prediction) -> str:
        cells = [str(cell) for breed, probability in answer.top for cell in (breed, _rounded(probability))] or [""] * (
            2 * self._top
        )
        return _row([answer.photo, *cells, *([answer.explained or ""] if self._explained else []), answer.error])


def _row(cells: Sequence[str]) -> str:
    with io.StringIO() as file:
        csv.writer(file, lineterminator="\n").writerow(cells)
        return file.getvalue()


class Table:
    """A line a photo, for people; one that could not be read has none, since its sentence is said elsewhere.

    Args:
        class_names: of all breeds.
        top: breeds a photo, as far as the width allows.
        width: columns of the terminal; None where the lines go elsewhere, and nothing is shortened.
        coloured: whether the terminal shows colours.
    """

    heading = ""

    def __init__(self, class_names: Sequence[str], top: int, width: int | None, coloured: bool):
        from rich.cells import cell_len

        self._cut, self._coloured = width is not None, coloured
        self._name, self._breed, self._count = _NAME, max(cell_len(spoken(name)) for name in class_names), top
        if width is not None:
            self._name = min(_NAME, int(_PHOTO * width))
            left, around = width - self._name, len(_GAP) + 1 + _SHARE
            self._breed = max(1, min(self._breed, _SHORT_BREED if width < _NARROW else _BREED, left - around))
            self._count = max(1, min(top, left // (self._breed + around)))

    def __call__(self, answer: Prediction) -> str:
        if answer.error:
            return ""
        cells = [
            self._cell(*candidate, first=number == 0) for number, candidate in enumerate(answer.top[: self._count])
        ]
        return _GAP.join([self._fitted(answer.photo, self._name), *cells]).rstrip() + "\n"

    def _cell(self, breed: str, probability: float, first: bool) -> str:
        name, share = self._fitted(spoken(breed), self._breed), f"{100 * probability:.1f} %".rjust(_SHARE)
        if not self._coloured:
            return f"{name} {share}"
        if not first:
            return f"{_DIM}{name} {share}{_PLAIN}"
        return f"{_BOLD}{name}{_PLAIN} {_SURE if probability >= 0.5 else _UNSURE}{share}{_PLAIN}"

    def _fitted(self, text: str, width: int) -> str:
        return fitted(text, width) if self._cut else text.ljust(width)


def fitted(text: str, width: int) -> str:
    """A text in so many columns of a terminal, shortened in its middle or filled up. Some letters take two columns."""
    from rich.cells import cell_len, set_cell_size

    if cell_len(text) <= width:
        return set_cell_size(text, width)
    end = (width - 1) // 2
    whole = f"{set_cell_size(text, width - 1 - end)}…{set_cell_size(text[::-1], end)[::-1]}"
    return set_cell_size(whole, width)
