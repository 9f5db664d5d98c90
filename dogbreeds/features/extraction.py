"""Computes what the frozen part of the backbone gives for each image."""

import contextlib
import itertools
import logging
import zlib
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np

from dogbreeds.core import prefetch
from dogbreeds.core.console import progress
from dogbreeds.data.dataset import Data, Source
from dogbreeds.data.image import Photo, Unreadable
from dogbreeds.features.cache import FeatureCache
from dogbreeds.features.features import ALL, Features, Share
from dogbreeds.features.partial_array import Identity, Notes, Produce, Shard

if TYPE_CHECKING:
    from dogbreeds.data.augment import Augment

log = logging.getLogger(__name__)

# Photos that one thread decodes at a time
_CHUNK = 32
# Chunks decoded ahead of the computation
_AHEAD = 64


@dataclass(frozen=True)
class Photos:
    """A source's photos at the backbone's size, decoded at most once.

    Args:
        source: the photos.
        data: how they are resized, and what happens to one that cannot be read.
        size: pixels a side.
        store: where they are kept.
        shard: which of them there are; none stands for all. Rows are numbered as in the source all the same.
    """

    source: Source
    data: Data
    size: int
    store: FeatureCache
    shard: Shard | None = None

    @property
    def identity(self) -> Identity:
        return {"photos": self.source.fingerprint, "size": self.size, "resize": self.data.resize}

    @property
    def _all(self) -> tuple[str, Identity, tuple[int, ...], str]:
        return "photos", self.identity, (len(self.source.ids), self.size, self.size, 3), "uint8"

    @property
    def _array(self) -> tuple[str, Identity, tuple[int, ...], str, Produce]:
        kind, identity, (total, *pixels), dtype = self._all
        shard = self.shard or Shard(0, total, total, step=1)
        return kind, shard.identity(identity), (len(shard), *pixels), dtype, self._produce

    @property
    def first(self) -> int:
        """The source's row that comes first."""
        return self.shard.first if self.shard else 0

    def within(self, first: int, end: int) -> "Photos":
        """The same, to be asked for these rows alone: no others are decoded for it."""
        return (
            self if self.store.has(*self._all) else replace(self, shard=Shard(first, end, len(self.source.ids), step=1))
        )

    def batches(self, batch: int, start: int, end: int) -> Generator[np.ndarray, None, None]:
        """[b, size, size, 3] uint8 in the source's order, from row `start` to before row `end`."""
        last = self.shard.end if self.shard else len(self.source.ids)
        with contextlib.closing(self.store.stream(*self._array, batch=batch, start=start - self.first)) as pieces:
            for piece in pieces:
                yield piece
                start += len(piece)
                # At the last row the stream must be gone through: only then is it kept as a whole
                if end <= start < last:
                    return

    def rows(self) -> np.ndarray:
        """[n, size, size, 3] uint8, memory-mapped."""
        return self.store.array(*self._array).rows

    def skipped(self) -> frozenset[int]:
        """Rows that could not be decoded, with `data.on_corrupt=skip`; they are black. The photos must have been gone through.

        Raises:
            Refused: where they are too many. Where shards were joined, it is here that this is seen: none of them knows of the others'.
        """
        found = frozenset(self.store.array(*self._array).notes["skipped"])
        self.data.check_skipped(len(found), len(self.source.ids), self.source.name)
        return found

    def compute(self, share: Share) -> None:
        """Decodes a share of them."""
        shard = share.of(len(self.source.ids), _CHUNK)
        if len(shard):
            self.within(shard.first, shard.end).rows()

    def _produce(self, rows: np.ndarray, start: int, notes: Notes) -> Generator[int, None, None]:
        from dogbreeds.data.resize import resizer

        _say_where(f"photos of {self.source.name}", start, len(rows))
        resize, first = resizer(self.size, self.data.resize), self.first
        skipped = notes.setdefault("skipped", [])
        photos = itertools.islice(self.source.read(), first + start, first + len(rows))

        def fill(chunk: tuple[int, list[Photo]]) -> tuple[int, list[int]]:
            begin, chosen = chunk
            bad = []
            for row, photo in enumerate(chosen, begin):
                try:
                    rows[row] = resize(photo())
                except Unreadable:
                    if self.data.on_corrupt == "stop":
                        raise
                    bad.append(first + row)
                    # A process that was cut off may have left something there
                    rows[row] = 0
            return begin + len(chosen), bad

        with contextlib.closing(prefetch.mapped(fill, _chunks(photos, start), _AHEAD)) as filled:
            for end, bad in filled:
                skipped += bad
                self.data.check_skipped(len(skipped), len(self.source.ids), self.source.name)
                yield end


def _chunks(photos: Iterator[Photo], start: int) -> Iterator[tuple[int, list[Photo]]]:
    """Photos a few at a time, each time with the row of the first; that of the very first is `start`."""
    while chunk := list(itertools.islice(photos, _CHUNK)):
        yield start, chunk
        start += len(chunk)


class Prefix(Protocol):
    """The frozen part of a network, as far as its features are concerned."""

    @property
    def fingerprint(self) -> str:
        """Of what it computes."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one photo's features."""

    @property
    def compiled(self) -> Callable[[np.ndarray], np.ndarray]:
        """[b, size, size, 3] -> [b, *shape]."""

    def batch_size(self) -> int:
        """Photos at a time that suit this machine."""


def compute(
    prefix: Prefix, photos: Photos, features: Features, view: "View | None" = None, share: Share = ALL
) -> np.ndarray:
    """The prefix's output for every photo of a source.

    Args:
        prefix: the frozen part.
        photos: of the source.
        features: precision and batch size.
        view: which augmented copy of which rows; none gives the photos as they are, in the source's order.
        share: of the rows, where other jobs compute the others.

    Returns:
        [n, *prefix.shape], memory-mapped: a row a photo of the source, or a row a row of the view; of a share, its rows alone.
    """
    store = photos.store
    identity = {
        **photos.identity,
        "prefix": prefix.fingerprint,
        "dtype": features.dtype,
        "view": view.identity if view else None,
    }
    total = len(view.rows) if view else len(photos.source.ids)
    # Shards may come from another machine: a GPU takes more photos at a time. Those that are missing are computed as they were.
    whole = store.has("features", identity, (total, *prefix.shape), features.dtype)
    theirs = store.shards_step("features", identity) if share == ALL and not whole else None
    batch = features.batch_size or theirs or prefix.batch_size()
    wanted = share.of(total, batch)
    if not len(wanted):
        return np.empty((0, *prefix.shape), features.dtype)
    shard = ALL.of(total, batch) if whole else wanted

    def batches(start: int, end: int) -> Generator[np.ndarray, None, None]:
        seen = view.rows[start:end] if view else np.arange(start, end)
        near = photos if len(shard) == total else photos.within(int(seen[0]), int(seen[-1]) + 1)
        if view is None:
            yield from near.batches(batch, start, end)
            return
        pixels = near.rows()
        for first in range(start, end, batch):
            chosen = view.rows[first : min(first + batch, end)]
            yield view(pixels[chosen - near.first], chosen)

    def produce(rows: np.ndarray, start: int, _: Notes) -> Generator[int, None, None]:
        run, done = prefix.compiled, start
        what = f"features of {photos.source.name}{f', view {view.number}' if view else ''}"
        _say_where(what, start, len(rows))
        shown = batches(shard.first + start, shard.first + len(rows))
        with progress(what, len(rows), "images", before=start) as advance, contextlib.closing(shown):
            for pixels in shown:
                rows[done : done + len(pixels)] = run(pixels)
                done += len(pixels)
                advance(len(pixels))
                yield done

    kept = store.array(
        "features", shard.identity(identity), (len(shard), *prefix.shape), features.dtype, produce, step=batch
    ).rows
    return kept[wanted.first - shard.first : wanted.end - shard.first]


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
        return {
            "augment": self.augment.identity,
            "number": self.number,
            "seed": self.seed,
            "rows": zlib.crc32(self.rows.tobytes()),
        }
