"""Delivery queue for a tracking server that may be away.

Calls are queued and sent in order once the server answers. Callers that need an answer wait for it, up to a limit.
"""

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, InvalidStateError, wait
from typing import Any

from dogbreeds.core import signals
from dogbreeds.core.errors import UserError
from dogbreeds.core.text import shorten

log = logging.getLogger(__name__)

Call = Callable[[], Any]

# Between two tries of a call.
_RETRY_SECONDS = 1.0
# Shorter outages are not logged.
_WARN_AFTER_SECONDS = 1.0
# Between two looks at whether a wait is over.
_POLL_SECONDS = 0.2
# Longest wait of a command that is ending.
_SHUTDOWN_WAIT_SECONDS = 5.0


class DeliveryQueue:
    """Queue of calls to one server. A single thread makes the calls of a process, in the order of submission.

    MLflow's own queue (`synchronous=False`) does not serve: it drops a batch whose retries are used up with no more
    than a log line, sends batches from ten threads in any order, and its exit hook blocks for minutes. Here a call
    stays queued until it is delivered or the process ends; the run that resumes from the checkpoint then records it.

    Attributes:
        address: address of the server, without a password.
        patience_seconds: how long a caller waits for an answer during an outage.
        wait_enabled: whether callers wait at all. False until the server has answered or a run is to be recorded on
            it: until then an address that does not answer is more likely wrong than away.
        shutting_down: whether the command is ending, so that callers wait for a few seconds only.
    """

    def __init__(self, address: str):
        """
        Args:
            address: address of the server, without a password.
        """
        self.address = address
        self.patience_seconds = 0.0
        self.wait_enabled = False
        self.shutting_down = False
        # Start of the outage by the monotonic clock; None while the server answers.
        self._outage_start: float | None = None
        self._outage_reason = ""
        self._outage_logged = False
        # Whether a caller has given up during this outage.
        self._gave_up = False
        self._calls: queue.SimpleQueue[tuple[Future[Any], Call]] = queue.SimpleQueue()
        threading.Thread(target=self._deliver, name="tracking server", daemon=True).start()

    def submit(self, call: Call) -> "Future[Any]":
        """Queue a call without waiting for it.

        Returns:
            The call's result, once the server answers and earlier calls are delivered.
        """
        future: Future[Any] = Future()
        self._calls.put((future, call))
        return future

    def submit_and_wait(self, call: Call) -> Any:
        """Queue a call and return its result. During an outage the wait lasts `patience_seconds`.

        Raises:
            UserError: the server did not answer in time.
        """
        submitted = time.monotonic()
        future = self.submit(call)
        try:
            while not wait({future}, _POLL_SECONDS).done:
                signals.raise_pending()
                if self._wait_is_over(submitted):
                    self._gave_up = True
                    raise UserError(self._outage_message())
            return future.result()
        finally:
            # While shutting down the call stays queued, such as a run's final status: it is sent if time allows.
            if not self.shutting_down:
                future.cancel()

    def _wait_is_over(self, submitted: float) -> bool:
        """Whether a call has waited long enough. After one has, no other waits until the server has answered again."""
        now = time.monotonic()
        # Read once: the delivery thread changes it.
        outage_start = self._outage_start
        if self.shutting_down and now - submitted > _SHUTDOWN_WAIT_SECONDS:
            return True
        if outage_start is None:
            return False
        return self._gave_up or now - max(submitted, outage_start) >= self._patience()

    def _patience(self) -> float:
        return self.patience_seconds if self.wait_enabled else 0.0

    def _outage_message(self) -> str:
        waited = f"; waited {self._patience() / 60:.2g} minutes" if self._patience() and not self.shutting_down else ""
        return (
            f"The tracking server at {self.address} does not answer ({self._outage_reason or 'it is busy'}{waited})."
            " tracking.uri must be the address of a running MLflow server; no training progress is lost. Start it and"
            " run the same command again, which records what is missing, or type tracking=none."
        )

    def _deliver(self) -> None:
        while True:
            future, call = self._calls.get()
            while not future.cancelled() and not self._try(future, call):
                time.sleep(_RETRY_SECONDS)

    def _try(self, future: "Future[Any]", call: Call) -> bool:
        """Make a call and return whether the server answered, be it with a refusal."""
        start = time.monotonic()
        try:
            answer = call()
        # Everything, including KeyboardInterrupt: the error belongs to the caller that waits for the answer.
        except BaseException as error:
            if is_outage(error):
                self._on_outage(error, start)
                return False
            # An OSError comes from a local disk and tells nothing about the server.
            if not isinstance(error, OSError):
                self._on_answer()
            # The caller may have cancelled the call meanwhile.
            with contextlib.suppress(InvalidStateError):
                future.set_exception(error)
            return True
        self._on_answer()
        with contextlib.suppress(InvalidStateError):
            future.set_result(answer)
        return True

    def _on_outage(self, error: BaseException, start: float) -> None:
        now = time.monotonic()
        self._outage_reason = shorten(str(list(_causes(error))[-1]), 100)
        self._outage_start = start if self._outage_start is None else self._outage_start
        if not self._outage_logged and now - self._outage_start >= _WARN_AFTER_SECONDS and self._patience():
            self._outage_logged = True
            log.warning(
                "the tracking server at %s does not answer (%s): metrics are queued until it does; calls that need an"
                " answer wait up to %.2g minutes",
                self.address,
                self._outage_reason,
                self._patience() / 60,
            )

    def _on_answer(self) -> None:
        if self._outage_logged and self._outage_start is not None:
            log.warning(
                "the tracking server at %s answers again, after %.0f s",
                self.address,
                time.monotonic() - self._outage_start,
            )
        self._outage_start = None
        self._outage_logged = False
        self._gave_up = False
        self.wait_enabled = True


def is_outage(error: BaseException) -> bool:
    """Whether a call failed because the server, or what it depends on, is away.

    A refusal is no outage, and neither is an invalid certificate.
    """
    from requests import exceptions as http

    for cause in _causes(error):
        if isinstance(cause, http.SSLError) and "CERTIFICATE" in str(cause):
            return False
        if isinstance(cause, (http.ConnectionError, http.Timeout, http.RetryError, http.ChunkedEncodingError)):
            return True
        if isinstance(cause, http.HTTPError) and cause.response is not None:
            return cause.response.status_code >= 500
    # A failed download reaches us as MLflow's text alone, without its cause.
    return "failed with exception" in str(error)


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__
