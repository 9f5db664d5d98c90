"""Time left of work in a few long units, such as the jobs of a sweep."""

import logging
import time

from dogbreeds.core.text import duration_text

log = logging.getLogger(__name__)


class Countdown:
    """Log lines about work in a few long units, such as the jobs of a sweep: how many are done, and the time left.

    Args:
        unit: plural name of a unit.
        total: number of units, those in `completed` included.
        completed: units done by an earlier process. They count towards the total and not towards the rate.
    """

    def __init__(self, unit: str, total: int, completed: int = 0):
        self._unit = unit
        self._total = total
        self._completed = completed
        self._done = 0
        self._started = time.monotonic()

    def advance(self, newly_done: int = 1) -> None:
        """Log what is done and what is left, unless nothing is: then the results have lines of their own."""
        self._done += newly_done
        done = self._completed + self._done
        if done >= self._total:
            return
        seconds = time.monotonic() - self._started
        log.info(
            "%d of %d %s done in %s, about %s left",
            done,
            self._total,
            self._unit,
            duration_text(seconds),
            duration_text(seconds / self._done * (self._total - done)),
        )
