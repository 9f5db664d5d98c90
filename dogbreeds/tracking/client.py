"""MLflow's client as this package calls it: errors for the user, and calls that wait for a server that is away."""

import collections
import contextlib
import functools
import itertools
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from dogbreeds.core import signals
from dogbreeds.core.process import PROCESS_TAGS
from dogbreeds.tracking.delivery import Call, DeliveryQueue, is_outage

if TYPE_CHECKING:
    import mlflow
    from mlflow.entities import DatasetInput, Metric
    from mlflow.entities import Run as MlflowRun

# MLflow's limit of metrics in one call.
_METRICS_PER_CALL = 1000


class _MethodProxy:
    """Forwards the methods of an MLflow object, each called through the same function."""

    def __init__(self, target: Any, invoke: Callable[[Call], Any]):
        self._target = target
        self._invoke = invoke

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._target, name)
        return lambda *arguments, **named: self._invoke(functools.partial(method, *arguments, **named))


class Client(_MethodProxy):
    """MLflow's client. Its errors become `UserError`, and its calls wait for a server that is away.

    Attributes:
        background: the same client for calls that are not waited for. With a local store they are made at once.
        without_retry: the same client for calls that are tried once, at once.
    """

    def __init__(
        self,
        client: "mlflow.MlflowClient",
        user_errors: Callable[[], contextlib.AbstractContextManager[None]],
        delivery_queue: DeliveryQueue | None,
    ):
        super().__init__(client, self._call_and_wait)
        self._user_errors = user_errors
        self._queue = delivery_queue
        self._pending: list[Future[Any]] = []
        self._unsent: dict[str, list[Metric]] = collections.defaultdict(list)
        # With a local store each thread sends its own metrics.
        self._send_lock = threading.Lock()
        # System metrics come from their own thread.
        self._pending_lock = threading.Lock()
        self.background = _MethodProxy(client, self._call_in_background)
        self.without_retry = _MethodProxy(client, self._call_once)

    def wrap(self, other: Any) -> _MethodProxy:
        """Wrap another MLflow object, so that its calls wait and fail as this client's do."""
        return _MethodProxy(other, self._call_and_wait)

    def create_run_once(self, experiment_id: str, tags: dict[str, str]) -> "MlflowRun":
        """Create one run, even if the server created it and went away before it answered.

        Args:
            experiment_id: experiment of the run.
            tags: its tags, which name this process and moment.
        """
        created_here = " and ".join(f"tags.`{name}` = '{tags[name]}'" for name in (*PROCESS_TAGS, "heartbeat"))
        tries = itertools.count()

        def create() -> "MlflowRun":
            found = self._target.search_runs([experiment_id], created_here) if next(tries) else []
            return found[0] if found else self._target.create_run(experiment_id, tags=tags)

        return self._call_and_wait(create)

    def log_metric(self, run_id: str, name: str, value: float) -> None:
        """Record a metric once, however often the call is sent: MLflow's own takes a new timestamp at each try."""
        from mlflow.entities import Metric

        self.log_batch(run_id, metrics=[Metric(name, value, int(time.time() * 1000), 0)])

    def queue_metrics(self, run_id: str, metrics: "Sequence[Metric]") -> None:
        """Record metrics without waiting. Those that pile up during an outage are sent in large batches."""
        self._unsent[run_id].extend(metrics)
        self._call_in_background(functools.partial(self._send_metrics, run_id))

    def queue_inputs(self, run_id: str, inputs: "Sequence[DatasetInput]") -> None:
        """Record data sets without waiting.

        MLflow refuses one of two jobs that record the same data set at the same moment. The second try succeeds, since
        the data set exists by then.
        """

        def record() -> None:
            try:
                self._target.log_inputs(run_id, inputs)
            except Exception as error:
                if is_outage(error):
                    raise
                self._target.log_inputs(run_id, inputs)

        self._call_in_background(record)

    def _send_metrics(self, run_id: str) -> None:
        unsent = self._unsent[run_id]
        with self._send_lock:
            while unsent:
                batch = unsent[:_METRICS_PER_CALL]
                self._target.log_batch(run_id, metrics=batch)
                # After the call: one without an answer is repeated, and MLflow stores an identical metric once.
                del unsent[: len(batch)]

    def flush(self) -> None:
        """Wait until all background calls are delivered."""
        if self._queue is not None:
            self._queue.submit_and_wait(lambda: None)
        self._raise_background_errors()

    def begin_shutdown(self) -> None:
        """Wait for a server for a few seconds only from now on, since the command is ending."""
        if self._queue is not None:
            self._queue.shutting_down = True

    def _call_once(self, call: Call) -> Any:
        # A signal that is raised within a transaction would leave the database locked.
        with self._user_errors(), signals.deferred():
            return call()

    def _call_and_wait(self, call: Call) -> Any:
        if self._queue is None:
            return self._call_once(call)
        with self._user_errors():
            return self._queue.submit_and_wait(call)

    def _call_in_background(self, call: Call) -> None:
        if self._queue is None:
            self._call_once(call)
            return
        self._raise_background_errors()
        with self._pending_lock:
            self._pending.append(self._queue.submit(call))

    def _raise_background_errors(self) -> None:
        """Raise the error of a background call that the server refused."""
        with self._pending_lock:
            self._pending = [future for future in self._pending if not future.done() or future.exception() is not None]
            pending = list(self._pending)
        for future in pending:
            if future.done():
                with self._user_errors():
                    future.result()
