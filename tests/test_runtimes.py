"""Runtimes of the frozen part: equal to Keras, deterministic, resumable, chosen as documented, and silent."""

import functools
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dogbreeds.core.errors import UserError
from dogbreeds.core.paths import home
from dogbreeds.data.augment import Plain
from dogbreeds.data.dataset import Source
from dogbreeds.evaluation.metrics import probabilities
from dogbreeds.experiments import runtimes
from dogbreeds.experiments.attempt import execute
from dogbreeds.experiments.automatic_settings import resolve
from dogbreeds.experiments.compose import compose_config, from_config
from dogbreeds.experiments.recorded_runs import Only, open_network
from dogbreeds.experiments.result import Result
from dogbreeds.experiments.run import Run
from dogbreeds.experiments.training_inputs import extract_features
from dogbreeds.features.cache import FeatureCache
from dogbreeds.features.extraction import AugmentedView, DecodedImages, cached_runtimes, compute_features
from dogbreeds.features.features import UNSHARDED, Features, ShardSpec
from dogbreeds.models import runtime as runtime_module
from dogbreeds.models.network import Prefix
from dogbreeds.models.precision import FEATURE_ALLOWANCES, probability_tolerance
from dogbreeds.models.runtime import RuntimeUnavailableError, check_available, compile_engine, has_bfloat16
from dogbreeds.models.strategy import Mirrored
from dogbreeds.tracking.records import Record, RunOrigin
from tests.feature_settings import feature_settings, miniature_data

SIZE = 16
NUM_IMAGES = 90
RUNTIMES = ("openvino", pytest.param("onnxruntime", marks=pytest.mark.slow))
SMALL = (
    "data.classes=4",
    "data.train_per_class=8",
    "data.val_per_class=4",
    "data.test_per_class=4",
    "phase.epochs=2",
    "baseline=none",
    "preflight=none",
)
DATA = miniature_data(9, decoder="tensorflow")


@functools.cache
def graph():
    """Build a small convolutional network, as Keras' backbones are made of."""
    import keras

    keras.utils.set_random_seed(5)
    pixels = keras.Input((SIZE, SIZE, 3))
    outputs = keras.layers.Rescaling(1 / 127.5, -1)(pixels)
    outputs = keras.layers.Conv2D(12, 3, strides=2, padding="same", activation="swish")(outputs)
    outputs = keras.layers.DepthwiseConv2D(3, padding="same")(outputs)
    outputs = keras.layers.BatchNormalization()(outputs)
    return keras.Model(pixels, keras.layers.GlobalAveragePooling2D()(outputs))


@functools.cache
def prefix(runtime: str) -> Prefix:
    return Prefix(graph(), "tiny", runtime=runtime)


def pixels(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)


def settings(place: Path, **changes: object) -> Features:
    return feature_settings(place, **{"batch_size": 8} | changes)


class Images:
    """A source of images in memory, which may be interrupted at one of them."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.stop_at = stop_at
        self.read: list[int] = []
        ids = tuple(str(row) for row in range(NUM_IMAGES))
        self.source = Source("train", np.zeros(NUM_IMAGES, np.int32), ids, ids, "drawn", self._loaders)

    def _loaders(self) -> Iterator[Callable[[], np.ndarray]]:
        return (functools.partial(self._load, row) for row in range(NUM_IMAGES))

    def _load(self, row: int) -> np.ndarray:
        if row == self.stop_at:
            raise KeyboardInterrupt
        self.read.append(row)
        return np.random.default_rng(row).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)

    def decoded(self, place: Path) -> DecodedImages:
        return DecodedImages(self.source, DATA, SIZE, FeatureCache(place, 10**9))


def cached_files(place: Path) -> dict[str, bytes]:
    return {f"{file.parent.name}/{file.name}": file.read_bytes() for file in sorted(place.glob("*/*"))}


# --- what a runtime computes --------------------------------------------------


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_runtime_gives_the_features_of_keras_whatever_the_batches_are(runtime: str) -> None:
    images = pixels(70)
    run = prefix(runtime)
    expected = np.asarray(graph()(images.astype(np.float32), training=False))
    whole = run.compiled(images)
    assert np.abs(whole - expected).mean() <= FEATURE_ALLOWANCES["float32"] * np.abs(expected).mean()
    for size in (1, 7, 32):
        batches = [images[first : first + size] for first in range(0, 70, size)]
        streamed = list(run.stream(batches))
        assert [len(outputs) for outputs in streamed] == [len(batch) for batch in batches]
        assert np.array_equal(np.concatenate(streamed), whole)


def test_openvino_gives_the_same_bits_with_one_request_as_with_many_and_takes_few_batches_ahead() -> None:
    images = pixels(64)
    engine = prefix("openvino").compiled
    expected = engine(images)
    for requests in (1, 3, 9):
        engine._num_requests = requests
        engine._request_images = 4
        taken: list[int] = []
        batches = (taken.append(first) or images[first : first + 4] for first in range(0, 64, 4))
        for number, outputs in enumerate(engine.stream(batches), 1):
            assert len(taken) <= number + requests
            assert np.array_equal(outputs, expected[4 * number - 4 : 4 * number])
    engine.__init__(graph(), "float32")


def test_openvino_uses_the_cores_that_the_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    cores = len(os.sched_getaffinity(0))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert runtime_module._usable_cores() == cores
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    compiled = compile_engine(graph(), "openvino", "float32")._compiled
    assert compiled.get_property("INFERENCE_NUM_THREADS") == 1


def test_engine_stops_if_the_first_features_are_not_those_of_keras(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = compile_engine(graph(), "openvino", "float32")
    computed = engine._compute
    monkeypatch.setattr(engine, "_compute", lambda batches: (1.001 * outputs for outputs in computed(batches)))
    with pytest.raises(
        UserError, match=r"difference is 0\.001\. In float32, 1e-05 .* Type features\.runtime=tensorflow"
    ):
        list(engine.stream([pixels(4)]))
    engine._precision = "bfloat16"
    assert len(list(engine.stream([pixels(4)]))) == 1


def strange_graph():
    """Build a graph with an operation that neither OpenVINO nor ONNX has."""
    import keras
    import tensorflow as tf

    pixels = keras.Input((SIZE, SIZE, 3))
    outputs = keras.layers.Lambda(lambda values: tf.math.igamma(values + 1.0, values + 1.0))(pixels)
    return keras.Model(pixels, keras.layers.GlobalAveragePooling2D()(outputs))


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_graph_that_cannot_be_converted_is_refused_with_the_operation_s_name(runtime: str) -> None:
    with pytest.raises(
        RuntimeUnavailableError, match=rf"^{runtime} cannot convert .*Igamma.*Type features\.runtime=tensorflow\.$"
    ):
        compile_engine(strange_graph(), runtime, "float32")


def test_bfloat16_is_refused_where_the_processor_lacks_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime_module, "has_bfloat16", lambda: False)
    with pytest.raises(RuntimeUnavailableError, match=r"AMX or AVX512-BF16\. Type features\.precision=float32"):
        check_available("openvino", "bfloat16")
    monkeypatch.setattr(runtime_module, "has_bfloat16", lambda: True)
    check_available("openvino", "bfloat16")
    with pytest.raises(RuntimeUnavailableError):
        check_available("onnxruntime", "bfloat16")


def test_bfloat16_of_tensorflow_is_refused_when_it_is_composed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Type features\.runtime=openvino, or features\.precision=float32"):
        settings(tmp_path, precision="bfloat16")


def test_probability_tolerance_follows_the_precision_of_the_features() -> None:
    assert probability_tolerance("float32", "float32") == 1e-4
    assert probability_tolerance("float16", "float32") < probability_tolerance("float32", "bfloat16") < 0.5


def test_openvino_is_imported_without_its_telemetry(tmp_path: Path) -> None:
    code = """
import socket, sys
def refuse(*arguments, **named): raise AssertionError("network")
socket.socket.connect = socket.getaddrinfo = refuse
from dogbreeds.models.runtime import has_bfloat16
has_bfloat16()
telemetry = sys.modules["openvino.tools.ovc.telemetry_utils"].tm.__name__
print(telemetry, "openvino_telemetry" in sys.modules)
"""
    environment = os.environ | {"HOME": str(tmp_path), "PYTHONPATH": str(home())}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=100)
    assert done.stdout.split() == ["openvino.tools.ovc.telemetry_stub", "False"], done.stderr
    # With its telemetry, OpenVINO keeps an id of the user there.
    assert list(tmp_path.iterdir()) == []


# --- promises of the cache ----------------------------------------------------


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("dogbreeds.data.resize.resizer", lambda size, how: lambda image: image)
    yield
    FeatureCache.release()


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("augmented", [False, True], ids=["as they are", "an augmented copy"])
def test_interrupted_pass_resumes_to_the_bytes_of_an_unbroken_one(
    runtime: str, augmented: bool, plain: None, tmp_path: Path
) -> None:
    run = prefix(runtime)
    view = AugmentedView(Plain(), 0, 7, np.arange(3, NUM_IMAGES)) if augmented else None
    for place in ("whole", "again"):
        compute_features(run, Images().decoded(tmp_path / place), settings(tmp_path), view)
    expected = cached_files(tmp_path / "whole")
    assert cached_files(tmp_path / "again") == expected
    assert b'"runtime": "' + runtime.encode() in b"".join(expected.values())
    batches = iter(range(20))

    def interrupted(images: np.ndarray, rows: np.ndarray) -> np.ndarray:
        if next(batches) == 9:
            raise KeyboardInterrupt
        return Plain().apply(images, rows, 0, 7)

    broken = Images(stop_at=None if augmented else 80)
    with pytest.raises(KeyboardInterrupt):
        if view is None:
            compute_features(run, broken.decoded(tmp_path / "cut"), settings(tmp_path))
        else:
            stopping = type("Stopping", (AugmentedView,), {"__call__": lambda self, *given: interrupted(*given)})
            compute_features(
                run,
                broken.decoded(tmp_path / "cut"),
                settings(tmp_path),
                stopping(view.augment, view.copy, view.seed, view.rows),
            )
    unfinished = [info.unfinished for info in FeatureCache(tmp_path / "cut", 1).entries()]
    assert any(state is not None and state[0] > 0 for state in unfinished)
    compute_features(run, Images().decoded(tmp_path / "cut"), settings(tmp_path), view)
    assert cached_files(tmp_path / "cut") == expected


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_shards_give_the_bytes_of_an_unsharded_pass(runtime: str, plain: None, tmp_path: Path) -> None:
    run = prefix(runtime)
    compute_features(run, Images().decoded(tmp_path / "whole"), settings(tmp_path))
    for shard in range(3):
        compute_features(
            run,
            Images().decoded(tmp_path / "shards"),
            settings(tmp_path),
            shard_spec=ShardSpec(shards=3, shard=shard),
        )
    joining = replace(run)
    # What is joined is not computed.
    joining.__dict__["compiled"] = None
    compute_features(joining, Images().decoded(tmp_path / "shards"), settings(tmp_path), shard_spec=UNSHARDED)
    joined, whole = (
        {name: content for name, content in cached_files(tmp_path / place).items() if name.startswith("features")}
        for place in ("shards", "whole")
    )
    assert joined == whole


def test_array_of_another_runtime_is_named_and_not_used(
    plain: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    features = settings(tmp_path)
    plain_prefix, fast = Prefix(graph(), "tiny"), prefix("openvino")
    images = Images()
    compute_features(plain_prefix, images.decoded(tmp_path), features)
    assert cached_runtimes(fast, images.decoded(tmp_path), features) == [("tensorflow", "float32")]
    assert not [message for message in caplog.messages if "tensorflow" in message]
    compute_features(fast, images.decoded(tmp_path), features)
    (line,) = [message for message in caplog.messages if "tensorflow" in message]
    assert "tensorflow computed them in float32" in line
    assert "now openvino computes them in float32" in line
    assert set(cached_runtimes(fast, images.decoded(tmp_path), features)) == {
        ("tensorflow", "float32"),
        ("openvino", "float32"),
    }
    # Decoded once, for both.
    assert sorted(images.read) == list(range(NUM_IMAGES))


def test_features_of_tensorflow_keep_the_name_that_earlier_versions_gave_them(plain: None, tmp_path: Path) -> None:
    compute_features(Prefix(graph(), "tiny"), Images().decoded(tmp_path), settings(tmp_path))
    (identity,) = [info.identity for info in FeatureCache(tmp_path, 1).entries() if "prefix" in info.identity]
    assert set(identity) == {"photos", "size", "resize", "prefix", "dtype", "view"}


# --- which runtime a run has --------------------------------------------------


@functools.cache
def untracked() -> Run:
    return from_config(compose_config("train", ["tracking=none", "tracking.folder=null"]))


def run_with(**features: object) -> Run:
    """Return a run of the default settings, except for those of its features."""
    return replace(untracked(), features=replace(untracked().features, **features))  # type: ignore[arg-type]


def test_key_of_a_run_names_another_runtime_and_precision_only() -> None:
    earlier = run_with(runtime="tensorflow")
    # Recorded by a version that had no runtimes.
    assert earlier.key == "f360958182cbe339"
    assert run_with(runtime="auto").key == earlier.key
    keys = {
        run_with(runtime="openvino").key,
        run_with(runtime="onnxruntime").key,
        run_with(runtime="openvino", precision="bfloat16").key,
        earlier.key,
    }
    assert len(keys) == 4


@pytest.fixture
def hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make OpenVINO impossible to import."""
    monkeypatch.setitem(sys.modules, "openvino", None)


@pytest.mark.parametrize("mirrored", [False, True])
def test_auto_is_tensorflow_without_openvino_and_on_several_devices(
    mirrored: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # Nothing is built for that decision, and no recorded run is looked up.
    monkeypatch.setattr(runtimes, "assemble_network", None)
    if not mirrored:
        monkeypatch.setitem(sys.modules, "openvino", None)
    run = run_with(runtime="auto", precision="auto", dir=str(tmp_path))
    if mirrored:
        run = replace(run, strategy=Mirrored(devices=None))
    resolved, assembly = runtimes.choose(run, None, runtimes.choices(run))  # type: ignore[arg-type]
    assert assembly is None
    assert (resolved.features.runtime, resolved.features.precision) == ("tensorflow", "float32")
    assert resolved.key == run.key


def test_runtime_that_is_asked_for_and_not_installed_is_refused(hidden: None) -> None:
    run = run_with(runtime="openvino")
    with pytest.raises(UserError, match=r"openvino is not installed\. .*pip install 'dogbreeds\[fast\]'"):
        runtimes.choices(run)


def test_bfloat16_that_nothing_computes_is_refused(monkeypatch: pytest.MonkeyPatch, hidden: None) -> None:
    run = run_with(runtime="auto", precision="bfloat16")
    with pytest.raises(UserError, match=r"pip install 'dogbreeds\[fast\]'"):
        runtimes.choices(run)


class Recorded:
    """A dataset and a store with one run."""

    fingerprint = "images"

    def __init__(self, run: Run, runtime: str, status: str) -> None:
        features = replace(run.features, runtime=runtime)
        identity = replace(run, features=features).identity(self.fingerprint)
        self.records = {identity: Record("1", "earlier", 1.0, status, {}, {}, {})}


@pytest.mark.parametrize("runtime", ["tensorflow", "openvino"])
@pytest.mark.parametrize("status", ["KILLED", "FINISHED"])
def test_auto_goes_on_with_the_runtime_of_the_recorded_run(
    runtime: str, status: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(runtimes, "assemble_network", None)
    run = run_with(runtime="auto", dir=str(tmp_path))
    run = replace(run, data=replace(run.data, decoder="pillow"))
    recorded = Recorded(run, runtime, status)
    monkeypatch.setattr(type(run.tracking), "newest_run", lambda self, identity: recorded.records.get(identity))
    resolved, _ = resolve(run, recorded)  # type: ignore[arg-type]
    assert resolved.features.runtime == runtime


# --- whole runs ---------------------------------------------------------------


def execute_in(folder: Path, run: Run) -> Result:
    result = execute(run, RunOrigin("seed: 0\n", (), "an attempt", folder))
    assert isinstance(result, Result)
    return result


def resolved_runtime(run: Run) -> str:
    return resolve(run, run.data.open())[0].features.runtime


@pytest.mark.slow
@pytest.mark.own_cache
def test_auto_takes_openvino_what_is_cached_and_what_a_parent_had_and_a_network_predicts_as_it_was_trained(
    composed: Callable[..., Run], tmp_path: Path
) -> None:
    auto = composed(*SMALL, "features.runtime=auto")
    plain = execute_in(tmp_path, composed(*SMALL, "features.runtime=tensorflow"))
    other = composed(*SMALL, "features.runtime=auto", "optimizer.lr=1e-2")
    # Of another run's settings only the array of TensorFlow is there.
    assert resolved_runtime(other) == "tensorflow"
    assert resolved_runtime(replace(other, features=replace(other.features, dir=str(tmp_path / "empty")))) == "openvino"
    fast = execute_in(tmp_path, replace(auto, features=replace(auto.features, runtime="openvino")))
    tracking = auto.tracking
    record = tracking.record(fast.run_id)
    assert record.params["features.runtime"] == "openvino"
    assert "version.openvino" in record.tags
    assert record.tags["key"] != tracking.record(plain.run_id).tags["key"]
    # Both arrays are there: the faster runtime is taken. The settings of a recorded run are those of the newest.
    assert resolved_runtime(other) == "openvino"
    assert resolved_runtime(auto) == "openvino"
    for parent, runtime in ((plain, "tensorflow"), (fast, "openvino")):
        tuning = composed(*SMALL, "features.runtime=auto", "phase=finetune", f"phase.parent={parent.run_id}")
        assert resolved_runtime(tuning) == runtime
    expected, trained = (probabilities(result.predictions["test"].logits) for result in (plain, fast))
    assert np.abs(trained - expected).max() < probability_tolerance()
    with open_network(tracking, fast.run_id, Only(model=None, data=None)) as (_, classifier, _):
        assert (classifier.runtime, classifier.precision) == ("openvino", "float32")
        images = np.stack([load() for load in auto.data.open().test.source.loaders()])
        assert np.abs(probabilities(classifier.logits(images)) - trained).max() < 1e-6


@pytest.mark.slow
@pytest.mark.own_cache
def test_frozen_part_that_cannot_be_converted_falls_back_with_one_line(
    composed: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*given: object) -> None:
        raise RuntimeUnavailableError("openvino cannot convert the frozen part (Igamma). Type another.")

    monkeypatch.setattr("dogbreeds.models.network.compile_engine", refuse)
    for runtime in ("auto", "openvino"):
        caplog.clear()
        run = composed(*SMALL, f"features.runtime={runtime}", "data.decoder=pillow")
        resolved, assembly = resolve(run, run.data.open())
        assert (resolved.features.runtime, assembly.network.prefix.runtime) == ("tensorflow", "tensorflow")
        assert resolved.key == composed(*SMALL, "features.runtime=tensorflow", "data.decoder=pillow").key
        (line,) = [message for message in caplog.messages if "TensorFlow" in message]
        assert "cannot convert the frozen part (Igamma)" in line
    # In bfloat16 TensorFlow is no substitute.
    monkeypatch.setattr(runtimes, "has_bfloat16", lambda: True)
    precise = replace(run, features=replace(run.features, precision="bfloat16"))
    with pytest.raises(RuntimeUnavailableError):
        resolve(precise, run.data.open())


@pytest.mark.long
@pytest.mark.own_cache
def test_extract_fills_the_arrays_that_a_run_with_the_same_settings_reads(
    composed: Callable[..., Run], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = composed(*SMALL, "features.runtime=auto", "tracking=none", "features.batch_size=8")
    for shard in range(2):
        extract_features(run, ShardSpec(shards=2, shard=shard))
    caplog.set_level(logging.INFO)
    result = execute(run, RunOrigin("seed: 0\n", (), "an attempt", tmp_path))
    assert result.history.best is not None
    assert not [message for message in caplog.messages if "images/s" in message]
    FeatureCache.release()
    arrays = [info.identity for info in run.features.open_cache().entries() if "prefix" in info.identity]
    assert {identity["runtime"] for identity in arrays} == {"openvino"}


def test_processor_with_bfloat16_is_recognised(monkeypatch: pytest.MonkeyPatch) -> None:
    class Core:
        def get_property(self, device: str, name: str) -> list[str]:
            assert (device, name) == ("CPU", "OPTIMIZATION_CAPABILITIES")
            return ["FP32", "BF16"]

    monkeypatch.setattr(runtime_module, "import_openvino", lambda: type("openvino", (), {"Core": Core}))
    assert has_bfloat16()
