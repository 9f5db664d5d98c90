"""The steps of the study, and its command line."""

import argparse
import os
import time
from collections.abc import Sequence
from pathlib import Path

from dogbreeds.core.paths import home
from tests.bench.faults.backbones import CLASSES, Backbone, backbones
from tests.bench.faults.collect import Job, collect
from tests.bench.faults.draws import CASES

# Thresholds are chosen on this backbone and on even seeds, and reported on the others and on odd seeds.
CHOOSING = "mobilenetv2"


def search_jobs(backbone: Backbone, draws: int, classes: int = CLASSES) -> list[Job]:
    """Return the data sets of the random search on a backbone: even seeds where thresholds are chosen, else odd ones."""
    first = 0 if backbone.name == CHOOSING else 1
    return [Job(backbone, seed, classes=classes) for seed in range(first, 2 * draws, 2)]


def case_jobs(backbone: Backbone) -> list[Job]:
    """Return the cases with a name on a backbone."""
    return [Job(backbone, seed=0, case=case, runs=(0,)) for case in CASES]


def further_backbone(text: str) -> Backbone:
    """Read `name=model=… model.weights=…`, after which `photos=<folder>` and `config_dir=<folder>` may follow."""
    name, _, settings = text.partition("=")
    places = {"photos": None, "config_dir": None}
    overrides = []
    for setting in settings.split():
        key, _, value = setting.partition("=")
        if key in places:
            places[key] = value
        else:
            overrides.append(setting)
    return Backbone(name, tuple(overrides), **places)


def main(typed: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.faults")
    parser.add_argument("step", choices=("collect", "cases"))
    parser.add_argument("--backbones", default="", help="comma-separated")
    parser.add_argument("--backbone", action="append", default=[], type=further_backbone)
    parser.add_argument("--draws", type=int, default=40)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, default=home() / "multirun" / "faults")
    arguments = parser.parse_args(typed)
    known = backbones(tuple(arguments.backbone))
    for name in arguments.backbones.split(",") if arguments.backbones else known:
        if arguments.step == "collect":
            collect(search_jobs(known[name], arguments.draws), arguments.out / f"{name}.jsonl", arguments.workers)
        else:
            collect(case_jobs(known[name]), arguments.out / f"{name}_cases.jsonl", arguments.workers)
