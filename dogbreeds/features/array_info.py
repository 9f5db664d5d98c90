"""Names and descriptions of the feature cache's folders, without reading the arrays in them."""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path

from dogbreeds.features.memmap import open_readonly
from dogbreeds.features.partial_array import ENTRY_FILE, PROGRESS_FILE, ROWS_FILE, Identity

# Name of an entry's folder, or of an unfinished array's, which earlier versions hid behind a dot and numbered.
FOLDER_NAME = re.compile(r"\.?([a-z_]+-[0-9a-f]{24})(\.part(?:-[0-9a-f]{8})?)?")


@dataclass(frozen=True)
class ArrayInfo:
    """An array on disk, as far as it is known without reading its rows.

    Attributes:
        name: name of its folder.
        size_bytes: size of its rows file.
        last_used: time of its last use, or of its last progress if unfinished, in seconds since the epoch.
        identity: what it was computed from; empty if it cannot be read.
        unfinished: (complete rows, all rows); None if the array is complete.
    """

    name: str
    size_bytes: int
    last_used: float
    identity: Identity
    unfinished: tuple[int, int] | None


def digest(identity: Identity) -> str:
    """Compute the hexadecimal digest that names an array by its identity."""
    return hashlib.blake2b(json.dumps(identity, sort_keys=True).encode(), digest_size=12).hexdigest()


def describe(folder: Path) -> ArrayInfo | None:
    """Describe an array's folder; return None for any other path.

    Raises:
        OSError: if the folder disappears meanwhile, or may not be read.
    """
    match = FOLDER_NAME.fullmatch(folder.name)
    if match is None or not folder.is_dir():
        return None
    is_partial = match[2] is not None
    metadata_file = folder / (PROGRESS_FILE if is_partial else ENTRY_FILE)
    rows_file = folder / ROWS_FILE
    last_used = (metadata_file if metadata_file.exists() else folder).stat().st_mtime
    size_bytes = rows_file.stat().st_size if rows_file.exists() else 0
    try:
        metadata = json.loads(metadata_file.read_text())
        if not match[1].endswith(digest(metadata["identity"])):
            raise ValueError(f"{metadata_file} has the identity of another array")
        unfinished = (metadata["done"], len(open_readonly(rows_file))) if is_partial else None
        return ArrayInfo(folder.name, size_bytes, last_used, metadata["identity"], unfinished)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ArrayInfo(folder.name, size_bytes, last_used, {}, (0, 0) if is_partial else None)
