"""What a command says while it runs, and what happens meanwhile."""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from tests import prefork

Process = prefork.Process | subprocess.Popen[str]


def until(happened: Callable[[], object], process: Process, seconds: float = 900) -> None:
    """Waits for something that a process that goes on brings about."""
    end = time.monotonic() + seconds
    while not happened():
        assert process.poll() is None, f"it has ended with {process.returncode}"
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.2)


def listen(process: Process, said: str, times: int = 1) -> list[str]:
    """Its lines until it has said something so many times, or has ended."""
    lines = []
    for line in process.stdout or ():
        lines.append(line.rstrip("\n"))
        times -= said in line
        if times <= 0:
            break
    return lines


def rest(process: Process, seconds: float = 900) -> tuple[list[str], str]:
    """Its lines from here to its end, and its errors. `communicate` would pass over what was read ahead by `listen`. One that hangs is killed."""
    assert process.stdout is not None
    assert process.stderr is not None
    # With all that hold its output open
    hung = threading.Timer(seconds, os.killpg, (process.pid, signal.SIGKILL))
    hung.start()
    try:
        with ThreadPoolExecutor(1) as beside:
            errors = beside.submit(process.stderr.read)
            lines = process.stdout.read().splitlines()
            process.wait()
            return lines, errors.result()
    finally:
        hung.cancel()
