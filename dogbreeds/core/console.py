"""What a person sees while work goes on: a bar with rate and time left, or a line now and then where output is kept; no noise."""

import contextlib
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.console import Console

log = logging.getLogger(__name__)

# Between two lines where there is no terminal
_QUIET_SECONDS = 10.0
# Whether others write to the same terminal
_alongside = False


def alongside(number: int) -> None:
    """From now on each line begins with a job's number, and no bar is drawn: jobs in other processes write here too."""
    global _alongside
    _alongside = True
    for handler in logging.getLogger().handlers:
        if type(handler) is logging.StreamHandler:
            handler.setFormatter(logging.Formatter(f"#{number} %(message)s"))


@contextlib.contextmanager
def progress(what: str, total: int, unit: str, before: int = 0) -> Iterator[Callable[[int], None]]:
    """Gives a function to call with the number of units just done.

    Args:
        what: the work's name, a few words.
        total: units to do.
        unit: their name, in the plural.
        before: units that were done before: they are of the total, and no part of the rate.
    """
    shown = (
        _bar(what, total, unit, before) if sys.stderr.isatty() and not _alongside else _lines(what, total, unit, before)
    )
    with shown as advance:
        yield advance


@contextlib.contextmanager
def _bar(what: str, total: int, unit: str, before: int) -> Iterator[Callable[[int], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task):
            speed = task.finished_speed or task.speed
            return Text(f"{speed:,.0f} {unit}/s" if speed else "")

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        Rate(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), expand=True) as bars:
        task = bars.add_task(what, total=total, completed=before)
        yield lambda done: bars.advance(task, done)


@contextlib.contextmanager
def _lines(what: str, total: int, unit: str, before: int) -> Iterator[Callable[[int], None]]:
    started = said = time.monotonic()
    done = 0

    def advance(more: int) -> None:
        nonlocal done, said
        done += more
        now = time.monotonic()
        if now - said >= _QUIET_SECONDS and before + done < total:
            said = now
            rate, left = done / (now - started), total - before - done
            log.info(
                "%s: %s of %s, %.0f %s/s, %.0f s left",
                what,
                f"{before + done:,}",
                f"{total:,}",
                rate,
                unit,
                left / rate,
            )

    yield advance
    seconds = time.monotonic() - started
    log.info("%s: %s in %.1f s, %.0f %s/s", what, f"{done:,}", seconds, done / max(seconds, 1e-9), unit)


@contextlib.contextmanager
def quiet_stderr() -> Iterator[None]:
    """Holds back what native code writes to the standard error, such as TensorFlow's remarks on being imported; shows it if the body fails.

    TensorFlow's own log says errors only from then on: it warns of retracing, and of tables in a graph, which are meant to be so.
    """
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    sys.stderr.flush()
    real = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            held.seek(0)
            os.write(real, held.read())
            raise
        finally:
            os.dup2(real, 2)
            os.close(real)


def columns(stream: TextIO) -> int | None:
    """Columns of the terminal that a stream is shown in; None where it goes elsewhere."""
    return os.get_terminal_size(stream.fileno()).columns or None if stream.isatty() else None


def console(file: TextIO, width: int | None, otherwise: int) -> "Console":
    """What lays text out for a terminal.

    Args:
        file: that it is laid out into.
        width: columns of the terminal; None where it goes elsewhere, without colours.
        otherwise: columns then.
    """
    from rich.console import Console

    return Console(
        file=file,
        width=width or otherwise,
        force_terminal=width is not None,
        no_color="NO_COLOR" in os.environ or width is None,
    )
