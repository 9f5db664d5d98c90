"""Command lines: errors before TensorFlow is imported, `--help`, and the command `dogbreeds.cache`."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from dogbreeds import cache as cache_command
from dogbreeds import cli
from dogbreeds.core.errors import UserError
from dogbreeds.core.paths import home
from dogbreeds.experiments.arguments import sort_arguments
from dogbreeds.experiments.compose import compose_config, settings_of
from dogbreeds.features.cache import FeatureCache
from tests.tiers import tiered

_SINGLE_COMMANDS = (
    "audit",
    "cache",
    "compare",
    "evaluate",
    "export",
    "judge",
    "predict",
    "pretrain",
    "probe",
    "soup",
    "table",
    "ui",
    "why",
)

# A command that prints at its end whether it has imported TensorFlow or MLflow.
_PROBE = (
    "import sys; from dogbreeds import cli, train\ntry: cli.main(train.task, 'train')\nfinally:"
    " print('TensorFlow was', 'imported' if 'tensorflow' in sys.modules or 'mlflow' in sys.modules else 'left alone')"
)


# A command line, and how its message begins. Each case is a process of its own.
WRONG_COMMAND_LINES = [
    ("optimzer.lr=1", "optimzer.lr is not a setting. Similar settings are optimizer.lr, "),
    (
        "optimizer.lr=abc",
        "optimizer.lr was 'abc'. It must be a finite number above 0. Type optimizer.lr=0.001, for example.",
    ),
    (
        "optimizer.lr=-1",
        "optimizer.lr was -1. It must be a finite number above 0. Type optimizer.lr=0.001, for example.",
    ),
    (
        "optimizer.lr=nan",
        "optimizer.lr was nan. It must be a finite number above 0. Type optimizer.lr=0.001, for example.",
    ),
    ("model=effnetb9", "model=effnetb9 is not an option. model must be one of convnext_base, convnext_large,"),
    (
        "schedule=linear",
        "schedule=linear is not an option. schedule must be one of constant, cosine, plateau. Type schedule=",
    ),
    ("+optimizer.foo=1", "optimizer.foo is not a setting of Adam. Its settings are "),
    ("foo", "The command line was not understood ("),
    # Hydra has a bare ValueError for it.
    ("=1", "The command line was not understood ("),
    ("optimizer.lr=[1", "The command line was not understood ("),
    (
        "data=folder",
        (
            "data.root was not given. data=folder needs the folder that contains your images. Type"
            " data.root=path/to/images."
        ),
    ),
    (
        "data=folder data.root=/not/there",
        "data.root=/not/there is not a folder (looked in /not/there). It must contain ",
    ),
    (
        "model.weights=/not/there.h5",
        "model.weights=/not/there.h5 is not a file. It must be imagenet, null for random weights, or",
    ),
    (
        "baseline.weights=/not/there.h5",
        "baseline.weights=/not/there.h5 is not a file. It must be a Keras weight file of the model with",
    ),
    (
        "optimizer.lr=${nothing}",
        "The config cannot be resolved (Interpolation key 'nothing' not found). Every ${…} must",
    ),
    ("data.classes=241", "data.classes was 241. There are 240 drawn breeds. Type data.classes=240, for example."),
]


@pytest.mark.parametrize(
    ("arguments", "message"),
    tiered(WRONG_COMMAND_LINES, first=[WRONG_COMMAND_LINES[0], WRONG_COMMAND_LINES[10]], slow=WRONG_COMMAND_LINES),
)
def test_wrong_command_line_gets_a_message_before_tensorflow_is_imported(
    arguments: str, message: str, tmp_path
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _PROBE, *arguments.split(), f"hydra.run.dir={tmp_path}/run"],
        env=os.environ | {"PYTHONPATH": str(home())},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert f"error: {message}" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == "TensorFlow was left alone"


def test_help_lists_every_group(fresh_command) -> None:
    done = fresh_command("train", "--help")
    assert done.returncode == 0
    assert "model: convnext_base, convnext_large" in done.stdout
    assert "optimizer: adam, adamw, rmsprop, sgd" in done.stdout


@pytest.mark.own_cache
@pytest.mark.slow
def test_cache_command_lists_and_clears_the_cache(command) -> None:
    assert command("train", "data.classes=3", "phase.epochs=1", "tracking=none").returncode == 0
    listed = command("cache").stdout.split("\n\n")[0].splitlines()
    assert sorted(line.split("-")[0] for line in listed[:-1]) == ["features"] * 3 + ["photos"] * 3 + ["preflight"]
    assert re.match(r"7 cached arrays, [\d.]+ [KM]B of at most 50 GB, in ", listed[-1])
    assert command("cache", "clear=true").stdout.startswith("7 cached arrays removed from ")
    assert command("cache").stdout.startswith("0 cached arrays, ")
    refused = command("cache", "clear=perhaps")
    assert refused.returncode == 1
    assert "error: clear was 'perhaps'. It must be true, " in refused.stderr
    assert "Type clear=true " in refused.stderr


@pytest.mark.own_cache
def test_cache_command_lists_unfinished_and_damaged_arrays(command, tmp_path: Path) -> None:
    def produce(rows: np.ndarray, start: int, notes: dict):
        yield from (1_000, 2_048)
        raise KeyboardInterrupt

    place = tmp_path / "cache"
    with pytest.raises(KeyboardInterrupt):
        FeatureCache(place, 10**9).get_or_compute(
            "features", {"size": 64, "resize": "pad", "dtype": "float16"}, (4_800, 10), "float16", produce
        )
    damaged = place / f"photos-{24 * 'a'}"
    damaged.mkdir()
    # Another machine's clock may be ahead.
    os.utime(damaged, (time.time() + 86_400,) * 2)
    listed = command("cache").stdout.split("\n\n")[0].splitlines()
    assert listed[0].split() == [damaged.name, "0", "B", "used", "0", "s", "ago", "damaged"]
    assert [line.split(" ago   ")[1] for line in listed if line.startswith("features")] == [
        "64 px, pad, float16, tensorflow, unfinished: 2,048 of 4,800 rows"
    ]
    assert [line.split(" ago   ")[1] for line in listed if line.startswith("photos")] == ["damaged"]
    assert re.match(
        rf"2 cached arrays \(1 unfinished\), [\d.]+ KB of at most 50 GB, in {re.escape(str(place))}$", listed[-1]
    )
    store = tmp_path / "home/mlruns/mlflow.db"
    store.write_text("no database")
    with_damaged_store = command("cache")
    assert with_damaged_store.returncode == 1
    assert with_damaged_store.stdout.splitlines()[-1] == listed[-1]
    assert "mlflow.db cannot be used " in with_damaged_store.stderr
    assert command("cache", "clear=true").stdout == f"2 cached arrays removed from {place}\n"
    assert [path.name for path in place.iterdir() if path.is_dir()] == []


@pytest.mark.parametrize("width", [60, 80])
def test_cache_command_fits_a_terminal(
    width: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def produce(rows: np.ndarray, start: int, notes: dict):
        yield len(rows)

    identity = {"size": 64, "resize": "pad", "dtype": "float16"}
    cache = FeatureCache(tmp_path / "cache", 10**9)
    cache.get_or_compute("features", identity, (10, 3), "float16", produce)
    cache.get_or_compute("copies", {"images": [identity]}, (10,), "int32", produce)
    monkeypatch.setattr("dogbreeds.cache.console.terminal_width", lambda stream: width)
    cache_command._list(cache)
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= width
    assert all(word in printed for word in ("features-", " B ", "64 px,", "float16", "another", "2 cached arrays, "))


def test_a_command_says_at_its_start_that_only_linux_is_tested(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    cli._note_platform()
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("sys.platform", "darwin")
    cli._note_platform()
    assert "Linux" in capsys.readouterr().err


@pytest.mark.parametrize("name", _SINGLE_COMMANDS)
@pytest.mark.parametrize("option", ["--multirun", "-m", "hydra.mode=MULTIRUN", "++hydra.mode=multirun"])
def test_command_without_jobs_refuses_multirun_and_writes_nothing(
    name: str, option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DOGBREEDS_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(sys, "argv", [name, option, "seed=1,2"])
    started: list[str] = []
    with pytest.raises(SystemExit, match=rf"^error: --multirun .* python -m dogbreeds\.{name} without --multirun"):
        cli.main(lambda: started.append(name), name)
    assert started == []
    assert list(tmp_path.iterdir()) == []


def test_every_command_with_a_config_takes_or_refuses_multirun() -> None:
    names = {file.stem for file in (home() / "conf").glob("*.yaml")}
    assert names == {*_SINGLE_COMMANDS, "train", "extract"}


@pytest.mark.slow
def test_table_refuses_multirun_in_a_process_of_its_own(fresh_command, tmp_path: Path) -> None:
    refused = fresh_command("table", "--multirun")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.startswith("error: --multirun was given")
    assert refused.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("typed", "sorted_arguments"),
    [
        ("a=1 --multirun b=2", "--multirun a=1 b=2"),
        ("a=1 --cfg job b=2 --config-dir x c=3", "--cfg job --config-dir x a=1 b=2 c=3"),
        ("-m a=1 a=1", "-m a=1 a=1"),
        ("a=1", "a=1"),
        ("a=1 --config-dir conf -m hydra/launcher=basic", "--config-dir conf -m a=1 hydra/launcher=basic"),
        ("~a +b=[1] --cfg job ++c/d@e=2", "--cfg job ~a +b=[1] ++c/d@e=2"),
        ("--config-dir=conf a=1", "--config-dir=conf a=1"),
    ],
)
def test_options_may_stand_between_overrides(
    typed: str, sorted_arguments: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["train", *typed.split()])
    sort_arguments("train")
    assert sys.argv == ["train", *sorted_arguments.split()]


@pytest.mark.parametrize("option", ["--foo", "-rf", "--cfg=all-of-it"])
def test_unknown_option_is_refused_as_a_users_error(option: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["train", "seed=1", option])
    with pytest.raises(SystemExit, match=r"^error: The command line was not understood \(.*\. Type python -m") as end:
        sort_arguments("train")
    assert "--multirun" in str(end.value)


def test_unknown_key_is_not_taken_for_a_group_of_hydra() -> None:
    assert "Type hydra" not in cli._unknown_key("foo", "cache", (), ())
    assert "Type hydra/launcher=<option>" in cli._unknown_key("hydra/lancher", "train", (), ())


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("only=1", r"^only was 1\. .*Type only\.model=<value>\.$"),
        ("only=null", r"^only was None\. "),
        ("+only.foo=1", r"^only\.foo is not a setting\. .*model, data\. Type only\.model="),
    ],
)
def test_a_value_in_the_place_of_settings_is_refused(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        settings_of(compose_config("table", [override]), "only", "model", "data")
    assert settings_of(compose_config("table", []), "only", "model", "data") == {"model": None, "data": None}
