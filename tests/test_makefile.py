"""Makefile: what each target installs, with a Python that only records how it was called."""

import os
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from dogbreeds.core.paths import home

# Stands for the environment's Python. It writes its arguments to a file, one call a line.
RECORDER = '#!/bin/sh\necho "$*" >> "$(dirname "$0")/calls"\n'
# Runs the Makefile's check as Python 3.10 would, and fails at anything else.
OLD_PYTHON = f"""#!{sys.executable}
import sys
sys.version_info, sys.version = (3, 10, 13), "3.10.13"
option, code, *sys.argv = sys.argv[1:]
sys.argv.insert(0, option)
exec(code)
"""
Make = Callable[..., list[str]]


def run_make(environment: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run make in the checkout, with none of the variables of a make that runs the tests."""
    variables = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return subprocess.run(
        ["make", f"VENV={environment}", *arguments], cwd=home(), env=variables, capture_output=True, text=True
    )


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """A virtual environment with a Python that records its calls."""
    folder = tmp_path / "environment"
    (folder / "bin").mkdir(parents=True)
    for name in ("python", "ruff", "mypy", "mlflow"):
        (folder / "bin" / name).write_text(RECORDER)
        (folder / "bin" / name).chmod(0o755)
    return folder


@pytest.fixture
def make(environment: Path) -> Make:
    """A function that runs make, and returns what pip was asked to install, such as `.[joblib]`."""

    def run(*arguments: str) -> list[str]:
        calls = environment / "bin/calls"
        calls.write_text("")
        run_make(environment, *arguments).check_returncode()
        return [shlex.split(line)[-1] for line in calls.read_text().splitlines() if line.startswith("-m pip install ")]

    return run


@pytest.mark.parametrize(
    ("arguments", "installed"),
    [
        (["setup"], "."),
        (["table"], "."),
        (["cache"], "."),
        (["setup", "EXTRAS=search,joblib"], ".[joblib,search]"),
        (["setup", "EXTRAS=dev,joblib"], ".[dev]"),
        (["table", "LAUNCHER=joblib"], ".[joblib]"),
        (["table", "LAUNCHER=submitit_slurm"], ".[submitit]"),
        (["table", "LAUNCHER=basic"], "."),
        (["table", "LAUNCHER=ray", "EXTRAS=search"], ".[ray,search]"),
        (["server"], "."),
        (["server", "POSTGRESQL=postgresql+psycopg2://user@host/name"], ".[server]"),
        (["server", "ARTIFACTS=s3://bucket"], ".[server]"),
        (["notebooks"], ".[notebook]"),
        (["wheel"], ".[dev]"),
        (["check"], ".[dev]"),
        (["test"], ".[dev]"),
        (["test-slow"], ".[dev]"),
    ],
)
def test_target_installs_the_extras_that_it_needs(make: Make, arguments: list[str], installed: str) -> None:
    assert make(*arguments) == [installed]
    assert make(*arguments) == []


@pytest.mark.parametrize("target", ["setup", "table", "check", "test", "ui"])
def test_target_installs_nothing_where_everything_is_installed(make: Make, target: str) -> None:
    make("setup", "EXTRAS=dev")
    assert make(target, "LAUNCHER=joblib") == []


@pytest.mark.parametrize(
    ("arguments", "called"),
    [
        (["wheel"], "-m hatchling build -t wheel"),
        (["ui", "PORT=5123"], "-m dogbreeds.ui port=5123"),
        (["notebooks", "NAMES=examples/first-run.ipynb"], "docs/execute_notebooks.py examples/first-run.ipynb"),
    ],
)
def test_target_calls_python(make: Make, environment: Path, arguments: list[str], called: str) -> None:
    make(*arguments)
    assert (environment / "bin/calls").read_text().splitlines()[-1] == called


def test_setup_adds_an_extra_to_those_that_are_installed(make: Make) -> None:
    make("setup", "EXTRAS=search")
    assert make("table") == []
    assert make("table", "LAUNCHER=joblib") == [".[joblib,search]"]
    assert make("setup", "EXTRAS=search") == []
    assert make("test") == [".[dev]"]


def test_setup_installs_the_same_extras_again_after_a_change(make: Make, environment: Path) -> None:
    make("setup", "EXTRAS=search")
    # As if pyproject.toml had been changed after the installation.
    os.utime(environment / ".ready", (0, 0))
    assert make("table") == [".[search]"]
    assert make("table") == []


def test_setup_fails_with_an_installation_that_failed(make: Make, environment: Path) -> None:
    python = environment / "bin/python"
    python.write_text(RECORDER + 'case "$*" in *pip*) exit 1;; esac\n')
    with pytest.raises(subprocess.CalledProcessError):
        make("setup")
    python.write_text(RECORDER)
    assert make("setup") == ["."]


def test_unknown_extra_is_rejected_before_anything_is_installed(environment: Path) -> None:
    done = run_make(environment, "setup", "EXTRAS=joblip,search")
    assert done.returncode == 2
    assert "EXTRAS=joblip,search" in done.stderr
    assert "Type make setup EXTRAS=" in done.stderr
    assert not (environment / "bin/calls").exists()


def test_known_extras_are_those_of_the_package() -> None:
    (known,) = [
        line.split(":=")[1].split()
        for line in (home() / "Makefile").read_text().splitlines()
        if line.startswith("KNOWN_EXTRAS :=")
    ]
    project = tomllib.loads((home() / "pyproject.toml").read_text())["project"]
    assert sorted(known) == sorted(project["optional-dependencies"])


def test_setup_rejects_an_environment_of_a_python_that_is_not_supported(environment: Path) -> None:
    (environment / "bin/python").write_text(OLD_PYTHON)
    done = run_make(environment, "setup")
    assert done.returncode == 2
    assert f"{environment}/bin/python is Python 3.10.13." in done.stderr
    assert f"Type rm -r {environment} && make setup PYTHON=" in done.stderr
    assert not (environment / ".ready").exists()
