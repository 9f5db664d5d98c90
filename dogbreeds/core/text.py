"""Text that is safe to print, store and compare."""

import csv
import difflib
import functools
import hashlib
import io
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

# Control characters, line separators, and surrogates, which stand for bytes that are not UTF-8.
UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
# What is shown escaped: also the characters that reverse the text after them.
_ESCAPED = re.compile(rf"{UNPRINTABLE.pattern}|[\u202a-\u202e\u2066-\u2069]")
# Most characters of a received value in a message.
_MAX_RECEIVED = 100

# A text that a spreadsheet takes for a formula, and what `neutralise_formula` makes of it. A number is none.
_FORMULA = re.compile(r"(?![+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?\Z)'*[=+\-@\t\r\n]", re.IGNORECASE)
_NEUTRALISED = re.compile(r"'+[=+\-@\t\r\n]")
_SEPARATOR = re.compile(r"[;\t\r]")


def printable(name: str) -> str:
    """Escape the unprintable characters of a file name.

    Different names stay different, because backslashes are doubled.
    """
    return visible(name.replace("\\", "\\\\"))


def visible(text: str) -> str:
    """Escape for display what is unprintable or reverses text, such as control characters in a run's name."""
    return _ESCAPED.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def csv_rows(rows: Iterable[Iterable[object]]) -> str:
    """Format rows as CSV. Texts that a spreadsheet would run as formulas are neutralised: see `neutralise_formula`."""
    with io.StringIO() as file:
        plain_writer = csv.writer(file, lineterminator="\n")
        quoting_writer = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
        for row in rows:
            cells = [neutralise_formula(cell) if isinstance(cell, str) else cell for cell in row]
            # Some spreadsheets end a cell at these characters too, unless it is quoted.
            has_separator = any(isinstance(cell, str) and _SEPARATOR.search(cell) for cell in cells)
            (quoting_writer if has_separator else plain_writer).writerow(cells)
        return file.getvalue()


def neutralise_formula(text: str) -> str:
    """Put an apostrophe before a text that begins with =, +, -, @, a tab or a line break, unless it is a number.

    A text that begins with apostrophes and one of these gets one more, so that `restore_formula` is the exact inverse.
    """
    return f"'{text}" if _FORMULA.match(text) else text


def restore_formula(text: str) -> str:
    """Return the text that `neutralise_formula` was given, for programs that read the CSV files of this package."""
    return text[1:] if _NEUTRALISED.match(text) else text


def digest(content: bytes) -> str:
    """Return the BLAKE2b digest of some bytes, 32 hexadecimal characters."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def digest_file(path: Path) -> str:
    """Return the digest of a file's content, as `digest` does, without reading it into memory at once."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def digest_once(path: Path) -> str:
    """Return `digest_file` of a file that a run asks for often: it is read again only if it has changed."""
    state = path.stat()
    return _digest_of(path, state.st_ino, state.st_size, state.st_mtime_ns)


@functools.lru_cache(maxsize=32)
def _digest_of(path: Path, *state: int) -> str:
    return digest_file(path)


def mask_passwords(text: str) -> str:
    """Replace the passwords in a text's addresses by `***`."""
    text = re.sub(r"(://[^/\s:@]*):[^/\s]*@", r"\1:***@", text)
    return re.sub(r"([?&]password=)[^&\s'\"]*", r"\1***", text)


def received(value: Any) -> str:
    """Describe a value that the user gave, for an error message: as it is written in Python, without its middle."""
    try:
        shown = repr(value)
    except ValueError:
        # Python writes no integer of more than 4,300 digits.
        return "a number of more than 4,300 digits"
    if len(shown) <= _MAX_RECEIVED:
        return shown
    half = _MAX_RECEIVED // 2
    return f"{shown[:half]}…{shown[-half:]} ({len(shown):,} characters)"


def size_text(size: float) -> str:
    """Format a number of bytes in the unit that fits, such as `640 B`, `14.7 MB` or `2 GB`."""
    unit = "B"
    for larger in ("KB", "MB", "GB", "TB"):
        if size < 999.5:
            break
        size, unit = size / 1000, larger
    number = f"{size:.1f}" if size < 99.95 else f"{size:.0f}"
    return f"{number.removesuffix('.0')} {unit}"


def duration_text(seconds: float) -> str:
    """Format a duration with its two largest units, such as `45 s`, `2 min 10 s` or `3 h 5 min`."""
    if seconds < 99.5:
        return f"{seconds:.{1 if seconds < 9.95 else 0}f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def counted(number: int, noun: str) -> str:
    """Format a number of things whose plural ends in s."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def shorten(text: str, most: int) -> str:
    """Return the beginning of a text in one line: whole sentences if the first of them fits, else whole words and `…`.

    Args:
        text: such as the message of a library's error.
        most: number of characters to return at most.
    """
    line = " ".join(text.split())
    if len(line) <= most:
        return line.rstrip(".")
    sentences = [end.start() for end in re.finditer(r"(?<!e\.g)(?<!i\.e)\. (?=[A-Z])", line[: most + 1])]
    if sentences:
        return line[: sentences[-1]]
    return f"{line[:most].rpartition(' ')[0] or line[: most - 1]}…"


def most_similar(name: str, names: Iterable[str]) -> str:
    """Return the name that is most similar to a mistyped one; the last part of a dotted name may stand for it."""
    return max(
        names,
        key=lambda other: (name == other.rpartition(".")[2], difflib.SequenceMatcher(None, name, other).ratio()),
    )
