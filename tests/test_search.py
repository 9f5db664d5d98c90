"""`search` and `trial`: the search space, pruning, and resuming an interrupted search."""

import json
import os
import signal
import statistics
from collections.abc import Callable
from pathlib import Path
from unittest.mock import MagicMock

import mlflow
import optuna
import pytest
from hydra import compose, initialize_config_dir
from hydra._internal.callbacks import Callbacks
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import HydraContext
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from dogbreeds.core.errors import UserError
from dogbreeds.core.paths import config_folder
from dogbreeds.experiments.attempt import execute
from dogbreeds.experiments.hydra_plugin import PLUGIN_NAME, OptunaSweeper
from dogbreeds.experiments.launcher import LauncherCallback
from dogbreeds.experiments.result import PrunedResult
from dogbreeds.experiments.run import Run
from dogbreeds.experiments.search import Search, Settings
from dogbreeds.experiments.search_space import Space
from dogbreeds.experiments.trial import TRIAL_ENV, Trial, current_trial
from dogbreeds.tracking.records import SWEEP_RUN_ENV, RunOrigin
from tests.process_output import read_until

SMALL = (
    "data.classes=6",
    "phase.epochs=5",
    "tracking.system_metrics_seconds=0",
    "tracking.model=none",
    "preflight=none",
    "baseline=none",
)
RATES = "optimizer.lr=tag(log,interval(1e-5,1e-1))"


def space(*overrides: str) -> Space:
    return Space.from_overrides(OverridesParser.create().parse_overrides(list(overrides)))


def settings(tmp_path: Path, **other) -> Settings:
    values = {"n_trials": 6, "n_jobs": 1, "n_startup_trials": 2, "n_warmup_steps": 0, "seed": 0, "study_name": None}
    return Settings(**(values | {"storage": str(tmp_path / "studies")} | other))


class InProcessLauncher:
    """Launcher that runs jobs in this process, as Hydra's basic launcher does.

    Args:
        composed: builds the run of a job.
        monkeypatch: sets the jobs' environment variables.
        interrupt_after: number of jobs after which it is interrupted; -1 for never.
    """

    def __init__(self, composed: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, interrupt_after: int = -1):
        self._composed = composed
        self._monkeypatch = monkeypatch
        self._left = interrupt_after
        self.results: list[object] = []
        self.numbers: list[list[int]] = []

    def launch(self, job_overrides, initial_job_idx: int) -> list[JobReturn]:
        returns = []
        self.numbers.append([])
        for overrides in job_overrides:
            if self._left == 0:
                raise KeyboardInterrupt
            self._left -= 1
            parsed = OverridesParser.create().parse_overrides(list(overrides))
            env = next(override for override in parsed if override.key_or_group == f"hydra.job.env_set.{TRIAL_ENV}")
            self._monkeypatch.setenv(TRIAL_ENV, env.value())
            self.numbers[-1].append(json.loads(env.value())["number"])
            # Launchers number their jobs consecutively from this index.
            assert self.numbers[-1] == list(range(initial_job_idx, initial_job_idx + len(self.numbers[-1])))
            task = [text for text in overrides if not text.startswith("hydra.")]
            self.results.append(execute(self._composed(*task), RunOrigin("", tuple(task), " ".join(task), Path())))
            self._monkeypatch.delenv(TRIAL_ENV)
            returns.append(JobReturn(_return_value=self.results[-1].objective, status=JobStatus.COMPLETED))
        return returns


def study(search: Search, tmp_path: Path) -> optuna.Study:
    backend = optuna.storages.journal.JournalFileBackend(str(tmp_path / f"studies/{search.name}.journal"))
    return optuna.load_study(study_name=search.name, storage=optuna.storages.JournalStorage(backend))


@pytest.mark.parametrize(
    ("override", "distribution"),
    [
        (RATES, FloatDistribution(1e-5, 1e-1, log=True)),
        ("head.dropout=interval(0,0.7)", FloatDistribution(0, 0.7)),
        ("unfreeze.layers=int(interval(1,50))", IntDistribution(1, 50)),
        ("unfreeze.layers=range(10,60,10)", IntDistribution(10, 50, step=10)),
        ("head=choice(linear,mlp)", CategoricalDistribution(["linear", "mlp"])),
        ("phase.batch_size=16,32", CategoricalDistribution(["16", "32"])),
        ("unfreeze.layers=range(50,0,-10)", IntDistribution(10, 50, step=10)),
        ("head.dropout=range(0,0.6,0.2)", CategoricalDistribution(["0.0", "0.2", "0.4"])),
    ],
)
def test_space_has_a_distribution_for_each_kind_of_range(override: str, distribution) -> None:
    found = space(override, "seed=3", "model=miniature")
    assert found.distributions == {override.split("=")[0]: distribution}
    assert found.fixed == ("seed=3", "model=miniature")
    assert found.overrides({override.split("=")[0]: 7}) == [f"{override.split('=')[0]}=7", "seed=3", "model=miniature"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["seed=3"], "hydra/sweeper=optuna was given, and no setting has a range."),
        (
            ["optimizer.lr=interval(1e-1,1e-5)"],
            "optimizer.lr=interval(1e-1,1e-5) is not a valid range (its end is not above its start).",
        ),
        (["optimizer.lr=tag(log,interval(0,1))"], "optimizer.lr=tag(log,interval(0,1)) is not a valid range ("),
        (["unfreeze.layers=range(5,5)"], "unfreeze.layers=range(5,5) is not a valid range ("),
    ],
)
def test_space_rejects_missing_and_invalid_ranges(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError) as error:
        space(*overrides)
    assert str(error.value).startswith(message)
    assert "Type " in str(error.value)


@pytest.mark.parametrize(
    ("n_jobs", "n_trials", "last_numbers"),
    [
        pytest.param(1, 4, [3], marks=pytest.mark.long),
        pytest.param(1, 6, [3, 4, 5], marks=pytest.mark.long),
        pytest.param(2, 6, [4, 5], marks=pytest.mark.long),
    ],
)
def test_interrupted_search_resumes_with_the_same_trials_as_an_uninterrupted_one(
    composed, monkeypatch, tmp_path: Path, n_jobs: int, n_trials: int, last_numbers: list[int]
) -> None:
    common = {"n_jobs": n_jobs, "n_trials": n_trials}
    uninterrupted = Search(
        settings(tmp_path, study_name="uninterrupted", **common), space(RATES, "head=choice(linear,mlp)", *SMALL), ""
    )
    uninterrupted.run(InProcessLauncher(composed, monkeypatch))
    expected = study(uninterrupted, tmp_path).trials
    interrupted = Search(
        settings(tmp_path, study_name="interrupted", **common),
        space(RATES, "head=choice(linear,mlp)", *SMALL, "rerun=true"),
        "",
    )
    for jobs in (2 * n_jobs, 1):
        with pytest.raises(KeyboardInterrupt):
            interrupted.run(InProcessLauncher(composed, monkeypatch, interrupt_after=jobs))
    last = InProcessLauncher(composed, monkeypatch)
    interrupted.run(last)
    found = study(interrupted, tmp_path).trials
    # An interrupted launcher reports none of its jobs.
    assert [number for batch in last.numbers for number in batch] == last_numbers
    assert [trial.params for trial in found] == [trial.params for trial in expected]
    assert [trial.state for trial in found] == [trial.state for trial in expected]
    assert [trial.value for trial in found] == [trial.value for trial in expected]
    assert all(trial.state.is_finished() for trial in found)
    again = InProcessLauncher(composed, monkeypatch)
    interrupted.run(again)
    assert again.results == []


@pytest.mark.slow
def test_search_fails_a_trial_whose_sampling_was_interrupted(composed, monkeypatch, tmp_path: Path) -> None:
    uninterrupted = Search(
        settings(tmp_path, study_name="uninterrupted", n_trials=2), space(RATES, "head=choice(linear,mlp)", *SMALL), ""
    )
    uninterrupted.run(InProcessLauncher(composed, monkeypatch))
    interrupted = Search(
        settings(tmp_path, study_name="interrupted", n_trials=2), space(RATES, "head=choice(linear,mlp)", *SMALL), ""
    )
    with interrupted._locked():
        # The process ended after the learning rate was sampled, and before the head was.
        interrupted._open_study().ask({"optimizer.lr": FloatDistribution(1e-5, 1e-1, log=True)})
    interrupted.run(InProcessLauncher(composed, monkeypatch))
    first, *others = study(interrupted, tmp_path).trials
    assert first.state.name == "FAIL"
    assert [trial.params for trial in others] == [trial.params for trial in study(uninterrupted, tmp_path).trials]


def test_search_resumes_a_failed_trial_once(composed, monkeypatch, tmp_path: Path) -> None:
    # data.classes=1000 is more than there are, so every job fails.
    search = Search(
        settings(tmp_path, n_trials=2), space("optimizer.lr=choice(1e-3,1e-2)", *SMALL, "data.classes=1000"), ""
    )
    failing = FailingLauncher(composed, monkeypatch)
    for _ in range(2):
        with pytest.raises(UserError):
            search.run(failing)
    assert failing.numbers == [[0], [0]]
    with pytest.raises(UserError):
        search.run(failing)
    assert failing.numbers == [[0], [0], [1]]
    assert [trial.state.name for trial in study(search, tmp_path).trials] == ["FAIL", "RUNNING"]


class FailingLauncher(InProcessLauncher):
    """Launcher whose jobs fail; like Hydra's launchers, it returns their errors."""

    def launch(self, job_overrides, initial_job_idx: int) -> list[JobReturn]:
        try:
            return super().launch(job_overrides, initial_job_idx)
        except UserError as error:
            return [JobReturn(_return_value=error, status=JobStatus.FAILED)]


def test_search_raises_the_error_of_a_failed_job(composed, monkeypatch, tmp_path: Path) -> None:
    class FullDiskLauncher(InProcessLauncher):
        def launch(self, job_overrides, initial_job_idx: int) -> list[JobReturn]:
            return [JobReturn(_return_value=OSError(28, "No space left on device"), status=JobStatus.FAILED)]

    with pytest.raises(OSError, match="No space left on device"):
        Search(settings(tmp_path), space(RATES, *SMALL), "").run(FullDiskLauncher(composed, monkeypatch))


@pytest.mark.slow
def test_rerun_starts_the_same_study_over(composed, monkeypatch, tmp_path: Path) -> None:
    first = Search(settings(tmp_path, n_trials=2), space(RATES, *SMALL), "config")
    first.run(InProcessLauncher(composed, monkeypatch))
    rerun = Search(settings(tmp_path, n_trials=1), space(RATES, *SMALL, "rerun=true"), "config", rerun=True)
    assert rerun.name == first.name
    rerun.run(InProcessLauncher(composed, monkeypatch))
    assert len(study(first, tmp_path).trials) == 1
    assert Search(settings(tmp_path), space(RATES, *SMALL), "another config").name != first.name


def pruned_attempt(composed, monkeypatch, tmp_path: Path, lr: str) -> tuple[PrunedResult, Run]:
    """Run an attempt that the median of five better trials prunes after its first epoch."""
    search = Search(settings(tmp_path, n_startup_trials=1), space(RATES), "")
    with search._locked():
        opened = search._open_study()
    for _ in range(5):
        better = opened.ask(space(RATES).distributions)
        better.report(1.0, 1)
        opened.tell(better, 1.0)
    number = opened.ask(space(RATES).distributions).number
    monkeypatch.setenv(TRIAL_ENV, json.dumps({"place": search._place, "study": search.name, "number": number}))
    run = composed(f"optimizer.lr={lr}", *SMALL)
    result = execute(run, RunOrigin("", (), "pruned", Path()))
    attributes = opened.trials[number].user_attrs
    assert attributes["epochs"] == 1
    assert attributes["pruned"].endswith("is below the median of the trials before")
    monkeypatch.delenv(TRIAL_ENV)
    return result, run


@pytest.mark.slow
def test_pruned_attempt_is_unfinished_and_resumes_when_run_by_itself(composed, monkeypatch, tmp_path: Path) -> None:
    result, run = pruned_attempt(composed, monkeypatch, tmp_path, "1e-5")
    assert isinstance(result, PrunedResult)
    client = mlflow.MlflowClient(run.tracking.uri)
    (record,) = client.search_runs(["1"])
    assert record.info.status == "KILLED"
    assert "below the median" in record.data.tags["pruned"]
    assert record.data.tags["mlflow.note.content"].startswith("pruned after epoch 1 of 5: its best accuracy, ")
    assert "verdict" not in record.data.tags
    assert record.data.tags["search.trial"] == "5"
    assert result.objective == client.get_metric_history(record.info.run_id, "val/accuracy")[0].value
    execute(run, RunOrigin("", (), "itself", Path()))
    (record,) = client.search_runs(["1"])
    assert record.info.status == "FINISHED"
    assert record.data.tags["pruned"] == "no: resumed"
    assert [point.step for point in client.get_metric_history(record.info.run_id, "val/loss")] == [1, 2, 3, 4, 5]
    execute(composed("optimizer.lr=1e-5", *SMALL, "rerun=true"), RunOrigin("", (), "uninterrupted", Path()))
    one, other = (client.get_metric_history(run.info.run_id, "val/loss") for run in client.search_runs(["1"]))
    assert [point.value for point in one] == [point.value for point in other]


@pytest.mark.slow
def test_skipped_run_reports_its_curve_to_the_search(composed, monkeypatch, tmp_path: Path) -> None:
    execute(composed("optimizer.lr=1e-3", *SMALL), RunOrigin("", (), "before", Path()))
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlruns/mlflow.db")
    sweep_run = client.create_run("1").info.run_id
    monkeypatch.setenv(SWEEP_RUN_ENV, sweep_run)
    search = Search(settings(tmp_path, n_trials=1), space("optimizer.lr=choice(1e-3)", *SMALL), "")
    launcher = InProcessLauncher(composed, monkeypatch)
    search.run(launcher)
    (trial,) = study(search, tmp_path).trials
    curve = client.get_metric_history(launcher.results[0].run_id, "val/accuracy")
    assert trial.intermediate_values == {point.step: point.value for point in curve}
    assert len(curve) == 5


@pytest.mark.slow
def test_search_rejects_a_study_with_other_ranges(composed, monkeypatch, tmp_path: Path) -> None:
    first = Search(settings(tmp_path, study_name="rates", n_trials=1), space(RATES, *SMALL), "")
    first.run(InProcessLauncher(composed, monkeypatch))
    other = Search(settings(tmp_path, study_name="rates", n_trials=1), space("head=choice(linear,mlp)", *SMALL), "")
    with pytest.raises(UserError) as error:
        other.run(InProcessLauncher(composed, monkeypatch))
    assert str(error.value).startswith(
        "hydra.sweeper.study_name=rates names a study of optimizer.lr with other ranges or settings."
    )
    rerun = Search(
        settings(tmp_path, study_name="rates", n_trials=1), space("head=choice(linear,mlp)", *SMALL), "", rerun=True
    )
    rerun.run(InProcessLauncher(composed, monkeypatch))
    assert [list(trial.params) for trial in study(rerun, tmp_path).trials] == [["head"]]


def test_search_rejects_a_study_that_another_command_works_on(composed, monkeypatch, tmp_path: Path) -> None:
    search = Search(settings(tmp_path), space(RATES, *SMALL), "")
    with search._locked(), pytest.raises(UserError) as error:
        search.run(InProcessLauncher(composed, monkeypatch))
    assert str(error.value).startswith(f"Another command is working on the study {search.name}.")


def test_search_rejects_a_storage_that_cannot_be_used(composed, monkeypatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    search = Search(settings(tmp_path, storage=f"{tmp_path}/file/below"), space(RATES, *SMALL), "")
    with pytest.raises(UserError) as error:
        search.run(InProcessLauncher(composed, monkeypatch))
    assert "cannot be written (Not a directory)" in str(error.value)
    database = Search(settings(tmp_path, storage="postgresql+none://nobody@127.0.0.1/none"), space(RATES, *SMALL), "")
    monkeypatch.setenv("DOGBREEDS_HOME", str(tmp_path))
    with pytest.raises(UserError) as error:
        database.run(InProcessLauncher(composed, monkeypatch))
    assert str(error.value).startswith("The studies in postgresql+none://nobody@127.0.0.1/none cannot be used (")


@pytest.mark.slow
def test_trial_that_was_pruned_and_finished_later_is_no_longer_pruned(composed, monkeypatch, tmp_path: Path) -> None:
    result, _ = pruned_attempt(composed, monkeypatch, tmp_path, "1e-5")
    assert isinstance(result, PrunedResult)
    finished = execute(composed("optimizer.lr=1e-5", *SMALL), RunOrigin("", (), "itself", Path()))
    sweep_run = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlruns/mlflow.db").create_run("1").info.run_id
    monkeypatch.setenv(SWEEP_RUN_ENV, sweep_run)
    search = Search(settings(tmp_path, n_startup_trials=1), space(RATES), "")
    monkeypatch.setenv(TRIAL_ENV, json.dumps({"place": search._place, "study": search.name, "number": 5}))
    again = execute(composed("optimizer.lr=1e-5", *SMALL), RunOrigin("", (), "its trial", Path()))
    assert again.run_id == finished.run_id
    trial = study(search, tmp_path).trials[5]
    assert trial.user_attrs["pruned"] is None
    assert trial.user_attrs["epochs"] == len(trial.intermediate_values) == 5


@pytest.mark.slow
def test_training_continues_while_the_study_is_unreachable(composed, monkeypatch, tmp_path: Path, caplog) -> None:
    search = Search(settings(tmp_path), space(RATES), "")
    with search._locked():
        number = search._open_study().ask(space(RATES).distributions).number
    monkeypatch.setenv(TRIAL_ENV, json.dumps({"place": search._place, "study": search.name, "number": number}))
    report = optuna.trial.Trial.report
    calls = iter(range(10))

    def fail_once(self, value, step):
        if next(calls) == 1:
            raise OSError("unreachable")
        report(self, value, step)

    monkeypatch.setattr(optuna.trial.Trial, "report", fail_once)
    execute(composed("optimizer.lr=1e-3", *SMALL), RunOrigin("", (), "trial", Path()))
    assert "epoch 2 is not reported to the search: The studies in " in caplog.text
    assert list(study(search, tmp_path).trials[number].intermediate_values) == [1, 2, 3, 4, 5]


def test_hydra_creates_the_sweeper_that_the_config_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(Plugins.instance().class_name_to_class, PLUGIN_NAME, raising=False)
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        overrides = ["hydra/sweeper=optuna", "hydra.sweeper.storage=unused", "hydra.sweep.dir=unused"]
        config = compose("extract", overrides, return_hydra_config=True)
    LauncherCallback().on_multirun_start(config)
    sweeper = Plugins.instance().instantiate_sweeper(
        hydra_context=HydraContext(config_loader=MagicMock(), callbacks=Callbacks()), task_function=print, config=config
    )
    # An installed package may have a module of that name, from an earlier version.
    assert type(sweeper) is OptunaSweeper


def test_sweeper_names_the_extra_that_installs_optuna(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"Type pip install 'dogbreeds\[search\]'\."):
        OptunaSweeper().sweep([])


def test_job_outside_a_search_has_an_empty_trial(monkeypatch) -> None:
    # The value in conf/train.yaml.
    monkeypatch.setenv(TRIAL_ENV, "")
    trial = current_trial()
    assert (type(trial), trial.tags) == (Trial, {})


def killed_and_searched_again(
    start_command, command, tmp_path: Path, *settings: str, trials: int, at: int
) -> optuna.Study:
    """Kill the command of a search while a trial runs, run it again, and check the study and its runs.

    Args:
        start_command, command: the fixtures.
        tmp_path: of the test.
        settings: further overrides.
        trials: number of trials of the search.
        at: number of the trial during which the command is killed.
    """
    sweep = (
        "--multirun",
        "hydra/sweeper=optuna",
        RATES,
        "head=choice(linear,mlp,batchnorm)",
        "tracking.model=none",
        f"hydra.sweeper.n_trials={trials}",
        *settings,
    )
    with start_command("train", *sweep) as process:
        read_until(process, f"\t#{at} : ")
        os.killpg(process.pid, signal.SIGKILL)
    again = command("train", *sweep)
    assert again.returncode == 0, again.stderr
    (journal,) = (tmp_path / "home/multirun/studies").glob("*.journal")
    assert f"Resuming search {journal.stem}: {at} of {trials} trials done, 1 interrupted" in again.stdout
    backend = optuna.storages.journal.JournalFileBackend(str(journal))
    loaded = optuna.load_study(study_name=journal.stem, storage=optuna.storages.JournalStorage(backend))
    assert len(loaded.trials) == trials
    assert {trial.state.name for trial in loaded.trials} <= {"COMPLETE", "PRUNED"}
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/home/mlruns/mlflow.db")
    sweeps = [run for run in client.search_runs(["1"]) if "head=choice" in run.info.run_name]
    assert [(run.info.status, run.data.tags["resumed"]) for run in sweeps] == [("FINISHED", "1")]
    runs = client.search_runs(["1"], f"tags.`mlflow.parentRunId` = '{sweeps[0].info.run_id}'")
    assert sorted({run.data.params["optimizer.lr"] for run in runs}) == sorted(
        {str(trial.params["optimizer.lr"]) for trial in loaded.trials}
    )
    assert {run.info.status for run in runs if "pruned" in run.data.tags} <= {"KILLED"}
    assert {run.info.status for run in runs if "pruned" not in run.data.tags} == {"FINISHED"}
    return loaded


@pytest.mark.slow
def test_killed_search_resumes_with_the_same_command(start_command, command, tmp_path: Path) -> None:
    killed_and_searched_again(start_command, command, tmp_path, "data.classes=6", "phase.epochs=5", trials=6, at=2)


@pytest.mark.long
def test_search_of_forty_trials_is_as_good_as_the_guide_after_a_kill(start_command, command, tmp_path: Path) -> None:
    guide = command("train", "--multirun", "attempt=frozen,finetune_50,finetune_20", "phase.epochs=8")
    assert guide.returncode == 0, guide.stderr
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/home/mlruns/mlflow.db")
    best_of_guide = max(
        run.data.metrics["best/val_accuracy"] for run in client.search_runs(["1"], "tags.verdict != ''")
    )
    found = killed_and_searched_again(start_command, command, tmp_path, trials=40, at=13)
    full, pruned = (
        [trial.user_attrs["epochs"] for trial in found.trials if trial.state.name == state]
        for state in ("COMPLETE", "PRUNED")
    )
    assert found.best_value >= best_of_guide
    assert statistics.mean(pruned) < statistics.mean(full) / 3
