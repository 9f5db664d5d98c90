"""Histories of trainings in files: CSV as Keras' CSVLogger writes it, and JSON with `History.history`.

The content tells the format, not the file's name.
"""

import csv
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dogbreeds.core.errors import MissingFileError, UserError
from dogbreeds.core.files import is_pattern, matching_files
from dogbreeds.core.spec import path as path_field
from dogbreeds.core.text import printable, received, shorten

# Larger files are no history of a training.
_MAX_BYTES = 64 << 20
_DELIMITERS = (",", ";", "\t")
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
# A number as spreadsheets write it where the comma separates decimals.
_DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+(e[+-]?\d+)?", re.IGNORECASE)
# Refuses what no file can be named.
_checked_path = path_field(example="log.csv").metadata["check"]
# Keys of an object around a history: of Keras' History, and of the Trainer of Hugging Face.
_WRAPPERS = ("history", "log_history")
_ALLOWED = "a CSV file as Keras' CSVLogger writes it, or a JSON file with History.history"


def find_histories(setting: Any) -> list[str]:
    """Return the paths that the setting `history` names; those of a pattern are sorted.

    Args:
        setting: as composed: a file, a pattern (`**` matches folders at any depth), or a list of them.

    Raises:
        UserError: the setting is something else, or a pattern matches no file. A named file need not exist.
    """
    texts = setting if isinstance(setting, list) else [setting]
    if not texts:
        raise UserError(
            f"history was {received(setting)}. It must be {_ALLOWED}, a pattern, or a list of them. Type"
            " history=log.csv, or 'history=logs/*.csv', for example."
        )
    return [path for text in texts for path in _paths(_checked_path("history", text))]


def _paths(text: str) -> list[str]:
    place = Path(text).expanduser()
    if not is_pattern(str(place)) or place.exists():
        return [str(place)]
    paths = [str(path) for path in matching_files(str(place))[1] if path.is_file()]
    if not paths:
        raise UserError(
            f"history={printable(text)} matches no file. It must be {_ALLOWED}, or a pattern that matches some. Type"
            " 'history=logs/*.csv', for example."
        )
    return paths


def read_history(path: str | Path) -> dict[str, list[Any]]:
    """Read the values of each epoch, by the name of the curve, as they are in the file.

    A last line of a CSV file that was cut off is left out, and so are headings that a resumed training repeated.

    Args:
        path: the file.

    Raises:
        MissingFileError: it does not exist.
        UserError: it is no history.
    """
    place = Path(_checked_path("history", str(path))).expanduser()
    try:
        text = _read_text(place)
        history = _from_json(text) if text.lstrip()[:1] in ("{", "[") else _from_csv(text)
        if not any(history.values()):
            raise _NotAHistoryError("it has no epoch")
    except _NotAHistoryError as error:
        raise UserError(
            f"{printable(str(place))} is no history of a training ({error}). It must be {_ALLOWED}. Type"
            " history=log.csv, for example."
        ) from error
    return history


class _NotAHistoryError(Exception):
    """Why a file is no history, a clause."""


def _read_text(place: Path) -> str:
    if not place.exists():
        raise MissingFileError(
            f"{printable(str(place))} does not exist. A history must be {_ALLOWED}. Type history=log.csv, for example."
        )
    if place.is_dir():
        raise _NotAHistoryError("it is a folder")
    if not place.is_file():
        raise _NotAHistoryError("it is no regular file")
    try:
        with place.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise _NotAHistoryError(f"it cannot be read: {error.strerror}") from error
    if len(content) > _MAX_BYTES:
        raise _NotAHistoryError(f"it is larger than {_MAX_BYTES >> 20} MiB")
    try:
        # Excel and PowerShell write UTF-16. The mark at the beginning is no part of the first name.
        text = content.decode("utf-16" if content.startswith(_UTF_16) else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise _NotAHistoryError("it is not UTF-8 text") from error
    if "\0" in text:
        raise _NotAHistoryError("it is binary")
    if not text.strip():
        raise _NotAHistoryError("it is empty")
    return text


# --- CSV ----------------------------------------------------------------------


def _from_csv(text: str) -> dict[str, list[Any]]:
    heading_line = text.lstrip().splitlines()[0]
    delimiter = max(_DELIMITERS, key=heading_line.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if any(map(str.strip, row))]
    except csv.Error as error:
        raise _NotAHistoryError(f"line {reader.line_num}: {error}") from error
    names = rows[0][1]
    epochs = [(line, cells) for line, cells in rows[1:] if cells != names]
    if epochs and len(epochs[-1][1]) < len(names):
        # The training was killed while it wrote the line.
        epochs.pop()
    for line, cells in epochs:
        if len(cells) != len(names):
            raise _NotAHistoryError(f"line {line} has {len(cells)} cells, and its first line {len(names)}")
    return {
        name: [_with_decimal_point(cells[index], delimiter) for _, cells in epochs] for index, name in enumerate(names)
    }


def _with_decimal_point(cell: str, delimiter: str) -> str:
    return cell.replace(",", ".") if delimiter != "," and _DECIMAL_COMMA.fullmatch(cell) else cell


# --- JSON ---------------------------------------------------------------------


def _from_json(text: str) -> dict[str, list[Any]]:
    try:
        content = json.loads(text)
    except RecursionError as error:
        raise _NotAHistoryError("its JSON is nested too deeply") from error
    except ValueError as error:
        content = _json_lines(text)
        if content is None:
            raise _NotAHistoryError(shorten(f"its JSON is damaged: {error}", 160)) from error
    for key in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), (Mapping, list)):
            content = content[key]
    if isinstance(content, list):
        if not all(isinstance(epoch, Mapping) for epoch in content):
            raise _NotAHistoryError("its list has other items than an object for each epoch")
        return from_epochs(content)
    if not isinstance(content, Mapping):
        raise _NotAHistoryError("its JSON is neither an object nor a list")
    # pandas writes each curve as an object with the value of each row.
    return {
        name: list(values.values() if isinstance(values, Mapping) else values)
        for name, values in content.items()
        if isinstance(values, (Mapping, list))
    }


def _json_lines(text: str) -> list[Any] | None:
    """Parse an object on each line; None if a line but the last is damaged."""
    lines = list(filter(str.strip, text.splitlines()))
    epochs = []
    for line in lines:
        try:
            epochs.append(json.loads(line))
        except (ValueError, RecursionError):
            return epochs if epochs and line == lines[-1] else None
    return epochs


def from_epochs(epochs: Iterable[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Turn the values of each epoch, by name, into the curves; None where an epoch has no value."""
    listed = list(epochs)
    names = dict.fromkeys(name for epoch in listed for name in epoch)
    return {name: [epoch.get(name) for epoch in listed] for name in names}


# --- in Python ----------------------------------------------------------------


def as_history(given: Any) -> dict[str, list[Any]]:
    """Return what a Python caller gave as a history: the values of each epoch, by name.

    Args:
        given: what Keras' `model.fit` returned, its `history`, a table with a column for each curve, a list with the
            values of each epoch, or the path of a file.

    Raises:
        MissingFileError: the file does not exist.
        UserError: it is something else, or the file is no history.
    """
    if isinstance(given, (str, Path)):
        return read_history(given)
    curves = getattr(given, "history", given)
    if isinstance(curves, Sequence) and all(isinstance(epoch, Mapping) for epoch in curves):
        return from_epochs(curves)
    try:
        # Not every table with columns iterates their names.
        return {str(name): list(curves[name]) for name in curves.keys()}  # noqa: SIM118
    except (AttributeError, TypeError) as error:
        raise UserError(
            f"history was {received(given)}. It must be what model.fit(...) returned, its history, a list with the"
            " values of each epoch, or the path of a file. Type judge_history(model.fit(...), classes=120), for"
            " example."
        ) from error
