"""Converts a function of TensorFlow to an ONNX model."""

from typing import Any

import numpy as np


def to_onnx(frozen: Any, opset: int) -> Any:
    """Convert a function to an ONNX model, whose input and output have TensorFlow's names.

    Args:
        frozen: concrete function of one input and one output, with constants for weights.
        opset: version of ONNX's operations.
    """
    import tf2onnx

    model, _ = tf2onnx.convert.from_graph_def(
        frozen.graph.as_graph_def(),
        input_names=[frozen.inputs[0].name],
        output_names=[frozen.outputs[0].name],
        opset=opset,
        custom_op_handlers={"Erfc": (_erfc, [])},
    )
    return model


def _erfc(graph: Any, node: Any, name: str, arguments: Any) -> None:
    """Convert the complementary error function, of which TensorFlow's exact GELU consists: 1 - erf(x)."""
    erf = graph.make_node("Erf", node.input, name=f"{name}/erf")
    one = graph.make_const(f"{name}/one", np.ones((), np.float32))
    node.type, node.domain = "Sub", ""
    graph.replace_inputs(node, [one.output[0], erf.output[0]])
