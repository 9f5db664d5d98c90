"""MLflow's client: how a store is reached, and what happens while its server is away."""

import collections
import contextlib
import functools
import itertools
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import unquote, urlsplit, urlunsplit

from dogbreeds.core.errors import UserError
from dogbreeds.core.process import PROCESS
from dogbreeds.core.spec import number, text
from dogbreeds.core.text import masked
from dogbreeds.tracking.delivery import Call, DeliveryQueue, is_outage

if TYPE_CHECKING:
    import mlflow
    from mlflow.entities import DatasetInput, Metric
    from mlflow.entities import Run as MlflowRun


from dogbreeds.tracking.tracking import Tracking

# MLflow's limit of one call
_METRICS_AT_ONCE = 1000
# MLflow then shows its pages for training, not those for language models
_KIND = {"mlflow.experimentKind": "custom_model_development"}


@dataclass(frozen=True, kw_only=True)
class MlflowStore(Tracking):
    """An experiment in a store of MLflow: a local SQLite file, or any address."""

    uri: str = text(example="http://127.0.0.1:5000")
    artifacts: str = text(example="mlruns/artifacts")
    experiment: str = text(example="dogbreeds")
    patience_minutes: float = number(at_least=0, example=10)

    def connect(self) -> "tuple[mlflow.MlflowClient, str]":
        """A client of the store, made ready, and the id of the experiment, made if it is not there.

        Raises:
            UserError: where the store cannot be reached or used.
        """
        if self._server is not None:
            # What records waits from the beginning
            self._server.awaited, self._server.hurried = True, False
        client, known = self._look()
        if known is not None:
            return client, known
        # A server has a place of its own for artifacts
        elsewhere = self._server is not None or self.uri.startswith("databricks")
        place = None if elsewhere else Path(self.artifacts).expanduser().resolve().as_uri()
        try:
            return client, client.create_experiment(self.experiment, artifact_location=place, tags=_KIND)
        except UserError:
            # By another job, meanwhile
            made = self._look()[1]
            if made is None:
                raise
            return client, made

    def _look(self) -> "tuple[mlflow.MlflowClient, str | None]":
        """A client, and the experiment's id if there is one."""
        client = self._client()
        known = client.get_experiment_by_name(self.experiment)
        return client, known.experiment_id if known is not None else None

    def _client(self) -> "mlflow.MlflowClient":
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        logging.getLogger("alembic").setLevel(logging.WARNING)
        import mlflow

        if self._server is not None:
            # MLflow's go on for minutes without a word; `DeliveryQueue` has its own
            os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
            # Seconds; a machine that is off does not refuse, it says nothing
            os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
            user = urlsplit(self.uri)
            if user.password:
                os.environ |= {
                    "MLFLOW_TRACKING_USERNAME": unquote(user.username or ""),
                    "MLFLOW_TRACKING_PASSWORD": unquote(user.password),
                }
        with self.reached():
            if self.uri.startswith("sqlite:///"):
                Path(self.uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
            mlflow.set_tracking_uri(self._address)
            return cast("mlflow.MlflowClient", _Client(mlflow.MlflowClient(self._address), self.reached, self._server))

    @property
    def _address(self) -> str:
        """What MLflow is told: a server's address without name and password, which would stand in errors."""
        parts = urlsplit(self.uri)
        if parts.scheme not in ("http", "https") or not parts.password:
            return self.uri
        return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))

    @property
    def _server(self) -> DeliveryQueue | None:
        """The server, if that is what records; it is one for all of a process."""
        if not self.uri.startswith(("http://", "https://")):
            return None
        server = _server(self._address, os.getpid())
        server.patience_seconds = 60 * self.patience_minutes
        return server

    @contextlib.contextmanager
    def reached(self) -> Iterator[None]:
        """Turns what goes wrong with the store in the body into `UserError`."""
        from mlflow.exceptions import MlflowException

        # Of a damaged database, which MLflow lets through
        from sqlalchemy.exc import SQLAlchemyError

        try:
            yield
        except (MlflowException, SQLAlchemyError, OSError) as error:
            why = masked(" ".join(str(error).split()))[:200]
            raise UserError(
                f"tracking.uri={masked(self.uri)} cannot be used ({why}). It must be sqlite:///<file>, whole and on a"
                " disk with room, the address of an MLflow server, or another database that MLflow knows. Type"
                " tracking.uri=sqlite:///mlflow.db or tracking=none, or mend it and run the same command again."
            ) from error


@functools.cache
def _server(address: str, _process: int) -> DeliveryQueue:
    """A thread does not live on in a process that was forked."""
    return DeliveryQueue(address)


class _Calls:
    """Methods of MLflow's, each called in the same way."""

    def __init__(self, called: Any, way: Callable[[Call], Any]):
        self._called, self._way = called, way

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._called, name)
        return lambda *arguments, **named: self._way(functools.partial(method, *arguments, **named))


class _Client(_Calls):
    """MLflow's client, whose failures become sentences, and which waits for a server that is away.

    Attributes:
        kept: the same for what is not waited for; with a local store that is no other.
        once: the same for what is tried at once, and once only.
    """

    def __init__(
        self,
        client: "mlflow.MlflowClient",
        reached: Callable[[], contextlib.AbstractContextManager[None]],
        server: DeliveryQueue | None,
    ):
        super().__init__(client, self._ask)
        self._reached, self._server = reached, server
        self._waiting: list[Future[Any]] = []
        self._unsent: dict[str, list[Metric]] = collections.defaultdict(list)
        # With a local store each thread sends for itself
        self._sending = threading.Lock()
        # System metrics come from a thread of their own
        self._heeding = threading.Lock()
        self.kept, self.once = _Calls(client, self._keep), _Calls(client, self._once)

    def calls(self, other: Any) -> _Calls:
        """Another of MLflow's objects, called as this one."""
        return _Calls(other, self._ask)

    def create_run_once(self, experiment_id: str, tags: dict[str, str]) -> "MlflowRun":
        """Makes one run, also where the server made it and went away before it said so."""
        mine = " and ".join(f"tags.`{name}` = '{tags[name]}'" for name in (*PROCESS, "heartbeat"))
        tries = itertools.count()

        def create() -> "MlflowRun":
            before = self._called.search_runs([experiment_id], mine) if next(tries) else []
            return before[0] if before else self._called.create_run(experiment_id, tags=tags)

        return self._ask(create)

    def log_metric(self, run_id: str, name: str, value: float) -> None:
        """Records a number once, however often it is sent: MLflow's takes the time anew each time."""
        from mlflow.entities import Metric

        self.log_batch(run_id, metrics=[Metric(name, value, int(time.time() * 1000), 0)])

    def keep_metrics(self, run_id: str, metrics: "Sequence[Metric]") -> None:
        """Records numbers without waiting; what came together while the server was away goes together."""
        self._unsent[run_id].extend(metrics)
        self._keep(functools.partial(self._send, run_id))

    def keep_inputs(self, run_id: str, inputs: "Sequence[DatasetInput]") -> None:
        """Records photos without waiting. Where another job records the same ones at the very same moment, MLflow refuses one of the two: once more,
        and they are there."""

        def record() -> None:
            try:
                self._called.log_inputs(run_id, inputs)
            except Exception as error:
                if is_outage(error):
                    raise
                self._called.log_inputs(run_id, inputs)

        self._keep(record)

    def _send(self, run_id: str) -> None:
        unsent = self._unsent[run_id]
        with self._sending:
            while unsent:
                now = unsent[:_METRICS_AT_ONCE]
                self._called.log_batch(run_id, metrics=now)
                # Only then: a call that got no answer is made again, and MLflow takes the same number once
                del unsent[: len(now)]

    def settle(self) -> None:
        """Waits until all that was kept is delivered."""
        if self._server is not None:
            self._server.ask(lambda: None)
        self._heed()

    def hurry(self) -> None:
        """From now on nobody waits long for a server: the command ends."""
        if self._server is not None:
            self._server.hurried = True

    def _once(self, call: Call) -> Any:
        with self._reached():
            return call()

    def _ask(self, call: Call) -> Any:
        with self._reached():
            return self._server.ask(call) if self._server is not None else call()

    def _keep(self, call: Call) -> None:
        if self._server is None:
            self._once(call)
            return
        self._heed()
        with self._heeding:
            self._waiting.append(self._server.keep(call))

    def _heed(self) -> None:
        """Raises what was refused of that which was not waited for."""
        with self._heeding:
            self._waiting = [future for future in self._waiting if not future.done() or future.exception() is not None]
            waiting = list(self._waiting)
        for future in waiting:
            if future.done():
                with self._reached():
                    future.result()
