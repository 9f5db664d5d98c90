"""Addresses of pages in MLflow's UI."""

from urllib.parse import quote, urlsplit

from dogbreeds.core.console import Link
from dogbreeds.core.errors import UserError

# MLflow's pages for model training, in the place of those for language models.
_TRAINING_PAGES = "workflowType=machine_learning"


def ui_base(tracking_uri: str, ui: str) -> str:
    """Return the address of the UI that shows a store, without name and password: addresses are shared.

    Args:
        tracking_uri: MLflow's tracking URI. A server is its own UI.
        ui: address of the UI of a local store, where `make ui` serves it.

    Raises:
        UserError: `ui` is no address.
    """
    try:
        parts = urlsplit(tracking_uri if tracking_uri.startswith(("http://", "https://")) else ui)
    except ValueError:
        # An address with half a bracket, for example; it is refused below.
        parts = urlsplit("")
    host = parts.netloc.rpartition("@")[2]
    if parts.scheme not in ("http", "https") or not host:
        raise UserError(
            f"ui was {ui!r}. It must be the address of MLflow's UI, with http:// or https://. Type"
            " ui=http://127.0.0.1:5000."
        )
    return f"{parts.scheme}://{host}{parts.path.rstrip('/')}"


def run_page(base: str, experiment_id: str, run_id: str) -> str:
    """Return the address of a run's page.

    Args:
        base: address of the UI, as `ui_base` returns it.
        experiment_id: experiment of the run.
        run_id: the run.
    """
    return f"{base}/#/experiments/{experiment_id}/runs/{run_id}?{_TRAINING_PAGES}"


def run_link(base: str, experiment_id: str, run_id: str) -> Link:
    """Return a link to a run's page. MLflow leads its short address to the page too.

    Args:
        base, experiment_id, run_id: as for `run_page`.
    """
    return Link(run_page(base, experiment_id, run_id), f"{base}/#/runs/{run_id}")


def runs_page(base: str, experiment_id: str, view: str, charts: bool = False) -> str:
    """Return the address of an experiment's page of runs, with a saved view.

    Args:
        base: address of the UI, as `ui_base` returns it.
        experiment_id: the experiment.
        view: key of the view.
        charts: show charts next to the names of the runs, instead of the table.
    """
    mode = "&compareRunsMode=CHART" if charts else ""
    return f"{base}/#/experiments/{experiment_id}/runs?viewStateShareKey={quote(view)}&{_TRAINING_PAGES}{mode}"
