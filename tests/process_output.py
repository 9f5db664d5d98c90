"""Read the output of a running process, and wait for what it does."""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from tests import prefork

Process = prefork.Process | subprocess.Popen[str]


def wait_until(condition: Callable[[], object], process: Process, seconds: float = 900) -> None:
    """Wait until a condition holds that a running process brings about.

    Args:
        condition: checked several times a second.
        process: must not end before.
        seconds: longest time to wait.
    """
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, f"it has ended with {process.returncode}"
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.2)


def read_until(process: Process, text: str, times: int = 1) -> list[str]:
    """Read a process' lines until a text has appeared in so many of them, or until the process ends."""
    lines = []
    for line in process.stdout or ():
        lines.append(line.rstrip("\n"))
        times -= text in line
        if times <= 0:
            break
    return lines


def read_to_end(process: Process, seconds: float = 900) -> tuple[list[str], str]:
    """Read the rest of a process' lines, and its standard error, until it ends.

    `communicate` would miss lines that `read_until` has buffered.

    Args:
        process: to read from.
        seconds: time after which the process is killed.
    """
    assert process.stdout is not None
    assert process.stderr is not None
    # Kills the whole group, since children hold the pipes open.
    watchdog = threading.Timer(seconds, os.killpg, (process.pid, signal.SIGKILL))
    watchdog.start()
    try:
        with ThreadPoolExecutor(1) as pool:
            errors = pool.submit(process.stderr.read)
            lines = process.stdout.read().splitlines()
            process.wait()
            return lines, errors.result()
    finally:
        watchdog.cancel()
