"""The Python API: what `import dogbreeds` offers.

Each example continues the ones before it. While these functions run, they print what the commands print, unless the
caller has configured logging. Afterwards signal handlers, environment variables, Keras' dtype policy and all random
states are as they were before, also after an interruption.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dogbreeds.cli import compose_command, overrides_explained
from dogbreeds.core.console import log_lines_printed
from dogbreeds.evaluation.history_files import as_history
from dogbreeds.evaluation.history_verdict import TrainingFacts, judge_training
from dogbreeds.experiments.compose import compose_run, config_sources
from dogbreeds.experiments.isolation import python_call
from dogbreeds.experiments.plugins import with_plugins
from dogbreeds.experiments.python_runs import (
    check_composed,
    origin_of,
    run_name,
    with_dataset,
    with_parent,
)
from dogbreeds.experiments.recorded_runs import Only, mlflow_tracking, open_network
from dogbreeds.experiments.result import Ending, Result, Skipped
from dogbreeds.experiments.run import Run
from dogbreeds.tracking.connection import mlflow_settings_restored
from dogbreeds.training.verdict_callback import facts_of_model

if TYPE_CHECKING:
    import pandas

    from dogbreeds.data.dataset import Dataset
    from dogbreeds.evaluation.paired_comparison import Comparison
    from dogbreeds.evaluation.verdict import Verdict
    from dogbreeds.experiments.classifier import Classifier
    from dogbreeds.training.preflight import Finding

# What trained a run returned, its id or the beginning of it, `latest` or `best`, or the folder that it left.
NamedRun = Result | Skipped | str | Path


def compose(overrides: Sequence[str] = (), *, config_dir: str | Path | None = None, plugins: Sequence[str] = ()) -> Run:
    """Compose a run from `conf/`, as `python -m dogbreeds.train` does.

    Examples:
        >>> import dogbreeds as db
        >>> run = db.compose(["data.classes=12", "phase.epochs=2"])
        >>> run.optimizer.lr, run.parameters()["head"], len(run.key)
        (0.001, 'MLP', 16)

    Args:
        overrides: as they are typed on the command line.
        config_dir: folder with further options of config groups, as `--config-dir`.
        plugins: modules with the classes that they name, as `plugins=[…]`.

    Raises:
        MissingFileError: if the folder does not exist.
        UserError: if a plugin cannot be imported, if a value is not allowed, or an option or a setting does not exist.
    """
    overrides = with_plugins(overrides, plugins)
    sources = config_sources(config_dir)
    with overrides_explained("train", overrides, sources):
        return compose_run(overrides, sources)


@python_call()
def preflight(run: Run, *, dataset: "Dataset | None" = None) -> "list[Finding]":
    """Check pixels and data of a run before training, as `fit` does. It needs no pass over the images.

    Examples:
        >>> db.preflight(run)
        []

    Args:
        run: from `compose`.
        dataset: data to use instead of that of the run.

    Returns:
        What was found; empty if all is well, or with `preflight=none`.

    Raises:
        MissingFileError: if a file is missing.
        UserError: if the settings do not fit together, or, with `preflight=stop`, if a finding is certain.
    """
    from dogbreeds.data.corrections import open_corrected
    from dogbreeds.experiments.pixel_convention import with_pixels
    from dogbreeds.experiments.prepare import assemble_network

    run = run if dataset is None else with_dataset(run)
    dataset = open_corrected(run.data, dataset)
    return assemble_network(with_pixels(run, dataset), dataset).findings


def fit(run: Run, *, dataset: "Dataset | None" = None, parent: NamedRun | None = None) -> Ending:
    """Train a run and record it; resume it if it was interrupted.

    Ctrl-C raises `KeyboardInterrupt` once a checkpoint is written. The same call resumes from it. While another process
    trains the same run, this one waits, says so, and takes over the result; with `rerun=true` it then trains.

    Examples:
        >>> result = db.fit(run)
        >>> result.verdict.name, len(result.history.epochs)
        ('learned', 2)
        >>> tuned = db.fit(db.compose(["data.classes=12", "phase=finetune", "phase.epochs=1"]), parent=result)
        >>> tuned.verdict.name
        'no_better_than_frozen'

    Args:
        run: from `compose`.
        dataset: data to train on instead of that of the run: see `Dataset.from_arrays`. Other images are another run;
            the same ones resume it.
        parent: frozen run that a fine-tune starts from: its result, its id, or the folder that it left with
            `tracking=none`. None chooses the best that matches, or what the run's `phase.parent` names.

    Returns:
        The result; of a learning-rate range test (`phase=lr_range`) its curve. `Skipped`, with the run's id, if another
        process has finished the same run while this one waited for it.

    Raises:
        MissingFileError, UserError: if a file is missing, or if settings, weights, pixels or data do not fit.
    """
    from dogbreeds.experiments.attempt import execute

    check_composed(run)
    if parent is not None:
        run = with_parent(run, parent)
    if dataset is not None:
        run = with_dataset(run)
    with log_lines_printed():
        return execute(run, origin_of(run), dataset)


@python_call()
def load(run: NamedRun = "latest", overrides: Sequence[str] = ()) -> "Classifier":
    """Load the trained network of a run.

    Examples:
        >>> dog = db.load("best")
        >>> dog.class_names[0], dog.record.tags["verdict"]
        ('000-cream-bib-prick', 'learned')

    Args:
        run: `latest`, `best` (by validation accuracy), a run's id or its beginning, a result, a `.keras` file, or the
            folder that a run with `tracking=none` left.
        overrides: of the command `predict`, such as `only.data=miniature` or `tracking.uri=…`.

    Raises:
        MissingFileError, UserError: if there is no such run or file, or if it is not the network of the run.
    """
    from dogbreeds.experiments.classifier import Classifier

    name = run_name(run)
    config = compose_command("predict", overrides)
    tracking = mlflow_tracking(config, "A run's network is loaded from MLflow.", name)
    with open_network(tracking, name, Only.of(config)) as (record, network, file):
        return Classifier.of(network, record, file, tracking if record is not None else None)


def runs(overrides: Sequence[str] = ()) -> "pandas.DataFrame":
    """Return the finished runs as a table, the newest first.

    Examples:
        >>> db.runs()[["optimizer.lr", "best/val_accuracy", "verdict"]].shape
        (3, 3)

    Args:
        overrides: of the command `table`, such as `only.data=miniature` or `tracking.uri=…`.

    Returns:
        One row for each run, indexed by its id: name, start, verdict, then parameters and metrics by their names.

    Raises:
        UserError: if an override is not allowed, or the store cannot be read.
    """
    from dogbreeds.reports.runs_frame import runs_frame

    config = compose_command("table", overrides)
    only = Only.of(config)
    with mlflow_settings_restored():
        tracking = mlflow_tracking(config, "The table is built from the runs in MLflow.")
        return runs_frame([record for record in tracking.records() if only.holds(record)])


def paired(
    first: NamedRun, second: NamedRun, *, split: str | None = None, overrides: Sequence[str] = ()
) -> "Comparison":
    """Compare two runs image by image, overall and by class.

    Examples:
        >>> comparison = db.paired(result, tuned)
        >>> comparison.split, comparison.pair.n, 0 <= comparison.pair.p_value <= 1
        ('test', 120, True)

    Args:
        first: the run to compare with.
        second: the run that is compared with it.
        split: `val` or `test`; None for test if both runs have it, else val.
        overrides: of the command `compare`, such as `tracking.uri=…`.

    Returns:
        The comparison: `pair` has images gained and lost, their difference and its interval, and the p-value of
        McNemar's test; `changes` has the same for each class.

    Raises:
        MissingFileError, UserError: if there is no such run, or the runs have no predictions on the same images.
    """
    from dogbreeds.experiments.paired_runs import compare_predictions, predictions_of

    config = compose_command("compare", overrides)
    tracking = mlflow_tracking(config, "Runs are compared by the predictions that MLflow has of them.")
    only = Only.of(config)
    with mlflow_settings_restored():
        first_predictions, second_predictions = (
            predictions_of(run, tracking, only, key) for run, key in ((first, "first"), (second, "second"))
        )
    return compare_predictions(first_predictions, second_predictions, split)


def judge_history(
    history: Any,
    *,
    classes: int | None = None,
    n_val: int | None = None,
    lr: float | None = None,
    optimizer: str | None = None,
    reference: float | None = None,
    names: Mapping[str, str] | None = None,
) -> "Verdict":
    """Judge any training by its curves, as `fit` judges its own. Nothing of it needs to come from this package.

    Examples:
        >>> verdict = db.judge_history(
        ...     {
        ...         "loss": [3.1, 2.6, 4.2, 4.7],
        ...         "accuracy": [0.31, 0.42, 0.06, 0.02],
        ...         "val_loss": [2.7, 2.9, 4.5, 4.8],
        ...         "val_accuracy": [0.40, 0.43, 0.05, 0.01],
        ...     },
        ...     classes=120,
        ...     n_val=4072,
        ...     lr=1e-2,
        ... )
        >>> verdict.name, verdict.numbers["peak_epoch"]
        ('collapsed', 2.0)

    Args:
        history: what Keras' `model.fit` returned, its `history`, a list with the values of each epoch, or the path of a
            file with them: see `python -m dogbreeds.judge --help`. Accuracies are shares or per cent. Without a
            validation accuracy the losses are judged.
        classes: number of classes; None where only losses were recorded, or to take it from the model of a `History`.
        n_val: number of validation images; None for the fewest that can have these accuracies.
        lr: learning rate, for the advice; None for the curve's highest, or that of the model.
        optimizer: Keras' name of the optimizer, for the advice; None for that of the model.
        reference: accuracy that is known to be possible on the same images, such as that of logistic regression on the
            same features: a share, or per cent.
        names: names of curves that are not recognised, such as `{"val_accuracy": "valid/acc"}`.

    Returns:
        The verdict. It is undecided where the curves or the images do not carry one; its reason says what is missing.

    Raises:
        MissingFileError: if there is no such file.
        UserError: if a curve is missing, a number is not allowed, or the file is no history.
    """
    facts = TrainingFacts(classes=classes, n_val=n_val, lr=lr, optimizer=optimizer, reference=reference)
    model = getattr(history, "model", None)
    if model is not None:
        facts = facts_of_model(model, facts)
    return judge_training(as_history(history), facts, names)
