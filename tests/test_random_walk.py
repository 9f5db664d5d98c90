"""A random walk over commands, damage and odd names ends without a traceback, a hang or a half-written file."""

import os
from pathlib import Path

import pytest

from tests import prefork, random_walk


@pytest.mark.slow
def test_four_commands_in_one_process_end_well(tmp_path: Path) -> None:
    # A process of its own: the commands change variables, signals and the log of the process they run in.
    script = Path(random_walk.__file__)
    with prefork.Process(
        address=os.environ[prefork.ADDRESS_ENV],
        module="tests.random_walk",
        arguments=("4", "0", "--one-process"),
        cwd=script.parent.parent,
        environment=dict(os.environ),
    ) as process:
        output, errors = process.communicate(20 * 60)
    assert process.returncode == 0, output + errors


@pytest.mark.long
@pytest.mark.parametrize("seed", range(1))
def test_three_hundred_commands_end_well(tmp_path: Path, seed: int) -> None:
    run = random_walk.forked(os.environ[prefork.ADDRESS_ENV])
    random_walk.walk(300, seed, tmp_path, run, one_process=False)


@pytest.mark.parametrize(
    ("ended", "failure"),
    [
        (random_walk.Ended(0, "done", ""), None),
        (random_walk.Ended(1, "", "error: It was. It must be. Type it."), None),
        (random_walk.Ended(1, "", "error: It was."), "fewer than three sentences"),
        (random_walk.Ended(1, "", "it failed"), "0 error messages"),
        (random_walk.Ended(0, "", "error: It was. It must be. Type it."), "1 error messages"),
        (random_walk.Ended(2, "", ""), "exit code was 2"),
        (random_walk.Ended(1, "", "Traceback (most recent call last):\nerror: a. b. c."), "traceback"),
    ],
)
def test_check_ended_tells_how_a_command_may_end(ended: random_walk.Ended, failure: str | None) -> None:
    step = random_walk.Step("table", [], {0, 1})
    if failure is None:
        random_walk.check_ended(step, ended)
        return
    with pytest.raises(random_walk.FailedStepError, match=failure):
        random_walk.check_ended(step, ended)


@pytest.mark.parametrize("name", [".a.csv.123", ".7.part", "aside", "cut.json", "cut.npz", "cut.html", "ragged.csv"])
def test_check_files_finds_a_half_written_file(tmp_path: Path, name: str) -> None:
    world = random_walk.World(tmp_path, random_walk.random.Random(0))
    before = world.signatures()
    (world.output / "whole.json").write_text("{}")
    random_walk.check_files(before, world, was_killed=False)
    (world.output / name).write_text('<p>{"a": 1\n1,2,3\n' if name.endswith(".html") else '{"a": 1\n1,2,3\n')
    with pytest.raises(random_walk.FailedStepError, match=name.replace(".", r"\.")):
        random_walk.check_files(before, world, was_killed=False)
