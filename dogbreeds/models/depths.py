"""Features of several depths of a backbone: the outputs of some of its blocks, pooled, normalised and concatenated.

Source: Evci et al. 2022, Head2Toe.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from dogbreeds.core.errors import UserError
from dogbreeds.models.pooling import pool

if TYPE_CHECKING:
    import keras

    from dogbreeds.models.blocks import Block
    from dogbreeds.models.unfreeze import Plan


def find_depths(names: Sequence[str], blocks: "Sequence[Block]") -> tuple[int, ...]:
    """Return the numbers of the blocks whose outputs are features, counted from 1, ascending; none without names.

    Args:
        names: of blocks, or what the names of a stage's blocks share, such as `block4` of `block4a` to `block4c`, which
            stands for its last block.
        blocks: of the backbone, in order of computation.

    Raises:
        UserError: if there is no such block.
    """
    return tuple(sorted({_number(name, [block.name for block in blocks]) for name in names}))


def _number(name: str, known: list[str]) -> int:
    matching = [number for number, block in enumerate(known, 1) if re.fullmatch(f"{re.escape(name)}[a-z]?", block)]
    if not matching:
        example = ",".join(known[-2:])
        raise UserError(
            f"features.layers has {name!r}. The backbone's blocks are {', '.join(known)}. Type"
            f" 'features.layers=[{example}]', for example."
        )
    return known.index(name) + 1 if name in known else matching[-1]


def with_depths(plan: "Plan", depths: Sequence[int], blocks: "Sequence[Block]") -> "Plan":
    """Return a plan whose cut is not above the first of the depths, if part of the backbone trains.

    All outputs that are features are then computed above the cut, from the one tensor there. What trains stays so.

    Args:
        plan: what trains.
        depths: as of `find_depths`.
        blocks: of the backbone.
    """
    if not depths or plan.cut == len(blocks) or plan.cut <= depths[0]:
        return plan
    note = f"; the cached prefix ends with {blocks[depths[0] - 1].name}, the first of features.layers"
    return replace(plan, cut=depths[0], summary=plan.summary + note)


def concatenate(outputs: "Sequence[keras.KerasTensor]", names: Sequence[str], pooling: str) -> "keras.KerasTensor":
    """Pool outputs of blocks, scale each to the same norm, and concatenate them.

    The features' mean square is 1, as heads expect it.

    Args:
        outputs: feature maps, tokens or vectors of each block.
        names: of the blocks.
        pooling: as in `pool`.

    Returns:
        [b, sum of channels].
    """
    import keras

    parts = []
    for output, name in zip(outputs, names, strict=True):
        pooled = pool(output, pooling, f"pool_{name}")
        parts.append(keras.layers.UnitNormalization(name=f"unit_{name}")(pooled))
    joined = keras.layers.Concatenate(name="depths")(parts) if len(parts) > 1 else parts[0]
    return keras.layers.Rescaling(math.sqrt(joined.shape[-1] / len(parts)), name="scaled")(joined)
