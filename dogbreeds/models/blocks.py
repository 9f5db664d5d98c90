"""Blocks of a backbone: the places where it can be cut."""

import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import keras

# A layer's name begins with, or contains, the name of its block: block6d_add, conv4_block2_out, block_12_expand,
# expanded_conv_project, convnext_tiny_stage_2_block_3_gelu.
_BLOCK_NAME = re.compile(r"((?:stage_\d+_|conv\d+_)?block_?\d+[a-z]?|expanded_conv|downsampling_block_\d+)(?=_|$)")
_STEM = "stem"
_TOP = "top"


@dataclass(frozen=True)
class Block:
    """Consecutive layers of a backbone that end in a single tensor.

    Attributes:
        name: `stem`, the name that the architecture gives the block, or `top`.
        layers: in the order of computation.
        output: the only tensor that later layers read.
    """

    name: str
    layers: "tuple[keras.Layer, ...]"
    output: "keras.KerasTensor"


def find_blocks(network: "keras.Model") -> tuple[Block, ...]:
    """Split a network into blocks at the tensors through which all data flows.

    Args:
        network: functional model with one input and one output.

    Returns:
        The blocks in order of computation. The output of the last one is the network's output.
    """
    import keras

    nodes = [node for node in nodes_in_order(network) if node.input_tensors]
    has_block_name = [bool(_BLOCK_NAME.search(node.operation.name)) for node in nodes]
    last_named = max((index for index, found in enumerate(has_block_name) if found), default=-1)
    pending_uses = Counter(id(tensor) for node in nodes for tensor in node.input_tensors)
    live = {id(network.inputs[0])}
    blocks: list[Block] = []
    name = _STEM
    cut = None
    layers = list[keras.Layer]()
    for index, node in enumerate(nodes):
        match = _BLOCK_NAME.search(node.operation.name)
        node_block = match.group(1) if match else _TOP if index > last_named else name
        if node_block != name and cut is not None:
            blocks.append(Block(name, tuple(layers), cut))
            name = node_block
            layers = []
        if isinstance(node.operation, keras.Layer):
            layers.append(node.operation)
        for tensor in node.input_tensors:
            pending_uses[id(tensor)] -= 1
            if not pending_uses[id(tensor)]:
                live.discard(id(tensor))
        live.update(id(tensor) for tensor in node.output_tensors)
        # A cut is possible here only if this node's output is the one tensor that later nodes still need.
        cut = node.output_tensors[0] if live == {id(node.output_tensors[0])} else None
    blocks.append(Block(name, tuple(layers), network.outputs[0]))
    return tuple(blocks)


def nodes_in_order(network: "keras.Model"):
    """List the calls of layers that belong to this network, in order of computation.

    A layer may have further nodes, from calls in other networks. Those are left out.
    """
    depths = sorted(network._nodes_by_depth, reverse=True)
    return [node for depth in depths for node in network._nodes_by_depth[depth]]
