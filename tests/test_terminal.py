"""What a terminal of 80 columns shows: the first line at once, lines that fit, progress that is no spam."""

import contextlib
import fcntl
import io
import itertools
import logging
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from dataclasses import replace
from pathlib import Path

import pytest

from dogbreeds.core import console, countdown
from dogbreeds.core.console import Link, TerminalHandler, fitted
from dogbreeds.core.paths import config_folder, home
from dogbreeds.evaluation.metrics import Proportion, Scores
from dogbreeds.evaluation.results import Epoch, ZeroShotBaseline
from dogbreeds.evaluation.verdict import Verdict
from dogbreeds.experiments.recording import epoch_line, summary_lines
from dogbreeds.experiments.result import Result
from dogbreeds.tracking.tracking import Tracker
from dogbreeds.training.state import History

# Prints what each command writes before its first import of TensorFlow or MLflow, or its help.
_PROBE = """
import importlib, logging, sys
from hydra.core.global_hydra import GlobalHydra
from dogbreeds import cli

class Imported(BaseException):
    pass

class Watch:
    def find_spec(self, name, path=None, target=None):
        if name in ("tensorflow", "keras", "mlflow"):
            raise Imported

sys.meta_path.insert(0, Watch())
sys.stderr = sys.stdout
for line in sys.argv[1:]:
    sys.argv = line.split()
    print("\\0" + line)
    try:
        name = sys.argv[0]
        cli.main(importlib.import_module(f"dogbreeds.{name}").task, name)
    except Imported:
        print("import")
    except SystemExit:
        print("exit")
    GlobalHydra.instance().clear()
"""


def _probe(tmp_path, *lines: str) -> dict[str, list[str]]:
    """Return the output of each command line, by line."""
    done = subprocess.run(
        [sys.executable, "-c", _PROBE, *lines],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(home()), "DOGBREEDS_HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    outputs = done.stdout.split("\0")[1:]
    return {output.split("\n", 1)[0]: output.splitlines()[1:] for output in outputs}


def test_train_prints_its_first_line_before_it_imports_tensorflow_or_mlflow(tmp_path) -> None:
    found = _probe(tmp_path, "train seed=3", "train --multirun seed=0,1")
    assert found["train seed=3"] == ["run 'miniature frozen seed=3'", "import"]
    assert found["train --multirun seed=0,1"] == ["sweep seed=0,1", "import"]


@pytest.mark.slow
def test_other_commands_print_their_first_line_before_they_import_tensorflow_or_mlflow(tmp_path) -> None:
    (tmp_path / "dog.jpg").touch()
    found = _probe(
        tmp_path,
        "extract tracking=none",
        "why attempt=lr_collapse",
        "predict images=dog.jpg",
        "evaluate run=latest",
        "export run=best",
        "compare first=best second=latest",
        "table",
        "ui port=50123",
        "pretrain images_per_class=1",
    )
    assert len(found) == 9
    for line, output in found.items():
        assert len(output) > 1, line
        assert output[-1] == "import", line


def test_help_texts_fit_80_columns() -> None:
    files = list(config_folder().glob("hydra/help/*.yaml"))
    assert len(files) > 5
    long = {file.name: [line for line in file.read_text().splitlines() if len(line) > 82] for file in files}
    assert {name: lines for name, lines in long.items() if lines} == {}


@pytest.mark.slow
def test_help_fits_80_columns_with_the_lines_that_hydra_adds(tmp_path) -> None:
    for name, output in _probe(tmp_path, "train --help", "predict --help", "cache --help").items():
        assert output[-1] == "exit", name
        assert len(output) > 10, name
        assert [line for line in output if len(line) > 80] == []


# --- lines -------------------------------------------------------------------

SCORES = Scores(loss=2.3456, accuracy=Proportion(10_476, 12_000), top5=Proportion(11_904, 12_000))
EPOCH = Epoch(
    number=10,
    lr=0.001,
    train_loss=0.4,
    train_accuracy=0.872,
    train_top5=1.0,
    val=Scores(loss=0.28, accuracy=Proportion(915, 1_000), top5=Proportion(990, 1_000)),
    seconds=0.84,
)
LONG = replace(EPOCH, number=7, lr=0.00037, train_loss=123.456, train_accuracy=1.0, val=SCORES, seconds=1234.5)


@pytest.mark.parametrize(
    ("epoch", "epochs", "expected"),
    [
        (EPOCH, 20, "epoch 10/20  train  87.2 %  val  91.5 %  loss 0.400/0.280  lr 0.001  0.8 s"),
        (LONG, 100, "epoch   7/100  train 100.0 %  val  87.3 %  loss 123.5/2.346  lr 0.00037  1234 s"),
        (
            replace(LONG, train_loss=float("nan"), seconds=123456.0, lr=1.2e-5),
            9,
            "epoch 7/9  train 100.0 %  val  87.3 %  loss nan/2.346  lr 1.2e-05  1e+05 s",
        ),
    ],
)
def test_epoch_line_fits_80_columns(epoch: Epoch, epochs: int, expected: str) -> None:
    assert epoch_line(epoch, epochs) == expected
    assert len(expected) <= 80


def test_summary_lines_of_a_large_run_fit_80_columns() -> None:
    history = History(epochs=[LONG], best=replace(LONG, number=100))
    result = Result(
        run_id="r",
        folder=None,
        history=history,
        predictions={},
        test=SCORES,
        baseline=ZeroShotBaseline("", 0),
        verdict=Verdict("learned", "of a reason", "Advice."),
        feature_seconds=12_345.6,
        seconds=123_456.7,
    )
    lines = summary_lines(result, Tracker("effnetv2b0 finetune_50 lr=1e-3"))
    assert lines[0] == "best  val  87.3 % (95 % interval 86.7–87.9, n = 12,000), top-5 99.2 %, epoch 100"
    assert [line for line in lines if len(line) > 80] == []


def test_lines_that_are_too_long_are_broken_at_spaces_only() -> None:
    path = f"/a/{'b' * 90}/c"
    text = f"learned: {'word ' * 20}end\n\t#0 : seed=1\nreport  {path}\n\n  deep {'word ' * 20}"
    lines = fitted(text, 80).split("\n")
    assert [line for line in lines if len(line) > 80] == [f"  {path}"]
    assert lines[0].startswith("learned: word")
    assert lines[1].startswith("  word")
    assert "    #0 : seed=1" in lines
    assert lines[-1].startswith("    word")
    assert " ".join(" ".join(lines).split()) == " ".join(text.split())
    assert fitted(text, None) == text


def open_terminal() -> tuple[int, int]:
    """Open a terminal of 80 columns. Return the file descriptors to read it and to write to it."""
    reader, writer = pty.openpty()
    fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    return reader, writer


@pytest.mark.parametrize("in_terminal", [True, False])
def test_log_lines_are_broken_in_a_terminal_and_whole_elsewhere(in_terminal: bool) -> None:
    reader, writer = open_terminal() if in_terminal else os.pipe()
    with open(reader, "rb", buffering=0) as screen, open(writer, "w") as stream:
        handler = TerminalHandler(stream)
        handler.emit(logging.LogRecord("name", logging.INFO, "path", 1, "word " * 30 + "end", None, None))
        lines = screen.read(1_000).decode().splitlines()
    assert len(lines) == (2 if in_terminal else 1)
    assert all(len(line) <= 80 for line in lines) == in_terminal


@pytest.mark.own_cache
@pytest.mark.slow
def test_attempt_in_a_terminal_of_80_columns_shows_progress_in_lines_that_fit(
    tmp_path: Path, command_environment, make_home
) -> None:
    make_home(tmp_path / "home")
    reader, writer = open_terminal()
    with subprocess.Popen(
        [sys.executable, "-m", "dogbreeds.train", "data.classes=3", "phase.epochs=1", "seed=3"],
        cwd=tmp_path,
        env=command_environment(TERM="xterm-256color"),
        stdout=writer,
        stderr=writer,
    ) as process:
        os.close(writer)
        shown = bytearray()
        # Reading fails once the process has ended.
        with contextlib.suppress(OSError):
            while chunk := os.read(reader, 65_536):
                shown += chunk
    os.close(reader)
    assert process.returncode == 0
    # Without colours, and without the targets of hyperlinks.
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b\]8;[^\x1b]*\x1b\\", "", shown.decode())
    lines = re.split(r"[\r\n]+", text)
    assert lines[0] == "run 'miniature frozen classes=3 epochs=1 seed=3'"
    assert [line for line in lines if len(line) > 80] == []
    assert any(re.fullmatch(r"open\s+http://[^/]+/#/runs/\w{32}", line) for line in lines)
    for bar in ("preflight ", "features of train ", "features of val ", "features of test "):
        assert any(line.startswith(bar) and "━" in line for line in lines), bar


# --- progress ----------------------------------------------------------------


class Screen(io.StringIO):
    """A terminal that keeps what is written."""

    def isatty(self) -> bool:
        return True


def set_terminal(monkeypatch: pytest.MonkeyPatch) -> Screen:
    """Make standard error a terminal. No fixture, since pytest replaces standard error after those."""
    screen = Screen()
    monkeypatch.setattr(console.sys, "stderr", screen)
    monkeypatch.setattr(console, "_shares_terminal", False)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm-256color")
    return screen


def test_brief_progress_appears_after_seconds_and_leaves_no_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    screen = set_terminal(monkeypatch)
    caplog.set_level(logging.INFO)
    with console.progress("epoch 1", 100, "steps", brief=True) as advance:
        advance(50)
    assert screen.getvalue() == ""
    monkeypatch.setattr(console, "_BAR_DELAY_SECONDS", 0.0)
    with console.progress("epoch 2", 100, "steps", brief=True) as advance:
        advance(50)
        assert "epoch 2" in screen.getvalue()
    # The cursor goes back, and the line is erased.
    assert screen.getvalue().rstrip().endswith("\x1b[2K")
    assert caplog.messages == []


@pytest.mark.parametrize("variable", ["NO_COLOR", "nothing"])
def test_progress_bar_has_colours_unless_no_color_is_set(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = set_terminal(monkeypatch)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv(variable, "1")
    with console.progress("features", 100, "images") as advance:
        advance(50)
    assert "50/100" in screen.getvalue()
    assert bool(re.search(r"\x1b\[[0-9;]*3[0-9]", screen.getvalue())) == (variable != "NO_COLOR")


@pytest.mark.parametrize("reason", ["dumb terminal", "parallel jobs", "pipe"])
def test_progress_is_plain_lines_where_there_is_no_terminal_of_its_own(
    reason: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    screen = set_terminal(monkeypatch)
    if reason == "dumb terminal":
        monkeypatch.setenv("TERM", "dumb")
    elif reason == "parallel jobs":
        monkeypatch.setattr(console, "_shares_terminal", True)
    else:
        monkeypatch.setattr(console.sys, "stderr", io.StringIO())
    caplog.set_level(logging.INFO)
    clock = itertools.count(0, 20)
    monkeypatch.setattr(console.time, "monotonic", lambda: float(next(clock)))
    with console.progress("epoch 1", 100, "steps", brief=True) as advance:
        for _ in range(4):
            advance(10)
    # A line a minute, and none at the end.
    assert caplog.messages == ["epoch 1: 30 of 100, 0 steps/s, 140 s left"]
    assert screen.getvalue() == ""


def test_countdown_estimates_the_time_left_from_what_this_process_has_done(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    clock = iter([0.0, 60.0, 150.0])
    monkeypatch.setattr(countdown.time, "monotonic", lambda: next(clock))
    jobs = countdown.Countdown("jobs", 6, completed=2)
    jobs.advance()
    jobs.advance(2)
    # The last unit's result has lines of its own.
    jobs.advance()
    assert caplog.messages == [
        "3 of 6 jobs done in 60 s, about 3 min 0 s left",
        "5 of 6 jobs done in 2 min 30 s, about 50 s left",
    ]


@pytest.mark.slow
def test_sweep_says_after_each_job_how_many_are_done(command) -> None:
    done = command("train", "--multirun", "tracking=none", "data.classes=3", "phase.epochs=1", "seed=0,1,2")
    assert done.returncode == 0
    assert re.findall(r"(\d of \d) jobs done in [^,]+ s, about .* s left", done.stdout) == ["1 of 3", "2 of 3"]


def test_link_is_short_in_a_terminal_and_whole_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    link = Link("http://a/#/experiments/1/runs/b?c=d", "http://a/#/runs/b")
    set_terminal(monkeypatch)
    assert re.sub(r"\x1b\]8;[^\x1b]*\x1b\\", "", link.line("open")).split() == ["open", link.shown]
    assert link.url in link.line("open")
    assert fitted(link.line("open"), 20) == link.line("open")
    monkeypatch.setenv("TERM", "dumb")
    assert link.line("open") == f"open  {link.url}"
