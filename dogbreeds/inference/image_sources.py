"""Image sources: finds the images that `images=` names: a file, a folder, a pattern, or standard input.

Paths are resolved at once, so that a source without images is an error before anything is computed. Images are opened
lazily.
"""

import functools
import itertools
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from dogbreeds.core.errors import MissingFileError, UserError
from dogbreeds.core.files import is_pattern, matching_files
from dogbreeds.core.text import UNPRINTABLE, digest, printable
from dogbreeds.data.files import images_below, is_within, read_file
from dogbreeds.data.image import (
    MAGIC_BYTES,
    MAX_BYTES,
    OUTSIDE_ROOT,
    SUFFIXES,
    EncodedImage,
    ImageLoader,
    UnreadableImageError,
)

_STANDARD_INPUT = "-"
# Bytes read from standard input at a time; also the longest line of a list of paths.
_CHUNK_BYTES = 1 << 16
# Bytes needed to tell an image from a list of paths.
_SIGNATURE_BYTES = 12
_ALLOWED = f"an image file, a folder, a pattern, or {_STANDARD_INPUT} for standard input"


@dataclass(frozen=True)
class NamedImage:
    """An image that is not opened yet.

    Attributes:
        name: as it was given or found, printable.
        key: absolute path, or digest of the content; different images have different keys.
        pixels: opens and decodes the image: [h, w, 3] uint8; raises `UnreadableImageError`.
    """

    name: str
    key: str
    pixels: ImageLoader


@dataclass(frozen=True)
class ImageSource:
    """Images in the order in which they were named; those of a folder or pattern are sorted by path.

    Attributes:
        images: iterator, can be consumed once.
        total: number of images; None if standard input is among the sources.
    """

    images: Iterator[NamedImage]
    total: int | None


def parse_images(setting: Any) -> tuple[str, ...]:
    """Return the setting `images` as a tuple of texts.

    Args:
        setting: as composed: a text or a list of texts.

    Raises:
        UserError: it is empty, or something else.
    """
    if setting in (None, "", [], ()):
        raise UserError(
            f"images was not given. It must be {_ALLOWED}. Type images=path/to/images, or 'images=photos/*.jpg', for"
            " example."
        )
    texts = setting if isinstance(setting, (list, tuple)) else [setting]
    if not all(isinstance(text, str) and text for text in texts):
        raise UserError(
            f"images was {setting!r}. It must be {_ALLOWED}, or a list of them. Type 'images=[first.jpg,second.jpg]',"
            " for example."
        )
    return tuple(texts)


def find_images(texts: Iterable[str], standard_input: IO[bytes]) -> ImageSource:
    """Find the images that texts name.

    Args:
        texts: each a file, a folder (searched at any depth), a pattern (`**` matches folders at any depth), or `-`.
            A text that is itself the path of a file or folder is not taken for a pattern.
        standard_input: one encoded image, or paths that each end with a newline or a NUL.

    Raises:
        MissingFileError: a path does not exist.
        UserError: a folder, a pattern or standard input has no images.
    """
    total: int | None = 0
    parts: list[Iterator[NamedImage]] = []
    for text in texts:
        if text == _STANDARD_INPUT:
            total = None
            parts.append(_from_standard_input(standard_input))
        else:
            root, paths = _paths(text)
            total = None if total is None else total + len(paths)
            parts.append(map(functools.partial(_from_path, root=root), paths))
    return ImageSource(itertools.chain(*parts), total)


def _from_path(path: str, root: Path | None = None) -> NamedImage:
    """Return the image at a path; one that is a link out of `root` is `UnreadableImageError` when it is opened."""
    name = printable(path)
    return NamedImage(name, os.path.abspath(path), EncodedImage(functools.partial(_read, path, name, root), name))


def _read(path: str, name: str, root: Path | None) -> bytes:
    if root is not None and not is_within(root, path):
        raise UnreadableImageError(
            f"{name} is a link to {printable(os.path.realpath(path))}, outside {printable(str(root))}. Images must lie"
            " inside the folder that was named. Name the image itself, or copy it there.",
            OUTSIDE_ROOT,
        )
    return read_file(path)


# --- folders and patterns ---------------------------------------------


def _paths(text: str) -> tuple[Path | None, list[str]]:
    """Return the folder that links must stay in (None for a single file, which may be any link), and the paths."""
    place = os.path.expanduser(text)
    if os.path.isdir(place):
        root, paths = Path(place), _paths_below(place)
    elif os.path.lexists(place):
        return None, [place]
    elif is_pattern(place):
        root, paths = _matching_paths(place)
    else:
        raise MissingFileError(
            f"images={printable(text)} does not exist (looked for {printable(os.path.abspath(place))}). It must be"
            f" {_ALLOWED}. Type images=path/to/images, for example."
        )
    if not paths:
        raise UserError(
            f"images={printable(text)} has no images. Image files end in {', '.join(SUFFIXES)} and are not hidden. Type"
            " images=path/to/images, or 'images=photos/**/*.jpg', for example."
        )
    return root.resolve(), paths


def _paths_below(folder: str) -> list[str]:
    """Return the images below a folder, sorted, without hidden files and those in hidden folders."""
    return [entry.path for entry in images_below(Path(folder)) if "/." not in entry.path[len(str(Path(folder))) :]]


def _matching_paths(pattern: str) -> tuple[Path, list[str]]:
    """Return the folder before the first wildcard, and the images that match or lie in matching folders, sorted."""
    root, matching = matching_files(pattern)
    paths: set[str] = set()
    for path in matching:
        if path.is_dir():
            paths.update(_paths_below(str(path)))
        elif path.name.lower().endswith(SUFFIXES):
            paths.add(str(path))
    return root, sorted(paths)


# --- standard input ---------------------------------------------------


def _from_standard_input(stream: IO[bytes]) -> Iterator[NamedImage]:
    """Read the beginning of standard input now, and the rest when it is needed."""
    beginning = b""
    while len(beginning) < _SIGNATURE_BYTES and (more := _read_available(stream)):
        beginning += more
    if not beginning.strip():
        raise UserError(
            f"images={_STANDARD_INPUT} was given, and standard input is empty. It must be an image, or image paths, one"
            " per line. Type find photos -name '*.jpg' | python -m dogbreeds.predict"
            f" images={_STANDARD_INPUT}, for example."
        )
    if MAGIC_BYTES.match(beginning):
        # One byte more than allowed, so that decoding reports that it is too large.
        content = beginning + stream.read(MAX_BYTES + 1 - len(beginning))
        name = "standard input"
        return iter([NamedImage(name, digest(content), EncodedImage(lambda: content, name))])
    end, padding = (b"\0", b"") if b"\0" in beginning else (b"\n", b"\r")
    first_path = os.fsdecode(beginning.split(end, 1)[0].removesuffix(padding))
    if beginning.startswith(b"\0") or (UNPRINTABLE.search(first_path) and not os.path.lexists(first_path)):
        raise _not_a_list()
    return (_from_path(path) for path in _lines(beginning, stream, end, padding))


def _lines(beginning: bytes, stream: IO[bytes], end: bytes, padding: bytes) -> Iterator[str]:
    """Yield each line of a list, without its end and the padding before that; skip blank ones."""
    rest, more = b"", beginning
    while more:
        *complete, rest = (rest + more).split(end)
        yield from (os.fsdecode(line.removesuffix(padding)) for line in complete if line.strip())
        if len(rest) > _CHUNK_BYTES:
            raise _not_a_list()
        more = _read_available(stream)
    if rest.strip():
        yield os.fsdecode(rest.removesuffix(padding))


def _read_available(stream: IO[bytes]) -> bytes:
    """Return the bytes that are available, waiting for the first, so that a list can be processed while it grows."""
    return stream.read1(_CHUNK_BYTES)  # type: ignore[attr-defined]


def _not_a_list() -> UserError:
    return UserError(
        "Standard input is neither an image nor a list of paths. It must be one JPEG, PNG or WebP file, or paths that"
        " each end with a newline or a NUL. Type find photos -name '*.jpg' -print0 | python -m"
        f" dogbreeds.predict images={_STANDARD_INPUT}, for example."
    )
