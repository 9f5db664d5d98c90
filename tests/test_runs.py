"""`recorded_runs`: finding runs by id, `latest` and `best` in a real SQLite store."""

import re
from collections.abc import Callable

import pytest

from dogbreeds.core.errors import UserError
from dogbreeds.experiments.recorded_runs import Only, find_record, is_network_file
from dogbreeds.tracking.mlflow_backend import Mlflow
from dogbreeds.tracking.records import short

ANY = Only(model=None, data=None)


@pytest.fixture
def tracking(composed: Callable) -> Mlflow:
    return composed().tracking


@pytest.fixture
def recorded(tracking: Mlflow) -> Callable[..., str]:
    """A function that records a finished training run and returns its id."""

    def record(accuracy: float, data: str = "miniature", status: str = "FINISHED", **tags: str) -> str:
        client, experiment = tracking.connect()
        run_id = client.create_run(experiment, tags={"verdict": "learned", "model": "kept"} | tags).info.run_id
        for name, value in {"data.name": data, "model.architecture": "Miniature"}.items():
            client.log_param(run_id, name, value)
        client.log_metric(run_id, "best/val_accuracy", accuracy)
        client.set_terminated(run_id, status)
        return run_id

    return record


def test_find_record_finds_latest_best_and_id_prefixes(tracking: Mlflow, recorded: Callable[..., str]) -> None:
    good, newer = recorded(0.9), recorded(0.8)
    recorded(0.95, model="removed: another job of the sweep did better")
    assert find_record(tracking, "best", ANY).run_id == good
    assert find_record(tracking, "latest", ANY).run_id == newer
    assert find_record(tracking, good[:10], ANY).run_id == good
    assert find_record(tracking, "best", ANY, needs_network=False).metrics["best/val_accuracy"] == 0.95


def test_find_record_rejects_best_across_data_sets(tracking: Mlflow, recorded: Callable[..., str]) -> None:
    easy, hard = recorded(0.9), recorded(0.7, data="stanford_dogs")
    message = (
        "run=best was given, and experiment 'dogbreeds' has runs on miniature and stanford_dogs. The best run is"
        " defined for one data set only."
    )
    with pytest.raises(UserError, match=re.escape(message)):
        find_record(tracking, "best", ANY)
    assert find_record(tracking, "best", Only(model=None, data="stanford_dogs")).run_id == hard
    assert find_record(tracking, "best", Only(model=None, data="miniature")).run_id == easy


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"status": "KILLED"},
            "has not finished (KILLED). It must be a training run that has finished. Type run=latest",
        ),
        (
            {"model": "removed: another job of the sweep did better"},
            "has no saved network (removed: another job of the sweep did better). One is needed.",
        ),
    ],
)
def test_find_record_rejects_unfinished_runs_and_runs_without_a_network(
    tracking: Mlflow, recorded: Callable[..., str], changes: dict[str, str], message: str
) -> None:
    run_id = recorded(0.9, **changes)
    with pytest.raises(UserError, match=re.escape(f"run={run_id} {message}")):
        find_record(tracking, run_id, ANY)


def test_find_record_rejects_no_match_and_several_matches(tracking: Mlflow, recorded: Callable[..., str]) -> None:
    with pytest.raises(
        UserError,
        match=(
            r"Experiment 'dogbreeds' has no finished run with a saved network. run=latest needs one in sqlite:///\S+,"
            r" which DOGBREEDS_HOME and tracking.uri choose. Type python"
        ),
    ):
        find_record(tracking, "latest", ANY)
    first = recorded(0.5)
    recorded(0.6)
    with pytest.raises(
        UserError,
        match=(
            r"run=zz names no run of experiment 'dogbreeds'. It must be latest, best, .* the newest are"
            rf" .*{short(first)}"
        ),
    ):
        find_record(tracking, "zz", ANY)
    with pytest.raises(UserError, match=r"first= names 2 runs of experiment 'dogbreeds'."):
        find_record(tracking, "", ANY, key="first")
    with pytest.raises(UserError, match=re.escape("has no finished run with a saved network for only.data=cats.")):
        find_record(tracking, "latest", Only(model=None, data="cats"))


def test_is_network_file_tells_files_from_runs() -> None:
    assert [is_network_file(word) for word in ("model.keras", "./model", "folder/x.keras", "380ff520", "latest")] == [
        True,
        True,
        True,
        False,
        False,
    ]
