"""Runtimes: what computes a network's frozen part. TensorFlow always can; OpenVINO and ONNX Runtime are optional.

A Keras graph is frozen, its weights folded in as constants, and converted. Each image is computed independently of the
others in its batch, and in requests of a fixed number of images, so neither the number of requests at a time nor the
number of threads changes a bit of the result.
"""

import contextlib
import importlib.util
import io
import itertools
import logging
import os
import sys
import tempfile
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dogbreeds.core.console import quiet_stderr
from dogbreeds.core.errors import UserError
from dogbreeds.models.onnx_conversion import to_onnx
from dogbreeds.models.precision import FEATURE_ALLOWANCES

if TYPE_CHECKING:
    import keras

TENSORFLOW = "tensorflow"
OPENVINO = "openvino"
ONNX_RUNTIME = "onnxruntime"
BFLOAT16 = "bfloat16"
# Modules that a runtime needs, and the extra that installs them.
_NEEDS = {
    TENSORFLOW: ((), ""),
    OPENVINO: (("openvino",), "fast"),
    ONNX_RUNTIME: (("onnxruntime", "onnx", "tf2onnx"), "export"),
}
_ONNX_OPSET = 17
# Images of the first batch that Keras computes too.
_COMPARED_IMAGES = 8
# Pixels of an OpenVINO request: eight images at 224 px. Each stream holds the activations of one request.
_REQUEST_PIXELS = 8 * 224 * 224
# Requests for each that is computed at a time: one is computed, and another waits for its turn.
_REQUESTS_PER_STREAM = 2


class RuntimeUnavailableError(UserError):
    """A runtime cannot compute a network on this machine. The first sentence says why."""

    @property
    def reason(self) -> str:
        """The first sentence."""
        return str(self).split(". ")[0]


class Engine:
    """A Keras graph that another runtime than TensorFlow computes. Its first images are compared with Keras.

    Args:
        graph: model with one input, images [b, size, size, 3] in [0, 255], and one output.
        runtime: name of the runtime.
        precision: `float32` or `bfloat16`.
    """

    def __init__(self, graph: "keras.Model", runtime: str, precision: str):
        self._graph = graph
        self._runtime = runtime
        self._precision = precision
        self._is_compared = False

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Compute the outputs of a batch of images."""
        (outputs,) = self.stream([images])
        return outputs

    def stream(self, batches: Iterable[np.ndarray]) -> Generator[np.ndarray, None, None]:
        """Yield the outputs of batches, in order. Few batches are taken before their outputs are.

        Raises:
            UserError: the first outputs differ from Keras' by more than the precision allows.
        """
        remaining = iter(batches)
        if not self._is_compared:
            for first in itertools.islice(remaining, 1):
                self._compare(first[:_COMPARED_IMAGES])
                remaining = itertools.chain([first], remaining)
        yield from self._compute(remaining)

    def _compute(self, batches: Iterator[np.ndarray]) -> Generator[np.ndarray, None, None]:
        raise NotImplementedError

    def _compare(self, images: np.ndarray) -> None:
        (outputs,) = self._compute(iter([images]))
        expected = np.asarray(self._graph(images.astype(np.float32), training=False))
        allowed = FEATURE_ALLOWANCES[self._precision]
        difference = float(np.abs(outputs - expected).mean() / max(np.abs(expected).mean(), np.finfo(np.float32).tiny))
        # Not `>`, which NaN would pass. Features that Keras itself computes as infinite or NaN cannot be compared.
        if not difference <= allowed and np.isfinite(expected).all():
            raise UserError(
                f"{self._runtime} gives other features than Keras for the first images: the relative mean difference is"
                f" {difference:.2g}. In {self._precision}, {allowed:g} is allowed. Type features.runtime=tensorflow"
                " features.precision=float32."
            )
        self._is_compared = True


class OpenVino(Engine):
    """A graph that OpenVINO computes on the CPU, several requests at a time."""

    def __init__(self, graph: "keras.Model", precision: str):
        super().__init__(graph, OPENVINO, precision)
        self._openvino = import_openvino()
        self._request_images = max(1, _REQUEST_PIXELS // graph.input.shape[1] ** 2)
        settings = {
            "PERFORMANCE_HINT": "THROUGHPUT",
            # On a processor with bfloat16 the default is bfloat16.
            "INFERENCE_PRECISION_HINT": "bf16" if precision == BFLOAT16 else "f32",
            "INFERENCE_NUM_THREADS": _usable_cores(),
            # Jobs side by side on one machine would all be pinned to the same cores.
            "ENABLE_CPU_PINNING": False,
        }
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "graph.pb"
            file.write_bytes(freeze(graph).graph.as_graph_def().SerializeToString())
            core = self._openvino.Core()
            try:
                self._compiled = core.compile_model(core.read_model(file), "CPU", settings)
            except RuntimeError as error:
                raise _conversion_error(OPENVINO, error) from error
        optimal = int(self._compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))
        self._num_requests = _REQUESTS_PER_STREAM * optimal

    def _compute(self, batches: Iterator[np.ndarray]) -> Generator[np.ndarray, None, None]:
        outputs: list[np.ndarray] = []
        with contextlib.closing(self._requests(_parts(batches, self._request_images))) as computed:
            for output, ends_batch in computed:
                outputs.append(output)
                if ends_batch:
                    yield np.concatenate(outputs)
                    outputs = []

    def _requests(self, parts: Iterator[tuple[np.ndarray, bool]]) -> Generator[tuple[np.ndarray, bool], None, None]:
        """Yield the output of each part and whether it ends its batch, in order; few parts are computed at a time."""
        idle = [self._compiled.create_infer_request() for _ in range(self._num_requests)]
        # A request reads its images where they are, so they are held until it is done.
        running: deque[tuple[Any, np.ndarray, bool]] = deque()

        def finish_first() -> tuple[np.ndarray, bool]:
            request, _, ends_batch = running[0]
            request.wait()
            output = request.get_output_tensor().data.copy()
            running.popleft()
            idle.append(request)
            return output, ends_batch

        try:
            for part, ends_batch in parts:
                if not idle:
                    yield finish_first()
                request = idle.pop()
                request.set_input_tensor(self._openvino.Tensor(part, shared_memory=True))
                request.start_async()
                running.append((request, part, ends_batch))
            while running:
                yield finish_first()
        finally:
            for request, _, _ in running:
                request.wait()


class OnnxRuntime(Engine):
    """A graph that ONNX Runtime computes on the CPU, in float32."""

    def __init__(self, graph: "keras.Model", precision: str):
        super().__init__(graph, ONNX_RUNTIME, precision)
        import onnx
        import onnxruntime
        from onnxruntime.capi import onnxruntime_pybind11_state as errors

        onnxruntime.disable_telemetry_events()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = _usable_cores()
        try:
            model = _to_onnx(graph)
            onnx.checker.check_model(model)
            self._session = onnxruntime.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except (
            onnx.checker.ValidationError,
            ValueError,
            errors.Fail,
            errors.InvalidGraph,
            errors.NotImplemented,
        ) as error:
            raise _conversion_error(ONNX_RUNTIME, error) from error
        self._input = self._session.get_inputs()[0].name

    def _compute(self, batches: Iterator[np.ndarray]) -> Generator[np.ndarray, None, None]:
        for images in batches:
            (outputs,) = self._session.run(None, {self._input: np.asarray(images, np.float32)})
            yield outputs


def compile_engine(graph: "keras.Model", runtime: str, precision: str) -> Engine:
    """Compile a graph for another runtime than TensorFlow.

    Args:
        graph: as `Engine` takes it.
        runtime: `openvino` or `onnxruntime`.
        precision: `float32` or `bfloat16`.

    Raises:
        RuntimeUnavailableError: the runtime is not installed, cannot convert the graph, or lacks the precision here.
    """
    check_available(runtime, precision)
    return OpenVino(graph, precision) if runtime == OPENVINO else OnnxRuntime(graph, precision)


def is_installed(runtime: str) -> bool:
    """Return whether the modules that a runtime needs are installed."""
    modules, _ = _NEEDS[runtime]
    return all(importlib.util.find_spec(module) is not None for module in modules)


def check_available(runtime: str, precision: str) -> None:
    """Raise `RuntimeUnavailableError` unless this machine has a runtime, and a processor for its precision."""
    if not is_installed(runtime):
        raise RuntimeUnavailableError(
            f"{runtime} is not installed. features.runtime={runtime} needs it. Type pip install"
            f" 'dogbreeds[{_NEEDS[runtime][1]}]', or features.runtime=tensorflow."
        )
    if precision == BFLOAT16 and not (runtime == OPENVINO and has_bfloat16()):
        raise RuntimeUnavailableError(
            f"{runtime} cannot compute in bfloat16 here. features.precision=bfloat16 needs OpenVINO on a processor with"
            " AMX or AVX512-BF16. Type features.precision=float32, or auto to use bfloat16 where a processor has it."
        )


def has_bfloat16() -> bool:
    """Return whether OpenVINO, which must be installed, computes in bfloat16 on this processor."""
    return "BF16" in import_openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def freeze(graph: "keras.Model") -> Any:
    """Return a graph in inference mode as a concrete function of TensorFlow, with its weights folded in as constants.

    Args:
        graph: model with one input and one output.
    """
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    signature = tf.TensorSpec(graph.input.shape, tf.float32)
    concrete = tf.function(lambda images: graph(images, training=False)).get_concrete_function(signature)
    with quiet_stderr():
        return convert_variables_to_constants_v2(concrete)


def import_openvino() -> Any:
    """Import OpenVINO without its telemetry, which by default reports each import over the network.

    While `openvino_telemetry` cannot be imported, OpenVINO takes a stub in its place. What a caller has imported before
    stays as it is; reading and compiling a graph sends nothing.
    """
    hidden = "openvino" not in sys.modules and "openvino_telemetry" not in sys.modules
    if hidden:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    try:
        import openvino
    finally:
        if hidden:
            del sys.modules["openvino_telemetry"]
    return openvino


def _to_onnx(graph: "keras.Model") -> Any:
    """Convert a graph to an ONNX model, without the messages of the converter."""
    for library in ("tensorflow", "tf2onnx", "absl"):
        logging.getLogger(library).setLevel(logging.ERROR)
    with quiet_stderr(), contextlib.redirect_stdout(io.StringIO()):
        return to_onnx(freeze(graph), _ONNX_OPSET)


def _conversion_error(runtime: str, error: Exception) -> RuntimeUnavailableError:
    lines = [line.strip(" -") for line in str(error).splitlines()]
    # OpenVINO names the operations in a line of their own, below many others.
    named = [line for line in lines if "No conversion rule" in line] or [line for line in lines if line] or [""]
    return RuntimeUnavailableError(
        f"{runtime} cannot convert the frozen part ({named[0][:200]}). It must consist of operations that the runtime"
        " knows. Type features.runtime=tensorflow."
    )


def _parts(batches: Iterable[np.ndarray], images: int) -> Iterator[tuple[np.ndarray, bool]]:
    """Split batches into parts of at most this many images, in float32; yield each and whether it ends its batch."""
    for batch in batches:
        for first in range(0, len(batch), images):
            part = np.ascontiguousarray(batch[first : first + images], np.float32)
            yield part, first + images >= len(batch)


def _usable_cores() -> int:
    """Return how many cores this process may use: launchers set an affinity, or OMP_NUM_THREADS."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = os.environ.get("OMP_NUM_THREADS", "")
    return min(cores, int(limit)) if limit.isdecimal() and int(limit) > 0 else cores
