"""The option `tracking=none`: each run is saved in a folder of its own, so that a fine-tune can start from it.

The folder holds the trained network, the head's weights, the predictions, and `run.json` with parameters, metrics and
tags, by the names that MLflow has them under.
"""

import contextlib
import json
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dogbreeds.core.errors import MissingFileError, UserError
from dogbreeds.core.files import atomic_folder
from dogbreeds.core.former_names import IMPLIED_PARAMS
from dogbreeds.core.spec import text
from dogbreeds.core.text import printable
from dogbreeds.evaluation.results import Predictions
from dogbreeds.tracking.prediction_files import read_predictions, write_predictions
from dogbreeds.tracking.records import (
    HEAD_WEIGHTS,
    MODEL_FILE,
    RANKING_METRIC,
    Parent,
    Record,
    RunOrigin,
    check_parent,
    param_text,
)
from dogbreeds.tracking.saved_network import HEAD_DIGEST_TAG, MODEL_DIGEST_TAG, check_digest, save_network, save_weights
from dogbreeds.tracking.tracking import Tracker, Tracking

if TYPE_CHECKING:
    import keras

_RUN_FILE = "run.json"
_HEAD_FILE = Path(HEAD_WEIGHTS).name
_OWNED_FILES = (_RUN_FILE, MODEL_FILE, _HEAD_FILE, "val.npz", "test.npz")
# Characters of a run's identity in the name of its folder.
_NAME_LENGTH = 12


@dataclass(frozen=True, kw_only=True)
class Nothing(Tracking):
    """Record nothing in MLflow.

    Attributes:
        folder: folder that has one folder for each run; None to save nothing at all.
    """

    folder: str | None = text(example="multirun/untracked", optional=True)

    @contextlib.contextmanager
    def open(self, origin: RunOrigin, unfinished: Record | None = None) -> Iterator[Tracker]:
        if self.folder is None:
            yield Tracker(origin.name)
            return
        tracker = FolderTracker(origin.name, Path(self.folder).expanduser().absolute() / origin.identity[:_NAME_LENGTH])
        yield tracker
        tracker.write()


class FolderTracker(Tracker):
    """Saves one run in a folder once it has finished. A range test, and a run without an epoch, leave none.

    Args:
        name: display name of the run.
        folder: the folder. What an earlier run with the same identity saved there is replaced.
    """

    folder: Path

    def __init__(self, name: str, folder: Path):
        super().__init__(name)
        self.folder = folder
        self.finetune_overrides = f"phase=finetune {shlex.quote(f'phase.parent={folder}')}"
        self._params: dict[str, str] = {}
        self._metrics: dict[str, float] = {}
        self._tags: dict[str, str] = {}
        self._predictions: dict[str, Predictions] = {}
        self._build_model: Callable[[], keras.Model] | None = None
        self._head: keras.Model | None = None

    def parameters(self, values: dict[str, Any]) -> None:
        self._params |= {name: param_text(value) for name, value in values.items()}

    def metrics(self, values: dict[str, float], step: int = 0) -> None:
        self._metrics |= values

    def tags(self, values: dict[str, str]) -> None:
        self._tags |= values

    def predictions(self, split: str, predictions: Predictions) -> None:
        self._predictions[split] = predictions

    def model(self, build: "Callable[[], keras.Model]", accuracy: float, tolerance: float) -> None:
        self._build_model = build

    def head(self, head: "keras.Model") -> None:
        self._head = head

    def location(self) -> str:
        return f"{self.folder} (tracking=none)"

    def write(self) -> None:
        """Write the folder, completely or not at all.

        Raises:
            UserError: it cannot be written.
        """
        if self._build_model is None:
            return
        with atomic_folder(self.folder, _OWNED_FILES) as temporary:
            self._tags[MODEL_DIGEST_TAG] = save_network(self._build_model(), temporary / MODEL_FILE)
            if self._head is not None:
                self._tags[HEAD_DIGEST_TAG] = save_weights(self._head, temporary / _HEAD_FILE)
            for split, predictions in self._predictions.items():
                write_predictions(temporary, split, predictions)
            content = {"name": self.name, "params": self._params, "metrics": self._metrics, "tags": self._tags}
            (temporary / _RUN_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class SavedRun:
    """A run that was saved in a folder.

    Attributes:
        folder: the folder.
        params, metrics, tags: as in `Record`.
    """

    folder: Path
    params: dict[str, str]
    metrics: dict[str, float]
    tags: dict[str, str]

    @classmethod
    def read(cls, path: str) -> "SavedRun":
        """Read a saved run.

        Args:
            path: its folder, or a file in it.

        Raises:
            MissingFileError: there is no such folder or file.
            UserError: it is not one that a run has saved.
        """
        given = Path(path).expanduser().absolute()
        folder = given if given.is_dir() else given.parent
        if not given.exists():
            raise MissingFileError(
                f"{printable(path)} does not exist (looked for {printable(str(given))}). It must be the folder of a run"
                " with tracking=none, which the run names in its last line. Type phase.parent=<folder>."
            )
        try:
            content = json.loads((folder / _RUN_FILE).read_text(encoding="utf-8"))
            return cls(folder, IMPLIED_PARAMS | content["params"], content["metrics"], content["tags"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{printable(path)} was not saved by a run: {_RUN_FILE} is missing there, or damaged. It must be the"
                " folder of a run with tracking=none, or a file in it. Train the frozen run with tracking=none first,"
                " or type phase.parent=<a run's id>."
            ) from error

    @property
    def network(self) -> Path:
        """File of the trained network.

        Raises:
            UserError: it is not the one that the run saved.
        """
        return self._checked(MODEL_FILE, MODEL_DIGEST_TAG)

    def predictions(self) -> dict[str, Predictions]:
        """Return the predictions by split."""
        return read_predictions(self.folder, str(self.folder))

    def parent(self, must_match: dict[str, Any]) -> Parent:
        """Return the run as the parent of a fine-tune.

        Args:
            must_match: parameters that must be the same in both runs.

        Raises:
            UserError: it saved no head since it was no frozen run, a parameter differs, or a file was changed.
        """
        if HEAD_DIGEST_TAG not in self.tags:
            raise UserError(
                f"phase.parent={self.folder} is not a frozen run: it trained more than a head. A fine-tune starts from"
                " the head of a frozen run. Type the same command with phase=frozen first, and name its folder."
            )
        check_parent(str(self.folder), self.params, {name: param_text(value) for name, value in must_match.items()})
        return Parent(
            run_id=str(self.folder),
            head=self._checked(_HEAD_FILE, HEAD_DIGEST_TAG),
            accuracy=self.metrics[RANKING_METRIC],
            predictions=self.predictions(),
            baseline={name: value for name, value in self.metrics.items() if name.startswith("baseline/")},
            baseline_description=self.tags.get("baseline", ""),
            reference={name: value for name, value in self.metrics.items() if name.startswith("reference/")},
            reference_description=self.tags.get("reference", ""),
            verdict=self.tags.get("verdict", ""),
        )

    def _checked(self, name: str, tag: str) -> Path:
        file = self.folder / name
        if not file.is_file():
            raise MissingFileError(
                f"{printable(str(file))} does not exist. The folder of a run must stay as the run left it. Restore the"
                " file, or name another run."
            )
        check_digest(file, str(self.folder), self.tags, tag, name)
        return file
