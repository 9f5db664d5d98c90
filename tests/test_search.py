"""A search in this process: what is searched, what is pruned, and what a cut-off search goes on with."""

import json
import os
import signal
import statistics
from collections.abc import Callable
from pathlib import Path

import mlflow
import optuna
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from dogbreeds.attempt import GivenUp, execute
from dogbreeds.record import SWEEP, Composition
from dogbreeds.run import Run
from dogbreeds.search import Search, Settings, Space
from dogbreeds.spec import Refused
from dogbreeds.trial import TRIAL, Trial, current
from tests.said import listen

SMALL = ("data.breeds=6", "phase.epochs=5", "tracking.system_metrics_seconds=0", "tracking.model=none", "preflight=none", "baseline=none")
RATES = "optimizer.lr=tag(log,interval(1e-5,1e-1))"


def space(*overrides: str) -> Space:
    return Space.of(OverridesParser.create().parse_overrides(list(overrides)))


def settings(tmp_path: Path, **other) -> Settings:
    values = {"n_trials": 6, "n_jobs": 1, "n_startup_trials": 2, "n_warmup_steps": 0, "seed": 0, "study_name": None}
    return Settings(**(values | {"storage": str(tmp_path / "studies")} | other))


class Here:
    """Runs jobs in this process, as Hydra's own launcher does; `cut_off` ends it at the beginning of its so-manieth job."""

    def __init__(self, composed: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, cut_off: int = -1):
        self._composed, self._monkeypatch, self._left = composed, monkeypatch, cut_off
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
            env = next(override for override in parsed if override.key_or_group == f"hydra.job.env_set.{TRIAL}")
            self._monkeypatch.setenv(TRIAL, env.value())
            self.numbers[-1].append(json.loads(env.value())["number"])
            assert self.numbers[-1] == list(range(initial_job_idx, initial_job_idx + len(self.numbers[-1])))  # as launchers number them
            task = [text for text in overrides if not text.startswith("hydra.")]
            self.results.append(execute(self._composed(*task), Composition("", tuple(task), " ".join(task), Path())))
            self._monkeypatch.delenv(TRIAL)
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
def test_what_is_searched(override: str, distribution) -> None:
    found = space(override, "seed=3", "model=miniature")
    assert found.searched == {override.split("=")[0]: distribution}
    assert found.fixed == ("seed=3", "model=miniature")
    assert found.overrides({override.split("=")[0]: 7}) == [f"{override.split('=')[0]}=7", "seed=3", "model=miniature"]


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["seed=3"], "hydra/sweeper=optuna was asked for and no setting was given a range."),
        (["optimizer.lr=interval(1e-1,1e-5)"], "optimizer.lr=interval(1e-1,1e-5) is no range to search (its end is not above its beginning)."),
        (["optimizer.lr=tag(log,interval(0,1))"], "optimizer.lr=tag(log,interval(0,1)) is no range to search ("),
        (["unfreeze.layers=range(5,5)"], "unfreeze.layers=range(5,5) is no range to search ("),
    ],
)
def test_no_range_is_refused(overrides: list[str], sentence: str) -> None:
    with pytest.raises(Refused) as refused:
        space(*overrides)
    assert str(refused.value).startswith(sentence)
    assert "Type " in str(refused.value)


@pytest.mark.parametrize(
    ("n_jobs", "n_trials", "last_numbers"),
    [(1, 4, [3]), pytest.param(1, 6, [3, 4, 5], marks=pytest.mark.long), pytest.param(2, 6, [4, 5], marks=pytest.mark.long)],
)
def test_a_search_that_is_cut_off_asks_for_the_same_trials_as_a_whole_one(
    composed, monkeypatch, tmp_path: Path, n_jobs: int, n_trials: int, last_numbers: list[int]
) -> None:
    settled = {"n_jobs": n_jobs, "n_trials": n_trials}
    whole = Search(settings(tmp_path, study_name="whole", **settled), space(RATES, "head=choice(linear,mlp)", *SMALL), "")
    whole.run(Here(composed, monkeypatch))
    wanted = study(whole, tmp_path).trials
    cut = Search(settings(tmp_path, study_name="cut", **settled), space(RATES, "head=choice(linear,mlp)", *SMALL, "rerun=true"), "")
    for moment in (2 * n_jobs, 1):
        with pytest.raises(KeyboardInterrupt):
            cut.run(Here(composed, monkeypatch, cut_off=moment))
    last = Here(composed, monkeypatch)
    cut.run(last)
    found = study(cut, tmp_path).trials
    assert [number for batch in last.numbers for number in batch] == last_numbers  # a launcher that is cut off tells of none
    assert [trial.params for trial in found] == [trial.params for trial in wanted]
    assert [trial.state for trial in found] == [trial.state for trial in wanted]
    assert [trial.value for trial in found] == [trial.value for trial in wanted]
    assert all(trial.state.is_finished() for trial in found)
    again = Here(composed, monkeypatch)
    cut.run(again)
    assert again.results == []


@pytest.mark.slow
def test_a_trial_that_was_just_being_asked_for_is_given_up(composed, monkeypatch, tmp_path: Path) -> None:
    whole = Search(settings(tmp_path, study_name="whole", n_trials=2), space(RATES, "head=choice(linear,mlp)", *SMALL), "")
    whole.run(Here(composed, monkeypatch))
    cut = Search(settings(tmp_path, study_name="cut", n_trials=2), space(RATES, "head=choice(linear,mlp)", *SMALL), "")
    with cut._alone():
        cut._study().ask({"optimizer.lr": FloatDistribution(1e-5, 1e-1, log=True)})  # the process ended before the head was asked for
    cut.run(Here(composed, monkeypatch))
    first, *others = study(cut, tmp_path).trials
    assert first.state.name == "FAIL"
    assert [trial.params for trial in others] == [trial.params for trial in study(whole, tmp_path).trials]


def test_a_trial_whose_job_failed_is_gone_on_with_once(composed, monkeypatch, tmp_path: Path) -> None:
    search = Search(settings(tmp_path, n_trials=2), space("optimizer.lr=choice(1e-3,1e-2)", *SMALL, "data.breeds=1000"), "")  # there are not so many
    failing = Failing(composed, monkeypatch)
    for _ in range(2):
        with pytest.raises(Refused):
            search.run(failing)
    assert failing.numbers == [[0], [0]]
    with pytest.raises(Refused):
        search.run(failing)
    assert failing.numbers == [[0], [0], [1]]
    assert [trial.state.name for trial in study(search, tmp_path).trials] == ["FAIL", "RUNNING"]


class Failing(Here):
    """Its jobs end in an error, which Hydra's launchers give back."""

    def launch(self, job_overrides, initial_job_idx: int) -> list[JobReturn]:
        try:
            return super().launch(job_overrides, initial_job_idx)
        except Refused as error:
            return [JobReturn(_return_value=error, status=JobStatus.FAILED)]


def test_what_ends_a_job_is_said_as_it_is(composed, monkeypatch, tmp_path: Path) -> None:
    class Full(Here):
        def launch(self, job_overrides, initial_job_idx: int) -> list[JobReturn]:
            return [JobReturn(_return_value=OSError(28, "No space left on device"), status=JobStatus.FAILED)]

    with pytest.raises(OSError, match="No space left on device"):
        Search(settings(tmp_path), space(RATES, *SMALL), "").run(Full(composed, monkeypatch))


@pytest.mark.slow
def test_rerun_begins_the_same_study_anew(composed, monkeypatch, tmp_path: Path) -> None:
    first = Search(settings(tmp_path, n_trials=2), space(RATES, *SMALL), "about")
    first.run(Here(composed, monkeypatch))
    anew = Search(settings(tmp_path, n_trials=1), space(RATES, *SMALL, "rerun=true"), "about", rerun=True)
    assert anew.name == first.name
    anew.run(Here(composed, monkeypatch))
    assert len(study(first, tmp_path).trials) == 1
    assert Search(settings(tmp_path), space(RATES, *SMALL), "another model").name != first.name


def pruned_attempt(composed, monkeypatch, tmp_path: Path, lr: str) -> tuple[GivenUp, Run]:
    """An attempt that the median of five better trials prunes after its first epoch."""
    search = Search(settings(tmp_path, n_startup_trials=1), space(RATES), "")
    with search._alone():
        opened = search._study()
    for _ in range(5):
        asked = opened.ask(space(RATES).searched)
        asked.report(1.0, 1)
        opened.tell(asked, 1.0)
    number = opened.ask(space(RATES).searched).number
    monkeypatch.setenv(TRIAL, json.dumps({"place": search._place, "study": search.name, "number": number}))
    run = composed(f"optimizer.lr={lr}", *SMALL)
    result = execute(run, Composition("", (), "pruned", Path()))
    attributes = opened.trials[number].user_attrs
    assert attributes["epochs"] == 1
    assert attributes["pruned"].endswith("is below the median of the trials before")
    monkeypatch.delenv(TRIAL)
    return result, run


def test_what_was_pruned_is_unfinished_and_goes_on_when_it_is_asked_for(composed, monkeypatch, tmp_path: Path) -> None:
    result, run = pruned_attempt(composed, monkeypatch, tmp_path, "1e-5")
    assert isinstance(result, GivenUp)
    client = mlflow.MlflowClient(run.tracking.uri)
    (record,) = client.search_runs(["1"])
    assert record.info.status == "KILLED"
    assert "below the median" in record.data.tags["pruned"]
    assert record.data.tags["mlflow.note.content"].startswith("pruned after epoch 1 of 5: its best, ")
    assert "verdict" not in record.data.tags
    assert record.data.tags["search.trial"] == "5"
    assert result.objective == client.get_metric_history(record.info.run_id, "val/accuracy")[0].value
    execute(run, Composition("", (), "itself", Path()))
    (record,) = client.search_runs(["1"])
    assert record.info.status == "FINISHED"
    assert record.data.tags["pruned"] == "no: gone on with"
    assert [point.step for point in client.get_metric_history(record.info.run_id, "val/loss")] == [1, 2, 3, 4, 5]
    execute(composed("optimizer.lr=1e-5", *SMALL, "rerun=true"), Composition("", (), "uninterrupted", Path()))
    one, other = (client.get_metric_history(run.info.run_id, "val/loss") for run in client.search_runs(["1"]))
    assert [point.value for point in one] == [point.value for point in other]


@pytest.mark.slow
def test_what_was_finished_before_tells_the_search_its_curve(composed, monkeypatch, tmp_path: Path) -> None:
    execute(composed("optimizer.lr=1e-3", *SMALL), Composition("", (), "before", Path()))
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlruns/mlflow.db")
    above = client.create_run("1").info.run_id
    monkeypatch.setenv(SWEEP, above)
    search = Search(settings(tmp_path, n_trials=1), space("optimizer.lr=choice(1e-3)", *SMALL), "")
    here = Here(composed, monkeypatch)
    search.run(here)
    (trial,) = study(search, tmp_path).trials
    curve = client.get_metric_history(here.results[0].run_id, "val/accuracy")
    assert trial.intermediate_values == {point.step: point.value for point in curve}
    assert len(curve) == 5


@pytest.mark.slow
def test_a_study_goes_on_with_its_own_ranges_only(composed, monkeypatch, tmp_path: Path) -> None:
    first = Search(settings(tmp_path, study_name="rates", n_trials=1), space(RATES, *SMALL), "")
    first.run(Here(composed, monkeypatch))
    other = Search(settings(tmp_path, study_name="rates", n_trials=1), space("head=choice(linear,mlp)", *SMALL), "")
    with pytest.raises(Refused) as refused:
        other.run(Here(composed, monkeypatch))
    assert str(refused.value).startswith("hydra.sweeper.study_name=rates names a study of optimizer.lr with other ranges or settings.")
    anew = Search(settings(tmp_path, study_name="rates", n_trials=1), space("head=choice(linear,mlp)", *SMALL), "", rerun=True)
    anew.run(Here(composed, monkeypatch))
    assert [list(trial.params) for trial in study(anew, tmp_path).trials] == [["head"]]


def test_one_command_at_a_time_searches_a_study(composed, monkeypatch, tmp_path: Path) -> None:
    search = Search(settings(tmp_path), space(RATES, *SMALL), "")
    with search._alone(), pytest.raises(Refused) as refused:
        search.run(Here(composed, monkeypatch))
    assert str(refused.value).startswith(f"The study {search.name} is being searched by another command.")


def test_a_study_that_cannot_be_kept_is_refused(composed, monkeypatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    search = Search(settings(tmp_path, storage=f"{tmp_path}/file/below"), space(RATES, *SMALL), "")
    with pytest.raises(Refused) as refused:
        search.run(Here(composed, monkeypatch))
    assert "cannot be written (Not a directory)" in str(refused.value)
    elsewhere = Search(settings(tmp_path, storage="postgresql+none://nobody@127.0.0.1/none"), space(RATES, *SMALL), "")
    monkeypatch.setenv("DOGBREEDS_HOME", str(tmp_path))
    with pytest.raises(Refused) as refused:
        elsewhere.run(Here(composed, monkeypatch))
    assert str(refused.value).startswith("The studies in postgresql+none://nobody@127.0.0.1/none cannot be used (")


@pytest.mark.slow
def test_what_was_pruned_once_and_finished_since_is_no_longer_pruned(composed, monkeypatch, tmp_path: Path) -> None:
    result, _ = pruned_attempt(composed, monkeypatch, tmp_path, "1e-5")
    assert isinstance(result, GivenUp)
    finished = execute(composed("optimizer.lr=1e-5", *SMALL), Composition("", (), "itself", Path()))
    above = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlruns/mlflow.db").create_run("1").info.run_id
    monkeypatch.setenv(SWEEP, above)
    search = Search(settings(tmp_path, n_startup_trials=1), space(RATES), "")
    monkeypatch.setenv(TRIAL, json.dumps({"place": search._place, "study": search.name, "number": 5}))
    again = execute(composed("optimizer.lr=1e-5", *SMALL), Composition("", (), "its trial", Path()))
    assert again.run_id == finished.run_id
    trial = study(search, tmp_path).trials[5]
    assert trial.user_attrs["pruned"] is None
    assert trial.user_attrs["epochs"] == len(trial.intermediate_values) == 5


def test_a_study_that_is_out_of_reach_does_not_end_training(composed, monkeypatch, tmp_path: Path, caplog) -> None:
    search = Search(settings(tmp_path), space(RATES), "")
    with search._alone():
        number = search._study().ask(space(RATES).searched).number
    monkeypatch.setenv(TRIAL, json.dumps({"place": search._place, "study": search.name, "number": number}))
    real, tries = optuna.trial.Trial.report, iter(range(10))

    def away(self, value, step):
        if next(tries) == 1:
            raise OSError("away")
        real(self, value, step)

    monkeypatch.setattr(optuna.trial.Trial, "report", away)
    execute(composed("optimizer.lr=1e-3", *SMALL), Composition("", (), "trial", Path()))
    assert "epoch 2 is not reported to the search: The studies in " in caplog.text
    assert list(study(search, tmp_path).trials[number].intermediate_values) == [1, 2, 3, 4, 5]


def test_optuna_that_is_not_installed_is_named_with_the_extra_that_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from hydra_plugins.dogbreeds_optuna import OptunaSweeper

    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(Refused, match=r"Type pip install 'dogbreeds\[search\]'\."):
        OptunaSweeper().sweep([])


def test_a_job_of_no_search_is_no_trial(monkeypatch) -> None:
    monkeypatch.setenv(TRIAL, "")  # as conf/train.yaml has it
    trial = current()
    assert (type(trial), trial.tags) == (Trial, {})


def killed_and_searched_again(begun, command, tmp_path: Path, *settings: str, trials: int, at: int) -> optuna.Study:
    """A search of so many trials by the command, killed when one is begun and run again; what is promised of any."""
    sweep = (
        "--multirun",
        "hydra/sweeper=optuna",
        RATES,
        "head=choice(linear,mlp,batchnorm)",
        "tracking.model=none",
        f"hydra.sweeper.n_trials={trials}",
        *settings,
    )
    with begun("train", *sweep) as process:
        listen(process, f"\t#{at} : ")
        os.killpg(process.pid, signal.SIGKILL)
    again = command("train", *sweep)
    assert again.returncode == 0, again.stderr
    (journal,) = (tmp_path / "home/multirun/studies").glob("*.journal")
    assert f"search {journal.stem}: {at} of {trials} trials are there, 1 go on; rerun=true begins anew" in again.stdout
    backend = optuna.storages.journal.JournalFileBackend(str(journal))
    kept = optuna.load_study(study_name=journal.stem, storage=optuna.storages.JournalStorage(backend))
    assert len(kept.trials) == trials
    assert {trial.state.name for trial in kept.trials} <= {"COMPLETE", "PRUNED"}
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/home/mlruns/mlflow.db")
    sweeps = [run for run in client.search_runs(["1"]) if "head=choice" in run.info.run_name]
    assert [(run.info.status, run.data.tags["resumed"]) for run in sweeps] == [("FINISHED", "1")]
    runs = client.search_runs(["1"], f"tags.`mlflow.parentRunId` = '{sweeps[0].info.run_id}'")
    assert sorted({run.data.params["optimizer.lr"] for run in runs}) == sorted({str(trial.params["optimizer.lr"]) for trial in kept.trials})
    assert {run.info.status for run in runs if "pruned" in run.data.tags} <= {"KILLED"}
    assert {run.info.status for run in runs if "pruned" not in run.data.tags} == {"FINISHED"}
    return kept


@pytest.mark.slow
def test_a_search_that_is_killed_goes_on_with_the_same_command(begun, command, tmp_path: Path) -> None:
    killed_and_searched_again(begun, command, tmp_path, "data.breeds=6", "phase.epochs=5", trials=6, at=2)


@pytest.mark.long
def test_forty_trials_killed_in_between_find_what_is_as_good_as_the_guides_best(begun, command, tmp_path: Path) -> None:
    guide = command("train", "--multirun", "attempt=frozen,finetune_50,finetune_20", "phase.epochs=8")
    assert guide.returncode == 0, guide.stderr
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/home/mlruns/mlflow.db")
    best_of_guide = max(run.data.metrics["best/val_accuracy"] for run in client.search_runs(["1"], "tags.verdict != ''"))
    kept = killed_and_searched_again(begun, command, tmp_path, trials=40, at=13)
    full, pruned = ([trial.user_attrs["epochs"] for trial in kept.trials if trial.state.name == state] for state in ("COMPLETE", "PRUNED"))
    assert kept.best_value >= best_of_guide
    assert statistics.mean(pruned) < statistics.mean(full) / 3
