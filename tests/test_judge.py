"""Verdicts of trainings outside this package: files of every kind, runs of MLflow, and the callback of Keras."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import dogbreeds
from dogbreeds.core.errors import MissingFileError, UserError
from dogbreeds.evaluation import history_verdict
from dogbreeds.evaluation.history_curves import Curves, curves_of_points
from dogbreeds.evaluation.history_files import find_histories, read_history
from dogbreeds.evaluation.history_verdict import TrainingFacts
from dogbreeds.evaluation.verdict import VERDICTS, Setting, Verdict, judge
from dogbreeds.training.verdict_callback import facts_of_model
from tests.tiers import tiered

# A training of this package's default experiment at learning rate 1e-2, as Keras' CSVLogger would write it.
LOG = Path(__file__).parent / "fixtures/keras_log.csv"
REAL_DATA = "DOGBREEDS_REAL_DATA"
ACCURACIES = [0.5, 0.62, 0.7, 0.74]
GOOD = {
    "loss": [2.0, 1.5, 1.2, 1.0],
    "accuracy": [0.4, 0.6, 0.7, 0.75],
    "val_loss": [1.6, 1.4, 1.3, 1.25],
    "val_accuracy": ACCURACIES,
}
# A healthy history, and how a file holds it.
ROWS = [dict(zip(("epoch", *GOOD), values, strict=True)) for values in zip(range(4), *GOOD.values(), strict=True)]


def as_csv(rows: Sequence[dict[str, Any]], delimiter: str = ",") -> str:
    return "\n".join([delimiter.join(rows[0]), *(delimiter.join(map(str, row.values())) for row in rows), ""])


@pytest.fixture
def written(tmp_path: Path) -> Callable[[str | bytes], Path]:
    """A function that writes a history's file."""

    def write(content: str | bytes, name: str = "log.csv") -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def judged(history: Any, **facts: Any) -> Verdict:
    return dogbreeds.judge_history(history, **{"classes": 10, "n_val": 1000, **facts})


# --- files --------------------------------------------------------------------

NOT_RECORDED = [{**row, "val_loss": "NA", "val_accuracy": "NA"} for row in ROWS[:1]]
READABLE = {
    "CSVLogger": as_csv(ROWS),
    "a semicolon": as_csv(ROWS, ";"),
    "a tab": as_csv(ROWS, "\t"),
    "decimal commas": as_csv(ROWS, ";").replace(".", ","),
    "a BOM": "\ufeff" + as_csv(ROWS),
    "UTF-16": as_csv(ROWS, "\t").encode("utf-16"),
    "line ends of Windows": as_csv(ROWS).replace("\n", "\r\n"),
    "a line that was cut off": as_csv(ROWS) + "4,0.9,0.",
    "unsorted": as_csv(ROWS[::-1]),
    "resumed in an epoch": as_csv([*ROWS[:2], {**ROWS[2], "val_accuracy": 0.01}, *ROWS[2:]]),
    "resumed with headings": as_csv(ROWS[:2]) + as_csv(ROWS[2:]),
    "started over": as_csv([{**row, "val_accuracy": 0.01} for row in [*ROWS, {**ROWS[3], "epoch": 4}]] + ROWS),
    "training and validation apart": as_csv(
        [
            {name: row[name] if name == "epoch" or name.startswith("val_") == is_val else "" for name in row}
            for row in ROWS
            for is_val in (False, True)
        ]
    ),
    "an epoch without validation": as_csv([*ROWS, {**ROWS[0], **NOT_RECORDED[0], "epoch": 4}]),
    "History.history": json.dumps(GOOD),
    "a dumped History": json.dumps({"history": GOOD, "epoch": [0, 1, 2, 3], "params": {"epochs": 4}}),
    "a list of epochs": json.dumps(ROWS),
    "an object on each line": "\n".join(map(json.dumps, ROWS)),
    "pandas": json.dumps({name: {str(row): value for row, value in enumerate(GOOD[name])} for name in GOOD}),
    "per cent": as_csv([{**row, **{name: 100 * row[name] for name in ("accuracy", "val_accuracy")}} for row in ROWS]),
}


@pytest.mark.parametrize("content", READABLE.values(), ids=READABLE)
def test_every_way_to_write_a_history_gives_the_same_curves(content: str | bytes, written: Callable) -> None:
    curves = Curves.of(read_history(written(content)))
    assert curves.recorded("val_accuracy") == pytest.approx(ACCURACIES)
    assert curves.recorded("accuracy")[:4] == pytest.approx(GOOD["accuracy"])
    assert curves.recorded("loss")[:4] == GOOD["loss"]
    verdict = judged(written(content))
    assert (verdict.name, verdict.numbers["peak"]) == ("learned", pytest.approx(0.74))


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("", "empty"),
        ("\n \n", "empty"),
        (b"\x89PNG\r\n\x1a\n\0\0", "not UTF-8"),
        (b"epoch,loss\n0,\x00\n", "binary"),
        ("epoch,loss,accuracy\n", "no epoch"),
        ("epoch,loss\n0,1\n1,2,3\n2,1\n", "line 3 has 3 cells"),
        ('{"loss": [1, 2', "JSON is damaged"),
        ("[" * 100_000, "JSON"),
        ("[1, 2]", "an object for each epoch"),
        ('{"history": {}}', "no epoch"),
        ("# A guide\n\nHow to train, quickly\n", "cells"),
    ],
)
def test_a_file_that_is_no_history_is_answered_in_three_sentences(
    content: str | bytes, why: str, written: Callable
) -> None:
    path = written(content)
    with pytest.raises(UserError) as error:
        judged(path)
    message = str(error.value)
    assert message.startswith(f"{path} is no history of a training (")
    assert why in message
    assert "Type history=log.csv" in message
    assert message.replace("log.csv", "").count(". ") == 2


def test_a_file_that_does_not_exist_or_is_a_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"none\.csv does not exist"):
        judged(str(tmp_path / "none.csv"))
    with pytest.raises(UserError, match="it is a folder"):
        judged(tmp_path)
    for given in (7, {"loss": 1.0}):
        with pytest.raises(UserError, match=r"history was .*judge_history\("):
            judged(given)


def test_histories_of_a_pattern_are_found_in_order_without_hidden_ones(written: Callable, tmp_path: Path) -> None:
    for name in ("b.csv", "a.csv", ".hidden.csv", "c.json", "runs/d.csv"):
        written("x", name)
    found = find_histories(f"{tmp_path}/*.csv")
    assert [Path(path).name for path in found] == ["a.csv", "b.csv"]
    assert [Path(path).name for path in find_histories([f"{tmp_path}/**/d.csv", f"{tmp_path}/none.csv"])] == [
        "d.csv",
        "none.csv",
    ]
    with pytest.raises(UserError, match=r"\*\.txt matches no file"):
        find_histories(f"{tmp_path}/*.txt")
    with pytest.raises(UserError, match=r"history was \[\]"):
        find_histories([])
    with pytest.raises(UserError, match=r"history was 0\.5"):
        find_histories(0.5)
    with pytest.raises(UserError, match="at most 255 bytes"):
        judged("x" * 300)


# --- curves -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("training", "validation"),
    [
        ("acc", "val_acc"),
        ("sparse_categorical_accuracy", "val_sparse_categorical_accuracy"),
        ("train_acc", "valid_acc"),
        ("train/accuracy", "val/accuracy"),
        ("Train Accuracy", "Validation Accuracy"),
    ],
)
def test_names_of_accuracies_are_recognised(training: str, validation: str) -> None:
    names = (
        "top5_accuracy",
        "val_top_5_accuracy",
        "val/balanced_accuracy",
        "best/val_accuracy",
        "test/accuracy",
        "val_f1",
    )
    others = dict.fromkeys(names, [0.9] * 4)
    history = {training: GOOD["accuracy"], validation: ACCURACIES, "train_loss": GOOD["loss"], **others}
    curves = Curves.of(history)
    assert {role: list(curves.values[role]) for role in ("accuracy", "val_accuracy", "loss")} == {
        "accuracy": GOOD["accuracy"],
        "val_accuracy": ACCURACIES,
        "loss": GOOD["loss"],
    }


def test_other_names_are_given() -> None:
    history = {"fit": GOOD["loss"], "good": ACCURACIES, "step": [1, 2, 3, 4]}
    verdict = judged(history, names={"val_accuracy": "good", "loss": "fit"})
    assert (verdict.name, verdict.numbers["peak"]) == ("learned", 0.74)
    with pytest.raises(UserError, match=r"names\.loss=bad is not among the curves.*fit, good, step"):
        judged(history, names={"loss": "bad"})
    with pytest.raises(UserError, match=r"names\.foo is not a curve.*val_accuracy"):
        judged(history, names={"foo": "good"})
    with pytest.raises(UserError, match=r"fit, good, step.*Type names\.loss="):
        judged(history)
    with pytest.raises(UserError, match=r"metrics=\['accuracy'\], or type names\.accuracy=accuracy"):
        judged(GOOD | {"binary_accuracy": GOOD["accuracy"]})


@pytest.mark.parametrize(
    ("values", "received"),
    [(["x"] * 4, "'x'"), ([[1], 1, 1, 1], r"\[1\]"), ([0.5, 0.5, 0.5, 150], "150"), ([0.5, 0.5, 0.5, -1], "-1")],
)
def test_values_that_are_no_accuracies_are_named(values: list[Any], received: str) -> None:
    with pytest.raises(UserError, match=rf"was {received}"):
        judged(GOOD | {"val_accuracy": values})


def test_per_cent_of_a_training_that_guesses_is_told_by_its_losses() -> None:
    """0.8 % of 120 classes is chance, and 80 % is not: the losses say which it is."""
    low = [0.8, 0.85, 0.8, 0.83]
    guessing = {"loss": [4.8] * 4, "val_loss": [4.79] * 4, "accuracy": low, "val_accuracy": low}
    assert judged(guessing, classes=120, n_val=4072).name == "never_learned"
    learned = guessing | {"loss": [1.0] * 4, "val_loss": [1.0] * 4}
    assert judged(learned, classes=120, n_val=4072).numbers["peak"] == pytest.approx(0.85, abs=1e-3)


@pytest.mark.parametrize(("n", "digits"), [(480, 16), (4072, 16), (4072, 7), (4072, 5), (30_000, 16)])
def test_the_size_of_the_validation_set_is_found_in_its_accuracies(n: int, digits: int) -> None:
    accuracies = [round(math.floor(share * n) / n, digits) for share in (0.61, 0.652, 0.6701, 0.68907, 0.7001)]
    fewest = Curves.of({"val_accuracy": accuracies}).fewest_images()
    assert fewest is not None
    # Few digits allow smaller sets too, never only larger ones.
    assert (fewest == n) if digits > 6 else (fewest <= n)


def test_accuracies_that_are_no_shares_of_images_have_no_size() -> None:
    assert Curves.of({"val_accuracy": [math.pi / 4, math.e / 3, 0.123456789012]}).fewest_images() is None


# --- verdicts -----------------------------------------------------------------


def test_the_number_of_validation_images_may_be_left_out() -> None:
    steady = {"val_accuracy": [461 / 1200, 700 / 1200, 811 / 1200], "loss": [3.0, 2.0, 1.5]}
    verdict = judged(steady, n_val=None)
    assert (verdict.name, verdict.numbers["fewest_n_val"]) == ("learned", 1200)
    assert "1,200" in verdict.reason
    assert "training accuracy" in verdict.reason


def test_a_verdict_that_needs_the_number_of_images_is_undecided_without_it() -> None:
    """Of 10 images the fall is noise, of many it is a collapse."""
    falling = GOOD | {"accuracy": [0.5, 0.6, 0.4, 0.4], "val_accuracy": [0.5, 0.6, 0.4, 0.4]}
    verdict = judged(falling, n_val=None)
    assert verdict.name == "undecided"
    assert verdict.numbers["fewest_n_val"] <= 10
    assert "n_val=" in verdict.advice
    assert judged(falling, n_val=4000).name == "collapsed"


def test_a_training_accuracy_that_was_not_recorded_is_no_witness() -> None:
    falling = {"val_accuracy": [0.5, 0.6, 0.2, 0.1], "loss": [2.0, 1.5, 1.2, 1.0], "val_loss": [1.0, 1.5, 2.0, 3.0]}
    verdict = judged(falling)
    assert verdict.name == "collapsed"
    assert "not recorded: training accuracy" in verdict.reason
    assert "did training accuracy" not in verdict.reason
    # Of 20 images it may be noise; nothing says that it overfits.
    assert judged(falling | {"val_accuracy": [0.5, 0.6, 0.45, 0.4]}, n_val=20).name in ("learned", "undecided")
    assert "training accuracy is" not in judged({"val_accuracy": [0.1, 0.1, 0.1]}).reason


def test_what_is_needed_is_asked_for() -> None:
    with pytest.raises(UserError, match="Type classes=120"):
        judged(GOOD, classes=None)
    with pytest.raises(UserError, match="Type n_val=1200"):
        judged(GOOD | {"val_accuracy": [math.pi / 4, math.e / 3, 0.1234567890, 0.7]}, n_val=None)
    with pytest.raises(UserError, match="classes was 1"):
        judged(GOOD, classes=1)
    with pytest.raises(UserError, match="lr was 0"):
        judged(GOOD, lr=0)
    with pytest.raises(UserError, match=r"No epoch has a value of each curve.*names\.accuracy="):
        judged(GOOD | {"accuracy": [None] * 4})


def test_settings_are_given_to_the_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Setting] = []
    monkeypatch.setattr(
        history_verdict, "judge", lambda epochs, setting: given.append(setting) or judge(epochs, setting)
    )
    judged(GOOD | {"lr": [1e-4, 1e-2, 5e-3, 1e-3]}, optimizer="rmsprop", reference=0.79)
    judged(GOOD, lr=0.3, optimizer="MyOptimizer", reference=79)
    first, second = given
    assert (first.classes, first.lr, first.settings["optimizer"]) == (10, 1e-2, "RMSprop")
    assert (second.lr, second.settings["optimizer"]) == (0.3, "MyOptimizer")
    for setting in given:
        assert setting.reference is not None
        assert (setting.reference.probe.correct, setting.reference.run.correct) == (790, 740)
        assert setting.reference.pair is None


@pytest.mark.parametrize(
    ("lr", "optimizer", "words"),
    [(1e-2, "adam", "set learning_rate=1e-3"), (None, None, "lower the learning rate")],
)
def test_advice_is_in_words_for_other_code(lr: float | None, optimizer: str | None, words: str) -> None:
    collapsed = GOOD | {"accuracy": [0.5, 0.6, 0.2, 0.1], "val_accuracy": [0.5, 0.6, 0.2, 0.1]}
    overfitting = GOOD | {"val_loss": [1.0, 1.2, 1.4, 2.0], "accuracy": [0.5, 0.8, 0.95, 1.0]}
    verdict = judged(collapsed, lr=lr, optimizer=optimizer)
    assert verdict.name == "collapsed"
    assert words in verdict.advice
    assert judged(overfitting).name == "overfitting"
    for history in (collapsed, overfitting, GOOD, GOOD | {"val_accuracy": [0.1] * 4}):
        advice = judged(history, lr=lr, optimizer=optimizer).advice
        assert not any(word in advice for word in ("optimizer.lr", "head=", "phase", "augment=", "nan", "head.dropout"))


@pytest.mark.parametrize("curve", ["loss", "val_loss"])
@pytest.mark.parametrize("value", [math.nan, math.inf, "nan"])
def test_a_loss_that_is_not_finite_has_diverged(curve: str, value: Any) -> None:
    verdict = judged(GOOD | {curve: [2.0, 1.0, value, "NA"]}, lr=0.1)
    assert verdict.name == "diverged"
    assert "epoch 3" in verdict.reason
    assert "1e-2" in verdict.advice
    assert verdict.numbers["epochs"] == 4


@pytest.mark.parametrize(
    ("losses", "classes", "expected"),
    [
        ({"loss": [3.1, 2.6, 4.2, 4.7]}, None, "collapsed"),
        # A single peak at the end.
        ({"loss": [3.1, 2.6, 2.5, 4.7]}, None, "undecided"),
        ({"loss": [4.8, 4.79, 4.78], "val_loss": [4.79, 4.79, 4.79]}, 120, "never_learned"),
        # A fine-tune begins with a low loss.
        ({"loss": [0.20, 0.20, 0.20], "val_loss": [0.3, 0.3, 0.3]}, 120, "undecided"),
        ({"loss": [4.8, 4.79, 4.78]}, None, "undecided"),
        ({"loss": [2.0, 1.0, 0.5, 0.1], "val_loss": [1.5, 1.2, 1.3, 1.9]}, None, "overfitting"),
        # The training loss rises too.
        ({"loss": [2.0, 1.0, 1.2, 1.3], "val_loss": [1.5, 1.2, 1.3, 1.9]}, None, "undecided"),
        ({"loss": [2.0, 1.0, 0.5], "val_loss": [1.5, 1.0, 0.9]}, 10, "undecided"),
        ({"val_loss": [1.5, 1.0, 0.9]}, 10, "undecided"),
        ({"loss": [2.0, math.nan]}, None, "diverged"),
        ({"loss": [2.0], "accuracy": [0.5]}, 10, "undecided"),
    ],
)
def test_losses_alone_give_what_they_can_tell(
    losses: dict[str, list[float]], classes: int | None, expected: str
) -> None:
    verdict = judged(losses, classes=classes, n_val=None)
    assert verdict.name == expected
    if expected == "undecided":
        assert "losses cannot tell" in verdict.reason
        assert "metrics=['accuracy']" in verdict.advice


def test_one_epoch_has_a_verdict() -> None:
    one = {name: values[-1:] for name, values in GOOD.items()}
    assert judged(one).numbers["epochs"] == 1


def test_any_kind_of_history_in_python_is_judged(written: Callable) -> None:
    class Table:
        """Has columns, as a table of pandas, and is no mapping."""

        keys = staticmethod(GOOD.keys)
        __getitem__ = staticmethod(GOOD.__getitem__)

    kinds = (GOOD, Table(), ROWS, SimpleNamespace(history=GOOD, model=None), written(as_csv(ROWS)))
    assert len({str(judged(history)) for history in kinds}) == 1


# --- the command --------------------------------------------------------------


@pytest.mark.slow
def test_command_judges_a_log_and_prints_objects(command: Callable) -> None:
    done = command(
        "judge", f"history={LOG}", "classes=120", "optimizer=adam", "lr=2e-2", "reference=91.5", "format=json"
    )
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert (found["verdict"], found["evidence"]["peak_epoch"]) == ("collapsed", 1)
    assert found["evidence"]["peak"] == pytest.approx(0.38416666)
    assert found["evidence"]["fewest_n_val"] == 1200
    assert "38.4 %" in found["reason"]
    assert "learning_rate=2e-3" in found["advice"]


@pytest.mark.slow
def test_command_judges_the_others_where_one_is_no_history(
    command: Callable, written: Callable, tmp_path: Path
) -> None:
    written(as_csv(ROWS), "logs/good.csv")
    written("", "logs/bad.csv")
    written(as_csv([{**row, "loss": "nan"} for row in ROWS]), "logs/diverged.csv")
    done = command("judge", "history=logs/*.csv", "classes=10", "n_val=1000", "output=verdicts.json")
    assert done.returncode == 1
    assert done.stdout == "verdicts.json\n"
    first, last = done.stderr.splitlines()
    assert first.startswith("error: logs/bad.csv is no history of a training (it is empty). ")
    assert "1 of 3" in last
    rows = list(map(json.loads, (tmp_path / "verdicts.json").read_text().splitlines()))
    assert [(row["history"], row.get("verdict")) for row in rows] == [
        ("logs/bad.csv", None),
        ("logs/diverged.csv", "diverged"),
        ("logs/good.csv", "learned"),
    ]
    assert rows[0]["error"] in first


WRONG_COMMANDS = [
    ((), "history was None and run was None. "),
    (("history=log.csv", "run=3f2a"), "history was 'log.csv' and run was '3f2a'. "),
    (("history=none.csv",), "none.csv does not exist. "),
    (("history=log.csv",), "log.csv: classes was not given. "),
    (("history=log.csv", "classes=1"), "classes was 1. "),
    (("history=log.csv", "classes=9", "reference=101"), "reference was 101. "),
    (("history=log.csv", "classes=9", "names.loss=x"), "log.csv: names.loss=x is not among the curves. "),
    (("history=log.csv", "optimizer=nadam"), "optimizer=nadam is not an option. "),
    (("run=3f2a", "tracking=none"), "tracking=none was given. "),
]


@pytest.mark.parametrize(("arguments", "message"), tiered(WRONG_COMMANDS, slow=WRONG_COMMANDS[::4]))
def test_command_says_what_to_type(
    arguments: tuple[str, ...], message: str, command: Callable, written: Callable
) -> None:
    written(as_csv(ROWS))
    done = command("judge", *arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"error: {message}")
    assert " Type " in done.stderr


@pytest.mark.slow
def test_command_prints_a_line_for_each_of_several_histories(command: Callable, written: Callable) -> None:
    written(as_csv(ROWS), "logs/first.csv")
    written(json.dumps(GOOD), "logs/second.json")
    done = command("judge", "history=[logs/first.csv,logs/second.json]", "classes=10", "n_val=1000")
    assert (done.returncode, done.stderr) == (0, "")
    first, second = done.stdout.splitlines()
    assert first.startswith("logs/first.csv: learned: ")
    assert second.startswith("logs/second.json: learned: ")
    assert command("judge", "history=logs/first.csv", "classes=10").stdout.startswith("learned: ")


@pytest.mark.slow
def test_files_are_judged_without_tensorflow_mlflow_and_pandas() -> None:
    code = (
        f"import sys; sys.argv[1:] = ['history={LOG}', 'classes=120']\nfrom dogbreeds import cli, judge\n"
        "try: cli.main(judge.task, 'judge')\n"
        "finally: print({'tensorflow', 'keras', 'mlflow', 'pandas', 'scipy.stats'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr == ""
    verdict, imported = done.stdout.splitlines()
    assert verdict.startswith("collapsed: ")
    assert imported == "set()"


# --- MLflow -------------------------------------------------------------------


def test_metrics_at_steps_of_their_own_become_epochs() -> None:
    """Training is logged every ten steps, validation at the end of each epoch."""
    points = {
        "train/loss": [(10, 3.0), (20, 2.0), (30, 1.0), (40, 0.5)],
        "valid/acc": [(40, 0.7), (20, 0.5)],
        "valid/loss": [(20, 1.5), (40, 1.0)],
        "other": [(1, 7.0)],
    }
    assert curves_of_points(points, {}) == {"loss": [2.5, 0.75], "val_accuracy": [0.5, 0.7], "val_loss": [1.5, 1.0]}
    assert curves_of_points(points, {"val_accuracy": "valid/loss"})["val_accuracy"] == [1.5, 1.0]


@pytest.mark.slow
def test_command_judges_a_run_of_another_program(command: Callable, tmp_path: Path, empty_store: Path) -> None:
    import mlflow

    store = f"sqlite:///{tmp_path}/other.db"
    (tmp_path / "other.db").write_bytes(empty_store.read_bytes())
    client = mlflow.MlflowClient(store)
    run_id = client.create_run(client.create_experiment("theirs")).info.run_id
    for epoch, row in enumerate(ROWS):
        for name in ("loss", "val_loss"):
            client.log_metric(run_id, name, row[name], step=epoch)
        client.log_metric(run_id, "measured", row["val_accuracy"], step=epoch)
    given = (f"tracking.uri={store}", "classes=10", "n_val=1000")
    done = command("judge", f"run={run_id[:12]}", "names.val_accuracy=measured", *given, "format=json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["verdict"], found["evidence"]["peak"]) == ("learned", 0.74)
    assert json.loads(command("judge", f"run={run_id}", *given, "format=json").stdout)["verdict"] == "undecided"
    refused = command("judge", "run=zzz", *given)
    assert refused.returncode == 1
    assert f"run=zzz names no run of {store}" in refused.stderr
    assert run_id[:8] in refused.stderr


# --- Keras --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "classes"), [((None, 120), 120), ((None, 1), 2), (None, None), ([(None, 3), (None, 4)], None)]
)
def test_facts_of_a_model_do_not_replace_what_is_given(shape: Any, classes: int | None) -> None:
    inner = type("SGD", (), {})()
    optimizer = SimpleNamespace(learning_rate=0.0010000000474974513, inner_optimizer=inner)
    model = SimpleNamespace(output_shape=shape, optimizer=optimizer)
    unknown = TrainingFacts(classes=None, n_val=None, lr=None, optimizer=None, reference=None)
    found = facts_of_model(model, unknown)
    assert (found.classes, found.lr, found.optimizer) == (classes, 0.001, "SGD")
    given = TrainingFacts(classes=7, n_val=5, lr=0.5, optimizer="adam", reference=0.8)
    assert facts_of_model(model, given) == given


@pytest.mark.slow
class TestVerdictCallback:
    """A linear model of Keras on random numbers, which cannot learn."""

    @staticmethod
    def fit(judged: Any, epochs: int = 6, scale: float = 1.0, **options: Any) -> Any:
        import keras
        import numpy as np

        rng = np.random.default_rng(0)
        features, labels = scale * rng.normal(size=(300, 8)), rng.integers(0, 4, 300)
        model = keras.Sequential([keras.Input([8]), keras.layers.Dense(4, activation="softmax")])
        model.compile(keras.optimizers.SGD(0.01), "sparse_categorical_crossentropy", metrics=["accuracy"])
        settings = {"validation_split": 0.4, "verbose": 0} | options
        return model.fit(features, labels, epochs=epochs, callbacks=[judged], **settings)

    def test_takes_from_keras_what_is_not_given(self, capsys: pytest.CaptureFixture[str]) -> None:
        callback = dogbreeds.VerdictCallback()
        history = self.fit(callback, epochs=2)
        assert callback.verdict is not None
        numbers = callback.verdict.numbers
        assert {name: numbers[name] for name in ("n_val", "classes", "lr", "epochs")} == {
            "n_val": 120,
            "classes": 4,
            "lr": 0.01,
            "epochs": 2,
        }
        assert isinstance(callback, dogbreeds.VerdictCallback)
        # A silent `fit` prints nothing.
        assert capsys.readouterr().out == ""
        assert dogbreeds.judge_history(history, n_val=120).name == callback.verdict.name

    def test_prints_the_verdict_and_starts_over_in_another_fit(self, capsys: pytest.CaptureFixture[str]) -> None:
        callback = dogbreeds.VerdictCallback()
        self.fit(callback, epochs=1)
        self.fit(callback, epochs=2, verbose=2)
        assert callback.verdict is not None
        assert callback.verdict.numbers["epochs"] == 2
        assert str(callback.verdict) in capsys.readouterr().out

    @pytest.mark.parametrize("stop", [True, False])
    def test_stops_what_no_further_epoch_improves(self, stop: bool, capsys: pytest.CaptureFixture[str]) -> None:
        callback = dogbreeds.VerdictCallback(stop_on_collapse=stop)
        history = self.fit(callback, epochs=3, scale=1e30, verbose=2)
        assert callback.verdict is not None
        assert callback.verdict.name == "diverged"
        assert len(history.epoch) == (1 if stop else 3)
        assert ("stopped after epoch 1: it has diverged" in capsys.readouterr().out) == stop

    def test_stops_a_collapse(self) -> None:
        import keras

        class Collapse(keras.callbacks.Callback):
            """Reports curves that collapse, whatever is trained."""

            def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
                accuracy = [0.9, 0.2, 0.1, 0.1, 0.1, 0.1][epoch]
                assert logs is not None
                logs.update(accuracy=accuracy, val_accuracy=accuracy)

        callback = dogbreeds.VerdictCallback()
        history = self.fit([Collapse(), callback])
        assert callback.verdict is not None
        assert callback.verdict.name == "collapsed"
        assert len(history.epoch) == 3

    def test_without_validation_the_losses_are_judged(self) -> None:
        callback = dogbreeds.VerdictCallback(classes=4)
        self.fit(callback, epochs=2, validation_split=0.0)
        assert callback.verdict is not None
        assert "n_val" not in callback.verdict.numbers
        assert callback.verdict.name in ("never_learned", "undecided")

    def test_asks_for_the_number_of_classes_before_the_first_epoch(self) -> None:
        import keras
        import numpy as np

        class Subclassed(keras.Model):
            def __init__(self) -> None:
                super().__init__()
                self.dense = keras.layers.Dense(4, activation="softmax")

            def call(self, inputs: Any) -> Any:
                return self.dense(inputs)

        model = Subclassed()
        model.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"])
        with pytest.raises(UserError, match=r"Type VerdictCallback\(classes="):
            model.fit(np.zeros((4, 8)), np.zeros(4), callbacks=[dogbreeds.VerdictCallback()], verbose=0)


# --- the guide's own logs -----------------------------------------------------


@pytest.mark.real
@pytest.mark.skipif(REAL_DATA not in os.environ, reason=f"{REAL_DATA} names no folder")
def test_the_guide_s_own_logs_are_judged() -> None:
    """They lie beside the real images. Each is of 4,072 validation images, and none of these trainings failed."""
    logs = sorted((Path(os.environ[REAL_DATA]).resolve().parent / "seed/curves").glob("*.csv"))
    if not logs:
        pytest.skip("the guide's logs are not there")
    assert len(logs) >= 11
    for log in logs:
        history = read_history(log)
        assert Curves.of(history).fewest_images() == 4072, log.name
        verdict = dogbreeds.judge_history(history, classes=120, optimizer="adam")
        assert verdict.name == "learned", f"{log.name}: {verdict}"
        best = max(map(float, history["val_accuracy"]))
        assert verdict.numbers["peak"] == pytest.approx(best, abs=1e-6)
        assert dogbreeds.judge_history(log, classes=120, n_val=4072).name in VERDICTS
    collapsed = {"val_accuracy": [43.10, 24.44, 15.94, 14.39]}
    assert dogbreeds.judge_history(collapsed, classes=120, n_val=4072, lr=1e-2).name == "collapsed"
