"""Blocks of a backbone: the places where it can be cut."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import keras
    from keras.src.ops.node import Node

# A layer's name begins with, or contains, the name of its block: block6d_add, conv4_block2_out, block_12_expand,
# expanded_conv_project, convnext_tiny_stage_2_block_3_gelu; and in KerasHub: stack1_block2_1_conv, block_1_0_conv1,
# vit_encoder_transformer_block_1, encoder_layers_11, stage_0_blocks_1, hierarchical_encoder_0_1.
_BLOCK_NAME = (
    r"((?:stage_\d+_|stack\d+_|conv\d+_)?(?:blocks?_\d+(?:_\d+|[a-z])?|block\d+[a-z]?)|encoder_layers_\d+"
    r"|hierarchical_encoder_\d+_\d+|expanded_conv|downsampling_block_\d+)(?=_|$)"
)
_STEM = "stem"
_TOP = "top"
# In place of a regular expression: layer names do not matter.
BY_GRAPH = "graph"


@dataclass(frozen=True)
class Block:
    """Consecutive layers of a backbone that end in a single tensor.

    Attributes:
        name: `stem`, the name that the architecture gives the block or its number, or `top`.
        layers: in the order of computation.
        output: the only tensor that later layers read.
    """

    name: str
    layers: "tuple[keras.Layer, ...]"
    output: "keras.KerasTensor"


def find_blocks(network: "keras.Model", names: str | None = None) -> tuple[Block, ...]:
    """Split a network into blocks at the tensors through which all data flows.

    Args:
        network: functional model with one input and one output.
        names: regular expression that finds the block's name in a layer's name: its groups, joined, or the whole match.
            `graph`: a block ends where branches are merged, or, in a network without branches, before each layer with
            weights. None for names that are usual in Keras, and where no two blocks have one, for the graph.

    Returns:
        The blocks in order of computation. The output of the last one is the network's output.
    """
    nodes = [node for node in nodes_in_order(network) if node.input_tensors]
    outputs = list(_single_tensors(network, nodes))
    found = [_name(names or _BLOCK_NAME, node) for node in nodes] if names != BY_GRAPH else []
    by_name = bool(names and found) or len({name for name in found if name is not None}) > 1
    return _split(network, nodes, _with_stem_and_top(found) if by_name else _numbered(nodes, outputs), outputs)


def _name(pattern: str, node: "Node") -> str | None:
    match = re.search(pattern, node.operation.name)
    if match is None:
        return None
    return "".join(group or "" for group in match.groups()) or match[0]


def _with_stem_and_top(found: list[str | None]) -> list[str]:
    """Name each node. Those without a name have that of the node before; the first are the stem, the last the top."""
    last_named = max((index for index, name in enumerate(found) if name is not None), default=-1)
    names: list[str] = []
    for index, name in enumerate(found):
        before = names[-1] if names else _STEM
        names.append(name if name is not None else _TOP if index > last_named else before)
    return names


def _numbered(nodes: "list[Node]", outputs: "list[keras.KerasTensor | None]") -> list[str]:
    """Number the blocks of a network whose names tell nothing, as `find_blocks` says."""
    merges = [len({id(tensor) for tensor in node.input_tensors}) > 1 for node in nodes]
    if any(merges):
        ends = [merge and output is not None for merge, output in zip(merges, outputs, strict=True)]
    else:
        ends = [bool(getattr(after.operation, "weights", ())) for after in nodes[1:]] + [False]
    last = max((index for index, is_end in enumerate(ends) if is_end), default=-1)
    names = []
    number = 1
    for index, is_end in enumerate(ends):
        names.append(f"block{number}" if index <= last else _TOP)
        number += is_end
    return names


def _split(
    network: "keras.Model", nodes: "list[Node]", names: list[str], outputs: "list[keras.KerasTensor | None]"
) -> tuple[Block, ...]:
    """Split a network where the name changes, if data flows in a single tensor there; else both names are one block.

    Args:
        network: the network.
        nodes: its nodes, in order of computation.
        names: of each node's block.
        outputs: as of `_single_tensors`.
    """
    import keras

    blocks: list[Block] = []
    name = names[0]
    cut = None
    layers = list[keras.Layer]()
    for node, node_name, output in zip(nodes, names, outputs, strict=True):
        if node_name != name and cut is not None:
            blocks.append(Block(name, tuple(layers), cut))
            name = node_name
            layers = []
        # A layer may be called twice.
        if isinstance(node.operation, keras.Layer) and node.operation not in layers:
            layers.append(node.operation)
        cut = output
    blocks.append(Block(name, tuple(layers), network.outputs[0]))
    return tuple(blocks)


def _single_tensors(network: "keras.Model", nodes: "list[Node]") -> "Iterator[keras.KerasTensor | None]":
    """Yield, after each node, its output if that is the one tensor that later nodes still need; else None.

    One of unknown size is none either, since features of it could not be stored.
    """
    pending_uses = Counter(id(tensor) for node in nodes for tensor in node.input_tensors)
    live = {id(network.inputs[0])}
    for node in nodes:
        for tensor in node.input_tensors:
            pending_uses[id(tensor)] -= 1
            if not pending_uses[id(tensor)]:
                live.discard(id(tensor))
        live.update(id(tensor) for tensor in node.output_tensors)
        output = node.output_tensors[0]
        yield output if live == {id(output)} and None not in output.shape[1:] else None


def nodes_in_order(network: "keras.Model") -> "list[Node]":
    """List the calls of layers that belong to this network, in order of computation.

    A layer may have further nodes, from calls in other networks. Those are left out.
    """
    depths = sorted(network._nodes_by_depth, reverse=True)
    return [node for depth in depths for node in network._nodes_by_depth[depth]]
