"""The Python API of several runs: sweeps, recipes and soups. `import dogbreeds` offers it."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dogbreeds.api import NamedRun, compose, fit
from dogbreeds.cli import compose_command, overrides_explained
from dogbreeds.core.console import log_lines_printed
from dogbreeds.core.errors import UserError
from dogbreeds.experiments.compose import config_sources
from dogbreeds.experiments.isolation import python_call
from dogbreeds.experiments.plugins import with_plugins
from dogbreeds.experiments.python_runs import run_name, run_sweep, split_jobs, with_dataset
from dogbreeds.experiments.result import Ending

if TYPE_CHECKING:
    from dogbreeds.data.dataset import Dataset


def sweep(overrides: Sequence[str], *, dataset: "Dataset | None" = None) -> list[Ending]:
    """Run one job for each combination of values, one after another, as `--multirun` does.

    A job that has finished before is skipped, and one that fails does not stop the others.

    Examples:
        >>> results = db.sweep(["data.classes=12", "phase.epochs=2", "optimizer.lr=1e-3,3e-3"])
        >>> [type(each).__name__ for each in results]
        ['Skipped', 'Result']

    Args:
        overrides: as they are typed on the command line, with commas between values.
        dataset: data of all jobs, as for `fit`.

    Returns:
        The ending of each job, in order. `objective` is the best validation accuracy of each.

    Raises:
        MissingFileError, UserError: if an override is not allowed; or the first error of a job, after the others ran.
    """
    with overrides_explained("train", overrides):
        runs = [compose(job) for job in split_jobs(overrides)]
    if dataset is not None:
        runs = [with_dataset(run) for run in runs]
    with python_call():
        return run_sweep(runs, overrides, dataset)


def run_recipe(
    overrides: Sequence[str],
    *,
    dataset: "Dataset | None" = None,
    config_dir: str | Path | None = None,
    plugins: Sequence[str] = (),
) -> Ending:
    """Run all stages of a recipe, as `python -m dogbreeds.train recipe=best` does; resume it if it was interrupted.

    Runs of it that have finished before are taken over.

    Examples:
        >>> small = ["data.classes=6", "data.train_per_class=8", "phase.epochs=1"]
        >>> best = db.run_recipe(["recipe=best", *small])
        >>> 0 < best.objective <= 1, db.load(best).record.params["phase"] in ("Soup", "Frozen")
        (True, True)

    Args:
        overrides: as they are typed on the command line, with `recipe=best`, `fast` or `guide`.
        dataset: data of all runs, as for `fit`.
        config_dir, plugins: as for `compose`.

    Returns:
        The ending of the run whose network is best on validation.

    Raises:
        MissingFileError: if the folder of configs, or a file, does not exist.
        UserError: if an override is not allowed, no recipe is named, or as a run of it raises it.
    """
    from dogbreeds.experiments.recipe import Recipe, named_recipe, run_recipe

    overrides = with_plugins(overrides, plugins)
    sources = config_sources(config_dir)
    if not named_recipe(overrides):
        raise UserError(
            f"No recipe was given: overrides were {list(overrides)}. A recipe is guide, fast or best. Type"
            ' dogbreeds.run_recipe(["recipe=best", ...]), or dogbreeds.fit for a single run.'
        )
    config = compose_command("train", overrides, sources)
    recipe = Recipe.of(config)
    if recipe is None:
        return fit(compose(overrides, config_dir=config_dir), dataset=dataset)
    with overrides_explained("train", overrides, sources), python_call():
        return run_recipe(config, recipe, overrides, sources=sources, dataset=dataset)


@python_call()
def make_soup(
    members: Sequence[NamedRun] = (),
    *,
    parent: NamedRun | None = None,
    method: str = "greedy",
    interpolations: int = 10,
    refit: bool = False,
    dataset: "Dataset | None" = None,
    overrides: Sequence[str] = (),
) -> Ending:
    """Average the weights of fine-tunes of one parent (a model soup), and record the average as a run.

    Examples:
        >>> fine_tune = ["data.classes=12", "phase=finetune", "phase.epochs=1", "optimizer.lr=3e-5"]
        >>> soup = db.make_soup([tuned, db.fit(db.compose(fine_tune), parent=result)])
        >>> [epoch.members for epoch in soup.history.epochs][:2]
        [1, 2]

    Args:
        members: the fine-tunes, of which one is only interpolated with its parent; none for all of one parent whose
            networks are saved (`tracking.model=all`).
        parent: their parent; None for that of the best one.
        method: `greedy` adds a member if validation accuracy does not fall, `uniform` averages all.
        interpolations: steps from the parent to the soup.
        refit: whether the network that is saved averages the same fine-tunes, trained again on training and validation
            images.
        dataset: data that the fine-tunes had in `fit`.
        overrides: of the command `soup` besides these arguments, such as `only.data=miniature` or `tracking.uri=…`.

    Returns:
        The result; an epoch of its history is a candidate.

    Raises:
        MissingFileError, UserError: if there is no such run, or the runs cannot be averaged.
    """
    from dogbreeds.experiments import soup_members
    from dogbreeds.experiments.attempt import execute

    for override in overrides:
        name = override.lstrip("+").partition("=")[0]
        if name in ("members", "parent", "method", "interpolations", "refit"):
            raise UserError(
                f"overrides had {override!r}. dogbreeds.make_soup takes {name} as an argument. Type"
                f" dogbreeds.make_soup({name}=...)."
            )
    config = compose_command("soup", overrides)
    names, of_parent = list(map(run_name, members)), None if parent is None else run_name(parent)
    run, origin = soup_members.compose_from(
        config, names, of_parent, method=method, interpolations=interpolations, refit=refit
    )
    with log_lines_printed():
        return execute(run, origin, dataset)
