"""The examples in the docstrings of the public API, and the script of the README, run as they are written."""

import doctest
import io
import pathlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dogbreeds as db
from dogbreeds.core.paths import home
from dogbreeds.training.state import History

# Each public name, in an order in which `load` and `runs` find what earlier examples have recorded.
DOCUMENTED: dict[str, Any] = {
    "UserError": db.UserError,
    "MissingFileError": db.MissingFileError,
    "compose": db.compose,
    "Run": db.Run,
    "preflight": db.preflight,
    "fit": db.fit,
    "sweep": db.sweep,
    "runs": db.runs,
    "probe_backbones": db.probe_backbones,
    "audit_dataset": db.audit_dataset,
    "paired": db.paired,
    "load": db.load,
    "Result": db.Result,
    "History.frame": History.frame,
    "judge_history": db.judge_history,
    "VerdictCallback": db.VerdictCallback,
    "Classifier": db.Classifier,
    "Classifier.predict": db.Classifier.predict,
    "Classifier.explain": db.Classifier.explain,
    "Classifier.evaluate": db.Classifier.evaluate,
    "Classifier.export": db.Classifier.export,
    "Dataset.from_arrays": db.Dataset.from_arrays,
    "Dataset.from_files": db.Dataset.from_files,
    "make_soup": db.make_soup,
    "run_recipe": db.run_recipe,
}
README = (home() / "README.md").read_text()
PARTS_GUIDE = (home() / "docs/pages/guides/parts-of-your-own.md").read_text()


@pytest.fixture
def new_folder(
    tmp_path: Path, make_home: Callable[[Path], Path], shared_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """An empty current folder, with a store and the tests' cache."""
    monkeypatch.setenv("DOGBREEDS_HOME", str(make_home(tmp_path / "home")))
    monkeypatch.setenv("DOGBREEDS_CACHE", str(shared_cache))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_public_name_has_an_example() -> None:
    without = set(db.__all__) - set(DOCUMENTED)
    # Base classes and declarations of fields have theirs in the guide, and a data set at its methods.
    assert all(re.search(rf"\b{name}\b", PARTS_GUIDE) for name in without - {"Dataset"})
    assert len(without) < 20
    assert [name for name, documented in DOCUMENTED.items() if ">>> " not in (documented.__doc__ or "")] == []


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(tuple(DOCUMENTED), marks=pytest.mark.long, id="all"),
        pytest.param(
            (
                "UserError",
                "MissingFileError",
                "compose",
                "Run",
                "judge_history",
                "Dataset.from_arrays",
                "Dataset.from_files",
            ),
            id="those that train nothing",
        ),
    ],
)
def test_the_examples_run(names: tuple[str, ...], new_folder: Path, write_images: Callable[..., Path]) -> None:
    write_images(classes=3, size=64, flat=3)
    found = {"db": db, "np": np, "pathlib": pathlib}
    failures = io.StringIO()
    for name in names:
        example = doctest.DocTestParser().get_doctest(DOCUMENTED[name].__doc__ or "", found, name, None, None)
        doctest.DocTestRunner(verbose=False).run(example, out=failures.write, clear_globs=False)
        # A test's examples have a copy of the names.
        found |= example.globs
    assert failures.getvalue() == "", failures.getvalue()


@pytest.mark.slow
def test_the_script_of_the_readme_runs(new_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (script,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(script.splitlines()) <= 12
    data = re.search(r"^data = .*$", script, re.MULTILINE)
    assert data is not None
    small = 'data = ["data.classes=4", "phase.epochs=1", "baseline=none", "tracking.system_metrics_seconds=0"]'
    names: dict[str, Any] = {}
    exec(compile(script.replace(data[0], small), "README.md", "exec"), names)
    assert names["tuned"].verdict.name in ("no_better_than_frozen", "better_than_frozen", "worse_than_frozen")
    assert "images gained" in capsys.readouterr().out
    assert {"checks.json", "classes.txt", "README.md", "savedmodel"} <= {
        path.name for path in (new_folder / "exported").iterdir()
    }
