"""Recipes: what they are composed of, and one of several runs that is killed, resumed, swept and skipped."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import mlflow
import numpy as np
import pytest

import dogbreeds
from dogbreeds.core.errors import UserError
from dogbreeds.experiments.compose import compose_config, from_config
from dogbreeds.experiments.recipe import Recipe
from dogbreeds.experiments.result import Skipped
from tests.process_output import read_to_end, read_until

SMALL = ("data.classes=6", "data.train_per_class=8", "data.val_per_class=4", "data.test_per_class=4")
SMALL = (*SMALL, "tracking.system_metrics_seconds=0", "phase.epochs=2")
# Two frozen runs, one with another `C`, two fine-tunes and their soup.
RUNS = 6
BEST = ("recipe=best", *SMALL)


def test_recipes_of_one_run_are_settings_that_can_be_typed() -> None:
    def composed(*overrides: str):
        return from_config(compose_config("train", overrides))

    fast = composed("recipe=fast")
    assert fast.key == composed("head=logistic", "features.layers=[block5,block6,top]", "augment=flip").key
    assert composed("recipe=guide").key == composed("attempt=frozen").key
    # What is typed wins over the recipe.
    assert composed("recipe=fast", "features.layers=[]", "augment=none").key == composed("head=logistic").key


def test_recipe_of_several_runs_is_no_single_run() -> None:
    config = compose_config("train", ["recipe=best"])
    recipe = Recipe.of(config)
    assert recipe is not None
    assert len(recipe.probes) + 1 + len(recipe.runs) + 1 == RUNS
    # The size that the second frozen run has, in the place of the backbone's own.
    assert [change for change in recipe.probes[1] if "size" in change] == ["model.image_size=96"]
    assert Recipe.of(compose_config("train", ["recipe=fast"])) is None
    with pytest.raises(UserError, match="recipe=fast"):
        from_config(config)
    with pytest.raises(UserError, match=r"recipe\.stages"):
        Recipe.of(compose_config("train", ["recipe=best", "+recipe.stages=1"]))
    with pytest.raises(UserError, match=r"recipe\.start was 'first'.*recipe\.start=one_standard_error"):
        Recipe.of(compose_config("train", ["recipe=best", "recipe.start=first"]))
    # By the name that is typed, not by that of the soup's phase.
    with pytest.raises(UserError, match=r"recipe\.soup was 'all'.*recipe\.soup=greedy"):
        Recipe.of(compose_config("train", ["recipe=best", "recipe.soup=all"]))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("override", "named"), [("phase=finetune", "recipe=fast"), ("tracking=none", "tracking=mlflow")]
)
def test_settings_that_a_recipe_of_several_runs_cannot_have_say_what_to_type(
    command, override: str, named: str
) -> None:
    done = command("train", "recipe=best", override)
    assert done.returncode == 1
    assert override in done.stderr
    assert named in done.stderr


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["phase.epochs=2"], 'dogbreeds.run_recipe(["recipe=best", ...])'),
        (["recipe=best", "tracking=none"], "tracking=mlflow"),
        (["recipe=best", "attempt=frozen"], "recipe=fast"),
        (["recipe=bst"], "recipe=best"),
    ],
)
def test_python_call_that_is_no_recipe_says_what_to_type(overrides: list[str], named: str) -> None:
    with pytest.raises(UserError) as error:
        dogbreeds.run_recipe(overrides)
    assert named in str(error.value)


@pytest.mark.slow
def test_recipe_on_images_in_hand_ends_with_its_best_run_and_is_taken_over_by_the_next_call(
    tmp_path: Path, make_home: Callable[[Path], Path], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOGBREEDS_HOME", str(make_home(tmp_path / "home")))
    monkeypatch.setenv("DOGBREEDS_CACHE", str(cache))
    overrides = [*BEST, "preflight=none", "~recipe.probes.larger", "recipe.refit=false"]
    drawn = dogbreeds.compose(SMALL).data.open()
    parts = {name: ([load() for load in split.source.loaders()], split.labels) for name, split in drawn.splits.items()}
    dataset = dogbreeds.Dataset.from_arrays(**parts, class_names=drawn.class_names)
    best = dogbreeds.run_recipe(overrides, dataset=dataset)
    table = dogbreeds.runs()
    assert sorted(table["phase"]) == ["Finetune", "Finetune", "Frozen", "Frozen", "Soup"]
    # Fine-tunes start from a head that is more regularised than the best one.
    frozen = table[table["phase"] == "Frozen"].set_index("head.C").sort_index()
    start, probe = frozen.iloc[0], frozen.loc["null"]
    assert start["best/C"] < probe["best/C"]
    assert set(table["parent/val_accuracy"].dropna()) == {start["best/val_accuracy"]}
    assert best.objective == table["best/val_accuracy"].max() == table.loc[best.run_id, "best/val_accuracy"]
    assert table.loc[best.run_id, "phase"] in ("Frozen", "Soup")
    again = dogbreeds.run_recipe(overrides, dataset=dataset)
    assert again == Skipped(best.run_id, best.objective)
    assert len(dogbreeds.runs()) == len(table)


@pytest.mark.long
@pytest.mark.own_cache
def test_recipe_resumes_after_kills_between_and_within_its_runs_and_ends_with_one_network(
    start_command, command, tmp_path: Path
) -> None:
    # Within the first frozen run, after the second run's end, within the second fine-tune, and while fine-tunes of the
    # soup train again.
    for text, times in (("epoch  3/13", 1), ("--- fine-tune 1", 1), ("epoch 1/2", 2), ("again, epoch 1", 1)):
        with start_command("train", *BEST) as process:
            read_until(process, text, times)
            os.killpg(process.pid, signal.SIGKILL)
            read_to_end(process)
    with start_command("train", *BEST) as process:
        lines, errors = read_to_end(process)
    assert process.returncode == 0, errors
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/home/mlruns/mlflow.db")
    found = client.search_runs(["1"])
    (parent,) = [run for run in found if run.info.run_name.startswith("recipe best")]
    nested = [run for run in found if run is not parent]
    assert parent.data.tags["resumed"] == "4"
    assert [run.info.status for run in found] == ["FINISHED"] * (RUNS + 1)
    assert {run.data.tags["mlflow.parentRunId"] for run in nested} == {parent.info.run_id}
    (soup,) = [run for run in nested if run.data.params["phase"] == "Soup"]
    frozen = {run.info.run_id: run for run in nested if run.data.params["phase"] == "Frozen"}
    probes = [run for run in frozen.values() if run.data.params["head.C"] == "null"]
    assert sorted(run.data.params["model.image_size"] for run in probes) == ["64", "96"]
    # Of equals the first; MLflow has the newest first.
    best = max(reversed(probes), key=lambda run: run.data.metrics["best/val_accuracy"])
    start = frozen[soup.data.tags["parent"]]
    assert start.data.params["model.image_size"] == best.data.params["model.image_size"]
    assert start.data.metrics["best/C"] < best.data.metrics["best/C"]
    final = max((best, soup), key=lambda run: run.data.metrics["best/val_accuracy"])
    assert parent.data.tags["best_run"] == final.info.run_id
    assert parent.data.metrics["best/val_accuracy"] == final.data.metrics["best/val_accuracy"]
    assert soup.data.metrics["best/val_accuracy"] >= max(
        run.data.metrics["best/val_accuracy"] for run in nested if run.data.params["phase"] == "Finetune"
    )
    assert f"type run={final.info.run_id[:8]}" in lines[-1]
    evaluated = command("evaluate", f"run={soup.info.run_id}")
    assert f"{100 * soup.data.metrics['refitted/test_accuracy']:.1f} %" in evaluated.stdout
    # In a sweep, runs that have finished are taken over, and the sweep names the best network.
    with start_command("train", "--multirun", *BEST, "seed=0,1") as process:
        lines, errors = read_to_end(process)
    assert process.returncode == 0, errors
    assert sum(line.startswith("skipped: run ") for line in lines) == RUNS
    (sweep,) = [run for run in client.search_runs(["1"]) if run.info.run_name.startswith("sweep ")]
    best = client.get_run(sweep.data.tags["best_run"])
    assert best.data.params["phase"] in ("Soup", "Frozen")
    assert np.isfinite(sweep.data.metrics["best/val_accuracy"])
