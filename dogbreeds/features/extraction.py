"""Feature extraction: decode the images of a source, run the frozen part of the backbone over them, and cache both."""

import contextlib
import itertools
import logging
import zlib
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np

from dogbreeds.core import prefetch
from dogbreeds.core.console import progress
from dogbreeds.core.source import plugin_source
from dogbreeds.data.dataset import Data, Source
from dogbreeds.data.decoder import decoder_identity, decoder_to_size
from dogbreeds.data.image import ImageLoader, UnreadableImageError
from dogbreeds.features.array_info import digest
from dogbreeds.features.cache import FeatureCache
from dogbreeds.features.features import UNSHARDED, Features, ShardSpec
from dogbreeds.features.partial_array import Identity, Notes, Producer, Shard

if TYPE_CHECKING:
    from dogbreeds.data.augment import Augment

log = logging.getLogger(__name__)

# Images that one thread decodes before it takes the next ones.
_CHUNK = 32
# Chunks decoded ahead of the computation.
_CHUNKS_AHEAD = 64


@dataclass(frozen=True)
class DecodedImages:
    """A source's images at the backbone's image size, each decoded once and cached.

    Attributes:
        source: the images to decode.
        data: how they are decoded and resized, and what happens to unreadable ones.
        image_size: pixels a side.
        cache: where they are cached.
        shard: the rows to decode; None for all. Rows are numbered as in the source in either case.
    """

    source: Source
    data: Data
    image_size: int
    cache: FeatureCache
    shard: Shard | None = None

    @property
    def identity(self) -> Identity:
        """What the decoded images of the whole source depend on."""
        own = {"photos": self.source.fingerprint, "size": self.image_size, "resize": self.data.resize}
        return own | decoder_identity(self.data.chosen_decoder) | plugin_source(self.data)

    @property
    def _whole_array(self) -> tuple[str, Identity, tuple[int, ...], str]:
        """Kind, identity, shape and dtype of the whole source's array."""
        shape = (len(self.source.ids), self.image_size, self.image_size, 3)
        return "photos", self.identity, shape, "uint8"

    @property
    def _array(self) -> tuple[str, Identity, tuple[int, ...], str, Producer]:
        """Kind, identity, shape, dtype and producer of the array of these rows."""
        kind, identity, (total, *pixels), dtype = self._whole_array
        shard = self.shard or Shard(first=0, end=total, total=total, step=1)
        return kind, shard.identity(identity), (len(shard), *pixels), dtype, self._produce

    @property
    def first_row(self) -> int:
        """The source's row that comes first in `rows()`."""
        return self.shard.first if self.shard else 0

    @property
    def is_cached(self) -> bool:
        """Whether all images of the source are cached."""
        return self.cache.has(*self._whole_array)

    def restricted_to(self, first: int, end: int) -> "DecodedImages":
        """Return images that decode only the rows from `first` to before `end`, or these images if all are cached."""
        if self.is_cached:
            return self
        return replace(self, shard=Shard(first, end, total=len(self.source.ids), step=1))

    def batches(self, batch_size: int, start: int, end: int) -> Generator[np.ndarray, None, None]:
        """Yield [b, size, size, 3] uint8 in the source's order, from row `start` to before row `end`."""
        last = self.shard.end if self.shard else len(self.source.ids)
        stream = self.cache.stream(*self._array, batch_size=batch_size, start=start - self.first_row)
        with contextlib.closing(stream) as batches:
            for batch in batches:
                yield batch
                start += len(batch)
                # Past the last row the stream must be exhausted: only then does the array become a cache entry.
                if end <= start < last:
                    return

    def rows(self) -> np.ndarray:
        """Return [n, size, size, 3] uint8, memory-mapped; decode what is missing."""
        return self.cache.get_or_compute(*self._array).rows

    def skipped_rows(self) -> frozenset[int]:
        """Return the rows that could not be decoded, with `data.on_corrupt=skip`. Their pixels are black.

        Raises:
            UserError: if they are more than `data.max_corrupt_fraction` allows. No shard's job can detect this, because
                it knows only its own rows.
        """
        skipped = frozenset(self.cache.get_or_compute(*self._array).notes["skipped"])
        self.data.check_skipped(len(skipped), len(self.source.ids), self.source.name)
        return skipped

    def decode_shard(self, shard_spec: ShardSpec) -> None:
        """Decode and cache one shard of the images."""
        shard = shard_spec.of(len(self.source.ids), _CHUNK)
        if len(shard):
            self.restricted_to(shard.first, shard.end).rows()

    def _produce(self, rows: np.ndarray, start: int, notes: Notes) -> Generator[int, None, None]:
        _log_resuming(f"images of {self.source.name}", start, len(rows))
        decode = decoder_to_size(self.image_size, self.data.resize, self.data.chosen_decoder)
        first = self.first_row
        skipped = notes.setdefault("skipped", [])
        loaders = itertools.islice(self.source.loaders(), first + start, first + len(rows))

        def decode_chunk(chunk: tuple[int, list[ImageLoader]]) -> tuple[int, list[int]]:
            """Decode a chunk into `rows`. Return the index after its last row, and the source's rows it skipped."""
            begin, chunk_loaders = chunk
            unreadable = []
            for row, load in enumerate(chunk_loaders, begin):
                try:
                    rows[row] = decode(load)
                except UnreadableImageError:
                    if self.data.on_corrupt == "stop":
                        raise
                    unreadable.append(first + row)
                    # An interrupted process may have left pixels there.
                    rows[row] = 0
            return begin + len(chunk_loaders), unreadable

        chunks = prefetch.map_ahead(decode_chunk, _chunks(loaders, start), _CHUNKS_AHEAD)
        with contextlib.closing(chunks) as decoded:
            for end, unreadable in decoded:
                skipped += unreadable
                self.data.check_skipped(len(skipped), len(self.source.ids), self.source.name)
                yield end


def _chunks(loaders: Iterator[ImageLoader], start: int) -> Iterator[tuple[int, list[ImageLoader]]]:
    """Yield chunks of loaders, each with the row of its first one; `start` is the row of the very first."""
    while chunk := list(itertools.islice(loaders, _CHUNK)):
        yield start, chunk
        start += len(chunk)


class Prefix(Protocol):
    """The frozen part of a network, as far as feature extraction needs it."""

    @property
    def fingerprint(self) -> str:
        """Digest of what it computes: weights, cut and pixel convention."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one image's features."""

    @property
    def runtime(self) -> str:
        """What computes it, as `features.runtime` names it."""

    @property
    def precision(self) -> str:
        """Precision that it is computed in, as `features.precision` names it."""

    def stream(self, batches: Iterable[np.ndarray]) -> Generator[np.ndarray, None, None]:
        """Map batches of images [b, size, size, 3] in [0, 255] to features [b, *shape], in order."""

    def batch_size(self) -> int:
        """Return the number of images of a forward pass that suits this machine."""


def compute_features(
    prefix: Prefix,
    images: DecodedImages,
    features: Features,
    view: "AugmentedView | None" = None,
    shard_spec: ShardSpec = UNSHARDED,
) -> np.ndarray:
    """Return the frozen part's output for each image, from the cache or computed now.

    Args:
        prefix: the frozen part.
        images: the decoded images of a source.
        features: precision and batch size.
        view: augmented copy of some rows of the source; None for all images as they are.
        shard_spec: the shard to return; other jobs compute the others.

    Returns:
        [n, *prefix.shape], memory-mapped: one row for each image of the source, or for each row of the view, restricted
        to the shard.
    """
    cache = images.cache
    identity = features_identity(prefix, images, features, view)
    total = len(view.rows) if view else len(images.source.ids)
    is_cached = cache.has("features", identity, (total, *prefix.shape), features.dtype)
    # Shards may come from a machine with another batch size, such as a GPU: the missing rows are computed in theirs.
    shard_step = cache.shard_step("features", identity) if shard_spec == UNSHARDED and not is_cached else None
    batch_size = features.batch_size or shard_step or prefix.batch_size()
    requested = shard_spec.of(total, batch_size)
    if not len(requested):
        return np.empty((0, *prefix.shape), features.dtype)
    # If the whole array is cached, the shard's rows are taken from it.
    shard = UNSHARDED.of(total, batch_size) if is_cached else requested

    def produce(rows: np.ndarray, start: int, _: Notes) -> Generator[int, None, None]:
        description = f"features of {images.source.name}{f', augmented copy {view.copy}' if view else ''}"
        _log_resuming(description, start, len(rows))
        if not start:
            _log_other_arrays(description, prefix, cached_runtimes(prefix, images, features, view))
        done = start
        batches = _input_batches(images, view, shard, shard.first + start, shard.first + len(rows))
        with (
            progress(description, len(rows), "images", completed=start) as advance,
            contextlib.closing(batches),
            contextlib.closing(prefix.stream(batches)) as computed,
        ):
            for outputs in computed:
                rows[done : done + len(outputs)] = outputs
                done += len(outputs)
                advance(len(outputs))
                yield done

    cached = cache.get_or_compute(
        "features", shard.identity(identity), (len(shard), *prefix.shape), features.dtype, produce, step=batch_size
    ).rows
    return cached[requested.first - shard.first : requested.end - shard.first]


def features_identity(
    prefix: Prefix, images: DecodedImages, features: Features, view: "AugmentedView | None" = None
) -> Identity:
    """Return what the features of all images of a source, or of a view, depend on."""
    computed_by = {"runtime": prefix.runtime, "precision": prefix.precision}
    return {
        **images.identity,
        "prefix": prefix.fingerprint,
        "dtype": features.dtype,
        "view": view.identity if view else None,
        # Arrays of versions that had no other runtime lack these keys.
        **{name: value for name, value in computed_by.items() if value != features.implied[name]},
    }


def cached_runtimes(
    prefix: Prefix, images: DecodedImages, features: Features, view: "AugmentedView | None" = None
) -> list[tuple[str, str]]:
    """Return runtime and precision of each complete array of these features, whatever computed it.

    Args:
        prefix, images, features, view: as in `compute_features`.
    """
    wanted = digest(_without_runtime(features_identity(prefix, images, features, view)))
    complete = [info.identity for info in images.cache.entries() if info.unfinished is None]
    runtimes = [features.implied | identity for identity in complete if digest(_without_runtime(identity)) == wanted]
    return [(identity["runtime"], identity["precision"]) for identity in runtimes]


def _without_runtime(identity: Identity) -> Identity:
    return {name: value for name, value in identity.items() if name not in ("runtime", "precision")}


def _log_other_arrays(description: str, prefix: Prefix, others: list[tuple[str, str]]) -> None:
    """Say that the features to compute are cached as another runtime, or another precision, gives them."""
    present = prefix.runtime, prefix.precision
    for other in others:
        log.info("%s: cached as %s computed them in %s; now %s computes them in %s", description, *other, *present)


def has_features(prefix: Prefix, images: DecodedImages, features: Features) -> bool:
    """Return whether the features of all images of the source are cached."""
    identity = features_identity(prefix, images, features)
    return images.cache.has("features", identity, (len(images.source.ids), *prefix.shape), features.dtype)


def _input_batches(
    images: DecodedImages, view: "AugmentedView | None", shard: Shard, start: int, end: int
) -> Generator[np.ndarray, None, None]:
    """Yield the frozen part's inputs for feature rows `start` to before `end`, in batches of the shard's step."""
    source_rows = view.rows[start:end] if view else np.arange(start, end)
    if len(shard) < shard.total:
        images = images.restricted_to(int(source_rows[0]), int(source_rows[-1]) + 1)
    if view is None:
        yield from images.batches(shard.step, start, end)
        return
    pixels = images.rows()
    for first in range(start, end, shard.step):
        batch_rows = view.rows[first : min(first + shard.step, end)]
        yield view(pixels[batch_rows - images.first_row], batch_rows)


def _log_resuming(description: str, start: int, total: int) -> None:
    if start:
        log.info("%s: resuming at row %s of %s", description, f"{start:,}", f"{total:,}")


@dataclass(frozen=True)
class AugmentedView:
    """An augmented copy of some rows of a source, drawn statelessly from (seed, copy, row).

    Attributes:
        augment: the augmentation.
        copy: number of the copy, from 0.
        seed: seed of the run.
        rows: [n] rows of the source, ascending.
    """

    augment: "Augment"
    copy: int
    seed: int
    rows: np.ndarray

    def __call__(self, images: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Augment images.

        Args:
            images: [b, size, size, 3] uint8.
            rows: [b] the source's row of each image.

        Returns:
            [b, size, size, 3] float32 in [0, 255].
        """
        return self.augment.apply(images, rows, self.copy, self.seed)

    @property
    def identity(self) -> Identity:
        """What the augmented pixels depend on, apart from the images."""
        return {
            "augment": self.augment.identity,
            "number": self.copy,
            "seed": self.seed,
            "rows": zlib.crc32(self.rows.tobytes()),
            **plugin_source(self.augment),
        }
