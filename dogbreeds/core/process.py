"""This process: its identity across machines and reboots, and whether it is a command or a Python caller's.

By its identity another process can tell whether it is still running.
"""

import gc
import os
import platform
from collections.abc import Mapping
from pathlib import Path

import psutil

# Run tags that identify a process. The start time is one of them because process ids are reused.
PROCESS_TAGS = ("host", "host.boot", "process", "process.started")
_is_command = False
# New objects after which Python looks for garbage, instead of 700. The imports and the graphs create millions of
# objects, nearly all of which stay: looking for garbage among them took a tenth of the time before the first epoch.
_GARBAGE_THRESHOLD = 50_000


def mark_as_command() -> None:
    """Declare that this process is a command or one of its jobs.

    Process-wide state then needs no restoring, and its child processes are jobs of the command.
    """
    global _is_command
    _is_command = True
    gc.set_threshold(_GARBAGE_THRESHOLD)


def is_command() -> bool:
    """Return whether this process is a command or one of its jobs. Otherwise it belongs to a Python caller."""
    return _is_command


def process_tags() -> dict[str, str]:
    """Return this process's identity as run tags."""
    values = (platform.node(), boot_id(), str(os.getpid()), str(start_time(os.getpid())))
    return dict(zip(PROCESS_TAGS, values, strict=True))


def boot_id() -> str:
    """Return the id of the machine's current boot, or "-" where the kernel does not provide one."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return "-"


def start_time(pid: int) -> float:
    """Return a process's start time in seconds since boot.

    psutil gives both times by the wall clock, which may be adjusted while the process runs. Their difference is stable.
    """
    # Read before the process's time, because older psutil versions cache the boot time for that.
    boot_time = psutil.boot_time()
    return round(psutil.Process(pid).create_time() - boot_time, 2)


def format_process(tags: Mapping[str, str]) -> str:
    """Format the tags of `process_tags` as one line; "-" stands for a missing one."""
    return " ".join(tags.get(name, "-") for name in PROCESS_TAGS)
