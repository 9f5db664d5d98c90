"""Train the runs of the study, and write down one line for each, from which any verdict can be judged later.

A line is a JSON object: backbone, seed, what was drawn, settings, curves, and which images the run, the reference probe
and the truth classify correctly.
"""

import dataclasses
import functools
import json
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from dogbreeds.core.files import output_stream
from dogbreeds.data.dataset import Dataset, Source, Split
from dogbreeds.evaluation.reference_probe import fit_probe, left_out_images
from dogbreeds.experiments.isolation import process_state_restored
from dogbreeds.experiments.run import Run
from dogbreeds.features.cache import FeatureCache
from dogbreeds.training.preflight import check_pixels
from tests.bench.faults import truth
from tests.bench.faults.backbones import CLASSES, Backbone, open_images
from tests.bench.faults.draws import CASES, DataDraw, draw_data, draw_settings
from tests.bench.faults.pixels import measure_fit

Line = dict[str, Any]
RUNS_PER_DRAW = 4
# Data sets of a worker process before it is replaced, which frees the memory of its networks.
_DRAWS_PER_PROCESS = 12


@dataclasses.dataclass(frozen=True)
class Job:
    """A data set of the study, and the runs on it.

    Attributes:
        backbone: pretrained backbone.
        seed: of the draws.
        case: key of `CASES`; empty for the random search.
        runs: numbers of the runs, for the random search.
        classes: classes that there are to draw from.
    """

    backbone: Backbone
    seed: int
    case: str = ""
    runs: tuple[int, ...] = tuple(range(RUNS_PER_DRAW))
    classes: int = CLASSES

    @property
    def draw(self) -> DataDraw:
        """What its data set is like."""
        if self.case:
            return CASES[self.case][0]
        return draw_data(self.seed, self.backbone.run().model.pixels, self.classes)

    @property
    def keys(self) -> set[tuple[Any, ...]]:
        """What names each line of the job."""
        return {(self.backbone.name, self.seed, self.case, run) for run in self.runs}


def line_key(line: Line) -> tuple[Any, ...]:
    """Return what names a line."""
    return line["backbone"], line["seed"], line["case"], line["run"]


def read_lines(path: Path) -> list[Line]:
    """Read all complete lines of a file, or of every `.jsonl` file of a folder."""
    files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path] if path.exists() else []
    texts = [text for file in files for text in file.read_text().splitlines(keepends=True)]
    # A process that was killed may have left half a line.
    return [json.loads(text) for text in texts if text.endswith("\n")]


def collect(jobs: Sequence[Job], out: Path, workers: int) -> None:
    """Train the runs that `out` lacks, and append a line for each.

    Args:
        jobs: to do, in this order.
        out: file of lines; an earlier one is continued.
        workers: worker processes; 0 trains in this one.
    """
    done = {line_key(line) for line in read_lines(out)}
    todo = [
        dataclasses.replace(job, runs=tuple(run for run in job.runs if (*_job_key(job), run) not in done))
        for job in jobs
        if not job.keys <= done
    ]
    out.parent.mkdir(parents=True, exist_ok=True)
    _end_last_line(out)
    started = time.perf_counter()
    with out.open("a") as file:
        for number, lines in enumerate(_results(todo, workers), 1):
            file.write("".join(json.dumps(line) + "\n" for line in lines))
            file.flush()
            print(f"{number} of {len(todo)} data sets, {time.perf_counter() - started:.0f} s", flush=True)


def rescore(out: Path, backbones: Mapping[str, Backbone]) -> None:
    """Fit the reference probe of every line again, after its code has changed, and write the lines anew."""
    lines = read_lines(out)
    probes: dict[tuple[Any, ...], dict[str, str]] = {}
    for line in lines:
        *key, _ = line_key(line)
        if tuple(key) not in probes:
            job = Job(backbones[line["backbone"]], line["seed"], line["case"])
            dataset, truth_split = open_draw(*open_images(job.backbone.photos), job.draw, job.seed)
            features = cached_features(job.backbone, job.draw.pixels, job.classes)
            probes[tuple(key)] = score_probe(features, dataset.splits | {"truth": truth_split}, job.draw.classes)
        line["probe"] = probes[tuple(key)]
    with output_stream(str(out), "lines.jsonl") as stream:
        stream.writelines(json.dumps(line) + "\n" for line in lines)


def _job_key(job: Job) -> tuple[Any, ...]:
    return job.backbone.name, job.seed, job.case


def _end_last_line(path: Path) -> None:
    """Remove the half of a line that a killed process has left at a file's end."""
    if path.exists():
        content = path.read_bytes()
        path.write_bytes(content[: content.rfind(b"\n") + 1])


def _results(todo: Sequence[Job], workers: int) -> Iterator[list[Line]]:
    if not workers:
        yield from map(run_job, todo)
        return
    # A pass over the images takes all cores.
    with ProcessPoolExecutor(1, get_context("spawn"), logging.disable, (logging.WARNING,)) as pool:
        for backbone, pixels, classes in dict.fromkeys((job.backbone, job.draw.pixels, job.classes) for job in todo):
            pool.submit(compute_features, backbone, pixels, classes).result()
    # A run takes one: there are as many processes. Libraries read these when a process imports them.
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    # `max_tasks_per_child` may end in a deadlock on Python 3.11 (python/cpython#115634).
    step = _DRAWS_PER_PROCESS * workers
    for first in range(0, len(todo), step):
        with ProcessPoolExecutor(workers, get_context("spawn"), initialise_process) as pool:
            yield from pool.map(run_job, todo[first : first + step])


def initialise_process() -> None:
    """Prepare a worker process, which takes one core."""
    logging.disable(logging.WARNING)
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)


def compute_features(backbone: Backbone, pixels: str, classes: int) -> None:
    """Compute the features of all images into the feature cache, and what the preflight says of their pixels."""
    cached_features(backbone, pixels, classes)
    pixels_fit(backbone, pixels, classes)


# --- one data set -------------------------------------------------------------


def run_job(job: Job) -> list[Line]:
    """Train the runs of a job, and return their lines."""
    draw = job.draw
    source, class_names = open_images(job.backbone.photos, job.classes)
    dataset, truth_split = open_draw(source, class_names, draw, job.seed)
    splits = dataset.splits | {"truth": truth_split}
    features = cached_features(job.backbone, draw.pixels, job.classes)
    shared = {
        "backbone": job.backbone.name,
        "seed": job.seed,
        "case": job.case,
        "draw": dataclasses.asdict(draw),
        "n": {name: len(split.rows) for name, split in splits.items()}
        | {"left_out": len(left_out_images(len(dataset.train.rows)))},
        "native": pixels_fit(job.backbone, draw.pixels, job.classes),
        "probe": score_probe(features, splits, draw.classes),
        "truth": score_truth(features, splits),
    }
    if draw.pixels != "native":
        native = cached_features(job.backbone, "native", job.classes)
        shared["native_truth"] = score_truth(native, splits)
    lines = []
    for number in job.runs:
        rng = np.random.default_rng([job.seed, 1, number])
        # The first run of each data set has a recommended learning rate.
        settings = CASES[job.case][1] if job.case else draw_settings(rng, len(dataset.train.rows), number == 0)
        started = time.perf_counter()
        trained = train(job.backbone.run(*settings, f"preprocessing={draw.pixels}"), dataset, truth_split, features)
        seconds = round(time.perf_counter() - started, 1)
        lines.append(shared | {"run": number, "overrides": settings} | trained | {"seconds": seconds})
    FeatureCache.release()
    return lines


def open_draw(source: Source, class_names: Sequence[str], draw: DataDraw, seed: int) -> tuple[Dataset, Split]:
    """Return a data set of some classes and images of a source, and the split of the truth, with correct labels.

    Args:
        source: all images.
        class_names: name of each class.
        draw: what the data set is like.
        seed: of the choice of classes and images, and of the permuted labels.
    """
    rng = np.random.default_rng([seed, 2])
    chosen = np.sort(rng.permutation(len(class_names))[: draw.classes])
    labels = np.full(len(source.labels), -1, np.int32)
    ends = np.cumsum([draw.train_per_class, draw.val_per_class, draw.test_per_class])
    parts = []
    for label, chosen_class in enumerate(chosen):
        rows = rng.permutation(np.flatnonzero(source.labels == chosen_class))
        labels[rows] = label
        parts.append(np.split(rows, ends))
    train, val, test, rest = (np.sort(np.concatenate(rows)) for rows in zip(*parts, strict=True))
    noisy = labels.copy()
    for rows in (train, val, test):
        permuted = rng.permutation(rows)[: round(draw.noise * len(rows))]
        noisy[permuted] = labels[rng.permutation(permuted)]
    # The fingerprint stays, and with it the cached features.
    seen = dataclasses.replace(source, labels=noisy)
    dataset = Dataset(
        "study",
        tuple(class_names[index] for index in chosen),
        Split(seen, train),
        Split(seen, val),
        Split(seen, test) if len(test) else None,
    )
    return dataset, Split(dataclasses.replace(source, labels=labels), rest)


@functools.lru_cache(maxsize=2)
def cached_features(backbone: Backbone, pixels: str, classes: int) -> np.ndarray:
    """Return the features [n, d] of all images, from the feature cache, or computed in one pass."""
    from dogbreeds.experiments.prepare import assemble_network
    from dogbreeds.features import extraction

    source, class_names = open_images(backbone.photos, classes)
    every = Split(source, np.arange(len(source.labels)))
    run = backbone.run(f"preprocessing={pixels}")
    with process_state_restored():
        network = assemble_network(run, Dataset("study", tuple(class_names), every, every, None)).network
        images = extraction.DecodedImages(source, run.data, run.model.image_size, run.features.open_cache())
        return np.array(extraction.compute_features(network.prefix, images, run.features))


@functools.lru_cache(maxsize=8)
def pixels_fit(backbone: Backbone, pixels: str, classes: int) -> bool | None:
    """Return whether the preflight finds a pixel convention to match a backbone; None if it cannot tell."""
    run = backbone.run(f"preprocessing={pixels}")
    fit = measure_fit(backbone, classes)
    if not fit.has_statistics:
        return None
    return not any(finding.certain for finding in check_pixels(fit, run.preprocessing.mode, run.model.pixels))


def score_probe(features: np.ndarray, splits: dict[str, Split], classes: int) -> dict[str, str]:
    """Return which images the reference probe classifies correctly, by split, as hexadecimal digits."""
    probe = fit_probe(features, splits["train"].labels, classes, splits["train"].rows)
    left_out = probe.left_out_scores.argmax(axis=1) == splits["train"].labels[probe.left_out]
    return {"left_out": truth.to_hex(left_out)} | {
        name: truth.to_hex(probe.logits(features, split.rows).argmax(axis=1) == split.labels)
        for name, split in splits.items()
        if name != "train"
    }


def score_truth(features: np.ndarray, splits: dict[str, Split]) -> Line:
    """Return which images of the truth the tuned logistic regression classifies correctly, and its strength."""
    train, rest = splits["train"], splits["truth"]
    classify, strength = truth.tuned_logistic_regression(features[train.rows], train.labels)
    return {"right": truth.to_hex(classify(features[rest.rows]) == rest.labels), "C": strength}


# --- one run ------------------------------------------------------------------


def train(run: Run, dataset: Dataset, truth_split: Split, features: np.ndarray) -> Line:
    """Train a run on cached features, and return its settings, its curves, and which images it classifies correctly.

    `right` is of the best epoch, which is the network that a run saves; `last` is of its last epoch.
    """
    from dogbreeds.experiments.prepare import assemble_network
    from dogbreeds.training.loop import fit, predict
    from dogbreeds.training.phase import Training
    from dogbreeds.training.rows import Rows
    from dogbreeds.training.state import TrainingState

    with process_state_restored():
        network = assemble_network(run, dataset).network
        splits = dataset.splits | {"truth": truth_split}
        rows = {name: Rows(features, split.rows, split.labels) for name, split in splits.items()}
        states: list[TrainingState] = []
        if not isinstance(run.phase, Training):
            raise TypeError(f"phase={run.phase} does not train")
        history = fit(
            network,
            train=lambda epoch: rows["train"],
            val=rows["val"],
            phase=run.phase,
            optimizer=run.optimizer,
            schedule=run.schedule,
            seed=run.seed,
            on_epoch=lambda epoch: None,
            save=states.append,
        )

        def right(name: str) -> str:
            return truth.to_hex(predict(network, rows[name]).argmax(axis=1) == rows[name].labels)

        # Training images that the probe leaves out one by one.
        left_out = left_out_images(len(rows["train"]))
        rows["left_out"] = Rows(features, dataset.train.rows[left_out], dataset.train.labels[left_out])
        has_best = history.best is not None
        best = {name: right(name) for name in rows if name != "train"} if has_best else {}
        if states:
            for variable, value in zip(network.variables, states[-1].weights, strict=True):
                variable.assign(value)
        return {
            "settings": run.parameters(),
            "epochs": [dataclasses.asdict(epoch) for epoch in history.epochs],
            "stop_reason": history.stop_reason,
            "diverged": history.diverged,
            "right": best,
            "last": right("truth") if states else "",
        }
