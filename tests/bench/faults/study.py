"""The steps of the study, and its command line."""

import argparse
import dataclasses
import json
import os
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from dogbreeds.core.paths import home
from tests.bench.faults import layernorm
from tests.bench.faults.backbones import CLASSES, REAL_DATA_ENV, Backbone, backbones
from tests.bench.faults.collect import Job, collect, initialise_process, read_lines, rescore
from tests.bench.faults.draws import CASES
from tests.bench.faults.kinds import KINDS, Change, attempt, kinds_table, unchanged
from tests.bench.faults.pixels import READ_SAMPLES, Pair, measure_hidden_pairs, measure_layernorm_pairs, measure_pairs
from tests.bench.faults.report import report, saved_curves

# Thresholds are chosen on this backbone and on even seeds, and reported on the others and on odd seeds.
CHOOSING = "mobilenetv2"
STEPS = {
    "collect": "train the runs of the random search that the lines lack",
    "cases": "train the cases with a name, and save their curves for a test of the verdict",
    "kinds": "run the attempts with an injected fault, on drawn dogs",
    "pixels": "check each pixel convention on each backbone",
    "report": "judge the lines anew, on the backbones that chose no threshold",
    "choose": "the same on the backbone that chooses thresholds",
    "rescore": "fit the reference probe of all lines again",
}
# The steps without a name, in this order.
ALL = ("collect", "kinds", "pixels", "report")


@dataclasses.dataclass(frozen=True)
class Workload:
    """How much is run.

    Attributes:
        draws: data sets of the random search on each backbone, with four runs each.
        classes: classes that there are to draw from.
        kinds: keys of `KINDS`.
        each: attempts of each kind.
        overrides: settings of the attempts that win over all others.
        change: changes every attempt where no override can.
        workers: processes; 0 runs everything in this one.
    """

    draws: int = 40
    classes: int = CLASSES
    kinds: tuple[str, ...] = tuple(KINDS)
    each: int = 10
    overrides: tuple[str, ...] = ()
    change: Change = unchanged
    workers: int = os.cpu_count() or 1


# All of it on a few classes, in two or three minutes.
SMALL = Workload(draws=2, classes=12, each=1, overrides=("data.classes=12",))


@dataclasses.dataclass(frozen=True)
class Study:
    """The study in a folder.

    Attributes:
        backbones: by name.
        workload: how much is run.
        out: folder of the lines and results.
    """

    backbones: dict[str, Backbone]
    workload: Workload
    out: Path

    def run(self, step: str) -> None:
        """Run one of `STEPS`."""
        getattr(self, step)()

    def collect(self) -> None:
        for backbone in self.backbones.values():
            first = 0 if backbone.name == CHOOSING else 1
            seeds = range(first, 2 * self.workload.draws, 2)
            jobs = [Job(backbone, seed, classes=self.workload.classes) for seed in seeds]
            collect(jobs, self.out / f"{backbone.name}.jsonl", self.workload.workers)

    def cases(self) -> None:
        for backbone in self.backbones.values():
            jobs = [Job(backbone, seed=0, case=case, runs=(0,)) for case in CASES]
            out = self.out / f"{backbone.name}_cases.jsonl"
            collect(jobs, out, self.workload.workers)
            self._write(f"{backbone.name}_cases.json", [saved_curves(line) for line in read_lines(out)])

    def kinds(self) -> None:
        load = self.workload
        todo = [(name, seed, load.overrides, load.change) for seed in range(load.each) for name in load.kinds]
        if load.workers:
            with ProcessPoolExecutor(load.workers, get_context("spawn"), initialise_process) as pool:
                results = list(pool.map(attempt, *zip(*todo, strict=True)))
        else:
            results = [attempt(*arguments) for arguments in todo]
        self._write("kinds.json", results)
        print(f"\n## Injected faults\n\n{len(results)} attempts of {len(load.kinds)} kinds\n")
        print("\n".join(kinds_table(results)))

    def pixels(self) -> None:
        each, classes = self.backbones.values(), self.workload.classes
        pairs = [pair for backbone in each for pair in measure_pairs(backbone, classes)]
        # The small study takes one sample, and has no minutes to pretrain a network.
        is_small = classes < layernorm.CLASSES
        samples = 1 if is_small else READ_SAMPLES
        pairs += [pair for backbone in each for pair in measure_hidden_pairs(backbone, classes, samples)]
        if not is_small:
            pairs += measure_layernorm_pairs(self.out / "layernorm.weights.h5")
        self._write("pixels.json", [dataclasses.asdict(pair) for pair in pairs])

    def report(self) -> None:
        self._report([name for name in self.backbones if name != CHOOSING])

    def choose(self) -> None:
        self._report([CHOOSING])

    def rescore(self) -> None:
        for name in self.backbones:
            for path in sorted(self.out.glob(f"{name}*.jsonl")):
                rescore(path, self.backbones)

    def _report(self, names: Sequence[str]) -> None:
        files = [f"{name}{kind}.jsonl" for kind in ("", "_cases") for name in names]
        lines = [line for file in files for line in read_lines(self.out / file)]
        pixels = self.out / "pixels.json"
        pairs = [Pair(**pair) for pair in json.loads(pixels.read_text())] if pixels.exists() else []
        print(f"\n{report(lines, pairs)}")

    def _write(self, name: str, results: Any) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / name).write_text(json.dumps(results, indent=1))


# --- command line -------------------------------------------------------------


def further_backbone(typed: str) -> Backbone:
    """Read a backbone from its name and settings, such as `lite0=model=efficientnet_lite0 plugins=[…] photos=…`.

    `photos=<folder>` and `config_dir=<folder>` are no settings of the run, but name where its photos and configs are.
    """
    name, _, settings = typed.partition("=")
    pairs = [setting.partition("=") for setting in settings.split()]
    if not name or not pairs or not all(value for _, _, value in pairs):
        raise argparse.ArgumentTypeError(
            f"{typed!r} is no backbone. It must be a name and settings. Type 'b1=model=effnetb1 photos=<folder>'."
        )
    places = {key: value for key, _, value in pairs if key in ("photos", "config_dir")}
    return Backbone(name, tuple(f"{key}={value}" for key, _, value in pairs if key not in places), **places)


def parse(typed: Sequence[str] | None) -> tuple[tuple[str, ...], Study]:
    """Return the steps to run, and the study, from what was typed."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.faults",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=f"Measure how often verdicts and preflight are right. Real photos and weights: {REAL_DATA_ENV}.",
        epilog="steps:\n" + "\n".join(f"  {name:<9}{text}" for name, text in STEPS.items()),
    )
    parser.add_argument("steps", nargs="*", metavar="step", help=f"see below; none: {', '.join(ALL)}")
    parser.add_argument("--small", action="store_true", help="a few classes and runs, in two or three minutes")
    parser.add_argument("--backbones", metavar="NAMES", help="separated by commas; all if it is not given")
    parser.add_argument(
        "--further", action="append", default=[], type=further_backbone, metavar="NAME=SETTINGS", help="a backbone"
    )
    parser.add_argument("--draws", type=int, help="data sets of the random search on each backbone")
    parser.add_argument("--workers", type=int, help="processes")
    parser.add_argument("--out", type=Path, help="folder of the lines, which a later call continues")
    arguments = parser.parse_args(typed)
    known = backbones(tuple(arguments.further))
    names = arguments.backbones.split(",") if arguments.backbones else list(known)
    for wrong, allowed in ((set(arguments.steps) - set(STEPS), STEPS), (set(names) - set(known), known)):
        if wrong:
            parser.error(
                f"{min(wrong)} is unknown. It must be one of {', '.join(allowed)}. Type {next(iter(allowed))}."
            )
    if arguments.small and not arguments.backbones:
        # EfficientNet-B0 takes a minute more.
        names = [name for name in names if name in ("miniature", CHOOSING)]
    workload = SMALL if arguments.small else Workload()
    given = {name: value for name in ("draws", "workers") if (value := getattr(arguments, name)) is not None}
    out = arguments.out or home() / "multirun" / ("faults_small" if arguments.small else "faults")
    return (
        tuple(arguments.steps) or ALL,
        Study({name: known[name] for name in names}, dataclasses.replace(workload, **given), out),
    )


def main(typed: Sequence[str] | None = None) -> None:
    """Run the steps that were typed."""
    started = time.perf_counter()
    steps, study = parse(typed)
    for step in steps:
        study.run(step)
    print(f"\n{time.perf_counter() - started:.0f} s; the lines and results are in {study.out}")
