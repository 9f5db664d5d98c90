"""The limit: the bare pass of the fastest engine, in a benchmark loop of its own, over images that are in memory."""

import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dogbreeds.models import runtime
from tests.bench.speed.photos import Setup

if TYPE_CHECKING:
    import keras

_REQUEST_PIXELS = 8 * 224 * 224


def images_per_second(setup: Setup, root: Path, place: Path, seconds: float) -> dict[str, float]:
    """Measure the rate of the frozen part in each engine's own loop.

    Args:
        setup: backbone.
        root: folder of the photos.
        place: empty folder.
        seconds: how long each engine is measured.
    """
    run = setup.compose(root, place)
    size = run.model.image_size
    images = np.random.default_rng(0).uniform(0, 255, (max(1, _REQUEST_PIXELS // size**2), size, size, 3))
    images = images.astype(np.float32)
    graph = run.model.build(0).network
    rates = {"TensorFlow": _tensorflow(graph, images, seconds)}
    if runtime.is_installed(runtime.OPENVINO):
        rates["OpenVINO, float32"] = _openvino(graph, images, seconds, "f32")
        if runtime.has_bfloat16():
            rates["OpenVINO, bfloat16"] = _openvino(graph, images, seconds, "bf16")
    return rates


def _tensorflow(graph: "keras.Model", images: np.ndarray, seconds: float) -> float:
    import tensorflow as tf

    function = runtime.freeze(graph)
    batch = tf.constant(images)
    function(batch)
    count, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        np.asarray(function(batch)[0])
        count += len(images)
    return count / (time.perf_counter() - started)


def _openvino(graph: "keras.Model", images: np.ndarray, seconds: float, precision: str) -> float:
    openvino = runtime.import_openvino()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "graph.pb"
        file.write_bytes(runtime.freeze(graph).graph.as_graph_def().SerializeToString())
        settings = {"PERFORMANCE_HINT": "THROUGHPUT", "INFERENCE_PRECISION_HINT": precision}
        compiled = openvino.Core().compile_model(openvino.Core().read_model(file), "CPU", settings)
    queue = openvino.AsyncInferQueue(compiled)
    queue.start_async({0: images})
    queue.wait_all()
    count, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        queue.start_async({0: images})
        count += len(images)
    queue.wait_all()
    return count / (time.perf_counter() - started)
