"""Terminal output: lines that fit, progress bars, progress log lines, and silenced native libraries."""

import contextlib
import html
import importlib
import logging
import os
import sys
import tempfile
import textwrap
import time
import warnings
from collections.abc import Callable, Iterator
from typing import NamedTuple, TextIO

log = logging.getLogger(__name__)

# Seconds between two progress lines where there is no terminal, and between two of brief progress.
_LOG_INTERVAL_SECONDS = 10.0
_BRIEF_LOG_INTERVAL_SECONDS = 60.0
# Seconds after which the bar of brief progress appears.
_BAR_DELAY_SECONDS = 2.0
# Seconds between two states of a notebook's progress bar.
_REDRAW_SECONDS = 0.2
# Whether jobs in other processes write to the same terminal.
_shares_terminal = False


def prefix_log_lines(job_number: int) -> None:
    """Start each log line with a job's number, and log progress instead of drawing bars.

    For jobs that run in parallel and write to the same terminal.
    """
    global _shares_terminal
    _shares_terminal = True
    for handler in logging.getLogger().handlers:
        if type(handler) in (logging.StreamHandler, TerminalHandler):
            handler.setFormatter(logging.Formatter(f"#{job_number} %(message)s"))


class TerminalHandler(logging.StreamHandler):
    """Log handler that breaks lines at spaces where they are longer than the terminal is wide.

    Elsewhere, such as in a pipe or a file, each message stays one line.
    """

    def format(self, record: logging.LogRecord) -> str:
        return fitted(super().format(record), terminal_width(self.stream))


def fitted(text: str, width: int | None) -> str:
    """Break the lines of a text at spaces, so that they fit; longer words, such as paths, stay whole.

    Args:
        text: any number of lines.
        width: of the terminal, in columns; None leaves the text as it is.
    """
    if width is None:
        return text
    lines = []
    for line in text.expandtabs(4).split("\n"):
        indent = " " * (len(line) - len(line.lstrip()) + 2)
        lines += textwrap.wrap(
            line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
        ) or [""]
    return "\n".join(lines)


class Link(NamedTuple):
    """A link to a page.

    Attributes:
        url: address of the page.
        shown: a shorter address of the same page, which a terminal shows.
    """

    url: str
    shown: str

    def line(self, label: str) -> str:
        """Format a line of a log: in a terminal as a hyperlink, elsewhere with the whole address."""
        if not _draws_bars():
            return f"{label}  {self.url}"
        # The escape sequences take no columns: there must be no space at which the handler would break the line.
        space = "\N{NO-BREAK SPACE}"
        return f"{label}{space}{space}\x1b]8;;{self.url}\x1b\\{self.shown}\x1b]8;;\x1b\\"


@contextlib.contextmanager
def log_lines_printed() -> Iterator[None]:
    """Print the package's messages on standard output while the body runs, as commands do.

    Has no effect if the caller has configured logging, which then decides.
    """
    root, logger = logging.getLogger(), logging.getLogger("dogbreeds")
    if root.handlers or logger.handlers or logger.level:
        yield
        return
    handler = TerminalHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    # Abseil adds a handler to the root logger with its first message, as when Keras exports a network.
    propagate, logger.propagate = logger.propagate, False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)
        logger.propagate = propagate
        # Otherwise the next call would take that handler for the caller's, and print nothing.
        root.handlers.clear()


@contextlib.contextmanager
def progress(
    description: str, total: int, unit: str, completed: int = 0, brief: bool = False
) -> Iterator[Callable[[int], None]]:
    """Report progress with rate and time left: a bar in a terminal or a notebook, else a log line every ten seconds.

    Args:
        description: name of the work, a few words.
        total: number of units, those in `completed` included.
        unit: plural name of a unit.
        completed: units done by an earlier process. They count towards the total and not towards the rate.
        brief: whether the work is repeated, such as an epoch, and its result has a line of its own. Its bar appears
            once it has taken seconds, and disappears at its end; its log lines are a minute apart.

    Yields:
        A function that takes the number of units just done.
    """
    report = _notebook_bar if _in_notebook() else _bar if _draws_bars() else _log_lines
    with report(description, total, unit, completed, brief) as advance:
        yield advance


def _draws_bars() -> bool:
    # A dumb terminal cannot move its cursor.
    return sys.stderr.isatty() and not _shares_terminal and os.environ.get("TERM") != "dumb"


def _in_notebook() -> bool:
    """Return whether this process is the kernel of a notebook."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "kernel", None) is not None


def import_notebook_bars() -> None:
    """Import in a notebook what MLflow imports too, without its warning that ipywidgets is not installed."""
    if _in_notebook() and "tqdm.auto" not in sys.modules:
        with warnings.catch_warnings(action="ignore"):
            importlib.import_module("tqdm.auto")


class _NotebookBar:
    """A progress bar as a notebook displays it; in an exported notebook its last state is a line of text."""

    def __init__(self, description: str, total: int, unit: str, completed: int):
        self._description = description
        self._total = total
        self._unit = unit
        self._completed = completed
        self._started = time.monotonic()
        self.done = 0
        self.is_hidden = False

    def __repr__(self) -> str:
        if self.is_hidden:
            return ""
        seconds = max(time.monotonic() - self._started, 1e-9)
        done = self._completed + self.done
        left = f", {(self._total - done) * seconds / self.done:.0f} s left" if self.done and done < self._total else ""
        rate = f", {self.done / seconds:,.0f} {self._unit}/s" if self.done else ""
        return f"{self._description}: {done:,} of {self._total:,}{rate}{left}"

    def _repr_html_(self) -> str:
        if self.is_hidden:
            return ""
        done = self._completed + self.done
        return f'<progress value="{done}" max="{self._total}"></progress> {html.escape(repr(self))}'


@contextlib.contextmanager
def _notebook_bar(
    description: str, total: int, unit: str, completed: int, brief: bool
) -> Iterator[Callable[[int], None]]:
    from IPython.display import display

    bar = _NotebookBar(description, total, unit, completed)
    handle = None if brief else display(bar, display_id=True)
    started = last_drawn = time.monotonic()

    def advance(newly_done: int) -> None:
        nonlocal handle, last_drawn
        bar.done += newly_done
        now = time.monotonic()
        if handle is None and now - started >= _BAR_DELAY_SECONDS:
            handle = display(bar, display_id=True)
        if handle is not None and now - last_drawn >= _REDRAW_SECONDS:
            last_drawn = now
            handle.update(bar)

    try:
        yield advance
    finally:
        if handle is not None:
            bar.is_hidden = brief
            handle.update(bar)


@contextlib.contextmanager
def _bar(description: str, total: int, unit: str, completed: int, brief: bool) -> Iterator[Callable[[int], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class RateColumn(ProgressColumn):
        def render(self, task):
            speed = task.finished_speed or task.speed
            return Text(f"{speed:,.0f} {unit}/s" if speed else "")

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        RateColumn(),
        TimeRemainingColumn(),
    )
    bars = Progress(*columns, console=Console(stderr=True), expand=True, transient=brief)
    task = bars.add_task(description, total=total, completed=completed)
    appears = time.monotonic() + (_BAR_DELAY_SECONDS if brief else 0)
    is_shown = False

    def show_if_due() -> None:
        nonlocal is_shown
        if not is_shown and time.monotonic() >= appears:
            is_shown = True
            bars.start()

    def advance(newly_done: int) -> None:
        bars.advance(task, newly_done)
        show_if_due()

    show_if_due()
    try:
        yield advance
    finally:
        if is_shown:
            bars.stop()


@contextlib.contextmanager
def _log_lines(description: str, total: int, unit: str, completed: int, brief: bool) -> Iterator[Callable[[int], None]]:
    interval = _BRIEF_LOG_INTERVAL_SECONDS if brief else _LOG_INTERVAL_SECONDS
    started = last_logged = time.monotonic()
    done = 0

    def advance(newly_done: int) -> None:
        nonlocal done, last_logged
        done += newly_done
        now = time.monotonic()
        if now - last_logged >= interval and completed + done < total:
            last_logged = now
            rate = done / (now - started)
            remaining = total - completed - done
            log.info(
                "%s: %s of %s, %.0f %s/s, %.0f s left",
                description,
                f"{completed + done:,}",
                f"{total:,}",
                rate,
                unit,
                remaining / rate,
            )

    yield advance
    if not brief:
        seconds = time.monotonic() - started
        log.info("%s: %s in %.1f s, %.0f %s/s", description, f"{done:,}", seconds, done / max(seconds, 1e-9), unit)


@contextlib.contextmanager
def log_levels_restored(*names: str) -> Iterator[None]:
    """Restore the levels of loggers after the body."""
    levels = {name: logging.getLogger(name).level for name in names}
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


@contextlib.contextmanager
def quiet_stderr() -> Iterator[None]:
    """Silence native code, such as TensorFlow's import messages on standard error. Print them only if the body fails.

    From then on TensorFlow's logger reports errors only: its warnings about retracing and about tables in a graph are
    expected here.
    """
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    sys.stderr.flush()
    original_stderr = os.dup(2)
    with tempfile.TemporaryFile() as captured:
        os.dup2(captured.fileno(), 2)
        try:
            yield
        except BaseException:
            captured.seek(0)
            os.write(original_stderr, captured.read())
            raise
        finally:
            os.dup2(original_stderr, 2)
            os.close(original_stderr)


def terminal_width(stream: TextIO) -> int | None:
    """Return the columns of the terminal that a stream writes to, or None if it writes elsewhere."""
    return os.get_terminal_size(stream.fileno()).columns or None if stream.isatty() else None
