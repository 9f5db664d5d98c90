"""The Python API: `import dogbreeds`."""

import dataclasses
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import mlflow
import numpy as np
import pytest

import dogbreeds
from dogbreeds.core import console
from dogbreeds.data import drawn_dogs
from dogbreeds.evaluation.verdict import Verdict
from dogbreeds.experiments.compose import compose_run
from dogbreeds.experiments.python_runs import split_jobs, with_parent
from dogbreeds.experiments.result import Skipped

SMALL = ["data.classes=3", "data.train_per_class=4", "data.val_per_class=2", "data.test_per_class=2", "phase.epochs=1"]


@pytest.fixture
def own_home(tmp_path: Path, cache: Path, make_home, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = make_home(tmp_path / "home")
    monkeypatch.setenv("DOGBREEDS_HOME", str(place))
    monkeypatch.setenv("DOGBREEDS_CACHE", str(cache))
    return place


@pytest.mark.long
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


class Interrupt(logging.Handler):
    """Sends SIGINT, as Ctrl-C does, when a run has finished its first epoch."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage().startswith("epoch 1/"):
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.slow
def test_interrupted_fit_ends_its_run_at_once_and_keeps_the_checkpoint(
    own_home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = dogbreeds.compose([*SMALL, "phase.epochs=2", "preflight=none", "tracking.system_metrics_seconds=0.05"])
    caplog.set_level(logging.INFO, "dogbreeds")
    logger, interrupt = logging.getLogger("dogbreeds"), Interrupt()
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
        ("hat=linear", "Type head="),
        ("head=linaer", "head=linear"),
        ("head.dropuot=0", "head.dropout"),
        ("head.widths=[1", "--help"),
    ],
)
def test_compose_answers_a_mistyped_override_with_what_to_type(override: str, typed: str) -> None:
    with pytest.raises(dogbreeds.UserError) as error:
        dogbreeds.compose([override])
    assert typed in str(error.value)


def test_import_is_light_and_warns_of_nothing() -> None:
    code = """
import sys, dogbreeds
heavy = {"tensorflow", "keras", "mlflow", "hydra", "omegaconf", "numpy", "pandas"} & set(sys.modules)
assert not heavy, heavy
assert set(dogbreeds.__all__) <= set(dir(dogbreeds))
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_public_name_is_there_after_any_command_is_imported() -> None:
    code = """
import sys, dogbreeds
from dogbreeds import cache, compare, evaluate, export, extract, predict, pretrain, table, train, why
for name in dogbreeds.__all__:
    assert callable(getattr(dogbreeds, name)), name
assert dogbreeds.judge_history(dict.fromkeys(("loss", "acc", "val_loss", "val_acc"), [1.0]), n_val=9, classes=2, lr=1)
assert "tensorflow" not in sys.modules and "mlflow" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# --- own data, a parent in hand, sweeps, interruptions ------------------------

FAST = [
    "phase.epochs=2", "head=linear", "preflight=none", "baseline=none", "tracking.model=none",
    "tracking.system_metrics_seconds=0",
]  # fmt: skip


def drawn(classes: int, per_class: int, stream: str) -> tuple[list[np.ndarray], list[str]]:
    """Return drawn dogs of several sizes, and their labels."""
    pairs = [(label, number) for label in range(classes) for number in range(per_class)]
    images = [drawn_dogs.draw(stream, label, number)[: 64 - number] for label, number in pairs]
    return images, [f"breed {label}" for label, _ in pairs]


@pytest.fixture
def dataset() -> dogbreeds.Dataset:
    return dogbreeds.Dataset.from_arrays(drawn(3, 5, "train"), val=drawn(3, 2, "val"), name="mine")


def identities(run: dogbreeds.Run) -> list[str]:
    """Return the identities of the recorded runs, the newest first."""
    recorded = mlflow.MlflowClient(run.tracking.uri).search_runs(["1"])
    return [each.data.tags["identity"] for each in recorded if "verdict" in each.data.tags]


@pytest.mark.long
def test_an_interrupted_fit_on_own_data_resumes_and_other_data_are_another_run(
    own_home: Path, dataset: dogbreeds.Dataset, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="dogbreeds")
    # A test of a command in the same process may have left the command's handler.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    run = dogbreeds.compose(FAST)
    interrupt = Interrupt()
    logging.getLogger("dogbreeds").addHandler(interrupt)
    with pytest.raises(KeyboardInterrupt):
        dogbreeds.fit(run, dataset=dataset)
    logging.getLogger("dogbreeds").removeHandler(interrupt)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert list((own_home / "multirun/checkpoints").glob("*/*.npz"))
    # The same process, and the same images in another object.
    again = dogbreeds.Dataset.from_arrays(drawn(3, 5, "train"), val=drawn(3, 2, "val"), name="mine")
    result = dogbreeds.fit(run, dataset=again)
    assert any(message.startswith("Resuming from checkpoint: epoch 1/2") for message in caplog.messages)
    assert [epoch.number for epoch in result.history.epochs] == [1, 2]
    assert result.predictions["val"].class_names == ("breed 0", "breed 1", "breed 2")
    dogbreeds.fit(run, dataset=dogbreeds.Dataset.from_arrays(drawn(3, 4, "train"), val=drawn(3, 2, "val")))
    assert len(set(identities(run))) == 2
    (recorded,) = [each for each in dogbreeds.runs().itertuples() if each.Index == result.run_id]
    assert recorded.name == "miniature frozen epochs=2 head=linear"
    assert dogbreeds.runs().loc[result.run_id, ["data.name", "data", "data.classes"]].tolist() == [
        "mine",
        "Provided",
        3,
    ]


@pytest.mark.long
def test_a_sweep_on_own_data_skips_what_has_finished(own_home: Path, dataset: dogbreeds.Dataset) -> None:
    first = dogbreeds.sweep([*FAST, "optimizer.lr=1e-3,1e-2"], dataset=dataset)
    assert [type(each).__name__ for each in first] == ["Result", "Result"]
    second = dogbreeds.sweep([*FAST, "optimizer.lr=1e-2,3e-2"], dataset=dataset)
    assert [type(each).__name__ for each in second] == ["Skipped", "Result"]
    assert second[0].run_id == first[1].run_id
    assert "DOGBREEDS_SWEEP_RUN" not in os.environ
    assert dogbreeds.paired(first[0], second[0], split="val").pair.n == 6


@pytest.mark.slow
@pytest.mark.parametrize("tracking", [pytest.param("mlflow", marks=pytest.mark.long), "none"])
def test_a_fine_tune_starts_from_a_result_in_hand(own_home: Path, dataset: dogbreeds.Dataset, tracking: str) -> None:
    shared = ["phase.epochs=1", "head=linear", "preflight=none", "baseline=none", f"tracking={tracking}"]
    frozen = dogbreeds.fit(dogbreeds.compose(shared), dataset=dataset)
    tuned = dogbreeds.fit(
        dogbreeds.compose([*shared, "phase=finetune", "optimizer.lr=1e-30"]), dataset=dataset, parent=frozen
    )
    # Nothing changed, and six images cannot exclude a gain.
    assert (tuned.verdict.name, tuned.verdict.numbers["gained"], tuned.verdict.numbers["lost"]) == ("undecided", 0, 0)
    comparison = dogbreeds.paired(frozen, tuned)
    assert (comparison.pair.n, comparison.pair.difference) == (6, 0)
    dog = dogbreeds.load(tuned)
    assert dog.class_names == ("breed 0", "breed 1", "breed 2")
    assert dog.evaluate(dataset).scores.accuracy.correct == round(6 * tuned.best.val.accuracy.value)
    with pytest.raises(dogbreeds.UserError, match=r"images=|evaluate\(dataset\)"):
        dog.evaluate()
    if tracking == "none":
        assert not (own_home / "mlruns/artifacts").exists()


@pytest.mark.parametrize(
    ("parent", "overrides", "typed"),
    [("3f2a", [], "phase=finetune"), (Skipped("", 0.0), ["phase=finetune"], "tracking.folder=null")],
)
def test_a_parent_that_cannot_be_one_is_refused(parent: object, overrides: list[str], typed: str) -> None:
    with pytest.raises(dogbreeds.UserError, match=typed):
        dogbreeds.fit(dogbreeds.compose(overrides), parent=parent)


def test_a_parent_in_hand_is_the_run_that_phase_parent_names() -> None:
    named = dogbreeds.compose(["phase=finetune", "phase.parent='38e12'"])
    given = with_parent(dogbreeds.compose(["phase=finetune"]), Skipped("38e12", 0.9))
    assert given == named
    assert dataclasses.replace(given.origin, name=named.origin.name) == named.origin
    assert compose_run(given.origin.overrides) == given


@pytest.mark.parametrize("override", ["optimizer.lr=interval(1,2)", "hydra/launcher=joblib", "attempt=glob(*)"])
def test_a_sweep_in_python_refuses_what_needs_the_command(override: str) -> None:
    with pytest.raises(dogbreeds.UserError, match="--multirun"):
        dogbreeds.sweep([override])


def test_split_jobs_combines_values_as_multirun_does() -> None:
    assert split_jobs(["a=1,2", "b=[x,y]", "c=range(0,2)"]) == [
        [f"a={a}", "b=[x,y]", f"c={c}"] for a in (1, 2) for c in (0, 1)
    ]


# --- any Keras history --------------------------------------------------------

GOOD = {"loss": [2.0, 1.0], "accuracy": [0.5, 0.8], "val_loss": [1.5, 1.2], "val_accuracy": [0.6, 0.7]}


def judged(**curves: object) -> Verdict:
    return dogbreeds.judge_history(GOOD | curves, n_val=1000, classes=10, lr=1e-2)


def test_judge_history_judges_curves_of_keras() -> None:
    assert judged().name == "learned"
    assert judged(val_accuracy=[0.1, 0.1]).name == "never_learned"
    assert judged(loss=[2.0, float("nan")]).name == "diverged"
    assert judged(top_5_accuracy=[0.9, 0.9], val_top_5_accuracy=[0.9, 0.9]).name == "learned"


@pytest.mark.parametrize(
    ("curves", "typed"),
    [
        ({"accuracy": [0.5]}, "validation_data="),
        ({"binary_accuracy": [0.5, 0.5]}, r"metrics=\['accuracy'\]"),
    ],
)
def test_judge_history_says_which_curves_it_needs(curves: dict[str, list[float]], typed: str) -> None:
    with pytest.raises(dogbreeds.UserError, match=typed):
        judged(**curves)
    with pytest.raises(dogbreeds.UserError, match="n_val=120"):
        dogbreeds.judge_history(GOOD, n_val=0, classes=10, lr=1e-2)


# --- messages and progress ----------------------------------------------------


def test_messages_are_printed_unless_the_caller_has_configured_logging(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = logging.getLogger("dogbreeds")
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    with console.log_lines_printed():
        logging.getLogger("dogbreeds.core").info("epoch 1")
    logging.getLogger("dogbreeds.core").info("epoch 2")
    assert (capsys.readouterr().out, logger.handlers, logger.level) == ("epoch 1\n", [], logging.NOTSET)
    monkeypatch.setattr(logging.getLogger(), "handlers", [logging.NullHandler()])
    with console.log_lines_printed():
        logging.getLogger("dogbreeds.core").info("epoch 3")
    assert capsys.readouterr().out == ""


def test_a_handler_that_a_library_adds_neither_repeats_messages_nor_silences_the_next_call(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    # pytest's own handlers are the root logger's.
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    for message in ("first", "second"):
        with console.log_lines_printed():
            # As Abseil does before its first message.
            logging.basicConfig()
            logging.getLogger("dogbreeds.core").info(message)
        assert capfd.readouterr() == (f"{message}\n", "")
    assert logging.getLogger().handlers == []
    assert logging.getLogger("dogbreeds").propagate


def test_progress_is_displayed_by_a_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    displayed: list[str] = []

    class Handle:
        def update(self, bar: object) -> None:
            displayed.append(bar._repr_html_())  # type: ignore[attr-defined]

    def display(bar: object, display_id: bool) -> Handle:
        displayed.append(bar._repr_html_())  # type: ignore[attr-defined]
        return Handle()

    ipython = ModuleType("IPython")
    ipython.get_ipython = lambda: SimpleNamespace(kernel=object())  # type: ignore[attr-defined]
    shown = ModuleType("IPython.display")
    shown.display = display  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", shown)
    with console.progress("features of <train>", 40, "images", completed=10) as advance:
        advance(30)
    assert [line.split(">")[0] for line in displayed] == [
        '<progress value="10" max="40"',
        '<progress value="40" max="40"',
    ]
    assert "features of &lt;train&gt;: 40 of 40" in displayed[-1]
    displayed.clear()
    # The bar of what is soon over and has a line of its own does not appear, and goes at its end.
    with console.progress("epoch", 4, "steps", brief=True) as advance:
        advance(1)
        assert displayed == []
        monkeypatch.setattr(console, "_BAR_DELAY_SECONDS", 0)
        advance(1)
    assert [line.split(">")[0] for line in displayed] == ['<progress value="2" max="4"', ""]


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'fitt'"):
        dogbreeds.fitt  # noqa: B018
