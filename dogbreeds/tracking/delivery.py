"""A tracking server that may be away for a while: what can be kept is delivered when it is back, and what cannot waits for it."""

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

log = logging.getLogger(__name__)

Call = Callable[[], Any]

# Between two tries; what lasts no longer than one of them is not worth a line
_PAUSE_SECONDS, _SAID_AFTER_SECONDS = 1.0, 1.0
_LOOK_SECONDS = 0.2
# How long a command that is ending anyway waits
_BRIEFLY_SECONDS = 5.0


class DeliveryQueue:
    """One server as one process sees it. A single thread talks to it, so that all arrives in the order in which it was said.

    MLflow has a queue of its own (`synchronous=False`). It drops a batch whose retries are used up, with a line in the log, sends batches from ten
    threads in any order, and its hook at exit waits for minutes: what is kept here stays until it is delivered or the process ends, and then the
    attempt that goes on from the checkpoint records it.
    """

    def __init__(self, address: str):
        """
        Args:
            address: without a password.
        """
        self.address = address
        self.patience_seconds = 0.0
        # A server that never answered, and that nothing was to be recorded on, is a wrong address rather than one that
        # is away
        self.awaited = False
        self.hurried = False
        # Since when, by the monotonic clock
        self._away: float | None = None
        self._why = ""
        self._said = self._lost = False
        self._calls: queue.SimpleQueue[tuple[Future[Any], Call]] = queue.SimpleQueue()
        threading.Thread(target=self._talk, name="tracking server", daemon=True).start()

    def keep(self, call: Call) -> "Future[Any]":
        """Makes a call when the server answers and what was said before is delivered; does not wait for that."""
        future: Future[Any] = Future()
        self._calls.put((future, call))
        return future

    def ask(self, call: Call) -> Any:
        """Makes a call, as `keep` does, and waits for its answer, while the server is away as long as patience lasts.

        Raises:
            UserError: where that is over.
        """
        asked, future = time.monotonic(), self.keep(call)
        try:
            while not wait({future}, _LOOK_SECONDS).done:
                signals.raise_arrived()
                if self._is_over(asked):
                    self._lost = True
                    raise UserError(self._sentences())
            return future.result()
        finally:
            # Who is in a hurry leaves what was asked behind, such as how a run ended: it arrives if there is still time
            if not self.hurried:
                future.cancel()

    def _is_over(self, asked: float) -> bool:
        """Whether somebody has waited long enough; after that nobody waits any more until the server has answered."""
        now, away = time.monotonic(), self._away
        if self.hurried and now - asked > _BRIEFLY_SECONDS:
            return True
        return away is not None and (self._lost or now - max(asked, away) >= self._patience())

    def _patience(self) -> float:
        return self.patience_seconds if self.awaited else 0.0

    def _sentences(self) -> str:
        waited = (
            f", and was waited for {self._patience() / 60:.2g} minutes" if self._patience() and not self.hurried else ""
        )
        return (
            f"The tracking server at {self.address} does not answer ({self._why or 'it is busy'}){waited}. tracking.uri"
            " must be the address of an MLflow server that runs; nothing that was trained is lost. Start it and run"
            " the same command again, which records what is missing, or type tracking=none."
        )

    def _talk(self) -> None:
        while True:
            future, call = self._calls.get()
            while not future.cancelled() and not self._try(future, call):
                time.sleep(_PAUSE_SECONDS)

    def _try(self, future: "Future[Any]", call: Call) -> bool:
        """Makes a call; gives whether there was an answer, if only a refusal."""
        began = time.monotonic()
        try:
            answer = call()
        except BaseException as error:
            # it belongs to whoever waits for the answer
            if is_outage(error):
                self._missed(error, began)
                return False
            # Of a disk, and not the server's
            if not isinstance(error, OSError):
                self._answered()
            # Nobody waits any more
            with contextlib.suppress(InvalidStateError):
                future.set_exception(error)
            return True
        self._answered()
        with contextlib.suppress(InvalidStateError):
            future.set_result(answer)
        return True

    def _missed(self, error: BaseException, began: float) -> None:
        now = time.monotonic()
        self._why = " ".join(str(list(_causes(error))[-1]).split())[:100]
        self._away = began if self._away is None else self._away
        if not self._said and now - self._away >= _SAID_AFTER_SECONDS and self._patience():
            self._said = True
            log.warning(
                "the tracking server at %s does not answer (%s): metrics are kept until it does, what cannot go on"
                " without it waits %.2g minutes",
                self.address,
                self._why,
                self._patience() / 60,
            )

    def _answered(self) -> None:
        if self._said and self._away is not None:
            log.warning(
                "the tracking server at %s answers again, after %.0f s", self.address, time.monotonic() - self._away
            )
        self._away, self._said, self._lost, self.awaited = None, False, False, True


def is_outage(error: BaseException) -> bool:
    """Whether a call failed because the server, or what it stands on, is away; a refusal is none, and neither is a certificate that is no good."""
    from requests import exceptions as http

    for cause in _causes(error):
        if isinstance(cause, http.SSLError) and "CERTIFICATE" in str(cause):
            return False
        if isinstance(cause, (http.ConnectionError, http.Timeout, http.RetryError, http.ChunkedEncodingError)):
            return True
        if isinstance(cause, http.HTTPError) and cause.response is not None:
            return cause.response.status_code >= 500
    # Of a download MLflow hands on the text alone
    return "failed with exception" in str(error)


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__
