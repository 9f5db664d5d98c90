"""Recorded runs as a table of pandas."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dogbreeds.tracking.records import Record

if TYPE_CHECKING:
    import pandas


def runs_frame(records: Sequence[Record]) -> "pandas.DataFrame":
    """Return one row for each run, with its parameters and metrics in columns.

    Args:
        records: the runs.

    Returns:
        Indexed by run id. The columns `name`, `started` (UTC) and `verdict` come first, then the parameters and the
        metrics by their names; a parameter whose values are all numbers is numeric.
    """
    import pandas

    rows = [
        {
            "run_id": record.run_id,
            "name": record.name,
            "started": pandas.to_datetime(record.started, unit="s", utc=True),
            "verdict": record.tags.get("verdict"),
            **record.params,
            **record.metrics,
        }
        for record in records
    ]
    frame = pandas.DataFrame(rows, columns=None if rows else ["run_id", "name", "started", "verdict"])
    for name in {name for record in records for name in record.params} & set(frame.columns):
        numbers = pandas.to_numeric(frame[name], errors="coerce")
        if numbers.notna().equals(frame[name].notna()):
            frame[name] = numbers
    return frame.set_index("run_id")
