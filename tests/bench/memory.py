"""Peak memory while features are computed, for one and for four times as many photos: EfficientNet-B4 at 380 px. `make bench-memory` runs it.

python tests/bench/memory.py 300        # photos of the smaller one, 60 or more
"""

import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence

B4 = ("model=effnetb4", "model.weights=null")
FEWEST = 60
# VmHWM and not ru_maxrss, which a process inherits: it begins with the peak of the one that started it.
_PEAK = (
    "from dogbreeds import command, train\ncommand.main(train.task, 'train', goes_on=True)\nprint('peak',"
    " next(int(line.split()[1]) // 1024 for line in open('/proc/self/status') if line.startswith('VmHWM')))"
)


def peak(photos: int, model: Sequence[str] = B4) -> int:
    """Return the most MiB that an attempt with this many photos takes, in a process of its own."""
    each = photos // 30
    settings = (
        *model, "tracking=none", "phase.epochs=1", "data=miniature", "data.breeds=10",
        f"data.train_per_breed={2 * each}", f"data.val_per_breed={each // 2}", f"data.test_per_breed={each // 2}",
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        places = (f"features.dir={folder}", f"checkpoint_dir={folder}/checkpoints", f"hydra.run.dir={folder}/run")
        done = subprocess.run([sys.executable, "-c", _PEAK, *settings, *places], capture_output=True, text=True)
    found = re.search(r"peak (\d+)", done.stdout)
    if done.returncode or found is None:
        raise RuntimeError(f"the attempt ended with {done.returncode}: {done.stderr}")
    return int(found[1])


def main(photos: int = 300, times: Sequence[int] = (1, 4), model: Sequence[str] = B4) -> dict[int, int]:
    """Print the peak for multiples of a number of photos, and return the MiB of each.

    Args:
        photos: of the smallest attempt, `FEWEST` or more.
        times: multiples of them.
        model: its settings.
    """
    peaks: dict[int, int] = {}
    for count in (photos * factor for factor in times):
        peaks[count] = peak(count, model)
        print(f"{count:6,} photos: peak {peaks[count]:,} MiB", flush=True)
    return peaks


def _arguments(typed: list[str]) -> int:
    """Return the number of photos that the command line asks for."""
    photos = typed[0] if typed else "300"
    if not photos.isdecimal() or int(photos) < FEWEST:
        sys.exit(
            f"error: {photos} photos cannot be split. It must be a whole number of {FEWEST} or more. Type python"
            f" tests/bench/memory.py {FEWEST}."
        )
    return int(photos)


if __name__ == "__main__":
    main(_arguments(sys.argv[1:]))
