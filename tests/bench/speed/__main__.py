"""The command of `make bench` and `make bench-gpu`."""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from dogbreeds.core.console import quiet_stderr
from dogbreeds.core.files import atomic_write
from dogbreeds.core.paths import home
from tests.bench.speed import gpu, report
from tests.bench.speed.study import FULL, QUICK, Plan, Study
from tests.bench.speed.ways import Way


def main(
    plans: Sequence[Plan],
    file: Path,
    resume: bool = False,
    ways: Sequence[Way] | None = None,
    words: Sequence[str] = (),
) -> Study:
    """Measure, print tables, and write JSON and a picture.

    Args:
        plans: what is measured.
        file: JSON file to write; the picture is beside it.
        resume: whether what the file has is not measured again.
        ways: ways to compare; None for all.
        words: only ways whose names contain one of them are measured now; none for all.
    """
    started = time.perf_counter()
    with quiet_stderr():
        import tensorflow  # noqa: F401
    file.parent.mkdir(parents=True, exist_ok=True)
    measured: dict[str, Any] = json.loads(file.read_text())["measured"] if resume and file.exists() else {}
    if measured:
        print(f"{len(measured)} measurements of {file} are kept; remove it to measure anew", file=sys.stderr)

    def save(measured: dict[str, Any]) -> None:
        machine = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()}
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
        found = {"machine": machine, "load": load, "recorded": time.strftime("%Y-%m-%d"), "measured": measured}
        with atomic_write(file) as temporary:
            temporary.write_text(json.dumps(found, indent=1))

    study = Study(plans, measured, save, ways)
    study.run(words)
    print(report.tables(study))
    report.draw(study, file.with_suffix(".svg"))
    print(f"\n{time.perf_counter() - started:.0f} s; written to {file} and {file.with_suffix('.svg').name}")
    return study


def _parsed(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.speed", description="Measure, print tables, and write JSON and a picture."
    )
    parser.add_argument("--full", action="store_true", help="thousands of photos, nothing extrapolated; resumes")
    parser.add_argument("--gpu", action="store_true", help="on a GPU: also determinism, memory and mirrored training")
    parser.add_argument(
        "--ways", nargs="+", default=[], metavar="WORD", help="measure ways whose names have one of these words alone"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    options = _parsed(sys.argv[1:])
    name = "bench-gpu" if options.gpu else "bench-full" if options.full else "bench"
    file = home() / "multirun" / f"{name}.json"
    if options.gpu:
        main(QUICK, file, ways=gpu.ways(), words=options.ways)
        # Determinism is decided when TensorFlow starts.
        checks = [sys.executable, "-m", "tests.bench.speed.gpu"]
        sys.exit(subprocess.run(checks, env=os.environ | {"TF_DETERMINISTIC_OPS": "1"}, check=False).returncode)
    main(FULL if options.full else QUICK, file, resume=options.full, words=options.ways)
