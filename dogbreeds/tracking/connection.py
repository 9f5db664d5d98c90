"""Connection to an MLflow store: the client, and how it handles errors and a tracking server that is away."""

import contextlib
import functools
import logging
import os
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast
from urllib.parse import unquote, urlsplit, urlunsplit

from dogbreeds.core import signals
from dogbreeds.core.console import import_notebook_bars, log_levels_restored
from dogbreeds.core.errors import UserError
from dogbreeds.core.spec import number, path, text
from dogbreeds.core.text import mask_passwords, received, shorten
from dogbreeds.tracking.client import Client
from dogbreeds.tracking.delivery import DeliveryQueue
from dogbreeds.tracking.local_store import create_store, is_file_store, migration_command
from dogbreeds.tracking.saved_view import MAIN_VIEW, main_view_tag
from dogbreeds.tracking.tracking import Tracking
from dogbreeds.tracking.ui_address import runs_page, ui_base

if TYPE_CHECKING:
    import mlflow

# MLflow's UI then shows the pages for model training, not those for language models.
_EXPERIMENT_KIND = ("mlflow.experimentKind", "custom_model_development")
# Environment variables that opening a store sets, and the loggers whose levels it sets.
_VARIABLES = (
    "MLFLOW_DISABLE_TELEMETRY",
    "MLFLOW_LOGGING_LEVEL",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES",
    "MLFLOW_HTTP_REQUEST_TIMEOUT",
    "MLFLOW_TRACKING_USERNAME",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_URI",
)
_MIGRATION_LOG = "alembic"
# Logs each error of the database with a traceback, before it raises the error that `user_errors` converts.
_DATABASE_LOG = "mlflow.store.db.utils"
# SQLite's message.
_LOCKED = "database is locked"


@contextlib.contextmanager
def mlflow_settings_restored() -> Iterator[None]:
    """Restore what opening a store in the block changes in this process: variables, tracking URI and log levels."""
    variables = {name: os.environ[name] for name in _VARIABLES if name in os.environ}
    uri = sys.modules["mlflow"].get_tracking_uri() if "mlflow" in sys.modules else None
    import_notebook_bars()
    try:
        with log_levels_restored(_MIGRATION_LOG, _DATABASE_LOG):
            yield
    finally:
        mlflow = sys.modules.get("mlflow")
        if mlflow is not None and mlflow.get_tracking_uri() != uri:
            # MLflow then takes the URI from the variable, or its default.
            mlflow.set_tracking_uri(None)
        for name in _VARIABLES:
            os.environ.pop(name, None)
        os.environ.update(variables)
        if uri is not None and mlflow is not None and mlflow.get_tracking_uri() != uri:
            mlflow.set_tracking_uri(uri)


def _is_address(uri: str) -> bool:
    """Whether a URI names its kind of store. MLflow takes any other text for a folder, and refuses folders."""
    try:
        return bool(urlsplit(uri).scheme) or uri == "databricks"
    except ValueError:
        return False


@dataclass(frozen=True, kw_only=True)
class MlflowStore(Tracking):
    """An MLflow experiment in a local SQLite file or on a server.

    Attributes:
        uri: MLflow's tracking URI.
        artifacts: folder of artifacts, for stores that have none of their own.
        experiment: name of the experiment.
        patience_minutes: how long a call that needs an answer waits for a server that is away.
        ui: address at which `make ui` serves a local store, for links. A server's own address is used instead.
    """

    implied = {"ui": "http://127.0.0.1:5000"}
    uri: str = text(example="http://127.0.0.1:5000")
    artifacts: str = path(example="mlruns/artifacts")
    experiment: str = text(example="dogbreeds")
    patience_minutes: float = number(at_least=0, at_most=525_600, example=10)
    ui: str = text(example="http://127.0.0.1:5000")

    def __post_init__(self) -> None:
        super().__post_init__()
        folder = Path(self.uri.removeprefix("file://").removeprefix("file:"))
        if is_file_store(folder):
            database = folder.absolute() / "mlflow.db"
            raise UserError(
                f"tracking.uri was {received(self.uri)}, a folder of files. MLflow 3 keeps runs in a database. Type"
                f" {migration_command(folder, database)} once, and then tracking.uri=sqlite:///{database}."
            )
        if not _is_address(self.uri):
            raise UserError(
                f"tracking.uri was {received(mask_passwords(self.uri))}. It must be sqlite:///<file>, the address of an"
                " MLflow server, or that of another database that MLflow supports. Type"
                " tracking.uri=sqlite:///mlflow.db or tracking=none."
            )

    def connect(self) -> "tuple[mlflow.MlflowClient, str]":
        """Open the store; create its database and the experiment if they do not exist.

        Returns:
            A client of the store, and the id of the experiment.

        Raises:
            UserError: the store cannot be reached or used.
        """
        if self._queue is not None:
            # A command that records waits for its server even if that has not answered before.
            self._queue.wait_enabled = True
            self._queue.shutting_down = False
        client, experiment_id = self._find_experiment()
        if experiment_id is not None:
            return client, experiment_id
        # A server decides itself where artifacts lie.
        has_artifact_store = self._queue is not None or self.uri.startswith("databricks")
        location = None if has_artifact_store else Path(self.artifacts).expanduser().resolve().as_uri()
        try:
            tags = dict([_EXPERIMENT_KIND, main_view_tag()])
            return client, client.create_experiment(self.experiment, artifact_location=location, tags=tags)
        except UserError:
            # Another job may have created it meanwhile.
            experiment_id = self._find_experiment()[1]
            if experiment_id is None:
                raise
            return client, experiment_id

    def save_main_view(self) -> str:
        """Save the view that MLflow's page of runs opens with, of this version, and return the page's address."""
        client, experiment_id = self.connect()
        for name, value in (_EXPERIMENT_KIND, main_view_tag()):
            client.set_experiment_tag(experiment_id, name, value)
        return runs_page(ui_base(self.uri, self.ui), experiment_id, MAIN_VIEW)

    def _find_experiment(self) -> "tuple[mlflow.MlflowClient, str | None]":
        """Return a client, and the experiment's id if it exists."""
        client = self._client()
        found = client.get_experiment_by_name(self.experiment)
        if found is not None and found.lifecycle_stage == "deleted":
            uri = "<tracking.uri>" if "@" in self.uri else shlex.quote(self.uri)
            raise UserError(
                f"Experiment '{self.experiment}' (id {found.experiment_id}) of {mask_passwords(self.uri)} was deleted."
                f" Runs are recorded in an experiment that exists, and read from it. Type MLFLOW_TRACKING_URI={uri}"
                f" mlflow experiments restore --experiment-id {found.experiment_id}, or tracking.experiment=<another"
                " name>."
            )
        return client, found.experiment_id if found is not None else None

    def _client(self) -> "mlflow.MlflowClient":
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        logging.getLogger(_MIGRATION_LOG).setLevel(logging.WARNING)
        logging.getLogger(_DATABASE_LOG).setLevel(logging.CRITICAL)
        import mlflow

        if self._queue is not None:
            # MLflow's own retries block for minutes without a log line. `DeliveryQueue` retries instead.
            os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
            # In seconds. A machine that is switched off does not refuse connections, it never answers.
            os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
            parts = urlsplit(self.uri)
            if parts.password:
                os.environ |= {
                    "MLFLOW_TRACKING_USERNAME": unquote(parts.username or ""),
                    "MLFLOW_TRACKING_PASSWORD": unquote(parts.password),
                }
        with self.user_errors(), signals.deferred():
            if self.uri.startswith("sqlite:///"):
                file = Path(self.uri.removeprefix("sqlite:///"))
                file.parent.mkdir(parents=True, exist_ok=True)
                if not file.exists():
                    create_store(file)
            mlflow.set_tracking_uri(self._address)
            client = Client(mlflow.MlflowClient(self._address), self.user_errors, self._queue)
            return cast("mlflow.MlflowClient", client)

    @property
    def _address(self) -> str:
        """The tracking URI without name and password, which MLflow would print in its errors."""
        parts = urlsplit(self.uri)
        if parts.scheme not in ("http", "https") or not parts.password:
            return self.uri
        return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))

    @property
    def _queue(self) -> DeliveryQueue | None:
        """The server's delivery queue, one for all of a process; None for a store without a server."""
        if not self.uri.startswith(("http://", "https://")):
            return None
        delivery_queue = _delivery_queue(self._address, os.getpid())
        delivery_queue.patience_seconds = 60 * self.patience_minutes
        return delivery_queue

    @contextlib.contextmanager
    def user_errors(self) -> Iterator[None]:
        """Convert errors of the store that occur in the body to `UserError`."""
        from mlflow.exceptions import MlflowException

        # MLflow lets the errors of a damaged database through.
        from sqlalchemy.exc import SQLAlchemyError

        try:
            yield
        except (MlflowException, SQLAlchemyError, OSError) as error:
            if _LOCKED in str(error):
                raise UserError(
                    f"{mask_passwords(self.uri)} is locked: another process has been writing to it for longer than"
                    " MLflow waits, 20 seconds. SQLite lets one process write at a time. Wait until that process is"
                    " done, or end it, and run the same command again."
                ) from error
            why = shorten(mask_passwords(str(error)), 200)
            raise UserError(
                f"tracking.uri={mask_passwords(self.uri)} cannot be used ({why}). It must be sqlite:///<file>,"
                " undamaged and on a disk with free space, the address of an MLflow server, or another database that"
                " MLflow supports."
                " Type tracking.uri=sqlite:///mlflow.db or tracking=none, or repair the store and run the same command"
                " again."
            ) from error


@functools.cache
def _delivery_queue(address: str, _process: int) -> DeliveryQueue:
    """Return the queue of a server and a process: a forked process needs another, since its parent's thread is gone."""
    return DeliveryQueue(address)
