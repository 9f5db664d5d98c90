"""The command `python -m dogbreeds.table`: the guide's table, from what MLflow has, with the claims beside what was measured."""

import contextlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import hydra
from omegaconf import DictConfig

from dogbreeds import command, rendering
from dogbreeds.comparison import Table, not_run, tables
from dogbreeds.run import part
from dogbreeds.runs import Only
from dogbreeds.spec import Refused, Spec, home, one_of, text
from dogbreeds.tracking import Mlflow


@dataclass(frozen=True, kw_only=True)
class Wanted(Spec):
    """How the table is shown."""

    group = ""
    runs: str = one_of("newest", "all")
    format: str = one_of("text", "markdown", "csv", "html")
    output: str | None = text(example="table.md", optional=True)


@hydra.main(version_base="1.3", config_path=str(home() / "conf"), config_name="table")
def task(config: DictConfig) -> None:
    """Prints or writes the table."""
    wanted, only = Wanted(**{name: config[name] for name in ("runs", "format", "output")}), Only(**config["only"])
    tracking = part(config, "tracking")
    if not isinstance(tracking, Mlflow):
        raise Refused("tracking=none has no attempts to show. The table is made from what MLflow keeps. Type tracking=mlflow.")
    records = [record for record in tracking.records() if only.holds(record)]
    if not records:
        raise Refused(
            f"Experiment '{tracking.experiment}' has no finished attempt{f' with {only}' if str(only) else ''}. The table needs one at least. "
            "Type make table, or python -m dogbreeds.train attempt=frozen."
        )
    found = tables(records, lambda run_id: tracking.history(run_id, "val/accuracy"), each=wanted.runs == "all")
    _show(found, wanted)


def _show(found: Sequence[Table], wanted: Wanted) -> None:
    if wanted.format == "html":
        shown = rendering.as_html(found)
    elif wanted.format == "csv":
        shown = rendering.as_csv(found)
    elif wanted.format == "markdown":
        shown = "\n".join([*map(rendering.as_markdown, found), not_run(found)]).rstrip() + "\n"
    else:
        terminal = sys.stdout.isatty() and wanted.output is None
        width = os.get_terminal_size().columns if terminal else None
        shown = "\n".join([*(rendering.as_text(table, width) for table in found), not_run(found)]).rstrip() + "\n"
    output = wanted.output or (str(home() / "multirun/table.html") if wanted.format == "html" else None)
    if output is None:
        with contextlib.suppress(BrokenPipeError):
            print(shown, end="")
        return
    path = Path(output).expanduser()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(shown, encoding="utf-8")
    except OSError as error:
        raise Refused(f"{path} cannot be written ({error.strerror}). output must be a file. Type output=table.{wanted.format}.") from error
    print(path)


if __name__ == "__main__":
    command.main(task, "table")
