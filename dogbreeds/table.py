"""The command `python -m dogbreeds.table`: recorded attempts as a table, compared with the guide's claims."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import hydra
from omegaconf import DictConfig

from dogbreeds import cli
from dogbreeds.core.errors import UserError
from dogbreeds.core.paths import config_folder
from dogbreeds.core.spec import one_of, text
from dogbreeds.core.text import mask_passwords
from dogbreeds.experiments.paired_runs import pair_runs
from dogbreeds.experiments.recorded_runs import Only, mlflow_tracking
from dogbreeds.reports import attempts_rendering, tables
from dogbreeds.reports.attempts_table import AttemptsTable, build_tables, missing_attempts
from dogbreeds.reports.output import Output
from dogbreeds.tracking.local_store import file_store_note
from dogbreeds.tracking.records import Record


@dataclass(frozen=True, kw_only=True)
class Settings(Output):
    """Settings of the command.

    Attributes:
        runs: `newest` for the newest run of each attempt and seed, `all` for one row per run.
        ui: address of the MLflow UI, for links; None for `tracking.ui`.
    """

    runs: str = one_of("newest", "all")
    ui: str | None = text(example="http://127.0.0.1:5000", optional=True)


@hydra.main(version_base="1.3", config_path=str(config_folder()), config_name="table")
@cli.standalone
def task(config: DictConfig) -> None:
    """Print or write the table."""
    settings = Settings(**{name: config[name] for name in ("runs", "ui", "format", "output")})
    only = Only.of(config)
    tracking = mlflow_tracking(config, "The table is built from the runs in MLflow.")
    records = [record for record in tracking.records() if only.holds(record)]
    if not records:
        raise UserError(
            f"Experiment '{tracking.experiment}' has no finished attempt{f' with {only}' if str(only) else ''}. The"
            f" table needs at least one in {mask_passwords(tracking.uri)}, which DOGBREEDS_HOME and tracking.uri"
            " choose. Type make table, or python -m dogbreeds.train attempt=frozen."
            f" {file_store_note(tracking.uri)}".rstrip()
        )
    attempts_tables = build_tables(
        records,
        history=lambda run_id: tracking.history(run_id, "val/accuracy"),
        pair=lambda first, second: pair_runs(tracking, first, second),
        all_runs=settings.runs == "all",
    )
    result = _render(attempts_tables, settings, run_url=lambda record: tracking.run_url(record, settings.ui))
    settings.write_result(result, "table")


def _render(attempts_tables: Sequence[AttemptsTable], settings: Settings, run_url: Callable[[Record], str]) -> str:
    if settings.format == "html":
        return attempts_rendering.as_html(attempts_tables, run_url)
    if settings.format == "csv":
        return attempts_rendering.as_csv(attempts_tables, run_url)
    missing = missing_attempts(attempts_tables)
    if settings.format == "markdown":
        parts = [*(attempts_rendering.as_markdown(table, run_url) for table in attempts_tables), missing]
    else:
        width = settings.terminal_width
        parts = [attempts_rendering.as_text(table, width, run_url) for table in attempts_tables]
        parts.append(tables.paragraph(missing, width))
    return "\n".join(parts).rstrip() + "\n"


if __name__ == "__main__":
    cli.main(task, "table")
