"""How often the diagnosis is right: seeded healthy and faulty attempts on drawn dogs, and the verdict on each. `make faults` runs it.

Half of the seeds is for choosing thresholds (`python tests/bench/faults.py choose`), the other half for the report, which nothing was chosen on.
What is wrong with an attempt is known because it was put there; the verdict that it must get follows from its kind alone.
"""

import contextlib
import dataclasses
import itertools
import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from dogbreeds import command, data, head, miniature, preflight
from dogbreeds.attempt import Result, execute
from dogbreeds.metrics import Proportion
from dogbreeds.preprocessing import MODES
from dogbreeds.record import Composition, Parent, Predictions
from dogbreeds.run import Run, from_config
from dogbreeds.spec import home
from dogbreeds.tracking import Tracker, Tracking

EACH = 20  # attempts of a kind in each half
COMPOSITION = Composition("", (), "fault", Path())
SMALL = ("data.breeds=60", "phase.epochs=8", "phase.patience_epochs=null")
TUNED = ("data.breeds=40", "data.train_per_breed=12", "data.test_per_breed=25")


# --- what is put wrong --------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dead(head.MLP):
    """A head whose ReLUs never answer."""

    def build(self, features: int, classes: int, seed: int):
        built = super().build(features, classes, seed)
        built.layers[0].bias.assign(built.layers[0].bias - 1e6)
        return built


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shuffled(data.Miniature):
    """Photos of which a share has the training labels of others."""

    share: float = 1.0
    shuffle: int = 0

    def __post_init__(self) -> None:
        pass  # made of one that was checked

    def open(self) -> data.Dataset:
        opened = super().open()
        source = opened.train.source
        rng = np.random.default_rng(self.shuffle)
        labels, moved = source.labels.copy(), rng.permutation(len(source.labels))[: round(self.share * len(source.labels))]
        labels[moved] = labels[rng.permutation(moved)]
        return dataclasses.replace(opened, train=data.Split(dataclasses.replace(source, labels=labels), opened.train.rows))


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of attempt.

    Attributes:
        verdicts: those that are right.
        settings: overrides, from a source of random numbers.
        change: what no override can do.
        parent: overrides of the frozen attempt that a fine-tune goes on from; None for a frozen attempt.
    """

    verdicts: tuple[str, ...]
    settings: Callable[[np.random.Generator], tuple[str, ...]]
    change: Callable[[Run, int], Run] = lambda run, seed: run
    parent: tuple[str, ...] | None = None


def _between(rng: np.random.Generator, low: float, high: float) -> str:
    return f"{np.exp(rng.uniform(np.log(low), np.log(high))):.3g}"


def _odd(rng: np.random.Generator) -> tuple[str, ...]:
    """Settings that are unusual, and fine."""
    return [
        ("head=linear", f"optimizer.lr={_between(rng, 3e-3, 1e-2)}"),
        ("head=batchnorm", f"optimizer.lr={_between(rng, 3e-3, 1e-2)}"),
        ("optimizer=sgd", f"optimizer.lr={_between(rng, 1e-2, 5e-2)}"),
        ("phase.batch_size=4", "optimizer.lr=3e-4"),
        ("phase.batch_size=256", "optimizer.lr=3e-3", "phase.epochs=15"),
        ("data.breeds=5", "phase.epochs=15"),
        ("data.train_per_breed=5", "phase.epochs=20"),
        ("schedule=cosine", "optimizer.lr=2e-3"),
        ("optimizer=rmsprop", f"optimizer.lr={_between(rng, 3e-4, 1e-3)}"),
        ("head.widths=[64]", "head.dropout=0.1"),
    ][rng.integers(10)]


KINDS: dict[str, Kind] = {
    "healthy": Kind(("learned",), lambda rng: (f"optimizer.lr={_between(rng, 3e-4, 2e-3)}",)),
    "healthy, odd settings": Kind(("learned",), _odd),
    "wrong pixels": Kind(("never_learned",), lambda rng: (f"preprocessing={rng.choice(['torch', 'unit', 'tf'])}", "preflight=warn")),
    "rate too high": Kind(("collapsed",), lambda rng: (f"optimizer.lr={_between(rng, 8e-3, 1.3e-2)}", "data.breeds=120", "phase.epochs=6")),
    "rate far too high": Kind(("never_learned",), lambda rng: (f"optimizer.lr={_between(rng, 1e-1, 1)}",)),
    "dead head": Kind(("never_learned",), lambda rng: (), lambda run, seed: dataclasses.replace(run, head=_as(Dead, run.head))),
    "shuffled labels": Kind(
        ("never_learned",),
        lambda rng: ("head.dropout=0", f"phase.epochs={rng.integers(8, 20)}"),
        lambda run, seed: dataclasses.replace(run, data=_as(Shuffled, run.data, shuffle=seed)),
    ),
    "learned by heart": Kind(
        ("overfitting",),
        lambda rng: (
            f"data.train_per_breed={rng.integers(10, 21)}",
            "head.dropout=0",
            "phase.epochs=25",
            f"optimizer.lr={_between(rng, 1e-3, 2e-3)}",
        ),
        lambda run, seed: dataclasses.replace(run, data=_as(Shuffled, run.data, share=0.4, shuffle=seed)),
    ),
    "not a number": Kind(("diverged",), lambda rng: ("optimizer=sgd", f"optimizer.lr={_between(rng, 1e6, 1e30)}")),
    "fine-tune, tiny batches, BatchNorm trainable": Kind(
        ("worse_than_frozen",),
        lambda rng: (
            "phase.batch_size=2",
            f"optimizer.lr={_between(rng, 5e-4, 2e-3)}",
            "unfreeze.layers=50",
            "unfreeze.batchnorm=trainable",
            "phase.epochs=1",
        ),
        parent=("phase.epochs=10",),
    ),
    "fine-tune that changes nothing": Kind(
        ("no_better_than_frozen",),
        lambda rng: (f"optimizer.lr={_between(rng, 1e-8, 1e-6)}", "phase.epochs=2"),
        parent=("phase.epochs=10",),
    ),
    "fine-tune of a head that was not done": Kind(
        ("better_than_frozen",),
        lambda rng: (f"optimizer.lr={_between(rng, 3e-4, 1e-3)}", "phase.epochs=3"),
        parent=("phase.epochs=2", "optimizer.lr=3e-4"),
    ),
}


def _as(kind: type, spec: Any, **more: Any) -> Any:
    return kind(**{field.name: getattr(spec, field.name) for field in dataclasses.fields(spec)}, **more)


# --- one attempt --------------------------------------------------------------------------------------------------------


class _Remembered(Tracking):
    """Keeps of a frozen attempt what a fine-tune needs, in a folder."""

    folder = Path(tempfile.gettempdir())

    @contextlib.contextmanager
    def open(self, composition: Composition) -> Iterator[Tracker]:
        yield _Remembering(self.folder)

    def parent(self, wanted, alike, seed, folder) -> Parent:
        with np.load(self.folder / "said.npz") as stored:
            said = {split: Predictions(*(stored[f"{split}_{what}"] for what in ("ids", "labels", "logits"))) for split in ("val", "test")}
        return Parent("parent", self.folder / "head.weights.h5", 0.0, said)


class _Remembering(Tracker):
    def __init__(self, folder: Path):
        super().__init__("fault")
        self._folder, self._said = folder, dict[str, np.ndarray]()

    def predictions(self, split: str, said: Predictions) -> None:
        self._said |= {f"{split}_ids": np.asarray(said.ids), f"{split}_labels": said.labels, f"{split}_logits": said.logits}

    def head(self, head) -> None:
        np.savez(self._folder / "said.npz", **self._said)
        head.save_weights(self._folder / "head.weights.h5")


def attempt(name: str, seed: int) -> dict[str, Any]:
    """The verdict on one attempt of a kind, with its curves."""
    kind = KINDS[name]
    rng = np.random.default_rng([seed, list(KINDS).index(name)])
    with tempfile.TemporaryDirectory() as folder:
        _Remembered.folder = Path(folder)
        if kind.parent is not None:
            _run(("phase=frozen", *TUNED, "phase.patience_epochs=null", *kind.parent), seed)
            settings = ("phase=finetune", *TUNED, "phase.patience_epochs=null", *kind.settings(rng))
        else:
            settings = (*SMALL, *kind.settings(rng))
        result = _run(settings, seed, lambda run: kind.change(run, seed))
    curves = [dict(epoch.metrics(), n=epoch.val.accuracy.n) for epoch in result.outcome.epochs]
    return {
        "kind": name,
        "seed": seed,
        "settings": settings,
        "verdict": result.verdict.name,
        "reason": str(result.verdict),
        "numbers": result.verdict.numbers,
        "curves": curves,
    }


def _run(settings: tuple[str, ...], seed: int, change: Callable[[Run], Run] = lambda run: run) -> Result:
    last = {setting.split("=")[0]: setting for setting in settings}  # Hydra refuses two options of a group
    run = from_config(command.composed("train", ["tracking=none", f"seed={seed}", *last.values()]))
    result = execute(dataclasses.replace(change(run), tracking=_Remembered()), COMPOSITION)
    assert isinstance(result, Result)
    return result


# --- the preflight ------------------------------------------------------------------------------------------------------


def backbones(folder: Path) -> dict[str, tuple[str, ...]]:
    """Three backbones that remember drawn dogs in three conventions; of two the weights are random and only the memory is real."""
    import keras

    keras.utils.set_random_seed(0)
    photos = np.stack([miniature.draw("pretrain", breed, 0) for breed in range(192)]).astype(np.float32)
    for name, architecture, more, mode in (("mobilenetv2", "MobileNetV2", {"alpha": 0.35}, "tf"), ("resnet50", "ResNet50", {}, "caffe")):
        network = getattr(keras.applications, architecture)(include_top=False, weights=None, input_shape=(64, 64, 3), **more)
        for layer in network.layers:
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.momentum = 0.0
        network(keras.applications.imagenet_utils.preprocess_input(photos.copy(), mode=mode), training=True)
        network.save_weights(folder / f"{name}.weights.h5")
    return {
        "miniature": (),
        "mobilenetv2": ("model=mobilenetv2", "model.alpha=0.35", "model.image_size=64", f"model.weights={folder}/mobilenetv2.weights.h5"),
        "resnet50": ("model=resnet50", "model.image_size=64", f"model.weights={folder}/resnet50.weights.h5"),
    }


def preflights(seeds: list[int]) -> list[dict[str, Any]]:
    """Of each backbone, each sample of photos and each convention: whether the preflight took it for a mismatch."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for (name, settings), seed in itertools.product(backbones(Path(folder)).items(), seeds):
            rng = np.random.default_rng([seed, 99])
            sample = (f"data.breeds={rng.integers(20, 121)}", f"data.train_per_breed={rng.integers(2, 21)}")
            run = from_config(command.composed("train", ["tracking=none", *settings, "data=miniature", *sample]))
            fit = run.preflight.fit(run.model.build(0), run.data.open(), run.data, run.features.store())
            assert fit is not None
            for mode in MODES:
                clear = any(finding.clear for finding in preflight.judge(fit, mode, run.model.pixels))
                found.append({"backbone": name, "seed": seed, "mode": mode, "right": mode == run.model.pixels, "mismatch": clear, **fit.distances})
    return found


# --- the report ---------------------------------------------------------------------------------------------------------


def report(results: list[dict[str, Any]], checks: list[dict[str, Any]]) -> str:
    """Recall and precision of each verdict and of the preflight, with intervals, and what was wrong."""
    lines = [f"{len(results)} attempts of {len(KINDS)} kinds; {len(checks)} preflights", ""]
    lines += ["| verdict | recall | precision |", "| --- | --- | --- |"]
    for verdict in dict.fromkeys(KINDS[result["kind"]].verdicts[0] for result in results):
        those = [result for result in results if verdict in KINDS[result["kind"]].verdicts]
        said = [result for result in results if result["verdict"] == verdict]
        right = sum(result["verdict"] == verdict for result in those)
        lines.append(f"| {verdict.replace('_', ' ')} | {_share(right, len(those))} | {_share(right, len(said))} |")
    wrong = [check for check in checks if not check["right"]]
    caught = sum(check["mismatch"] for check in wrong)
    refused = sum(check["mismatch"] for check in checks)
    lines.append(f"| preflight: wrong pixels | {_share(caught, len(wrong))} | {_share(caught, refused)} |")
    misjudged = [result for result in results if result["verdict"] not in KINDS[result["kind"]].verdicts]
    lines += [
        "",
        *(f"misjudged: {result['kind']}, seed {result['seed']} ({' '.join(result['settings'])}): {result['reason']}" for result in misjudged),
    ]
    lines += [f"misjudged: preflight of {check}" for check in checks if check["mismatch"] == check["right"]]
    first = sum(check[check["mode"]] == min(check[mode] for mode in MODES) for check in checks if check["right"])
    lines.append(f"right convention ranked first: {first} of {sum(check['right'] for check in checks)}")
    return "\n".join(lines)


def _share(right: int, n: int) -> str:
    if not n:
        return "–"
    low, high = Proportion(right, n).interval
    return f"{right / n:.2f} ({low:.2f}–{high:.2f}), {right} of {n}"


def _prepare() -> None:
    logging.disable(logging.WARNING)
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)  # as many processes as cores
    tf.config.threading.set_inter_op_parallelism_threads(1)


def main() -> None:
    half = sys.argv[1] if len(sys.argv) > 1 else "report"
    if half not in ("choose", "report"):
        sys.exit(f"error: {half} is not a half of the seeds. It must be choose or report. Type python tests/bench/faults.py report.")
    started = time.perf_counter()
    seeds = list(range(half == "report", 2 * EACH, 2))  # the even ones choose, the odd ones report
    todo = [(name, seed) for seed in seeds for name in KINDS]
    with ProcessPoolExecutor(os.cpu_count() or 1, get_context("spawn"), _prepare) as pool:
        checking = pool.submit(preflights, seeds)
        futures = [pool.submit(attempt, name, seed) for name, seed in todo]
        results = []
        for number, future in enumerate(futures, 1):
            results.append(future.result())
            if number % (4 * len(KINDS)) == 0:
                print(f"{number} of {len(todo)} attempts, {time.perf_counter() - started:.0f} s", flush=True)
        checks = checking.result()
    out = home() / "multirun" / f"faults_{half}.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps({"attempts": results, "preflights": checks}, indent=1))
    print(f"\n{report(results, checks)}\n\n{time.perf_counter() - started:.0f} s; every attempt is in {out}")


if __name__ == "__main__":
    main()
