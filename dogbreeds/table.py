"""The command `python -m dogbreeds.table`: the guide's table, from what MLflow has, with the claims beside what was measured."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import hydra
from omegaconf import DictConfig

from dogbreeds import cli
from dogbreeds.core.errors import UserError
from dogbreeds.core.paths import home
from dogbreeds.core.spec import one_of, text
from dogbreeds.experiments.recorded_runs import Only, store
from dogbreeds.reports import attempts_rendering
from dogbreeds.reports.attempts_table import Table, not_run, tables
from dogbreeds.reports.output import Output
from dogbreeds.tracking.records import Record


@dataclass(frozen=True, kw_only=True)
class Wanted(Output):
    """How the table is shown."""

    runs: str = one_of("newest", "all")
    ui: str = text(example="http://127.0.0.1:5000")


@hydra.main(version_base="1.3", config_path=str(home() / "conf"), config_name="table")
@cli.alone
def task(config: DictConfig) -> None:
    """Prints or writes the table."""
    wanted, only = Wanted(**{name: config[name] for name in ("runs", "ui", "format", "output")}), Only(**config["only"])
    tracking = store(config, "The table is made from what MLflow keeps.")
    records = [record for record in tracking.records() if only.holds(record)]
    if not records:
        raise UserError(
            f"Experiment '{tracking.experiment}' has no finished attempt{f' with {only}' if str(only) else ''}. The"
            " table needs one at least. Type make table, or python -m dogbreeds.train attempt=frozen."
        )
    found = tables(records, lambda run_id: tracking.history(run_id, "val/accuracy"), each=wanted.runs == "all")
    wanted.deliver(_rendered(found, wanted, lambda record: tracking.page(record, wanted.ui)), "table")


def _rendered(found: Sequence[Table], wanted: Wanted, address: Callable[[Record], str]) -> str:
    if wanted.format == "html":
        return attempts_rendering.as_html(found, address)
    if wanted.format == "csv":
        return attempts_rendering.as_csv(found, address)
    if wanted.format == "markdown":
        return (
            "\n".join([*(attempts_rendering.as_markdown(table, address) for table in found), not_run(found)]).rstrip()
            + "\n"
        )
    return (
        "\n".join(
            [*(attempts_rendering.as_text(table, wanted.width, address) for table in found), not_run(found)]
        ).rstrip()
        + "\n"
    )


if __name__ == "__main__":
    cli.main(task, "table")
