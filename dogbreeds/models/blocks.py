"""Blocks of a backbone: where it can be cut."""

import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import keras

# A layer's block by its name: block6d_add, conv4_block2_out, block_12_expand, expanded_conv_project, convnext_tiny_stage_2_block_3_gelu.
_BLOCK_NAME = re.compile(r"((?:stage_\d+_|conv\d+_)?block_?\d+[a-z]?|expanded_conv|downsampling_block_\d+)(?=_|$)")
_STEM, _TOP = "stem", "top"


@dataclass(frozen=True)
class Block:
    """A stretch of the backbone.

    Attributes:
        name: `stem`, the family's own name for a block, or `top`.
        layers: in the order of computation.
        output: the tensor that leaves it; nothing else does.
    """

    name: str
    layers: "tuple[keras.Layer, ...]"
    output: "keras.KerasTensor"


# --- blocks ---------------------------------------------------------------------------------------------------------


def find_blocks(network: "keras.Model") -> tuple[Block, ...]:
    """Cuts a network into its blocks.

    Args:
        network: a functional model with one input and one output.

    Returns:
        Blocks in order, whose outputs are tensors through which everything flows; the last one's is the network's.
    """
    import keras

    nodes = [node for node in in_order(network) if node.input_tensors]
    named = [bool(_BLOCK_NAME.search(node.operation.name)) for node in nodes]
    last_named = max((index for index, found in enumerate(named) if found), default=-1)
    uses = Counter(id(tensor) for node in nodes for tensor in node.input_tensors)
    live = {id(network.inputs[0])}
    blocks: list[Block] = []
    name, cut, layers = _STEM, None, list[keras.Layer]()
    for index, node in enumerate(nodes):
        found = _BLOCK_NAME.search(node.operation.name)
        begins = found.group(1) if found else _TOP if index > last_named else name
        if begins != name and cut is not None:
            blocks.append(Block(name, tuple(layers), cut))
            name, layers = begins, []
        if isinstance(node.operation, keras.Layer):
            layers.append(node.operation)
        for tensor in node.input_tensors:
            uses[id(tensor)] -= 1
            if not uses[id(tensor)]:
                live.discard(id(tensor))
        live.update(id(tensor) for tensor in node.output_tensors)
        cut = node.output_tensors[0] if live == {id(node.output_tensors[0])} else None
    blocks.append(Block(name, tuple(layers), network.outputs[0]))
    return tuple(blocks)


def in_order(network: "keras.Model"):
    """The network's own calls in the order of computation. A layer may have been called in other networks too."""
    depths = sorted(network._nodes_by_depth, reverse=True)
    return [node for depth in depths for node in network._nodes_by_depth[depth]]
