"""Peak memory of a run that computes features, for n and for 4n images: EfficientNet-B4 at 380 px.

Run: make bench-memory, or python tests/bench/memory.py 300 for another n, 60 or more.
"""

import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence

B4 = ("model=effnetb4", "model.weights=null")
FEWEST = 60
# VmHWM instead of ru_maxrss, which a process inherits from its parent.
_PEAK = (
    "from dogbreeds import cli, train\ncli.main(train.task, 'train', resumable=True)\nprint('peak',"
    " next(int(line.split()[1]) // 1024 for line in open('/proc/self/status') if line.startswith('VmHWM')))"
)


def peak(images: int, model: Sequence[str] = B4) -> int:
    """Measure the peak memory of a run with this many images, in a process of its own, in MiB."""
    each = images // 30
    settings = (
        *model, "tracking=none", "tracking.folder=null", "phase.epochs=1", "data=miniature", "data.classes=10",
        f"data.train_per_class={2 * each}", f"data.val_per_class={each // 2}", f"data.test_per_class={each // 2}",
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        places = (f"features.dir={folder}", f"checkpoint_dir={folder}/checkpoints", f"hydra.run.dir={folder}/run")
        done = subprocess.run([sys.executable, "-c", _PEAK, *settings, *places], capture_output=True, text=True)
    found = re.search(r"peak (\d+)", done.stdout)
    if done.returncode or found is None:
        raise RuntimeError(f"the run ended with exit code {done.returncode}: {done.stderr}")
    return int(found[1])


def main(images: int = 300, times: Sequence[int] = (1, 4), model: Sequence[str] = B4) -> dict[int, int]:
    """Print the peak memory for multiples of a number of images.

    Args:
        images: number of images, `FEWEST` or more.
        times: multiples of it.
        model: overrides that choose the model.

    Returns:
        Peak memory in MiB by number of images.
    """
    peaks: dict[int, int] = {}
    for count in (images * factor for factor in times):
        peaks[count] = peak(count, model)
        print(f"{count:6,} images: peak {peaks[count]:,} MiB", flush=True)
    return peaks


def _arguments(typed: list[str]) -> int:
    """Return the number of images that the command line asks for."""
    images = typed[0] if typed else "300"
    if not images.isdecimal() or int(images) < FEWEST:
        sys.exit(
            f"error: {images} images cannot be split. It must be a whole number of {FEWEST} or more. Type python"
            f" tests/bench/memory.py {FEWEST}."
        )
    return int(images)


if __name__ == "__main__":
    main(_arguments(sys.argv[1:]))
