"""What only a GPU can show: determinism, memory, and mirrored training on one device. It runs on a processor too.

Run: make bench-gpu, which measures the speed first. Each check is a line that ends in ok or not ok.
"""

import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import psutil

from dogbreeds.experiments.attempt import execute
from dogbreeds.experiments.result import Result
from dogbreeds.models import runtime
from dogbreeds.tracking.records import RunOrigin
from tests.bench.speed.photos import FINETUNE, Setup, b0, write_photos
from tests.bench.speed.ways import KerasExample, Ours, PredictThenFit, Torch, Way

# Peak memory may grow by so much, relative to the first, while the photos double.
_GROWTH = 0.1


def ways() -> list[Way]:
    """Return the ways that use a GPU."""
    return [KerasExample(), PredictThenFit(), Torch(), Ours(runtime.TENSORFLOW)]


def main(setup: Setup | None = None) -> bool:
    """Check a GPU, or the processor, and print a line for each check; return whether all are fine.

    Args:
        setup: backbone and two numbers of photos; None for EfficientNet-B0.
    """
    import tensorflow as tf

    setup = setup or b0(20, (8, 16))
    devices = tf.config.list_physical_devices("GPU")
    print(f"devices: {', '.join(device.name for device in devices) or 'no GPU'}")
    device = "GPU:0" if devices else "CPU:0"
    checks = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        few, many = (write_photos(folder / str(each), setup.classes, each) for each in setup.each)
        for work, overrides in (("frozen", ()), ("fine-tune", FINETUNE)):
            bits = [_bits(setup, few, folder / f"{work}{number}", *overrides) for number in range(2)]
            checks[f"two {work} runs have the same bits"] = bits[0] == bits[1]
            mirrored = ("strategy=mirrored", f"strategy.devices=[{device}]")
            same = _bits(setup, few, folder / f"{work}-mirrored", *overrides, *mirrored)
            difference = np.abs(np.frombuffer(same, np.float32) - np.frombuffer(bits[0], np.float32)).max()
            checks[f"a mirrored {work} run on {device} differs by {difference:.2g} in its logits"] = difference < 1e-3
        peaks = []
        for place, root in (("few", few), ("many", many)):
            _bits(setup, root, folder / place)
            peaks.append(_peak_bytes(device))
    growth = peaks[1] / peaks[0] - 1
    checks[f"peak memory {peaks[0] / 2**20:,.0f} MiB, {growth:+.1%} with twice the photos"] = growth < _GROWTH
    for check, is_fine in checks.items():
        print(f"{check}: {'ok' if is_fine else 'not ok'}")
    return all(checks.values())


def _bits(setup: Setup, root: Path, place: Path, *overrides: str) -> bytes:
    """Train from files and an empty cache, and return the validation logits of the best epoch."""
    run = setup.compose(root, place, "features.runtime=tensorflow", *overrides)
    result = execute(run, RunOrigin("", (), "bench", place))
    assert isinstance(result, Result)
    assert result.history.best_logits is not None
    return result.history.best_logits.tobytes()


def _peak_bytes(device: str) -> int:
    """Return the most bytes that TensorFlow has allocated on a GPU, or the process on a processor."""
    import tensorflow as tf

    if device.startswith("GPU"):
        return int(tf.config.experimental.get_memory_info(device)["peak"])
    return int(psutil.Process().memory_info().rss)


if __name__ == "__main__":
    sys.exit(0 if main() else 1)
