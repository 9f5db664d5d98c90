"""What the frozen prefix says of each photo: computed once, kept on disk, shared by every attempt that has the same prefix.

A `Share` of an array is one job's part of it (`part.Shard`): its rows are computed in the very batches in which the whole would be, and a share
of the photos is decoded for it.
"""

import math
from dataclasses import dataclass
from pathlib import Path

from dogbreeds.core.errors import UserError
from dogbreeds.core.spec import Spec, integer, number, one_of, text
from dogbreeds.features.cache import FeatureCache
from dogbreeds.features.partial_array import Shard


@dataclass(frozen=True, kw_only=True)
class Features(Spec):
    """Where the kept arrays are, and how they are computed."""

    group = "features"
    dir: str = text(example="~/.cache/dogbreeds")
    dtype: str = one_of("float32", "float16")
    max_gigabytes: float = number(above=0, example=50)
    batch_size: int | None = integer(at_least=1, example=64, optional=True)

    def store(self) -> FeatureCache:
        return FeatureCache(Path(self.dir).expanduser().resolve(), int(self.max_gigabytes * 1e9))


@dataclass(frozen=True, kw_only=True)
class Share(Spec):
    """Which of how many jobs this is that compute together what is kept."""

    group = ""
    shards: int = integer(at_least=1, example=8)
    shard: int = integer(at_least=0, example=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shard >= self.shards:
            raise UserError(
                f"shard was {self.shard} and shards {self.shards}. Shards are counted from 0 to shards - 1. "
                f"Type shard={self.shards - 1}, or --multirun 'shard=range({self.shards})' for all of them."
            )

    def of(self, total: int, step: int) -> Shard:
        """This job's rows of so many, which are computed `step` at a time; none where there are fewer steps than shards."""
        steps = math.ceil(total / step)
        first, end = (min(total, step * (steps * number // self.shards)) for number in (self.shard, self.shard + 1))
        return Shard(first, end, total, step)


ALL = Share(shards=1, shard=0)
