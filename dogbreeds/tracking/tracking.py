"""How experiments are recorded: what every way of it offers, and the way that records nothing."""

import contextlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dogbreeds.core.errors import UserError
from dogbreeds.core.spec import Spec
from dogbreeds.evaluation.results import Predictions
from dogbreeds.tracking.records import Parent, PriorRuns, Record, RunOrigin

if TYPE_CHECKING:
    import keras
    from matplotlib.figure import Figure


class Tracker:
    """Records nothing; what records something overrides this."""

    def __init__(self, name: str, run_id: str = ""):
        self.name, self.run_id = name, run_id

    def parameters(self, values: dict[str, Any]) -> None:
        """Records hyper-parameters and facts that hold for the whole run."""

    def metrics(self, values: dict[str, float], step: int = 0) -> None:
        """Records numbers; what is not a number is left out."""

    def series(self, values: dict[str, Sequence[float]]) -> None:
        """Records numbers of every step, counted from 1."""

    def tags(self, values: dict[str, str]) -> None:
        """Records words to search by."""

    def describe(self, text: str) -> None:
        """Says what happened, where a person looks first."""

    def dataset(self, name: str, fingerprint: str, sizes: dict[str, int]) -> None:
        """Records which photos were used, and how many in each split."""

    def picture(self, draw: "Callable[[], Figure]", name: str) -> None:
        """Records a picture, which is drawn if it is wanted."""

    def predictions(self, split: str, said: Predictions) -> None:
        """Records what was said of each photo, for paired comparisons."""

    def model(self, whole: "Callable[[], keras.Model]", accuracy: float) -> None:
        """Records the trained network, which is built if it is wanted."""

    def head(self, head: "keras.Model") -> None:
        """Records the head by itself, for fine-tunes that go on from it."""

    def where(self) -> str:
        """Where a person finds it."""
        return "not recorded (tracking=none)"


@dataclass(frozen=True, kw_only=True)
class Tracking(Spec):
    """What the ways of recording share."""

    group = "tracking"

    @contextlib.contextmanager
    def open(self, composition: RunOrigin, unfinished: Record | None = None) -> Iterator[Tracker]:
        """A tracker for one attempt, closed with how it ended.

        Args:
            composition: how the attempt came about.
            unfinished: the recorded attempt that is gone on with; None begins another record.
        """
        yield Tracker(composition.name)

    def known(self, key: str, identity: str, gone: Collection[str] = ()) -> PriorRuns:
        """What is recorded of the same attempt; attempts whose process is gone are closed first.

        Args:
            key: of the settings.
            identity: of settings, photos and weights.
            gone: processes that worked on it and are known to be no more.
        """
        return PriorRuns()

    def reuse(self, record: Record, composition: RunOrigin) -> None:
        """Takes over a recorded attempt as the result of another command, and tells the sweep, if there is one."""

    def history(self, run_id: str, metric: str) -> list[float]:
        """A metric's values in the order of their steps."""
        return []

    def parent(self, wanted: str | None, alike: dict[str, Any], seed: int, folder: Path) -> Parent:
        """Finds the frozen attempt that a fine-tune goes on from.

        Args:
            wanted: its run's id or the beginning of it; None for the best of those that are alike, of the same seed if there is one.
            alike: parameters that must be the same in both.
            seed: the fine-tune's.
            folder: where its files are put.

        Raises:
            UserError: where there is none, or where something differs.
        """
        raise UserError(
            "phase=finetune was asked for with tracking=none. A fine-tune goes on from a frozen attempt that MLflow"
            " keeps. Type tracking=mlflow, or phase=frozen unfreeze=last_n to train from a new head."
        )


@dataclass(frozen=True, kw_only=True)
class Nothing(Tracking):
    """Nothing is recorded."""
