"""Runs with `tracking=none`: what they leave in a folder, and fine-tunes that start from it."""

import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dogbreeds.core.errors import MissingFileError, UserError
from dogbreeds.evaluation.metrics import probabilities
from dogbreeds.evaluation.results import Predictions
from dogbreeds.experiments.attempt import execute
from dogbreeds.experiments.result import Result
from dogbreeds.experiments.run import Run
from dogbreeds.inference.classifier import load
from dogbreeds.tracking.prediction_files import read_predictions, write_predictions
from dogbreeds.tracking.records import RunOrigin, is_path, short
from dogbreeds.tracking.saved_run import SavedRun

SMALL = ("data.classes=6", "phase.epochs=8", "head=linear")
ORIGIN = RunOrigin("", (), "a run", None)


@pytest.fixture(scope="module")
def composed_here(composed_in, shared_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Run]:
    folder = tmp_path_factory.mktemp("untracked")
    composed = composed_in(folder, shared_cache)
    return lambda *overrides: composed("tracking=none", f"tracking.folder={folder}/saved runs", *SMALL, *overrides)


@pytest.fixture(scope="module")
def frozen(composed_here: Callable[..., Run]) -> Result:
    return execute(composed_here(), ORIGIN)


def finetune(composed_here: Callable[..., Run], parent: object, *overrides: str) -> Run:
    return composed_here("phase=finetune", "phase.epochs=1", f"phase.parent='{parent}'", *overrides)


def test_a_path_has_a_slash_and_is_not_shortened() -> None:
    assert [is_path(name) for name in ("3f2a9c", "./here", "/runs/3f2a9c")] == [False, True, True]
    assert short("/runs/3f2a9c41b2d0") == "/runs/3f2a9c41b2d0"


@pytest.mark.slow
def test_a_run_leaves_its_network_and_predictions_in_a_folder_of_its_own(frozen: Result) -> None:
    assert frozen.run_id == ""
    assert sorted(path.name for path in frozen.folder.iterdir()) == [
        "head.weights.h5", "model.keras", "run.json", "test.npz", "val.npz",
    ]  # fmt: skip
    saved = SavedRun.read(str(frozen.folder))
    assert saved.params["data.classes"] == "6"
    assert saved.metrics["best/val_accuracy"] == frozen.best.val.accuracy.value
    assert load(saved.network).class_names == frozen.predictions["val"].class_names
    np.testing.assert_array_equal(saved.predictions()["test"].logits, frozen.predictions["test"].logits)


@pytest.mark.slow
def test_the_last_line_of_a_run_names_its_folder_as_phase_parent(frozen: Result) -> None:
    assert shlex.split(frozen.verdict.advice.partition(": type ")[2].removesuffix(".")) == [
        "phase=finetune",
        f"phase.parent={frozen.folder}",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["", pytest.param("model.keras", marks=pytest.mark.long)])
def test_a_fine_tune_starts_from_the_folder_or_a_file_in_it(
    composed_here: Callable[..., Run], frozen: Result, name: str
) -> None:
    run = finetune(composed_here, frozen.folder / name, "optimizer.lr=1e-30", f"seed={7 + len(name)}")
    tuned = execute(run, ORIGIN)
    # A rate that changes nothing leaves the parent's probabilities as they are.
    for split, predictions in tuned.predictions.items():
        difference = probabilities(predictions.logits) - probabilities(frozen.predictions[split].logits)
        assert np.abs(difference).max() < 1e-4
    assert tuned.verdict.name == "no_better_than_frozen"
    assert json.loads((tuned.folder / "run.json").read_text())["tags"]["parent"] == str(frozen.folder)
    with pytest.raises(UserError, match="phase=frozen"):
        SavedRun.read(str(tuned.folder)).parent({})


@pytest.mark.slow
def test_a_parent_with_another_head_or_a_changed_file_is_refused(
    composed_here: Callable[..., Run], frozen: Result, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"head\.dropout is 0\.0 there and 0\.5 here"):
        execute(finetune(composed_here, frozen.folder, "head.dropout=0.5"), ORIGIN)
    copy = Path(shutil.copytree(frozen.folder, tmp_path / "copy"))
    (copy / "head.weights.h5").write_bytes((frozen.folder / "model.keras").read_bytes())
    with pytest.raises(UserError, match=r"head\.weights\.h5 .* is not the file that the run saved"):
        execute(finetune(composed_here, copy), ORIGIN)


def test_a_parent_that_is_not_there_is_refused_before_anything_is_computed(
    composed_here: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dogbreeds.data.miniature.Miniature.open", lambda self: pytest.fail("the data was opened"))
    with pytest.raises(MissingFileError, match=r"Type phase\.parent="):
        execute(finetune(composed_here, tmp_path / "nowhere"), ORIGIN)
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(UserError, match=r"or type phase\.parent="):
        execute(finetune(composed_here, tmp_path), ORIGIN)


def test_damaged_predictions_of_a_run_are_refused(tmp_path: Path) -> None:
    predictions = Predictions(["a", "b"], np.asarray([0, 1]), np.zeros((2, 2), np.float32), ("x", "y"))
    file = write_predictions(tmp_path, "val", predictions)
    assert read_predictions(tmp_path, "0123abcd")["val"].ids == ["a", "b"]
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UserError, match=r"val\.npz of run 0123abcd .*Restore the file, or name another run\.$"):
        read_predictions(tmp_path, "0123abcd")
    np.savez(file, ids=np.asarray(["a"]))
    with pytest.raises(UserError, match="labels"):
        read_predictions(tmp_path, "0123abcd")
