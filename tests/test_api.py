"""The Python API: `import dogbreeds`."""

import dataclasses
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest

import dogbreeds

SMALL = ["data.classes=3", "data.train_per_class=4", "data.val_per_class=2", "data.test_per_class=2", "phase.epochs=1"]


@pytest.fixture
def own_home(tmp_path: Path, make_home, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = make_home(tmp_path / "home")
    monkeypatch.setenv("DOGBREEDS_HOME", str(place))
    return place


def test_fit_trains_a_composed_run_and_records_what_it_was_composed_from(own_home: Path) -> None:
    run = dogbreeds.compose([*SMALL, "tracking.system_metrics_seconds=0"])
    result = dogbreeds.fit(run)
    assert isinstance(result, dogbreeds.Result)
    assert len(result.history.epochs) == 1
    (recorded,) = mlflow.MlflowClient(run.tracking.uri).search_runs(["1"])
    assert (recorded.info.run_id, recorded.info.status) == (result.run_id, "FINISHED")
    assert recorded.data.tags["key"] == run.key
    assert recorded.data.tags["choice.model"] == "miniature"
    assert recorded.data.params["overrides"].split()[:5] == SMALL
    assert recorded.data.params["data.classes"] == "3"
    assert "hydra.folder" not in recorded.data.tags


class _Interrupt(logging.Handler):
    """Sends Ctrl-C when the first epoch is logged."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage().startswith("epoch 1/"):
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.slow
def test_interrupted_fit_ends_its_run_at_once_and_keeps_the_checkpoint(
    own_home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = dogbreeds.compose([*SMALL, "phase.epochs=2", "tracking.system_metrics_seconds=0.05"])
    caplog.set_level(logging.INFO, "dogbreeds")
    logger, interrupt = logging.getLogger("dogbreeds"), _Interrupt()
    logger.addHandler(interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            dogbreeds.fit(run)
    finally:
        logger.removeHandler(interrupt)
    client = mlflow.MlflowClient(run.tracking.uri)
    assert [recorded.info.status for recorded in client.search_runs(["1"])] == ["KILLED"]
    assert list(Path(run.checkpoint_dir).glob("*/*.npz"))
    result = dogbreeds.fit(run)
    assert any("Resuming from checkpoint: epoch 1/2" in message for message in caplog.messages)
    assert [(recorded.info.run_id, recorded.info.status) for recorded in client.search_runs(["1"])] == [
        (result.run_id, "FINISHED")
    ]


def test_fit_refuses_a_run_that_was_changed_after_it_was_composed(own_home: Path) -> None:
    changed = dataclasses.replace(dogbreeds.compose(SMALL), seed=1)
    with pytest.raises(dogbreeds.UserError, match=r"Type dogbreeds\.compose"):
        dogbreeds.fit(changed)


@pytest.mark.parametrize(
    ("override", "typed"),
    [
        ("hat=linear", "head.widths="),
        ("head=linaer", "head=linear"),
        ("head.dropuot=0", "head.dropout"),
        ("head.widths=[1", "--help"),
    ],
)
def test_compose_answers_a_mistyped_override_with_what_to_type(override: str, typed: str) -> None:
    with pytest.raises(dogbreeds.UserError) as error:
        dogbreeds.compose([override])
    assert typed in str(error.value)


def test_import_is_light_and_every_public_name_is_there_after_any_command_is_imported() -> None:
    code = """
import sys, dogbreeds
heavy = {"tensorflow", "keras", "mlflow", "hydra", "numpy", "pandas"} & set(sys.modules)
assert not heavy, heavy
from dogbreeds import cache, compare, evaluate, export, extract, predict, pretrain, table, train, why
for name in dogbreeds.__all__:
    assert not hasattr(getattr(dogbreeds, name), "__path__") and type(getattr(dogbreeds, name)) is not type(sys), name
assert set(dogbreeds.__all__) <= set(dir(dogbreeds))
"""
    done = subprocess.run([sys.executable, "-W", "error::SyntaxWarning", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'fitt'"):
        dogbreeds.fitt  # noqa: B018
