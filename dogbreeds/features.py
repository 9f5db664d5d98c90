"""What the frozen prefix says of each photo: computed once, kept on disk, shared by every attempt that has the same prefix."""

import contextlib
import itertools
import logging
import zlib
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dogbreeds import lookahead
from dogbreeds.data import Data, Source
from dogbreeds.kept import Identity, Store
from dogbreeds.photo import Photo, Unreadable
from dogbreeds.spec import Spec, integer, number, one_of, text
from dogbreeds.terminal import progress

if TYPE_CHECKING:
    from dogbreeds.augment import Augment
    from dogbreeds.network import Prefix

log = logging.getLogger(__name__)

_CHUNK = 32  # photos that one thread decodes at a time
_AHEAD = 64  # chunks decoded ahead of the computation


@dataclass(frozen=True, kw_only=True)
class Features(Spec):
    """Where the kept arrays are, and how they are computed."""

    group = "features"
    dir: str = text(example="~/.cache/dogbreeds")
    dtype: str = one_of("float32", "float16")
    max_gigabytes: float = number(above=0, example=50)
    batch_size: int | None = integer(at_least=1, example=64, optional=True)

    def store(self) -> Store:
        return Store(Path(self.dir).expanduser().resolve(), int(self.max_gigabytes * 1e9))


@dataclass(frozen=True)
class Photos:
    """A source's photos at the backbone's size, decoded at most once.

    Args:
        source: the photos.
        data: how they are resized, and what happens to one that cannot be read.
        size: pixels a side.
        store: where they are kept.
    """

    source: Source
    data: Data
    size: int
    store: Store

    @property
    def identity(self) -> Identity:
        return {"photos": self.source.fingerprint, "size": self.size, "resize": self.data.resize}

    @property
    def _array(self) -> tuple[str, Identity, tuple[int, ...], str, Any]:
        return "photos", self.identity, (len(self.source.ids), self.size, self.size, 3), "uint8", self._produce

    def batches(self, batch: int, start: int = 0) -> Generator[np.ndarray, None, None]:
        """[b, size, size, 3] uint8 in the source's order, from row `start` on."""
        return self.store.stream(*self._array, batch=batch, start=start)

    def rows(self) -> np.ndarray:
        """[n, size, size, 3] uint8, memory-mapped."""
        return self.store.array(*self._array).rows

    def skipped(self) -> frozenset[int]:
        """Rows that could not be decoded, with `data.on_corrupt=skip`; they are black. The photos must have been gone through."""
        return frozenset(self.store.array(*self._array).notes["skipped"])

    def _produce(self, rows: np.ndarray, start: int, notes: dict[str, Any]) -> Generator[int, None, None]:
        from dogbreeds.resize import resizer

        _say_where(f"photos of {self.source.name}", start, len(rows))
        resize = resizer(self.size, self.data.resize)
        skipped: list[int] = notes.setdefault("skipped", [])
        photos = itertools.islice(self.source.read(), start, None)

        def fill(chunk: tuple[int, list[Photo]]) -> tuple[int, list[int]]:
            first, chosen = chunk
            bad = []
            for row, photo in enumerate(chosen, first):
                try:
                    rows[row] = resize(photo())
                except Unreadable:
                    if self.data.on_corrupt == "stop":
                        raise
                    bad.append(row)
                    rows[row] = 0  # a process that was cut off may have left something there
            return first + len(chosen), bad

        with contextlib.closing(lookahead.mapped(fill, _chunks(photos, start), _AHEAD)) as filled:
            for end, bad in filled:
                skipped += bad
                self.data.check_skipped(len(skipped), len(rows), self.source.name)
                yield end


def _chunks(photos: Iterator[Photo], start: int) -> Iterator[tuple[int, list[Photo]]]:
    """Photos a few at a time, each time with the row of the first; that of the very first is `start`."""
    while chunk := list(itertools.islice(photos, _CHUNK)):
        yield start, chunk
        start += len(chunk)


def compute(prefix: "Prefix", photos: Photos, features: Features, view: "View | None" = None) -> np.ndarray:
    """The prefix's output for every photo of a source.

    Args:
        prefix: the frozen part.
        photos: of the source.
        features: precision and batch size.
        view: which augmented copy of which rows; none gives the photos as they are, in the source's order.

    Returns:
        [n, *prefix.shape], memory-mapped: a row a photo of the source, or a row a row of the view.
    """
    store = photos.store
    batch = features.batch_size or prefix.batch_size()
    identity = {**photos.identity, "prefix": prefix.fingerprint, "dtype": features.dtype, "view": view.identity if view else None}
    total = len(view.rows) if view else len(photos.source.ids)

    def batches(start: int) -> Generator[np.ndarray, None, None]:
        if view is None:
            yield from photos.batches(batch, start)
            return
        whole = photos.rows()
        for first in range(start, total, batch):
            chosen = view.rows[first : first + batch]
            yield view(whole[chosen], chosen)

    def produce(rows: np.ndarray, start: int, _: dict[str, Any]) -> Generator[int, None, None]:
        run, done = prefix.compiled, start
        what = f"features of {photos.source.name}{f', view {view.number}' if view else ''}"
        _say_where(what, start, total)
        with progress(what, total, "images", before=start) as advance, contextlib.closing(batches(start)) as shown:
            for pixels in shown:
                rows[done : done + len(pixels)] = run(pixels)
                done += len(pixels)
                advance(len(pixels))
                yield done

    return store.array("features", identity, (total, *prefix.shape), features.dtype, produce, step=batch).rows


def _say_where(what: str, start: int, total: int) -> None:
    """Says from where an array is gone on with that an earlier process has begun."""
    if start:
        log.info("%s: going on from %s of %s", what, f"{start:,}", f"{total:,}")


@dataclass(frozen=True)
class View:
    """An augmented copy of some rows of a source."""

    augment: "Augment"
    number: int
    seed: int
    rows: np.ndarray

    def __call__(self, photos: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """[b, s, s, 3] uint8, which are these rows of the source -> [b, s, s, 3] float32, augmented."""
        return self.augment.view(photos, rows, self.number, self.seed)

    @property
    def identity(self) -> Identity:
        return {"augment": self.augment.identity, "number": self.number, "seed": self.seed, "rows": zlib.crc32(self.rows.tobytes())}
