"""Benchmarks on tiny inputs: each runs to its end and reports what it ran. No test checks how long it takes."""

import contextlib
import dataclasses
import json
import os
import re
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from dogbreeds.experiments.run import Run
from dogbreeds.models.model import Model
from dogbreeds.models.preprocessing import MODES
from dogbreeds.tracking.logged_model import ServingLimits
from tests.bench import fuzz, grid, memory, predict, serve
from tests.bench.faults import pixels
from tests.bench.faults import study as faults
from tests.bench.faults.backbones import Backbone, backbones
from tests.bench.faults.collect import read_lines
from tests.bench.speed import gpu
from tests.bench.speed import study as speed
from tests.bench.speed.__main__ import main as measure_speed
from tests.bench.speed.photos import Setup
from tests.bench.speed.ways import KerasExample, Ours, PredictThenFit, Torch
from tests.tiny_network import save_tiny

if TYPE_CHECKING:
    import keras

MINIATURE = ("model=miniature",)
Change = Callable[[Run], Run]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Small(Model):
    """A backbone of 22 plain layers, which TensorFlow traces many times faster than the miniature."""

    def construct(self, weights: str | None, top: bool = False) -> "keras.Model":
        import keras

        images = keras.Input((self.image_size, self.image_size, 3))
        outputs = images
        for block in range(7):
            outputs = keras.layers.Conv2D(
                4, 3, strides=2 if block < 3 else 1, padding="same", name=f"block{block}_conv"
            )(outputs)
            outputs = keras.layers.BatchNormalization(name=f"block{block}_bn")(outputs)
            outputs = keras.layers.ReLU(name=f"block{block}_relu")(outputs)
        return keras.Model(images, outputs)


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Change]:
    """A function that gives a run the small backbone, with random weights from a file, without the preflight.

    Functions run eagerly during the test, because tracing them would take most of its time.
    """
    import tensorflow as tf

    settings = {"architecture": "Miniature", "image_size": 64, "pixels": "raw"}
    file = tmp_path / "small.weights.h5"
    Small(weights=None, **settings).construct(None).save_weights(file)
    model = Small(weights=str(file), **settings)
    tf.config.run_functions_eagerly(True)
    yield lambda run: dataclasses.replace(run, model=model, preflight=dataclasses.replace(run.preflight, action="none"))
    tf.config.run_functions_eagerly(False)


@pytest.fixture(autouse=True)
def _drawn_photos(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep benchmarks from real photos, which some of them take where there are any."""
    monkeypatch.delenv("DOGBREEDS_REAL_DATA", raising=False)


def _numbers(line: str) -> list[float]:
    return [float(number) for number in re.findall(r"\d+\.\d+", line)]


@pytest.mark.long
def test_faults_judges_every_kind_as_expected(
    small: Change, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DOGBREEDS_CACHE", str(tmp_path / "cache"))
    expected = {"not a number": "diverged", "fine-tune that changes nothing": "no_better_than_frozen"}
    tiny = ("data.classes=3", "data.train_per_class=8", "phase.epochs=2")
    workload = faults.Workload(
        draws=1, classes=2, kinds=tuple(expected), each=1, overrides=tiny, change=small, workers=0
    )
    study = faults.Study({"miniature": backbones()["miniature"]}, workload, tmp_path / "out")
    # The miniature's BatchNorm statistics are real; the runs are on the small backbone.
    monkeypatch.setattr(pixels, "SAMPLES", 1)
    study.run("pixels")
    composed = Backbone.run
    monkeypatch.setattr(
        Backbone,
        "run",
        lambda self, *overrides: dataclasses.replace(
            run := composed(self, *overrides), model=small(run).model, preflight=run.preflight
        ),
    )
    for step in ("collect", "kinds", "report"):
        study.run(step)
    said = capsys.readouterr().out
    attempts = json.loads((tmp_path / "out/kinds.json").read_text())
    assert {attempt["kind"]: attempt["verdict"] for attempt in attempts} == expected
    assert all(f"| {verdict.replace('_', ' ')} | 1.00 (" in said for verdict in expected.values())
    assert "misjudged" not in said
    # Native pixels are accepted and the other conventions refused, each a pair of backbone and convention.
    assert f"wrong pixels refused: {len(MODES) - 1} of {len(MODES) - 1} " in said
    assert "right pixels accepted: 1 of 1 " in said
    lines = read_lines(tmp_path / "out")
    assert [(line["seed"], line["run"]) for line in lines] == [(1, run) for run in range(4)]
    assert "4 runs on 1 backbones: miniature" in said
    for line in lines:
        assert len(line["epochs"]) >= 1
        assert set(line["right"]) == set(line["probe"]) == set(line["n"]) - {"train"}


@pytest.mark.long
def test_memory_measures_the_peak_of_an_attempt(capsys: pytest.CaptureFixture[str]) -> None:
    cheap = ("model=mobilenetv2", "model.alpha=0.35", "model.image_size=32", "model.weights=null", "preflight=none")
    peaks = memory.main(memory.FEWEST, times=(1,), model=cheap)
    assert list(peaks) == [memory.FEWEST]
    assert 100 < peaks[memory.FEWEST] < 10_000
    assert capsys.readouterr().out.split() == [
        str(memory.FEWEST),
        "images:",
        "peak",
        f"{peaks[memory.FEWEST]:,}",
        "MiB",
    ]


@pytest.mark.parametrize("typed", ["59", "few"])
def test_memory_command_line_refuses_photos_that_cannot_be_split(typed: str) -> None:
    with pytest.raises(SystemExit, match=f"error: {typed} images .*Type python tests/bench/memory.py 60"):
        memory._arguments([typed])


def test_grid_costs_every_kind(small: Change, capsys: pytest.CaptureFixture[str]) -> None:
    kinds = grid.KINDS[:2]
    grid.main(grid.Workload(model=MINIATURE, change=small, kinds=kinds, batch=2, rounds=1, head_images=64))
    said = capsys.readouterr().out
    (head,) = re.findall(r"head's step on this machine, per image: (\S+) ms", said)
    assert float(head) > 0
    shares = {kind.name: float(re.findall(rf"{kind.name}, {kind.epochs} epochs: (\S+) %", said)[0]) for kind in kinds}
    frozen, top_20 = shares.values()
    assert frozen == 0
    assert 0 < top_20 <= 100
    rows = [line for line in said.splitlines() if line.count("|") == 2 and "runs" not in line]
    assert len(rows) == len(kinds) * len(grid.NUM_RUNS)
    assert all(number > 0 for row in rows for number in _numbers(row.rpartition("|")[2]))


@pytest.mark.slow
def test_speed_measures_every_way_and_resumes(
    small: Change, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    setup = Setup("small", (*MINIATURE, "model.weights=null"), classes=3, each=(3, 6), epochs=3, change=small)
    plans = [speed.Plan(setup, sweep=(2, 1), finetunes=1, costly_epochs=2, limit_seconds=0.1)]
    compared = [KerasExample(), PredictThenFit(), Ours("tensorflow"), Ours("openvino", "bfloat16"), Torch()]
    study = measure_speed(plans, tmp_path / "bench.json", ways=compared)
    said = capsys.readouterr().out
    rows = {line.split(" | ")[0]: line for line in reversed(said.splitlines())}
    # Two runs on 9 photos are measured, the third and fourth follow from the second; epochs of `fit` from the second.
    for way, extrapolated in zip(compared[:3], (6, 3, 4), strict=True):
        assert rows[f"| {way.name}"].count("~") == extrapolated, way.name
    assert "torch is not installed" in said
    assert study.cost(plans[0], compared[2], "runs", 9, 1).is_measured
    with open(tmp_path / "bench.json") as file:
        measured = json.load(file)["measured"]
    assert measured == study.measured
    assert (tmp_path / "bench.svg").stat().st_size > 10_000
    # What is there is not measured again.
    del measured[next(name for name in measured if "dogbreeds" in name and "18 photos" in name)]
    (tmp_path / "bench.json").write_text(json.dumps({"measured": measured}))
    others = measure_speed(plans, tmp_path / "bench.json", resume=True, ways=compared, words=["Keras", "bfloat16"])
    assert others.measured == measured
    again = measure_speed(plans, tmp_path / "bench.json", resume=True, ways=compared)
    assert again.measured.keys() == study.measured.keys()
    assert sum(again.measured[name] != value for name, value in study.measured.items()) == 1


@pytest.mark.long
def test_gpu_checks_hold_on_a_processor(small: Change, capsys: pytest.CaptureFixture[str]) -> None:
    setup = Setup("small", (*MINIATURE, "model.weights=null"), classes=3, each=(3, 6), epochs=2, change=small)
    gpu.main(setup)
    said = capsys.readouterr().out.splitlines()
    assert "no GPU" in said[0]
    assert [line.endswith(": ok") for line in said[1:5]] == [True] * 4
    assert re.match(r"peak memory [\d,]+ MiB, [+-]", said[5])


@pytest.mark.long
def test_predict_measures_rates_and_the_peak(small: Change, capsys: pytest.CaptureFixture[str]) -> None:
    peaks = predict.main("miniature", predict.Workload(images=6, rounds=2, peaks=(4,), change=small))
    said = capsys.readouterr().out
    assert list(peaks) == [4]
    assert 100 < peaks[4] < 10_000
    assert f"4 images: peak {peaks[4]:,} MiB" in said
    assert "6 images of 64 px, network of 64 px" in said
    for way in (predict.NETWORK, predict.CORE, predict.PREDICT):
        rates = [_numbers(line) for line in said.splitlines() if line.startswith(way)]
        assert all(len(line) == 3 and min(line) > 0 for line in rates)
        assert len(rates) == (1 if way == predict.PREDICT else 3)


@contextlib.contextmanager
def serve_here(uri: str, model_id: str) -> Iterator[serve.Served]:
    """Serve a logged model in a thread of this process, which has imported all that another would have to."""
    import mlflow
    import uvicorn
    from mlflow.pyfunc import scoring_server

    path = sys.path
    app = scoring_server.init(mlflow.pyfunc.load_model(f"models:/{model_id}"))
    sys.path = path
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        # Here, not only in the thread: a request that comes before the thread listens would be refused.
        listening.listen()
        # A configuration of logging would close the handlers of other libraries, and with them pytest's streams.
        server = uvicorn.Server(uvicorn.Config(app, log_config=None))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield serve.Served(f"http://127.0.0.1:{listening.getsockname()[1]}", os.getpid())
        finally:
            server.should_exit = True
            thread.join()


def test_serve_measures_answers_and_refusals(
    tmp_path: Path, empty_store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_tiny(tmp_path / "tiny.keras", classes=3)
    limits = ServingLimits(max_images=5, max_megapixels=2)
    workload = serve.Workload(images=5, clients=3, rounds=2, records=6, bombs=3, bomb_side=1_000, limits=limits)
    found = serve.main(str(tmp_path / "tiny.keras"), workload, serve_here, empty_store)
    said = capsys.readouterr().out
    assert all(value > 0 for value in found.values())
    assert {name: value for name, value in found.items() if name.startswith("status/")} == {
        "status/6 images": 400,
        "status/3 black images of 1 megapixels": 400,
    }
    assert "5 images in one request, 0 MiB: " in said
    assert "3 requests at once, 2 times: " in said
    assert "At most 5 are allowed in one request" in said
    assert "more than 2 megapixels, up to Image 3 of 3" in said
    assert 100 < found["memory/one request"] <= found["memory/at once"] < 20_000


def test_fuzz_reports_every_kind_and_no_crash(capsys: pytest.CaptureFixture[str]) -> None:
    count = 2 * len(fuzz.KINDS)
    report = fuzz.main(count, seed=0)
    said = capsys.readouterr().out
    assert (report.crashes, report.hangs, report.writes) == ([], [], [])
    assert report.read + report.refused == count
    assert all(sum(report.outcomes[kind].values()) == 2 for kind in fuzz.KINDS)
    assert all(f"| {kind} |" in said for kind in fuzz.KINDS)
    assert 0 < report.peak < 10_000
