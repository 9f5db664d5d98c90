"""The formats that a trained network is handed over in: how each is written, and how it is then asked."""

import contextlib
import io
import json
import logging
import re
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dogbreeds.core.console import quiet_stderr
from dogbreeds.core.errors import UserError
from dogbreeds.inference.classifier import Classifier

if TYPE_CHECKING:
    import keras

# How far probabilities may be from the trained network's, with weights of 32 bits and of 16
EXACT, HALVED = 1e-4, 1e-2
# In a TFLite file: where its metadata puts the names of classes
LABELS = "labels.txt"
# Weights of a kernel
_LARGE = 1 << 14
# Of ONNX: the oldest with all that is used here
_OPSET = 18

# [b, classes] probabilities, and the breed of each of b photos
Answers = tuple[np.ndarray, list[str]]
# Of [b, h, w, 3] uint8 RGB
Ask = Callable[[np.ndarray], Answers]


@dataclass(frozen=True)
class Format:
    """One way to hand a network over.

    Attributes:
        file: its name in the export's folder; SavedModel is a folder itself.
        allowed: the largest difference of a probability from the trained network's.
        needs: modules that only the extra `export` installs.
        write: puts a network there.
        open: gives the function that asks what lies there.
        usage: how to ask it, in Python.
    """

    file: str
    allowed: float
    needs: tuple[str, ...]
    write: Callable[[Classifier, Path], None]
    open: Callable[[Path], Ask]
    usage: str


def check_installed(names: Sequence[str]) -> None:
    """Raises `UserError` where a format is unknown, or needs what is not installed."""
    unknown = [name for name in names if name not in FORMATS]
    if unknown or not names:
        received = f"formats has {unknown[0]!r}" if unknown else "formats was empty"
        raise UserError(
            f"{received}. It must be a list of {', '.join(FORMATS)}. Type 'formats=[keras,onnx]', for example."
        )
    absent = [(name, module) for name in names for module in FORMATS[name].needs if find_spec(module) is None]
    if absent:
        name, module = absent[0]
        raise UserError(
            f"{name} was asked for, and {module} is not installed. It needs the extra named export. "
            "Type pip install 'dogbreeds[export]', or 'formats=[keras,savedmodel]'."
        )


def probabilities(classifier: Classifier) -> Any:
    """A TensorFlow function from `photo`, [b, h, w, 3] uint8 of any size, to [b, classes] probabilities, of operations that every format knows."""
    import tensorflow as tf

    from dogbreeds.data.resize import resized_in_steps

    @tf.function(input_signature=[tf.TensorSpec([None, None, None, 3], tf.uint8, name="photo")])
    def ask(photo):
        return tf.nn.softmax(
            classifier.core(resized_in_steps(photo, classifier.size, classifier.resize), training=False)
        )

    return ask.get_concrete_function()


def _write_keras(classifier: Classifier, file: Path) -> None:
    classifier.whole.save(file)


def _open_keras(file: Path) -> Ask:
    import keras

    return ask_keras(keras.models.load_model(file, compile=False, safe_mode=True))


def ask_keras(whole: "keras.Model") -> Ask:
    """The function that asks a network as it was trained."""
    return lambda photos: _answers(whole(photos, training=False))


def _write_savedmodel(classifier: Classifier, file: Path) -> None:
    classifier.whole.export(file, format="tf_saved_model", verbose=False)


def _open_savedmodel(file: Path) -> Ask:
    import tensorflow as tf

    loaded = tf.saved_model.load(str(file))
    return lambda photos: _answers(loaded.signatures["serving_default"](photo=tf.constant(photos)))


def _answers(outputs: Any) -> Answers:
    return outputs["probabilities"].numpy(), [breed.decode() for breed in outputs["breed"].numpy()]


def _write_tflite(classifier: Classifier, file: Path) -> None:
    file.write_bytes(_lite(classifier))
    _name_classes(classifier, file)


def _write_tflite_float16(classifier: Classifier, file: Path) -> None:
    """The large kernels become 16-bit floats, and nothing else: about half the size.

    Small kernels and depthwise ones, 5 % of all weights, make most of the error, since few roundings average out in them: with them, probabilities of
    200 photos moved by up to 0.020 on EfficientNetB0, without them by 0.003. TFLite's own float16 mode also casts biases and the resize's constants:
    0.06. There is no int8 beside it: even with each channel scaled by itself, they moved by 0.3, so that it would be another network.
    """
    from ai_edge_quantizer import algorithm_manager, qtyping, quantizer

    half = qtyping.TensorQuantizationConfig(num_bits=16, dtype=qtyping.TensorDataType.FLOAT)
    cast = qtyping.OpQuantizationConfig(
        weight_tensor_config=half, compute_precision=qtyping.ComputePrecision.FLOAT, explicit_dequantize=True
    )
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "whole.tflite"
        whole.write_bytes(_lite(classifier))
        caster = quantizer.Quantizer(str(whole))
        for scope in _with_large_kernels(whole):
            for kind in (qtyping.TFLOperationName.CONV_2D, qtyping.TFLOperationName.FULLY_CONNECTED):
                caster.update_quantization_recipe(
                    f"^{re.escape(scope)}$", kind, cast, algorithm_manager.AlgorithmName.FLOAT_CASTING
                )
        file.write_bytes(bytes(caster.quantize().quantized_model))
    _name_classes(classifier, file)


def _with_large_kernels(file: Path) -> list[str]:
    """The operations of a TFLite file, by the names that the quantizer knows them by, whose second input, a kernel if they have one, is large."""
    from ai_edge_quantizer.utils import tfl_flatbuffer_utils

    return [
        tfl_flatbuffer_utils.get_op_scope(operation, graph.tensors)
        for graph in tfl_flatbuffer_utils.read_model(str(file)).subgraphs
        for operation in graph.operators
        if len(operation.inputs) > 1 and np.prod(graph.tensors[operation.inputs[1]].shape) >= _LARGE
    ]


def _lite(classifier: Classifier) -> bytes:
    import tensorflow as tf

    return tf.lite.TFLiteConverter.from_concrete_functions([probabilities(classifier)]).convert()


def _name_classes(classifier: Classifier, file: Path) -> None:
    with zipfile.ZipFile(file, "a") as end:
        end.writestr(LABELS, "\n".join(classifier.class_names))


def _open_tflite(file: Path) -> Ask:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(file))
    # It says then how it will compute
    interpreter.allocate_tensors()
    entrance, exit = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]
    with zipfile.ZipFile(file) as end:
        names = end.read(LABELS).decode().split("\n")

    def ask(photos: np.ndarray) -> Answers:
        interpreter.resize_tensor_input(entrance, photos.shape)
        interpreter.allocate_tensors()
        interpreter.set_tensor(entrance, photos)
        interpreter.invoke()
        said = interpreter.get_tensor(exit)
        return said, [names[first] for first in said.argmax(axis=1)]

    return ask


def _write_onnx(classifier: Classifier, file: Path) -> None:
    import onnx
    import tf2onnx
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    # Folded first: what the normalisation captured would become inputs otherwise. Loops stay loops, which ONNX has, too.
    constant = convert_variables_to_constants_v2(probabilities(classifier), lower_control_flow=False)
    entrance, exit = constant.inputs[0].name, constant.outputs[0].name
    model, _ = tf2onnx.convert.from_graph_def(
        constant.graph.as_graph_def(), input_names=[entrance], output_names=[exit], opset=_OPSET
    )
    _rename(model.graph, {entrance: "photo", exit: "probabilities"})
    _add_breed(model.graph, classifier.class_names)
    _set_shape(model.graph.input[0], "b", "h", "w", 3)
    _set_shape(model.graph.output[0], "b", len(classifier.class_names))
    model.metadata_props.add(key="class_names", value=json.dumps(classifier.class_names))
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, str(file))


def _rename(graph: Any, names: dict[str, str]) -> None:
    """Gives tensors other names, at the graph's ends and wherever its nodes, or the bodies of its loops, take or give them."""
    for end in [*graph.input, *graph.output, *graph.value_info]:
        end.name = names.get(end.name, end.name)
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _rename(attribute.g, names)


def _add_breed(graph: Any, class_names: Sequence[str]) -> None:
    from onnx import TensorProto, helper

    names: list[Any] = [name.encode() for name in class_names]
    graph.initializer.append(helper.make_tensor("class_names", TensorProto.STRING, [len(names)], names))
    graph.node.append(helper.make_node("ArgMax", ["probabilities"], ["first"], axis=1, keepdims=0))
    graph.node.append(helper.make_node("Gather", ["class_names", "first"], ["breed"]))
    graph.output.append(helper.make_tensor_value_info("breed", TensorProto.STRING, ["b"]))


def _set_shape(end: Any, *sides: str | int) -> None:
    shape = end.type.tensor_type.shape
    del shape.dim[:]
    for side in sides:
        shape.dim.add(**{"dim_param" if isinstance(side, str) else "dim_value": side})


def _open_onnx(file: Path) -> Ask:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])

    def ask(photos: np.ndarray) -> Answers:
        said, breeds = session.run(["probabilities", "breed"], {"photo": photos})
        return said, breeds.tolist()

    return ask


def write(name: str, classifier: Classifier, folder: Path) -> Path:
    """Puts a network into a folder in one of `FORMATS`; what the converters say while they work is held back."""
    place = folder / FORMATS[name].file
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    for chatty in ("tf2onnx", "absl"):
        logging.getLogger(chatty).setLevel(logging.ERROR)
    with quiet_stderr(), contextlib.redirect_stdout(io.StringIO()):
        FORMATS[name].write(classifier, place)
    return place


def opened(name: str, place: Path) -> Ask:
    """The function that asks what was written."""
    with quiet_stderr():
        return FORMATS[name].open(place)


_LITE_USAGE = """from ai_edge_litert.interpreter import Interpreter
lite = Interpreter("{file}")                              # breeds: unzip -p {file} labels.txt
lite.resize_tensor_input(lite.get_input_details()[0]["index"], photos.shape); lite.allocate_tensors()
lite.set_tensor(lite.get_input_details()[0]["index"], photos); lite.invoke()
probabilities = lite.get_tensor(lite.get_output_details()[0]["index"])"""

FORMATS = {
    "keras": Format(
        "model.keras",
        EXACT,
        (),
        _write_keras,
        _open_keras,
        """import keras
said = keras.models.load_model("{file}")(photos)          # said["probabilities"], said["breed"]""",
    ),
    "savedmodel": Format(
        "savedmodel",
        EXACT,
        (),
        _write_savedmodel,
        _open_savedmodel,
        """import tensorflow as tf
model = tf.saved_model.load("{file}")
said = model.signatures["serving_default"](photo=tf.constant(photos))  # said["probabilities"], said["breed"]""",
    ),
    "tflite": Format("model.tflite", EXACT, ("ai_edge_litert",), _write_tflite, _open_tflite, _LITE_USAGE),
    "tflite_float16": Format(
        "model.float16.tflite",
        HALVED,
        ("ai_edge_litert", "ai_edge_quantizer"),
        _write_tflite_float16,
        _open_tflite,
        _LITE_USAGE,
    ),
    "onnx": Format(
        "model.onnx",
        EXACT,
        ("tf2onnx", "onnx", "onnxruntime"),
        _write_onnx,
        _open_onnx,
        """import onnxruntime
session = onnxruntime.InferenceSession("{file}")
probabilities, breeds = session.run(["probabilities", "breed"], {{"photo": photos}})""",
    ),
}
