"""From what was typed to photos with names: a file, a folder, a pattern, or the standard input.

Paths are looked for at once, so that what holds no photos is said before anything is computed; photos are opened when their turn has come.
"""

import functools
import itertools
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from dogbreeds.core.errors import MissingFileError, UserError
from dogbreeds.core.text import ODD, digest, printable
from dogbreeds.data.files import is_within, photos_below, read
from dogbreeds.data.image import BEGINNINGS, MAX_BYTES, OUTSIDE, SUFFIXES, Photo, Unreadable, decode

STANDARD_INPUT = "-"
_WILD = re.compile(r"[*?[]")
# Bytes of the standard input; a path is shorter
_AT_ONCE = 1 << 16
# Bytes that tell a photo from a list
_TELLING = 12
_WHAT = f"a photo, a folder of photos, a pattern, or {STANDARD_INPUT} for the standard input"


@dataclass(frozen=True)
class Named:
    """A photo that has not been opened yet.

    Attributes:
        name: how it was found, printable.
        key: its whole path, or its content's digest: other photos have others.
        pixels: opens and decodes it; raises `Unreadable`.
    """

    name: str
    key: str
    pixels: Photo


@dataclass(frozen=True)
class Images:
    """Photos in the order in which they were named, those of a folder or pattern by their paths.

    Attributes:
        photos: can be gone over once.
        total: how many; None where the standard input has not said yet.
    """

    photos: Iterator[Named]
    total: int | None


def typed(images: Any) -> tuple[str, ...]:
    """The setting `images` as texts.

    Raises:
        UserError: where it was not given, or is something else.
    """
    if images in (None, "", [], ()):
        raise UserError(
            f"images was not given. It must be {_WHAT}. Type images=path/to/photos, or 'images=photos/*.jpg', for"
            " example."
        )
    texts = images if isinstance(images, (list, tuple)) else [images]
    if not all(isinstance(text, str) and text for text in texts):
        raise UserError(
            f"images was {images!r}. It must be {_WHAT}, or a list of them. Type 'images=[first.jpg,second.jpg]', for"
            " example."
        )
    return tuple(texts)


def found(images: Iterable[str], standard_input: IO[bytes]) -> Images:
    """The photos that were asked for.

    Args:
        images: each a file, a folder (with those below it), a pattern (`**` for folders at any depth), or `-`. What is there under the very
            name is not taken for a pattern.
        standard_input: one photo's bytes, or paths with an end of line or a NUL after each.

    Raises:
        MissingFileError: where nothing is at a path.
        UserError: where a folder, a pattern or the standard input holds no photos.
    """
    total: int | None = 0
    parts: list[Iterator[Named]] = []
    for text in images:
        if text == STANDARD_INPUT:
            total = None
            parts.append(_streamed(standard_input))
        else:
            root, paths = _paths(text)
            total = None if total is None else total + len(paths)
            parts.append(map(functools.partial(_named, root=root), paths))
    return Images(itertools.chain(*parts), total)


def _named(path: str, root: Path | None = None) -> Named:
    """The photo at a path; below a root, where a link that leads out of it is `Unreadable` when it is opened."""
    return Named(printable(path), os.path.abspath(path), functools.partial(_pixels, path, root))


def _pixels(path: str, root: Path | None) -> np.ndarray:
    name = printable(path)
    if root is not None and not is_within(root, path):
        raise Unreadable(
            f"{name} is a link to {printable(os.path.realpath(path))}, out of {printable(str(root))}. Photos must lie"
            " below the folder that was named. Name the photo itself, or copy it there.",
            OUTSIDE,
        )
    return decode(read(path), name)


# --- folders and patterns -------------------------------------------------------------------------------------------------


def _paths(text: str) -> tuple[Path | None, list[str]]:
    """The paths that a text stands for, and the folder that they must not lead out of: a single file may be any link."""
    place = os.path.expanduser(text)
    if os.path.isdir(place):
        folder, paths = Path(place), _below(place)
    elif os.path.lexists(place):
        return None, [place]
    elif _WILD.search(place):
        folder, paths = _matching(place)
    else:
        raise MissingFileError(
            f"images={printable(text)} is not there (looked for {printable(os.path.abspath(place))}). It must be"
            f" {_WHAT}. Type images=path/to/photos, for example."
        )
    if not paths:
        raise UserError(
            f"images={printable(text)} holds no photos. They are files that end in {', '.join(SUFFIXES)} and are not"
            " hidden. Type images=path/to/photos, or 'images=photos/**/*.jpg', for example."
        )
    return folder.resolve(), paths


def _below(folder: str) -> list[str]:
    """The photos below a folder, sorted; none that is hidden, or in a folder that is."""
    return [entry.path for entry in photos_below(Path(folder)) if "/." not in entry.path[len(str(Path(folder))) :]]


def _matching(pattern: str) -> tuple[Path, list[str]]:
    """The folder before a pattern's first wildcard, and the photos that match, or lie in folders that match, sorted."""
    root, parts = Path(), list(Path(pattern).parts)
    while parts and (not _WILD.search(parts[0]) or os.path.lexists(root / parts[0])):
        root /= parts.pop(0)
    paths: set[str] = set()
    # Not glob.glob, which goes into links to folders, and so round and round. It also takes ** within a name for *.
    for path in root.glob("/".join(part if part == "**" else re.sub(r"\*+", "*", part) for part in parts)):
        if any(part.startswith(".") for part in path.relative_to(root).parts):
            continue
        if path.is_dir():
            paths.update(_below(str(path)))
        elif path.name.lower().endswith(SUFFIXES):
            paths.add(str(path))
    return root, sorted(paths)


# --- the standard input ---------------------------------------------------------------------------------------------------


def _streamed(stream: IO[bytes]) -> Iterator[Named]:
    """What the standard input holds: its beginning is read at once, the rest as it is needed."""
    first = b""
    while len(first) < _TELLING and (more := _some(stream)):
        first += more
    if not first.strip():
        raise UserError(
            f"images={STANDARD_INPUT} was given, and the standard input is empty. It must be a photo, or paths of"
            " photos, each on a line. Type find photos -name '*.jpg' | python -m dogbreeds.predict"
            f" images={STANDARD_INPUT}, for example."
        )
    if BEGINNINGS.match(first):
        # One more than is allowed, so that it is said
        content = first + stream.read(MAX_BYTES + 1 - len(first))
        name = "standard input"
        return iter([Named(name, digest(content), functools.partial(decode, content, name))])
    end, odd = (b"\0", b"") if b"\0" in first else (b"\n", b"\r")
    beginning = os.fsdecode(first.split(end, 1)[0].removesuffix(odd))
    if first.startswith(b"\0") or (ODD.search(beginning) and not os.path.lexists(beginning)):
        raise _no_list()
    return (_named(path) for path in _lines(first, stream, end, odd))


def _lines(first: bytes, stream: IO[bytes], end: bytes, odd: bytes) -> Iterator[str]:
    """Each line of a list, without its end and what may stand before that."""
    rest, more = b"", first
    while more:
        *whole, rest = (rest + more).split(end)
        yield from (os.fsdecode(line.removesuffix(odd)) for line in whole if line.strip())
        if len(rest) > _AT_ONCE:
            raise _no_list()
        more = _some(stream)
    if rest.strip():
        yield os.fsdecode(rest.removesuffix(odd))


def _some(stream: IO[bytes]) -> bytes:
    """What has come by now, waited for if nothing has; a list is worked on while it is being made."""
    return stream.read1(_AT_ONCE)  # type: ignore[attr-defined]


def _no_list() -> UserError:
    return UserError(
        "The standard input is neither a photo nor a list of paths. It must be one JPEG, PNG or WebP file, or paths"
        " with an end of line or a NUL after each. Type find photos -name '*.jpg' -print0 | python -m"
        f" dogbreeds.predict images={STANDARD_INPUT}, for example."
    )
