"""Benchmark of the verdicts and the preflight: how often they are right on seeded healthy and faulty attempts.

The faults are injected, so the right verdict on an attempt follows from its kind alone. The images are synthetic dogs.
The thresholds were chosen on half of the seeds; the report is on the other half. `make faults` runs it.

python tests/bench/faults.py               # the report, 20 attempts of each kind
python tests/bench/faults.py choose        # the same on the seeds on which thresholds are chosen
python tests/bench/faults.py report 1      # one attempt of each kind
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
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from dogbreeds.core.paths import home
from dogbreeds.core.spec import text
from dogbreeds.data import dataset, drawn_dogs, miniature
from dogbreeds.evaluation.metrics import Proportion
from dogbreeds.evaluation.results import Predictions
from dogbreeds.experiments.attempt import execute
from dogbreeds.experiments.compose import compose_config, from_config
from dogbreeds.experiments.result import Result
from dogbreeds.experiments.run import Run
from dogbreeds.models import head
from dogbreeds.models.preprocessing import MODES
from dogbreeds.tracking.records import Parent, Record, RunOrigin
from dogbreeds.tracking.tracking import Tracker, Tracking
from dogbreeds.training import preflight

HALVES = ("choose", "report")
ORIGIN = RunOrigin("", (), "fault", Path())
SMALL = ("data.classes=60", "phase.epochs=8", "phase.patience_epochs=null")
TUNED = ("data.classes=40", "data.train_per_class=12", "data.test_per_class=25")


# --- injected faults ----------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeadHead(head.MLP):
    """A head whose ReLUs are all dead: their inputs are always negative."""

    def build(self, num_features: int, num_classes: int, seed: int):
        built = super().build(num_features, num_classes, seed)
        built.layers[0].bias.assign(built.layers[0].bias - 1e6)
        return built


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShuffledLabels(miniature.Miniature):
    """Synthetic dogs with a fraction of the training labels permuted.

    Attributes:
        share: fraction of the labels.
        shuffle: seed of the permutation.
    """

    share: float = 1.0
    shuffle: int = 0

    def __post_init__(self) -> None:
        # The fields come from a spec that was checked already.
        pass

    def open(self) -> dataset.Dataset:
        opened = super().open()
        source = opened.train.source
        rng = np.random.default_rng(self.shuffle)
        labels = source.labels.copy()
        permuted = rng.permutation(len(labels))[: round(self.share * len(labels))]
        labels[permuted] = labels[rng.permutation(permuted)]
        return dataclasses.replace(
            opened, train=dataset.Split(dataclasses.replace(source, labels=labels), opened.train.rows)
        )


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of attempt.

    Attributes:
        verdicts: the right verdicts.
        settings: draws overrides from a random generator.
        change: changes the run where no override can, given its seed.
        parent: overrides of the frozen attempt that a fine-tune starts from; None for a frozen attempt.
    """

    verdicts: tuple[str, ...]
    settings: Callable[[np.random.Generator], tuple[str, ...]]
    change: Callable[[Run, int], Run] = lambda run, seed: run
    parent: tuple[str, ...] | None = None


def _unchanged(run: Run) -> Run:
    return run


def _between(rng: np.random.Generator, low: float, high: float) -> str:
    """Draw a number log-uniformly, as text for an override."""
    return f"{np.exp(rng.uniform(np.log(low), np.log(high))):.3g}"


def _odd(rng: np.random.Generator) -> tuple[str, ...]:
    """Draw settings that are unusual, but fine."""
    return [
        ("head=linear", f"optimizer.lr={_between(rng, 3e-3, 1e-2)}"),
        ("head=batchnorm", f"optimizer.lr={_between(rng, 3e-3, 1e-2)}"),
        ("optimizer=sgd", f"optimizer.lr={_between(rng, 1e-2, 5e-2)}"),
        ("phase.batch_size=4", "optimizer.lr=3e-4"),
        ("phase.batch_size=256", "optimizer.lr=3e-3", "phase.epochs=15"),
        ("data.classes=5", "phase.epochs=15"),
        ("data.train_per_class=5", "phase.epochs=20"),
        ("schedule=cosine", "optimizer.lr=2e-3"),
        ("optimizer=rmsprop", f"optimizer.lr={_between(rng, 3e-4, 1e-3)}"),
        ("head.widths=[64]", "head.dropout=0.1"),
    ][rng.integers(10)]


KINDS: dict[str, Kind] = {
    "healthy": Kind(("learned",), lambda rng: (f"optimizer.lr={_between(rng, 3e-4, 2e-3)}",)),
    "healthy, odd settings": Kind(("learned",), _odd),
    "wrong pixels": Kind(
        ("never_learned",), lambda rng: (f"preprocessing={rng.choice(['torch', 'unit', 'tf'])}", "preflight=warn")
    ),
    "rate too high": Kind(
        ("collapsed",),
        lambda rng: (f"optimizer.lr={_between(rng, 8e-3, 1.3e-2)}", "data.classes=120", "phase.epochs=6"),
    ),
    "rate far too high": Kind(("never_learned",), lambda rng: (f"optimizer.lr={_between(rng, 1e-1, 1)}",)),
    "dead head": Kind(
        ("never_learned",), lambda rng: (), lambda run, seed: dataclasses.replace(run, head=_as(DeadHead, run.head))
    ),
    "shuffled labels": Kind(
        ("never_learned",),
        lambda rng: ("head.dropout=0", f"phase.epochs={rng.integers(8, 20)}"),
        lambda run, seed: dataclasses.replace(run, data=_as(ShuffledLabels, run.data, shuffle=seed)),
    ),
    "memorised labels": Kind(
        ("overfitting",),
        lambda rng: (
            f"data.train_per_class={rng.integers(10, 21)}",
            "head.dropout=0",
            "phase.epochs=25",
            f"optimizer.lr={_between(rng, 1e-3, 2e-3)}",
        ),
        lambda run, seed: dataclasses.replace(run, data=_as(ShuffledLabels, run.data, share=0.4, shuffle=seed)),
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
    "fine-tune of an undertrained head": Kind(
        ("better_than_frozen",),
        lambda rng: (f"optimizer.lr={_between(rng, 3e-4, 1e-3)}", "phase.epochs=3"),
        parent=("phase.epochs=2", "optimizer.lr=3e-4"),
    ),
}


def _as(cls: type, spec: Any, **fields: Any) -> Any:
    """Copy a spec to a subclass, with further fields."""
    return cls(**{field.name: getattr(spec, field.name) for field in dataclasses.fields(spec)}, **fields)


# --- attempts -----------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class _FolderTracking(Tracking):
    """Tracking in a folder: a frozen attempt's predictions and head, which a fine-tune needs."""

    folder: str = text(example="path/to/folder")

    @contextlib.contextmanager
    def open(self, origin: RunOrigin, unfinished: Record | None = None) -> Iterator[Tracker]:
        yield _FolderTracker(Path(self.folder))

    def find_parent(self, run_id: str | None, must_match: dict[str, Any], seed: int, folder: Path) -> Parent:
        with np.load(Path(self.folder) / "predictions.npz") as stored:
            predictions = {
                split: Predictions(*(stored[f"{split}_{array}"] for array in ("ids", "labels", "logits")))
                for split in ("val", "test")
            }
        return Parent("parent", Path(self.folder) / "head.weights.h5", 0.0, predictions)


class _FolderTracker(Tracker):
    def __init__(self, folder: Path):
        super().__init__("fault")
        self._folder = folder
        self._arrays: dict[str, np.ndarray] = {}

    def predictions(self, split: str, predictions: Predictions) -> None:
        self._arrays |= {
            f"{split}_ids": np.asarray(predictions.ids),
            f"{split}_labels": predictions.labels,
            f"{split}_logits": predictions.logits,
        }

    def head(self, head) -> None:
        np.savez(self._folder / "predictions.npz", **self._arrays)  # type: ignore[arg-type]
        head.save_weights(self._folder / "head.weights.h5")


def attempt(
    name: str, seed: int, overrides: tuple[str, ...] = (), change: Callable[[Run], Run] = _unchanged
) -> dict[str, Any]:
    """Run one attempt of a kind and return its verdict and curves.

    Args:
        name: key of `KINDS`.
        seed: seed of the attempt, and of the settings that its kind draws.
        overrides: settings that win over those of the kind, for the attempt and for its parent.
        change: changes both runs where no override can.
    """
    kind = KINDS[name]
    rng = np.random.default_rng([seed, list(KINDS).index(name)])
    with tempfile.TemporaryDirectory() as folder:
        if kind.parent is not None:
            _run(("phase=frozen", *TUNED, "phase.patience_epochs=null", *kind.parent, *overrides), seed, folder, change)
            settings = ("phase=finetune", *TUNED, "phase.patience_epochs=null", *kind.settings(rng), *overrides)
        else:
            settings = (*SMALL, *kind.settings(rng), *overrides)
        result = _run(settings, seed, folder, lambda run: kind.change(change(run), seed))
    curves = [dict(epoch.metrics(), n=epoch.val.accuracy.n) for epoch in result.history.epochs]
    return {
        "kind": name,
        "seed": seed,
        "settings": settings,
        "verdict": result.verdict.name,
        "reason": str(result.verdict),
        "numbers": result.verdict.numbers,
        "curves": curves,
    }


def _run(settings: tuple[str, ...], seed: int, folder: str, change: Callable[[Run], Run]) -> Result:
    """Run an attempt from its first epoch: its checkpoints are in `folder`, which has none of an earlier benchmark."""
    run = _composed(
        "tracking=none", "tracking.folder=null", f"seed={seed}", f"checkpoint_dir={folder}/checkpoints", *settings
    )
    result = execute(dataclasses.replace(change(run), tracking=_FolderTracking(folder=folder)), ORIGIN)
    assert isinstance(result, Result)
    return result


def _composed(*settings: str) -> Run:
    """Compose a run from the last setting of each key, since Hydra refuses two options of a group."""
    last = {setting.split("=")[0]: setting for setting in settings}
    return from_config(compose_config("train", list(last.values())))


# --- preflight ----------------------------------------------------------------


BACKBONES = ("miniature", "mobilenetv2", "resnet50")


def backbones(folder: Path, names: Sequence[str] = BACKBONES) -> dict[str, tuple[str, ...]]:
    """Return the settings of backbones whose BatchNorm layers fit synthetic dogs, each in another pixel convention.

    All but the miniature have random weights, which are saved in `folder`; only their running statistics are measured.
    """
    import keras

    keras.utils.set_random_seed(0)
    found: dict[str, tuple[str, ...]] = {"miniature": ()} if "miniature" in names else {}
    for name, architecture, more, mode in (
        ("mobilenetv2", "MobileNetV2", {"alpha": 0.35}, "tf"),
        ("resnet50", "ResNet50", {}, "caffe"),
    ):
        if name not in names:
            continue
        images = np.stack([drawn_dogs.draw("pretrain", breed, 0) for breed in range(192)]).astype(np.float32)
        network = getattr(keras.applications, architecture)(
            include_top=False, weights=None, input_shape=(64, 64, 3), **more
        )
        for layer in network.layers:
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.momentum = 0.0
        network(keras.applications.imagenet_utils.preprocess_input(images, mode=mode), training=True)
        network.save_weights(folder / f"{name}.weights.h5")
        width = (f"model.{key}={value}" for key, value in more.items())
        found[name] = (f"model={name}", *width, "model.image_size=64", f"model.weights={folder}/{name}.weights.h5")
    return found


def preflights(
    seeds: Sequence[int], names: Sequence[str] = BACKBONES, overrides: tuple[str, ...] = ()
) -> list[dict[str, Any]]:
    """Return, for each backbone, sample of images and pixel convention, whether the preflight reports a mismatch."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for (name, settings), seed in itertools.product(backbones(Path(folder), names).items(), seeds):
            rng = np.random.default_rng([seed, 99])
            sample = (f"data.classes={rng.integers(20, 121)}", f"data.train_per_class={rng.integers(2, 21)}")
            run = _composed("tracking=none", "tracking.folder=null", *settings, "data=miniature", *sample, *overrides)
            fit = run.preflight.measure_pixel_fit(
                run.model.build(0), run.data.open(), run.data, run.features.open_cache()
            )
            assert fit is not None
            for mode in MODES:
                mismatch = any(finding.certain for finding in preflight.check_pixels(fit, mode, run.model.pixels))
                found.append(
                    {
                        "backbone": name,
                        "seed": seed,
                        "mode": mode,
                        "right": mode == run.model.pixels,
                        "mismatch": mismatch,
                        **fit.distances,
                    }
                )
    return found


# --- report -------------------------------------------------------------------


def report(results: list[dict[str, Any]], checks: list[dict[str, Any]]) -> str:
    """Format recall and precision of each verdict and of the preflight, with intervals, and every misjudged case."""
    kinds = {result["kind"] for result in results}
    lines = [f"{len(results)} attempts of {len(kinds)} kinds; {len(checks)} preflights", ""]
    lines += ["| verdict | recall | precision |", "| --- | --- | --- |"]
    for verdict in dict.fromkeys(KINDS[result["kind"]].verdicts[0] for result in results):
        relevant = [result for result in results if verdict in KINDS[result["kind"]].verdicts]
        num_given = sum(result["verdict"] == verdict for result in results)
        correct = sum(result["verdict"] == verdict for result in relevant)
        recall, precision = _fraction(correct, len(relevant)), _fraction(correct, num_given)
        lines.append(f"| {verdict.replace('_', ' ')} | {recall} | {precision} |")
    wrong = [check for check in checks if not check["right"]]
    caught = sum(check["mismatch"] for check in wrong)
    reported = sum(check["mismatch"] for check in checks)
    lines.append(f"| preflight: wrong pixels | {_fraction(caught, len(wrong))} | {_fraction(caught, reported)} |")
    misjudged = [result for result in results if result["verdict"] not in KINDS[result["kind"]].verdicts]
    lines += [
        "",
        *(
            f"misjudged: {result['kind']}, seed {result['seed']} ({' '.join(result['settings'])}): {result['reason']}"
            for result in misjudged
        ),
    ]
    lines += [f"misjudged: preflight of {check}" for check in checks if check["mismatch"] == check["right"]]
    first = sum(check[check["mode"]] == min(check[mode] for mode in MODES) for check in checks if check["right"])
    lines.append(f"right convention ranked first: {first} of {sum(check['right'] for check in checks)}")
    return "\n".join(lines)


def _fraction(correct: int, n: int) -> str:
    if not n:
        return "–"
    low, high = Proportion(correct, n).interval
    return f"{correct / n:.2f} ({low:.2f}–{high:.2f}), {correct} of {n}"


def _initialise_process() -> None:
    logging.disable(logging.WARNING)
    import tensorflow as tf

    # One thread each: there are as many processes as cores.
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)


@dataclasses.dataclass(frozen=True)
class Workload:
    """How much is run. `make faults` uses the defaults.

    Attributes:
        each: number of attempts of each kind, and of samples for each backbone.
        kinds: keys of `KINDS`.
        backbones: items of `BACKBONES`.
        overrides: settings that win over all others, in attempts and preflights.
        change: changes every attempt where no override can.
        processes: number of worker processes; 0 runs everything in this process.
    """

    each: int = 20
    kinds: tuple[str, ...] = tuple(KINDS)
    backbones: tuple[str, ...] = BACKBONES
    overrides: tuple[str, ...] = ()
    change: Callable[[Run], Run] = _unchanged
    processes: int = os.cpu_count() or 1


FULL = Workload()


def measure(seeds: Sequence[int], workload: Workload) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Run every kind of attempt, and the preflights, once for each seed."""
    todo = [(name, seed) for seed in seeds for name in workload.kinds]
    if not workload.processes:
        return [attempt(name, seed, workload.overrides, workload.change) for name, seed in todo], preflights(
            seeds, workload.backbones, workload.overrides
        )
    started = time.perf_counter()
    with ProcessPoolExecutor(workload.processes, get_context("spawn"), _initialise_process) as pool:
        checking = pool.submit(preflights, seeds, workload.backbones, workload.overrides)
        futures = [pool.submit(attempt, name, seed, workload.overrides, workload.change) for name, seed in todo]
        results = []
        for number, future in enumerate(futures, 1):
            results.append(future.result())
            if number % (4 * len(workload.kinds)) == 0:
                print(f"{number} of {len(todo)} attempts, {time.perf_counter() - started:.0f} s", flush=True)
        return results, checking.result()


def main(half: str = "report", workload: Workload = FULL, out: Path | None = None) -> dict[str, list[dict[str, Any]]]:
    """Print the report on one half of the seeds, and write down every attempt and preflight.

    Args:
        half: half of the seeds: `choose` for the even ones, `report` for the odd ones.
        workload: how much is run.
        out: file to write; None for one in `multirun/`.
    """
    started = time.perf_counter()
    found = dict(
        zip(("attempts", "preflights"), measure(range(half == "report", 2 * workload.each, 2), workload), strict=True)
    )
    if out is None:
        out = home() / "multirun" / f"faults_{half}{'' if workload == FULL else f'_{workload.each}'}.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(found, indent=1))
    print(
        f"\n{report(found['attempts'], found['preflights'])}\n\n{time.perf_counter() - started:.0f} s; every attempt is"
        f" in {out}"
    )
    return found


def _arguments(typed: list[str]) -> tuple[str, int]:
    """Return the half of the seeds and the number of attempts of each kind that the command line asks for."""
    half, each = (*typed, *("report", str(FULL.each))[len(typed) :])[:2]
    if half not in HALVES:
        sys.exit(
            f"error: {half} is not a half of the seeds. It must be choose or report. Type python tests/bench/faults.py"
            " report."
        )
    if not each.isdecimal() or int(each) < 1:
        sys.exit(
            f"error: {each} attempts of each kind cannot be run. It must be a whole number of 1 or more. Type python"
            f" tests/bench/faults.py {half} 1."
        )
    return half, int(each)


if __name__ == "__main__":
    asked_half, asked_each = _arguments(sys.argv[1:])
    main(asked_half, dataclasses.replace(FULL, each=asked_each))
