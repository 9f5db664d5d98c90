"""Export formats: how a trained network is written in each, and how predictions are made from the written file."""

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
from dogbreeds.models.onnx_conversion import to_onnx
from dogbreeds.models.precision import FLOAT32_TOLERANCE

if TYPE_CHECKING:
    import keras

# Largest difference of a probability from the trained network's, with float16 weights.
_FLOAT16_TOLERANCE = 1e-2
# File inside a TFLite archive where TFLite's metadata keeps class names.
LABELS_FILE = "labels.txt"
# Fewest weights of a kernel that is cast to float16.
_LARGE_KERNEL = 1 << 14
# Oldest ONNX opset that has all operations used here.
_OPSET = 18

# [b, classes] probabilities, and the name of the most probable class of each of b images.
BatchPrediction = tuple[np.ndarray, list[str]]
# Prediction function of [b, h, w, 3] uint8 RGB.
PredictBatch = Callable[[np.ndarray], BatchPrediction]


@dataclass(frozen=True, kw_only=True)
class Format:
    """An export format.

    Attributes:
        file: file name in the export folder; SavedModel is a folder itself.
        tolerance: largest allowed difference of a probability from the trained network's.
        requires: modules that only the extra `export` installs.
        write: writes a network to a path.
        load: returns the prediction function of what was written to a path.
        usage: Python code that predicts with the file, for the model card.
    """

    file: str
    tolerance: float
    requires: tuple[str, ...] = ()
    write: Callable[[Classifier, Path], None]
    load: Callable[[Path], PredictBatch]
    usage: str


def check_available(names: Sequence[str]) -> None:
    """Raise `UserError` if a format is unknown, or requires a module that is not installed."""
    unknown = [name for name in names if name not in FORMATS]
    if unknown or not names:
        received = f"formats has {unknown[0]!r}" if unknown else "formats was empty"
        raise UserError(
            f"{received}. It must be a list of {', '.join(FORMATS)}. Type 'formats=[keras,onnx]', for example."
        )
    missing = [(name, module) for name in names for module in FORMATS[name].requires if find_spec(module) is None]
    if missing:
        name, module = missing[0]
        raise UserError(
            f"formats has {name}, and {module} is not installed. It comes with the extra export. Type"
            " pip install 'dogbreeds[export]', or 'formats=[keras,savedmodel]'."
        )


def _probabilities_function(classifier: Classifier) -> Any:
    """Build a concrete TensorFlow function from operations that every format supports.

    Returns:
        A function from `image`, [b, h, w, 3] uint8 of any size, to [b, classes] probabilities.
    """
    import tensorflow as tf

    from dogbreeds.data.resize import resize_images_portable

    # The name of the argument is the name of the input in the exported file.
    @tf.function(input_signature=[tf.TensorSpec([None, None, None, 3], tf.uint8, name="image")])
    def probabilities(image):
        resized = resize_images_portable(image, classifier.image_size, classifier.resize)
        return tf.nn.softmax(classifier.core(resized, training=False))

    return probabilities.get_concrete_function()


def _write_keras(classifier: Classifier, file: Path) -> None:
    classifier.model.save(file)


def _load_keras(file: Path) -> PredictBatch:
    import keras

    return keras_predictor(keras.models.load_model(file, compile=False, safe_mode=True))


def keras_predictor(model: "keras.Model") -> PredictBatch:
    """Return the prediction function of a saved network's Keras model."""
    return lambda images: _from_tensors(model(images, training=False))


def _write_savedmodel(classifier: Classifier, file: Path) -> None:
    classifier.model.export(file, format="tf_saved_model", verbose=False)


def _load_savedmodel(file: Path) -> PredictBatch:
    import tensorflow as tf

    model = tf.saved_model.load(str(file))
    return lambda images: _from_tensors(model.signatures["serving_default"](image=tf.constant(images)))


def _from_tensors(outputs: Any) -> BatchPrediction:
    return outputs["probabilities"].numpy(), [name.decode() for name in outputs["class"].numpy()]


def _write_tflite(classifier: Classifier, file: Path) -> None:
    file.write_bytes(_tflite(classifier))
    _append_labels(classifier, file)


def _write_tflite_float16(classifier: Classifier, file: Path) -> None:
    """Write a TFLite file of about half the size: large kernels are cast to float16, everything else stays float32.

    Small and depthwise kernels, 5 % of all weights, cause most of the error, because few roundings average out in them:
    casting them too moved probabilities of 200 images by up to 0.020 on EfficientNetB0, leaving them out by 0.003.
    TFLite's own float16 mode also casts biases and the constants of the resize: 0.06. There is no int8 format, because
    even with per-channel scales it moved probabilities by 0.3.
    """
    from ai_edge_quantizer import algorithm_manager, qtyping, quantizer

    half = qtyping.TensorQuantizationConfig(num_bits=16, dtype=qtyping.TensorDataType.FLOAT)
    cast = qtyping.OpQuantizationConfig(
        weight_tensor_config=half, compute_precision=qtyping.ComputePrecision.FLOAT, explicit_dequantize=True
    )
    with tempfile.TemporaryDirectory() as folder:
        float32_file = Path(folder) / "float32.tflite"
        float32_file.write_bytes(_tflite(classifier))
        caster = quantizer.Quantizer(str(float32_file))
        for scope in _large_kernel_scopes(float32_file):
            for operation in (qtyping.TFLOperationName.CONV_2D, qtyping.TFLOperationName.FULLY_CONNECTED):
                caster.update_quantization_recipe(
                    f"^{re.escape(scope)}$", operation, cast, algorithm_manager.AlgorithmName.FLOAT_CASTING
                )
        file.write_bytes(bytes(caster.quantize().quantized_model))
    _append_labels(classifier, file)


def _large_kernel_scopes(file: Path) -> list[str]:
    """Return the quantizer's names of the operations in a TFLite file whose second input, a kernel, is large."""
    from ai_edge_quantizer.utils import tfl_flatbuffer_utils

    return [
        tfl_flatbuffer_utils.get_op_scope(operation, graph.tensors)
        for graph in tfl_flatbuffer_utils.read_model(str(file)).subgraphs
        for operation in graph.operators
        if len(operation.inputs) > 1 and np.prod(graph.tensors[operation.inputs[1]].shape) >= _LARGE_KERNEL
    ]


def _tflite(classifier: Classifier) -> bytes:
    import tensorflow as tf

    return tf.lite.TFLiteConverter.from_concrete_functions([_probabilities_function(classifier)]).convert()


def _append_labels(classifier: Classifier, file: Path) -> None:
    """Append the class names to a TFLite file, as the zip archive that TFLite's metadata uses."""
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr(LABELS_FILE, "\n".join(classifier.class_names))


def _load_tflite(file: Path) -> PredictBatch:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(file))
    # Allocated here, because the first allocation prints to stderr, which `load` silences.
    interpreter.allocate_tensors()
    input_index = interpreter.get_input_details()[0]["index"]
    output_index = interpreter.get_output_details()[0]["index"]
    with zipfile.ZipFile(file) as archive:
        class_names = archive.read(LABELS_FILE).decode().split("\n")

    def predict(images: np.ndarray) -> BatchPrediction:
        interpreter.resize_tensor_input(input_index, images.shape)
        interpreter.allocate_tensors()
        interpreter.set_tensor(input_index, images)
        interpreter.invoke()
        probabilities = interpreter.get_tensor(output_index)
        return probabilities, [class_names[index] for index in probabilities.argmax(axis=1)]

    return predict


def _write_onnx(classifier: Classifier, file: Path) -> None:
    import onnx
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    # Variables are folded first, because the constants that the normalisation captures would become inputs otherwise.
    # Control flow is not lowered, because ONNX has loops too.
    frozen = convert_variables_to_constants_v2(_probabilities_function(classifier), lower_control_flow=False)
    model = to_onnx(frozen, _OPSET)
    _rename_tensors(model.graph, {frozen.inputs[0].name: "image", frozen.outputs[0].name: "probabilities"})
    _add_class_name_output(model.graph, classifier.class_names)
    _set_shape(model.graph.input[0], "b", "h", "w", 3)
    _set_shape(model.graph.output[0], "b", len(classifier.class_names))
    model.metadata_props.add(key="class_names", value=json.dumps(classifier.class_names))
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, str(file))


def _rename_tensors(graph: Any, names: dict[str, str]) -> None:
    """Rename tensors in the inputs and outputs of an ONNX graph, of its nodes, and of the bodies of its loops."""
    for value in [*graph.input, *graph.output, *graph.value_info]:
        value.name = names.get(value.name, value.name)
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _rename_tensors(attribute.g, names)


def _add_class_name_output(graph: Any, class_names: Sequence[str]) -> None:
    """Add the output `class`, [b] text: the name of the most probable class."""
    from onnx import TensorProto, helper

    names: list[Any] = [name.encode() for name in class_names]
    graph.initializer.append(helper.make_tensor("class_names", TensorProto.STRING, [len(names)], names))
    graph.node.append(helper.make_node("ArgMax", ["probabilities"], ["first"], axis=1, keepdims=0))
    graph.node.append(helper.make_node("Gather", ["class_names", "first"], ["class"]))
    graph.output.append(helper.make_tensor_value_info("class", TensorProto.STRING, ["b"]))


def _set_shape(value: Any, *dimensions: str | int) -> None:
    shape = value.type.tensor_type.shape
    del shape.dim[:]
    for dimension in dimensions:
        shape.dim.add(**{"dim_param" if isinstance(dimension, str) else "dim_value": dimension})


def _load_onnx(file: Path) -> PredictBatch:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])

    def predict(images: np.ndarray) -> BatchPrediction:
        probabilities, class_names = session.run(["probabilities", "class"], {"image": images})
        return probabilities, class_names.tolist()

    return predict


def write(name: str, classifier: Classifier, folder: Path) -> Path:
    """Write a network in one of `FORMATS`, without the output of its converter.

    Args:
        name: key of `FORMATS`.
        classifier: the network.
        folder: to write into.

    Returns:
        The path of the written file or folder.
    """
    path = folder / FORMATS[name].file
    for library in ("tensorflow", "tf2onnx", "absl"):
        logging.getLogger(library).setLevel(logging.ERROR)
    with quiet_stderr(), contextlib.redirect_stdout(io.StringIO()):
        FORMATS[name].write(classifier, path)
    return path


def load(name: str, path: Path) -> PredictBatch:
    """Return the prediction function of what `write` wrote to a path."""
    with quiet_stderr():
        return FORMATS[name].load(path)


_TFLITE_USAGE = """from ai_edge_litert.interpreter import Interpreter
interpreter = Interpreter("{file}")                       # class names: unzip -p {file} labels.txt
interpreter.resize_tensor_input(interpreter.get_input_details()[0]["index"], images.shape)
interpreter.allocate_tensors()
interpreter.set_tensor(interpreter.get_input_details()[0]["index"], images)
interpreter.invoke()
probabilities = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])"""

FORMATS = {
    "keras": Format(
        file="model.keras",
        tolerance=FLOAT32_TOLERANCE,
        write=_write_keras,
        load=_load_keras,
        usage="""import keras
outputs = keras.models.load_model("{file}")(images)
probabilities, class_names = outputs["probabilities"], outputs["class"]""",
    ),
    "savedmodel": Format(
        file="savedmodel",
        tolerance=FLOAT32_TOLERANCE,
        write=_write_savedmodel,
        load=_load_savedmodel,
        usage="""import tensorflow as tf
model = tf.saved_model.load("{file}")
outputs = model.signatures["serving_default"](image=tf.constant(images))
probabilities, class_names = outputs["probabilities"], outputs["class"]""",
    ),
    "tflite": Format(
        file="model.tflite",
        tolerance=FLOAT32_TOLERANCE,
        requires=("ai_edge_litert",),
        write=_write_tflite,
        load=_load_tflite,
        usage=_TFLITE_USAGE,
    ),
    "tflite_float16": Format(
        file="model.float16.tflite",
        tolerance=_FLOAT16_TOLERANCE,
        requires=("ai_edge_litert", "ai_edge_quantizer"),
        write=_write_tflite_float16,
        load=_load_tflite,
        usage=_TFLITE_USAGE,
    ),
    "onnx": Format(
        file="model.onnx",
        tolerance=FLOAT32_TOLERANCE,
        requires=("tf2onnx", "onnx", "onnxruntime"),
        write=_write_onnx,
        load=_load_onnx,
        usage="""import onnxruntime
session = onnxruntime.InferenceSession("{file}")
probabilities, class_names = session.run(["probabilities", "class"], {{"image": images}})""",
    ),
}
