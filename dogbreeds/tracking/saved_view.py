"""Saved views of MLflow's page of runs: which runs, columns and charts it opens with.

MLflow 3 keeps a view in a tag of the experiment, and opens the view whose key the page's address has. A tag with a
name is listed in the page's menu of views.
"""

import base64
import json
import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dogbreeds.tracking.records import RANKING_METRIC, REFERENCE_METRIC, short

if TYPE_CHECKING:
    import mlflow

# Key of the view of all training runs, and its name in MLflow's menu.
MAIN_VIEW = "dogbreeds"
_NAME = "dogbreeds: compare runs"
_TAG_PREFIX = "mlflow.sharedViewState."
# Marks a state that is compressed and encoded in base 64.
_COMPRESSED = "deflate;"
# A sweep's own run has no such parameter. Where it is filtered out, MLflow lists the sweep's runs unfolded.
_ALL_TRAINING_RUNS = "params.phase != ''"
# MLflow's limit of a tag has room for so many ids of runs.
_MAX_LISTED_RUNS = 100
# Width in pixels of each column. At these, all are in sight where the window is 1,400 pixels wide.
_COLUMNS = {
    "tags.`verdict`": 145,
    f"metrics.`{RANKING_METRIC}`": 80,
    "metrics.`test/accuracy`": 80,
    f"metrics.`{REFERENCE_METRIC}`": 80,
    "params.`head`": 65,
    "params.`optimizer`": 75,
    "params.`optimizer.lr`": 75,
    "params.`unfreeze.layers_trained`": 65,
    "metrics.`seconds/total`": 70,
}
# The section of this view's charts. MLflow adds a chart of every other metric to the section of its first part; they
# follow, folded.
_SECTION = "dogbreeds"
_FOLDED_SECTIONS = (
    "best",
    "last",
    "val",
    "train",
    "test",
    "reference",
    "baseline",
    "parent",
    "preflight",
    "verdict",
    "seconds",
    "Model metrics",
    "System metrics",
)


def main_view_tag() -> tuple[str, str]:
    """Return name and value of the tag that holds the view of all training runs."""
    envelope = {"name": _NAME, "createdAt": 0, "updatedAt": 0, "state": _compressed(_state(_ALL_TRAINING_RUNS))}
    return f"{_TAG_PREFIX}{MAIN_VIEW}", json.dumps(envelope)


def save_sweep_view(
    client: "mlflow.MlflowClient", experiment_id: str, sweep_run_id: str, run_ids: Sequence[str]
) -> str:
    """Save the view of one sweep's runs, without a name: MLflow's menu would list every sweep.

    Args:
        client: client of the store.
        experiment_id: experiment of the sweep.
        sweep_run_id: the sweep's own run.
        run_ids: runs of its jobs.

    Returns:
        Key of the view.
    """
    condition = f"tags.`mlflow.parentRunId` = '{sweep_run_id}'"
    if len(run_ids) <= _MAX_LISTED_RUNS:
        # Those whose results the sweep reused have another parent.
        listed = ", ".join(f"'{run_id}'" for run_id in run_ids)
        condition = f"attributes.run_id IN ({listed})"
    key = f"{MAIN_VIEW}-{short(sweep_run_id)}"
    client.set_experiment_tag(experiment_id, f"{_TAG_PREFIX}{key}", _compressed(_state(condition)))
    return key


def _state(condition: str) -> dict[str, Any]:
    """Return the state of MLflow's page of runs.

    Args:
        condition: which runs, in MLflow's search syntax.
    """
    return {
        "searchFilter": condition,
        "orderByKey": f"metrics.`{RANKING_METRIC}`",
        "orderByAsc": False,
        "selectedColumns": list(_COLUMNS),
        "columnOrder": list(_COLUMNS),
        "columnWidths": _COLUMNS,
        "runsHiddenMode": "FIRST_20_RUNS",
        "compareRunCharts": [
            _chart(
                "LINE", "validation accuracy by epoch", metricKey="val/accuracy", selectedMetricKeys=["val/accuracy"]
            )
            | {"xAxisKey": "step", "xAxisScaleType": "linear", "scaleType": "linear", "range": {}}
            # MLflow's default smooths curves.
            | {"lineSmoothness": 0, "useGlobalLineSmoothing": False},
            _accuracy_by("learning rate", "optimizer.lr"),
            _accuracy_by("layers trained", "unfreeze.layers_trained"),
        ],
        "compareRunSections": [_section(_SECTION, is_open=True), *(_section(name) for name in _FOLDED_SECTIONS)],
        # Otherwise MLflow would sort the sections by name.
        "isAccordionReordered": True,
    }


def _section(name: str, is_open: bool = False) -> dict[str, Any]:
    return {"uuid": name, "name": name, "display": is_open, "isReordered": True, "deleted": False}


def _chart(kind: str, title: str, **settings: Any) -> dict[str, Any]:
    common = {"uuid": title, "displayName": title, "metricSectionId": _SECTION, "runsCountToCompare": 100}
    return {"type": kind, "deleted": False, "isGenerated": False} | common | settings


def _accuracy_by(title: str, param: str) -> dict[str, Any]:
    return _chart(
        "SCATTER",
        f"validation accuracy by {title}",
        xaxis={"key": param, "type": "PARAM"},
        yaxis={"key": RANKING_METRIC, "type": "METRIC"},
    )


def _compressed(state: dict[str, Any]) -> str:
    packed = zlib.compress(json.dumps(state, separators=(",", ":")).encode(), 9)
    return _COMPRESSED + base64.b64encode(packed).decode()
