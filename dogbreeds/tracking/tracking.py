"""Base classes of experiment tracking."""

import contextlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dogbreeds.core.console import Link
from dogbreeds.core.errors import UserError
from dogbreeds.core.spec import Spec
from dogbreeds.evaluation.results import Predictions
from dogbreeds.tracking.records import Parent, PriorRuns, Record, RunOrigin

if TYPE_CHECKING:
    import keras
    from matplotlib.figure import Figure


class Tracker:
    """Tracker of one run. This one records nothing; subclasses override what they record.

    Attributes:
        name: display name of the run.
        run_id: id of the recorded run; empty without one.
        folder: folder that the run is saved in; None without one.
        finetune_overrides: what to type to fine-tune from the run; empty if that is not possible.
    """

    folder: Path | None = None
    finetune_overrides: str = ""

    def __init__(self, name: str, run_id: str = ""):
        self.name = name
        self.run_id = run_id

    def parameters(self, values: dict[str, Any]) -> None:
        """Record hyper-parameters and other facts that hold for the whole run."""

    def metrics(self, values: dict[str, float], step: int = 0) -> None:
        """Record metrics of a step. Infinite values and NaN are skipped."""

    def series(self, values: dict[str, Sequence[float]]) -> None:
        """Record metrics of consecutive steps, counted from 1."""

    def tags(self, values: dict[str, str]) -> None:
        """Record tags, by which runs are searched."""

    def describe(self, text: str) -> None:
        """Record the run's description, which the UI displays first."""

    def dataset(self, name: str, fingerprint: str, sizes: dict[str, int]) -> None:
        """Record the data set.

        Args:
            name: name of the data set.
            fingerprint: digest of its images.
            sizes: number of images, by split.
        """

    def figure(self, draw: "Callable[[], Figure]", name: str) -> None:
        """Record a figure.

        Args:
            draw: draws it; called only if the figure is recorded.
            name: file name among the run's artifacts.
        """

    def predictions(self, split: str, predictions: Predictions) -> None:
        """Record a split's predictions, for paired comparisons."""

    def refitted_predictions(self, split: str, predictions: Predictions) -> None:
        """Record what the network that is saved predicts, where that is not the one of `predictions`."""

    def model(self, build: "Callable[[], keras.Model]", accuracy: float, tolerance: float) -> None:
        """Record the trained network.

        Args:
            build: builds the network to save; called only if it is saved.
            accuracy: its validation accuracy, in [0, 1].
            tolerance: by how much its probabilities may differ from the recorded ones.
        """

    def head(self, head: "keras.Model") -> None:
        """Record the head's weights, for fine-tunes that start from them."""

    def location(self) -> str:
        """Describe where the run is recorded."""
        return "not recorded (tracking=none)"

    def link(self) -> Link | None:
        """Return a link to the run's page; None without one."""
        return None


@dataclass(frozen=True, kw_only=True)
class Tracking(Spec):
    """Base of the options of the config group `tracking`."""

    group = "tracking"

    @property
    def saves_networks(self) -> bool:
        """Whether the trained network of a run may be saved."""
        return False

    @contextlib.contextmanager
    def open(self, origin: RunOrigin, unfinished: Record | None = None) -> Iterator[Tracker]:
        """Open a tracker for one run. The run ends with the status that the body's outcome gives.

        Args:
            origin: what the run was composed from.
            unfinished: recorded run to resume; None starts a new one.
        """
        yield Tracker(origin.name)

    def prior_runs(self, key: str, identity: str, dead_processes: Collection[str] = ()) -> PriorRuns:
        """Find recorded runs with the same settings. Runs whose process is gone are closed first.

        Args:
            key: digest of the settings.
            identity: digest of settings, images and weights.
            dead_processes: processes that worked on the run and are known to be gone.
        """
        return PriorRuns()

    def newest_run(self, identity: str) -> Record | None:
        """Return the newest recorded run with an identity, whatever its status; None if there is none."""
        return None

    def reuse(self, record: Record, origin: RunOrigin) -> None:
        """Take over a finished run as the result of this command, and record it in the sweep's run, if any."""

    def history(self, run_id: str, metric: str) -> list[float]:
        """Return a metric's values, in the order of their steps."""
        return []

    def find_parent(self, run_id: str | None, must_match: dict[str, Any], seed: int, folder: Path) -> Parent:
        """Find the frozen run that a fine-tune starts from.

        Args:
            run_id: its run id or a prefix of it; None selects the best run that matches, of the same seed if possible.
            must_match: parameters that must be the same in both runs.
            seed: seed of the fine-tune.
            folder: folder that the parent's files are downloaded to.

        Raises:
            UserError: there is no such run, or a parameter differs.
        """
        raise _no_parent()

    def parent_params(self, run_id: str | None, must_match: dict[str, Any], seed: int) -> dict[str, str]:
        """Return the parameters of the run that `find_parent` finds, without downloading anything.

        Args:
            run_id, must_match, seed: as for `find_parent`.

        Raises:
            UserError: as `find_parent`.
        """
        raise _no_parent()


def _no_parent() -> UserError:
    return UserError(
        "phase=finetune was set with tracking=none. It starts from a frozen run that MLflow finds or phase.parent"
        " names. Type tracking=mlflow, or phase.parent=<folder>, which the frozen run names in its last line."
    )
