"""The page of a sweep: its runs compared, in the sweep's own run, as a page and as pictures."""

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from dogbreeds.experiments.paired_runs import pair_runs
from dogbreeds.reports import attempts_rendering, run_figures
from dogbreeds.reports.attempts_table import build_tables
from dogbreeds.tracking.mlflow_backend import Mlflow
from dogbreeds.tracking.records import record_of

if TYPE_CHECKING:
    from mlflow.entities import Run as MlflowRun

log = logging.getLogger(__name__)

# Artifacts of the sweep's run.
PAGE = "sweep.html"
PICTURE = "sweep.png"
_CURVES = "curves.png"


def record_page(tracking: Mlflow, sweep: "MlflowRun", jobs: "Sequence[MlflowRun]") -> None:
    """Record a page and pictures that compare a sweep's jobs, and log where the page is.

    Args:
        tracking: where the sweep is recorded.
        sweep: the sweep's run.
        jobs: runs of its jobs that have measured something, the newest first.
    """
    client = tracking.connect()[0]
    name, run_id = sweep.info.run_name, sweep.info.run_id
    # A job that failed after its measurement has no verdict.
    records = [record for record in map(record_of, jobs) if record.tags.get("verdict")]
    if not records:
        return
    histories = {record.run_id: tracking.history(record.run_id, "val/accuracy") for record in records}
    tables = build_tables(
        records,
        history=histories.__getitem__,
        pair=lambda first, second: pair_runs(tracking, first, second),
        all_runs=True,
    )
    page = attempts_rendering.as_html(tables, tracking.run_url, title=name, runs_only=True)
    client.log_text(run_id, page, PAGE)
    runs = [run for table in tables for run in table.of_runs_only().compared_runs()]
    client.log_figure(run_id, run_figures.overview(runs, name), PICTURE)
    client.log_figure(run_id, run_figures.accuracy_curves(runs, name), _CURVES)
    location = urlsplit(sweep.info.artifact_uri)
    if location.scheme in ("", "file"):
        log.info("page  %s", f"{unquote(location.path)}/{PAGE}")
