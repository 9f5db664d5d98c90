"""The console script `dogbreeds`, whose subcommands are the modules of the commands."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from dogbreeds import __main__ as console_script
from dogbreeds.core.paths import home
from tests.test_imports import COMMANDS

# Runs the script as its installed file does, and says afterwards what was imported.
_SCRIPT = (
    "import sys; sys.argv[0] = '/usr/bin/dogbreeds'; from dogbreeds.__main__ import main\ntry: main()\n"
    "finally: print({'tensorflow', 'mlflow', 'hydra', 'numpy'} & set(sys.modules), file=sys.stderr)"
)


def script(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", _SCRIPT, *arguments], cwd=home(), capture_output=True, text=True, timeout=60
    )


def test_script_is_the_one_that_is_installed() -> None:
    project = tomllib.loads((home() / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"dogbreeds": f"{console_script.__name__}:{console_script.main.__name__}"}


def test_script_has_every_command() -> None:
    assert set(console_script.COMMANDS) == COMMANDS


@pytest.mark.parametrize("arguments", [(), ("--help",)], ids=["nothing", "help"])
def test_help_lists_the_commands_and_imports_nothing_heavy(arguments: tuple[str, ...]) -> None:
    done = script(*arguments)
    assert (done.returncode, done.stderr.strip()) == (0, "set()")
    listed = [line.split()[0] for line in done.stdout.splitlines() if line.startswith("  ")]
    assert listed == list(console_script.COMMANDS)
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_a_mistyped_command_suggests_the_nearest_one() -> None:
    done = script("trian", "seed=1")
    assert done.returncode == 1
    assert "trian" in done.stderr
    assert "Type dogbreeds train," in done.stderr


@pytest.mark.slow
def test_a_subcommand_equals_the_module() -> None:
    arguments = ("--cfg", "job", "optimizer.lr=0.25")
    module = subprocess.run([sys.executable, "-m", "dogbreeds.train", *arguments], capture_output=True, text=True)
    assert script("train", *arguments).stdout == module.stdout
    assert "lr: 0.25" in module.stdout


def test_a_subcommand_imports_modules_of_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["/usr/bin/dogbreeds", "cache", "clear=true"])
    monkeypatch.setattr(sys, "path", ["/usr/bin", *sys.path])
    called: list[tuple[str, list[str]]] = []
    monkeypatch.setattr(console_script.runpy, "run_module", lambda name, **_: called.append((name, sys.argv[1:])))
    console_script.main()
    assert called == [("dogbreeds.cache", ["clear=true"])]
    assert sys.path[0] == str(tmp_path)


@pytest.mark.slow
def test_jobs_in_processes_of_their_own_find_the_task_of_the_script(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    monkeypatch.setenv("DOGBREEDS_HOME", str(tmp_path))
    done = script("train", "--multirun", "hydra/launcher=joblib", "tracking=none", "optimizer.lr=-1,-2")
    assert done.returncode == 1
    # The task itself refuses the rate, in the job's process.
    assert "optimizer.lr was -1." in done.stderr
