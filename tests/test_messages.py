"""Messages about what was typed: what is suggested, and that nothing comes before them."""

from pathlib import Path

import pytest
from hydra.errors import HydraException

import dogbreeds
from dogbreeds import predict, table
from dogbreeds.cli import error_message
from dogbreeds.core.errors import UserError
from dogbreeds.experiments.compose import compose_config
from dogbreeds.experiments.recorded_runs import Only, find_record
from dogbreeds.tracking.mlflow_backend import Mlflow


@pytest.mark.parametrize(
    ("override", "received", "typed"),
    [
        ("modle=effnetb0", "modle is neither", "Type model=<option>; python -m dogbreeds.train --help lists"),
        ("haed=linear", "haed is neither", "Type head=<option>;"),
        ("hydra/lancher=joblib", "hydra/lancher is neither", "Type hydra/launcher=<option>;"),
        ("lr=0.1", "lr is not a setting", "Type optimizer.lr=<value>,"),
        ("optimizer.le=0.1", "optimizer.le is not a setting", "Type optimizer.lr=<value>,"),
        ("sede=1", "sede is not a setting", "Type seed=<value>,"),
        ("preprocessing=foo", "preprocessing=foo is not an option", "Type preprocessing=native."),
        ("unfreeze=lastn", "unfreeze=lastn is not an option", "Type unfreeze=last_n."),
        ("attempt=foo", "attempt=foo is not an option", "Type attempt="),
        ("seed=1,2", "seed=1,2 was given without --multirun", "Type --multirun seed=1,2."),
        ("head.widths=64,32", "head.widths=64,32 was given", "Type 'head.widths=[64,32]'."),
    ],
)
def test_compose_suggests_the_group_option_or_setting_that_was_meant(override: str, received: str, typed: str) -> None:
    with pytest.raises(UserError) as refusal:
        dogbreeds.compose([override])
    assert str(refusal.value).startswith(received)
    assert typed in str(refusal.value)


@pytest.mark.parametrize(("command", "setting"), [("predict", "images"), ("why", "seed")])
def test_several_values_are_a_list_where_a_command_cannot_be_swept(command: str, setting: str) -> None:
    with pytest.raises(HydraException) as refusal:
        compose_config(command, [f"{setting}=a,b"])
    assert f"Type '{setting}=[a,b]'." in error_message(refusal.value, command)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["optimizer.lr=-1"], "optimizer.lr was -1. "),
        pytest.param([f"seed={'1' * 5000}"], "seed was 1111", marks=pytest.mark.slow),
        pytest.param(
            ["seed=4294967296"],
            "seed was 4294967296. It must be a whole number from 0 to 4294967295. Type seed=0,",
            marks=pytest.mark.slow,
        ),
        (["--multirun", "seed=range(0,0)"], "seed=range(0,0) has no values, so the sweep has no jobs. "),
        pytest.param(["--multirun", "head=glob(x*)"], "head=glob(x*) has no values", marks=pytest.mark.slow),
        pytest.param(
            ["tracking.uri=foo"], "tracking.uri was 'foo'. It must be sqlite:///<file>, ", marks=pytest.mark.slow
        ),
    ],
)
def test_message_of_a_single_run_is_the_only_output(command, arguments: list[str], message: str) -> None:
    done = command("train", *arguments)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {message}")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
def test_failed_job_of_a_sweep_is_named(command) -> None:
    done = command("train", "--multirun", "optimizer.lr=-1", "tracking=none")
    assert done.returncode == 1
    assert "['optimizer.lr=-1', 'tracking=none']" in done.stderr
    assert "error: optimizer.lr was -1. " in done.stderr


def test_mobilenet_s_width_must_have_weights() -> None:
    assert dogbreeds.compose(["model=mobilenetv2", "model.alpha=1.3"]).parameters()["model.alpha"] == 1.3
    with pytest.raises(UserError, match=r"^model\.alpha=0\.4 .* 0\.35, .* Type model\.alpha=0\.35, or"):
        dogbreeds.compose(["model=mobilenetv2", "model.alpha=0.4"])
    assert dogbreeds.compose(["model=mobilenetv2", "model.alpha=0.4", "model.weights=null"]).key


# --- formats ------------------------------------------------------------------

PREDICT = {"run": "x.keras", "top": 1, "batch_size": None, "explain": False, "explain_dir": "x"}
TABLE = {"runs": "all", "ui": "http://127.0.0.1:5000"}


@pytest.mark.parametrize(
    ("spec", "output", "typed", "expected"),
    [
        (predict.Settings, None, None, "table"),
        (predict.Settings, "x.csv", None, "csv"),
        (predict.Settings, "x.JSON", None, "jsonl"),
        (predict.Settings, "a.b/x", None, "table"),
        (predict.Settings, "x.csv", "table", "table"),
        (table.Settings, None, None, "text"),
        (table.Settings, "x.md", None, "markdown"),
        (table.Settings, "x.html", None, "html"),
    ],
)
def test_suffix_of_the_output_chooses_the_format(
    spec: type, output: str | None, typed: str | None, expected: str
) -> None:
    others = PREDICT if spec is predict.Settings else TABLE
    assert spec(**others, output=output, format=typed).format == expected


def test_suffix_of_another_format_is_refused() -> None:
    with pytest.raises(UserError, match=r"^output=x\.xlsx ends with \.xlsx, .* \.csv, .* Type format=table"):
        predict.Settings(**PREDICT, output="x.xlsx", format=None)


# --- stores -------------------------------------------------------------------


def test_deleted_experiment_is_said_to_be_deleted(composed, tmp_path: Path) -> None:
    tracking: Mlflow = composed().tracking
    client, experiment_id = tracking.connect()
    client.delete_experiment(experiment_id)
    for use in (
        tracking.connect,
        tracking.records,
        lambda: find_record(tracking, "latest", Only(model=None, data=None)),
    ):
        with pytest.raises(UserError) as refusal:
            use()
        assert str(refusal.value).startswith(f"Experiment 'dogbreeds' (id {experiment_id}) of sqlite:///")
        assert "was deleted. " in str(refusal.value)
        assert f"mlflow experiments restore --experiment-id {experiment_id}, " in str(refusal.value)
    client.restore_experiment(experiment_id)
    assert tracking.records() == []


def test_message_about_missing_runs_names_the_store(composed, tmp_path: Path) -> None:
    with pytest.raises(UserError) as refusal:
        find_record(composed().tracking, "latest", Only(model=None, data=None))
    assert f" in sqlite:///{tmp_path}/mlruns/mlflow.db, which DOGBREEDS_HOME and " in str(refusal.value)
