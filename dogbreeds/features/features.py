"""Feature cache settings: where it is, how features are computed, and how jobs share the work in shards.

The frozen part of the backbone runs over each image once, and its output is cached on disk. Runs with the same frozen
part reuse it.
"""

import math
from dataclasses import dataclass
from pathlib import Path

from dogbreeds.core.errors import UserError
from dogbreeds.core.former_names import IMPLIED_PARAMS
from dogbreeds.core.spec import AUTO, Spec, integer, number, one_of, path, texts
from dogbreeds.features.cache import FeatureCache
from dogbreeds.features.partial_array import Shard


@dataclass(frozen=True, kw_only=True)
class Features(Spec):
    """Where the feature cache is, and how features are computed.

    Attributes:
        dir: folder of the cache; ~ stands for the home folder.
        dtype: how features are cached; images are cached as uint8.
        layers: blocks of the backbone whose outputs are the features, pooled, each scaled to the same norm, and
            concatenated. Of none, the features are the pooled output of the backbone.
        runtime: what computes features: `auto` or a runtime's name. `auto` takes a complete array that is cached, else
            OpenVINO where it is installed, else TensorFlow.
        precision: that features are computed in. `auto` takes bfloat16 where runtime and processor have it.
        max_gigabytes: above this size the least recently used arrays are evicted.
        batch_size: images of a forward pass; None chooses a size for the machine and the image size.
    """

    group = "features"
    # What versions before these settings did.
    implied = {
        "layers": (),
        "runtime": IMPLIED_PARAMS["features.runtime"],
        "precision": IMPLIED_PARAMS["features.precision"],
    }
    dir: str = path(example="/data/dogbreeds-cache")
    dtype: str = one_of("float32", "float16")
    layers: tuple[str, ...] = texts(example="[block6d,top]")
    runtime: str = one_of("auto", "tensorflow", "openvino", "onnxruntime")
    precision: str = one_of("float32", "bfloat16", "auto")
    max_gigabytes: float = number(above=0, example=50)
    batch_size: int | None = integer(at_least=1, example=64, optional=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.precision == "bfloat16" and self.runtime not in (AUTO, "openvino"):
            raise UserError(
                f"features.precision=bfloat16 was given with features.runtime={self.runtime}. Only OpenVINO computes"
                " features in bfloat16. Type features.runtime=openvino, or features.precision=float32."
            )

    def open_cache(self) -> FeatureCache:
        """Return the feature cache. Its folder is created when the first array is cached."""
        return FeatureCache(Path(self.dir).expanduser().resolve(), int(self.max_gigabytes * 1e9))


@dataclass(frozen=True, kw_only=True)
class ShardSpec(Spec):
    """Which shard of the cached arrays a job computes.

    A shard's rows are computed in the same batches as in the unsharded computation, from the images that they need.

    Attributes:
        shards: number of jobs that share the work.
        shard: which of them this is, from 0.
    """

    group = ""
    shards: int = integer(at_least=1, example=8)
    shard: int = integer(at_least=0, example=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shard >= self.shards:
            raise UserError(
                f"shard was {self.shard} and shards was {self.shards}. Shards are numbered from 0 to shards - 1. "
                f"Type shard={self.shards - 1}, or --multirun 'shard=range({self.shards})' for all of them."
            )

    def of(self, total: int, step: int) -> Shard:
        """Return the rows of an array that this job computes.

        Args:
            total: rows of the array.
            step: rows that are computed together.

        Returns:
            Whole steps; no rows if there are fewer steps than shards and this shard gets none.
        """
        steps = math.ceil(total / step)
        first, end = (min(total, step * (steps * number // self.shards)) for number in (self.shard, self.shard + 1))
        return Shard(first, end, total, step)


# A single shard: all rows.
UNSHARDED = ShardSpec(shards=1, shard=0)
