"""Reads what MLflow has recorded."""

import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np

from dogbreeds.core.errors import UserError
from dogbreeds.evaluation.results import Predictions
from dogbreeds.tracking.lifecycle import CONFIG
from dogbreeds.tracking.records import RANKING, Parent, Record, short

if TYPE_CHECKING:
    from mlflow.entities import Run as MlflowRun


from dogbreeds.tracking.connection import MlflowStore
from dogbreeds.tracking.records import HEAD, MODEL_FILE, MODEL_FOLDER, PREDICTIONS, plain, record_of

_FROZEN = "params.phase = 'Frozen' and params.unfreeze = 'Nothing' and attributes.status = 'FINISHED'"


@dataclass(frozen=True, kw_only=True)
class MlflowReader(MlflowStore):
    """An experiment's runs."""

    def records(self, where: str = "") -> list[Record]:
        """The finished attempts of the experiment that have a verdict, the newest first.

        Args:
            where: a condition more, as MLflow's search takes it.
        """
        return self._search(f"attributes.status = 'FINISHED' and tags.verdict != ''{f' and {where}' if where else ''}")

    def _search(self, condition: str) -> list[Record]:
        """The experiment's runs for which a condition of MLflow's holds, the newest first; however many there are."""
        client, experiment_id = self._look()
        if experiment_id is None:
            return []
        found: list[Record] = []
        token = None
        while True:
            page = client.search_runs([experiment_id], condition, max_results=1000, page_token=token)
            found += map(record_of, page)
            token = page.token
            if not token:
                return found

    def record(self, run_id: str) -> Record:
        """What is recorded under an id."""
        return record_of(self._client().get_run(run_id))

    def named(self, beginning: str) -> list[Record]:
        """The experiment's runs whose ids begin so, whatever became of them."""
        return [record for record in self._search("") if record.run_id.startswith(beginning)]

    def page(self, record: Record, ui: str) -> str:
        """The address of MLflow's page of a run: of the server that records it, or, of a local store, of the one that shows it.

        Args:
            record: the run.
            ui: where `make ui` or another server shows a local store.

        Raises:
            UserError: where that is no address.
        """
        parts = urlsplit(self.uri if self.uri.startswith(("http://", "https://")) else ui)
        # A name and password that stand in the address are for nobody else's eyes
        host = parts.netloc.rpartition("@")[2]
        if parts.scheme not in ("http", "https") or not host:
            raise UserError(
                f"ui was {ui!r}. It must be the address where MLflow shows runs, with http:// or https://. Type"
                " ui=http://127.0.0.1:5000."
            )
        return (
            f"{parts.scheme}://{host}{parts.path.rstrip('/')}/#/experiments/{record.experiment_id}/runs/{record.run_id}"
        )

    def config(self, run_id: str) -> str:
        """The composed config of a run, as YAML."""
        with tempfile.TemporaryDirectory() as folder:
            return self._downloaded(run_id, CONFIG, Path(folder), "config").read_text()

    def network(self, run_id: str, folder: Path) -> Path:
        """The file of a run's trained network, put into a folder; the run must have kept one."""
        return self._downloaded(run_id, f"{MODEL_FOLDER}/{MODEL_FILE}", folder, "network")

    def _downloaded(self, run_id: str, place: str, folder: Path, what: str) -> Path:
        try:
            return Path(self._client().download_artifacts(run_id, place, str(folder)))
        except UserError as error:
            # A server that is away says nothing of what it has
            if error.__cause__ is None:
                raise
            raise UserError(
                f"The {what} of run {short(run_id)} cannot be fetched ({' '.join(str(error.__cause__).split())[:160]})."
                f" It must lie among the run's artifacts, as {place}. Put it back, or name another run."
            ) from error

    def history(self, run_id: str, metric: str) -> list[float]:
        client = self._client()
        return [
            point.value for point in sorted(client.get_metric_history(run_id, metric), key=lambda point: point.step)
        ]

    def parent(self, wanted: str | None, alike: dict[str, Any], seed: int, folder: Path) -> Parent:
        client, experiment_id = self.connect()
        frozen = client.search_runs([experiment_id], _FROZEN, max_results=5000)
        expected = {name: plain(value) for name, value in alike.items()}
        if wanted is not None:
            named = [record for record in frozen if record.info.run_id.startswith(wanted)]
            if len(named) != 1:
                raise UserError(
                    f"phase.parent={wanted} names {len(named)} finished frozen attempts of experiment"
                    f" '{self.experiment}'. It must name one, by its run's id or the beginning of it. Type"
                    " phase.parent=null to have the best one that matches found."
                )
            _refuse_differences(named[0], expected)
            matching = named
        else:
            matching = [record for record in frozen if not _differences(record, expected)]
        kept = [record for record in matching if record.data.tags.get("head") == "kept"]
        if not kept:
            lacking = "kept its head" if matching else f"matches in {', '.join(sorted(expected))}"
            raise UserError(
                f"No finished frozen attempt of experiment '{self.experiment}' {lacking}. phase=finetune goes on from"
                " the best weights of one with the same model, pixels, head and data. Type the same command with"
                " phase=frozen first, without tracking.model=none."
            )

        def rank(record: "MlflowRun") -> tuple[bool, float, float]:
            """Of those that do as well, the one with the lower loss: which began last is chance where they ran side by side."""
            measured = record.data.metrics
            return (
                record.data.params.get("seed") == str(seed),
                measured[RANKING],
                -measured.get("best/val_loss", math.inf),
            )

        best = max(kept, key=rank)
        head = client.download_artifacts(best.info.run_id, HEAD, str(folder))
        baseline = {name: value for name, value in best.data.metrics.items() if name.startswith("baseline/")}
        predictions = self.predictions(best.info.run_id)
        return Parent(
            best.info.run_id,
            Path(head),
            best.data.metrics[RANKING],
            predictions,
            baseline,
            best.data.tags.get("baseline", ""),
        )

    def predictions(self, run_id: str) -> "dict[str, Predictions]":
        """What a run's best weights said of each photo, by split; empty where it finished no epoch."""
        client = self._client()
        with tempfile.TemporaryDirectory() as folder:
            if not client.list_artifacts(run_id, PREDICTIONS):
                return {}
            said = Path(client.download_artifacts(run_id, PREDICTIONS, folder))
            return {file.stem: _read(file) for file in said.glob("*.npz")}


def _read(file: Path) -> Predictions:
    with np.load(file) as stored:
        names = stored["class_names"].tolist() if "class_names" in stored.files else ()
        return Predictions(stored["ids"].tolist(), stored["labels"], stored["logits"], tuple(names))


def _differences(record: "MlflowRun", expected: dict[str, str]) -> list[str]:
    return [name for name, value in expected.items() if record.data.params.get(name) != value]


def _refuse_differences(record: "MlflowRun", expected: dict[str, str]) -> None:
    different = _differences(record, expected)
    if different:
        said = "; ".join(
            f"{name} is {record.data.params.get(name)} there and {expected[name]} here" for name in different
        )
        raise UserError(
            f"phase.parent={short(record.info.run_id)} does not fit: {said}. A fine-tune needs the weights, pixels,"
            " head and data of its frozen attempt. Type phase.parent=null to have one that matches found, or make the"
            " settings the same."
        )
