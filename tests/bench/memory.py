"""Peak memory while features are computed, for one and for four times as many photos: EfficientNet-B4 at 380 px. `make bench-memory` runs it.

python tests/bench/memory.py 300        # photos of the smaller one
"""

import os
import re
import subprocess
import sys
import tempfile

_PEAK = (
    "import resource, sys; from dogbreeds import command, train\n"
    "command.main(train.task)\n"
    "print('peak', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)"
)


def peak(photos: int) -> int:
    """MiB at most, while an attempt with this many photos runs."""
    each = photos // 30
    settings = (
        "model=effnetb4", "model.weights=null", "tracking=none", "phase.epochs=1", "data=miniature", "data.breeds=10",
        f"data.train_per_breed={2 * each}", f"data.val_per_breed={each // 2}", f"data.test_per_breed={each // 2}",
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", _PEAK, *settings, f"features.dir={folder}", f"hydra.run.dir={folder}/run"]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ, check=True)
    found = re.search(r"peak (\d+)", done.stdout)
    assert found is not None
    return int(found.group(1))


def main() -> None:
    photos = int(sys.argv[1]) if len(sys.argv) > 1 else 300
    for count in (photos, 4 * photos):
        print(f"{count:6,} photos: peak {peak(count):,} MiB", flush=True)


if __name__ == "__main__":
    main()
