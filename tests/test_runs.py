"""Which run a word names, in a real SQLite store."""

import re
from collections.abc import Callable

import pytest

from dogbreeds.core.errors import UserError
from dogbreeds.experiments.recorded_runs import Only, find, is_file
from dogbreeds.tracking.mlflow_backend import Mlflow
from dogbreeds.tracking.records import short

ANY = Only(model=None, data=None)


@pytest.fixture
def tracking(composed: Callable) -> Mlflow:
    return composed().tracking


@pytest.fixture
def recorded(tracking: Mlflow) -> Callable[..., str]:
    """A function that records an attempt as a finished one is, and gives its id."""

    def record(accuracy: float, data: str = "miniature", status: str = "FINISHED", **tags: str) -> str:
        client, experiment = tracking.connect()
        run_id = client.create_run(experiment, tags={"verdict": "learned", "model": "kept"} | tags).info.run_id
        for name, value in {"data.name": data, "model.architecture": "Miniature"}.items():
            client.log_param(run_id, name, value)
        client.log_metric(run_id, "best/val_accuracy", accuracy)
        client.set_terminated(run_id, status)
        return run_id

    return record


def test_words_and_beginnings_name_runs(tracking: Mlflow, recorded: Callable[..., str]) -> None:
    good, newer = recorded(0.9), recorded(0.8)
    recorded(0.95, model="removed: another job of the sweep did better")
    assert find(tracking, "best", ANY).run_id == good
    assert find(tracking, "latest", ANY).run_id == newer
    assert find(tracking, good[:10], ANY).run_id == good
    assert find(tracking, "best", ANY, network=False).metrics["best/val_accuracy"] == 0.95


def test_best_is_sought_on_the_same_photos_only(tracking: Mlflow, recorded: Callable[..., str]) -> None:
    easy, hard = recorded(0.9), recorded(0.7, data="stanford_dogs")
    said = (
        "run=best was asked for, and experiment 'dogbreeds' has attempts on miniature and stanford_dogs. The best is"
        " among those on the same photos."
    )
    with pytest.raises(UserError, match=re.escape(said)):
        find(tracking, "best", ANY)
    assert find(tracking, "best", Only(model=None, data="stanford_dogs")).run_id == hard
    assert find(tracking, "best", Only(model=None, data="miniature")).run_id == easy


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"status": "KILLED"},
            "has not finished (KILLED). It must be an attempt that was trained to its end. Type run=latest",
        ),
        (
            {"model": "removed: another job of the sweep did better"},
            "kept no network (removed: another job of the sweep did better). There must be one.",
        ),
    ],
)
def test_runs_that_are_of_no_use_are_refused(
    tracking: Mlflow, recorded: Callable[..., str], changes: dict[str, str], words: str
) -> None:
    run_id = recorded(0.9, **changes)
    with pytest.raises(UserError, match=re.escape(f"run={run_id} {words}")):
        find(tracking, run_id, ANY)


def test_what_names_nothing_or_too_much_is_refused(tracking: Mlflow, recorded: Callable[..., str]) -> None:
    with pytest.raises(
        UserError,
        match=(
            r"Experiment 'dogbreeds' has no finished attempt that kept its network. run=latest is one of those. Type"
            r" python"
        ),
    ):
        find(tracking, "latest", ANY)
    first = recorded(0.5)
    recorded(0.6)
    with pytest.raises(
        UserError,
        match=(
            r"run=zz names no run of experiment 'dogbreeds'. It must be latest, best, .* the newest are"
            rf" .*{short(first)}"
        ),
    ):
        find(tracking, "zz", ANY)
    with pytest.raises(UserError, match=r"first= names 2 runs of experiment 'dogbreeds'."):
        find(tracking, "", ANY, key="first")
    with pytest.raises(
        UserError, match=re.escape("has no finished attempt that kept its network with only.data=cats.")
    ):
        find(tracking, "latest", Only(model=None, data="cats"))


def test_files_are_told_from_runs() -> None:
    assert [is_file(word) for word in ("model.keras", "./model", "folder/x.keras", "380ff520", "latest")] == [
        True,
        True,
        True,
        False,
        False,
    ]
