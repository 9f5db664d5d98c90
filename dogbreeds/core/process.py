"""Which process on which machine something is, so that another can tell whether it is still there."""

import os
import platform
from collections.abc import Mapping
from pathlib import Path

import psutil

# Tags that name a process; when it began, too, since numbers come again
PROCESS = ("host", "host.boot", "process", "process.started")


def owner() -> dict[str, str]:
    """This process, as a run's tags have it."""
    return dict(zip(PROCESS, (platform.node(), boot(), str(os.getpid()), str(began(os.getpid()))), strict=True))


def boot() -> str:
    """Which of its starts the machine runs since; "-" where the kernel does not say."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return "-"


def began(process: int) -> float:
    """When a process began, in seconds since its machine did. psutil tells both by a clock that may be set meanwhile; the difference stays.

    Args:
        process: its number.
    """
    # First: an older psutil keeps it, to tell the other by
    machine = psutil.boot_time()
    return round(psutil.Process(process).create_time() - machine, 2)


def spelled(tags: Mapping[str, str]) -> str:
    """A process in a line, given tags that have what `owner` gives."""
    return " ".join(tags.get(name, "-") for name in PROCESS)
