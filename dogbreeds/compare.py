"""The command `python -m dogbreeds.compare first=… second=…`: whether two runs differ, and on which classes."""

from dataclasses import dataclass, fields

import hydra
from omegaconf import DictConfig

from dogbreeds import cli
from dogbreeds.core.errors import UserError
from dogbreeds.core.paths import config_folder
from dogbreeds.core.spec import integer, number, one_of, text
from dogbreeds.experiments.paired_runs import compare_predictions, recorded_predictions
from dogbreeds.experiments.recorded_runs import Only, find_record, mlflow_tracking
from dogbreeds.reports import comparison_rendering
from dogbreeds.reports.output import Output
from dogbreeds.reports.run_comparison import RunComparison
from dogbreeds.tracking.mlflow_backend import Mlflow
from dogbreeds.tracking.records import Record, short


@dataclass(frozen=True, kw_only=True)
class Settings(Output):
    """Settings of the command.

    Attributes:
        first: the run to compare with: `latest`, `best` or the beginning of a run's id.
        second: the run that is compared with it, named the same way.
        split: `val` or `test`; None for test if both runs have it, else val.
        alpha: significance level, in (0, 1).
        classes: how many of the most changed classes to list.
        ui: address of the MLflow UI, for links; None for `tracking.ui`.
    """

    first: str | None = text(example="best", optional=True)
    second: str | None = text(example="latest", optional=True)
    split: str | None = one_of("val", "test", optional=True)
    alpha: float = number(above=0, below=1, example=0.01)
    classes: int = integer(at_least=1, example=10)
    ui: str | None = text(example="http://127.0.0.1:5000", optional=True)


@hydra.main(version_base="1.3", config_path=str(config_folder()), config_name="compare")
@cli.standalone
def task(config: DictConfig) -> None:
    """Compare the runs, and print or write the result."""
    names = [field.name for field in fields(Settings)]
    settings = Settings(**{name: cli.typed_value(config, name) for name in names})
    only = Only.of(config)
    tracking = mlflow_tracking(config, "Runs are compared by the predictions that MLflow has of them.")
    first = _find_run(tracking, settings.first, only, key="first")
    second = _find_run(tracking, settings.second, only, key="second")
    first_predictions, second_predictions = (
        recorded_predictions(tracking, record, key) for key, record in (("first", first), ("second", second))
    )
    comparison = RunComparison(
        first=first,
        second=second,
        paired=compare_predictions(first_predictions, second_predictions, settings.split),
        alpha=settings.alpha,
        max_classes=settings.classes,
    )
    settings.write_result(_render(comparison, settings, tracking), "compare")


def _find_run(tracking: Mlflow, run: str | None, only: Only, key: str) -> Record:
    if run is None:
        newest = [short(record.run_id) for record in tracking.records() if only.holds(record)][:3]
        examples = f"; the newest runs are {', '.join(newest)}" if newest else ""
        raise UserError(
            f"{key} was not set. It must be latest, best or the beginning of a run's id{examples}. Type first=best"
            " second=latest, for example."
        )
    return find_record(tracking, run, only, key, needs_network=False)


def _render(comparison: RunComparison, settings: Settings, tracking: Mlflow) -> str:
    def run_url(record: Record) -> str:
        return tracking.run_url(record, settings.ui)

    if settings.format == "html":
        return comparison_rendering.as_html(comparison, run_url)
    if settings.format == "csv":
        return comparison_rendering.as_csv(comparison)
    if settings.format == "markdown":
        return comparison_rendering.as_markdown(comparison, run_url)
    return comparison_rendering.as_text(comparison, settings.terminal_width, run_url)


if __name__ == "__main__":
    cli.main(task, "compare")
