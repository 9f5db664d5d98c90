"""Where attempts are recorded. With `lifecycle` and `registry` all that knows of MLflow, which is imported when a run begins, not before."""

import collections
import contextlib
import functools
import itertools
import json
import logging
import math
import os
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import unquote, urlsplit, urlunsplit

import numpy as np

from dogbreeds.core.errors import Refused
from dogbreeds.core.process import PROCESS
from dogbreeds.core.spec import Spec, number, one_of, text
from dogbreeds.core.text import masked
from dogbreeds.evaluation.results import Predictions
from dogbreeds.tracking.delivery import Call, Server, is_outage
from dogbreeds.tracking.lifecycle import CONFIG, begin, choices, close_gone, ended, go_on, system_metrics
from dogbreeds.tracking.records import RANKING, REUSED, SWEEP, Composition, Known, Parent, Record, short

if TYPE_CHECKING:
    import keras
    import mlflow
    from matplotlib.figure import Figure
    from mlflow.entities import DatasetInput, Metric
    from mlflow.entities import Run as MlflowRun


_MODEL_FOLDER, _MODEL_FILE, _PREDICTIONS, _HEAD = "model", "model.keras", "predictions", "head/head.weights.h5"
_FROZEN = "params.phase = 'Frozen' and params.unfreeze = 'Nothing' and attributes.status = 'FINISHED'"
_PARAMETERS_AT_ONCE, _METRICS_AT_ONCE = 100, 1000  # MLflow's limits of one call
_KIND = {"mlflow.experimentKind": "custom_model_development"}  # MLflow then shows its pages for training, not those for language models


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
    def open(self, composition: Composition, unfinished: Record | None = None) -> Iterator[Tracker]:
        """A tracker for one attempt, closed with how it ended.

        Args:
            composition: how the attempt came about.
            unfinished: the recorded attempt that is gone on with; None begins another record.
        """
        yield Tracker(composition.name)

    def known(self, key: str, identity: str, gone: Collection[str] = ()) -> Known:
        """What is recorded of the same attempt; attempts whose process is gone are closed first.

        Args:
            key: of the settings.
            identity: of settings, photos and weights.
            gone: processes that worked on it and are known to be no more.
        """
        return Known()

    def reuse(self, record: Record, composition: Composition) -> None:
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
            Refused: where there is none, or where something differs.
        """
        raise Refused(
            "phase=finetune was asked for with tracking=none. A fine-tune goes on from a frozen attempt that MLflow keeps. "
            "Type tracking=mlflow, or phase=frozen unfreeze=last_n to train from a new head."
        )


@dataclass(frozen=True, kw_only=True)
class Nothing(Tracking):
    """Nothing is recorded."""


@dataclass(frozen=True, kw_only=True)
class Mlflow(Tracking):
    """MLflow: a local SQLite store, or any address."""

    uri: str = text(example="http://127.0.0.1:5000")
    artifacts: str = text(example="mlruns/artifacts")
    experiment: str = text(example="dogbreeds")
    model: str = one_of("best", "all", "none")
    system_metrics_seconds: float = number(at_least=0, example=10)
    patience_minutes: float = number(at_least=0, example=10)

    @contextlib.contextmanager
    def open(self, composition: Composition, unfinished: Record | None = None) -> Iterator[Tracker]:
        client, experiment_id = self.connect()
        above = os.environ.get(SWEEP)
        run = begin(client, experiment_id, composition, above) if unfinished is None else go_on(client, unfinished.run_id, composition, above)
        sampled = system_metrics(client, run.info.run_id, self._address, self.system_metrics_seconds, unfinished is not None)
        with ended(client, run.info.run_id), sampled:
            yield _MlflowTracker(self, client, run)

    def known(self, key: str, identity: str, gone: Collection[str] = ()) -> Known:
        client, experiment_id = self.connect()
        close_gone(client, experiment_id, gone)
        same = [_record(run) for run in client.search_runs([experiment_id], f"tags.key = '{key}'", max_results=1000)]
        finished = [record for record in same if record.status == "FINISHED" and record.tags["identity"] == identity and not self._lacks(record)]
        unfinished = [record for record in same if record.status in ("KILLED", "FAILED") and record.tags["identity"] == identity]
        others = tuple(short(record.run_id) for record in same if record.tags["identity"] != identity)
        return Known(next(iter(finished), None), next(iter(unfinished), None), others)

    def _lacks(self, record: Record) -> bool:
        """Whether a frozen attempt did not keep the head that a fine-tune would go on from, and should have."""
        frozen = (record.params.get("phase"), record.params.get("unfreeze")) == ("Frozen", "Nothing")
        return self.model != "none" and frozen and record.tags.get("head") != "kept"

    def reuse(self, record: Record, composition: Composition) -> None:
        for name, value in choices(composition).items():
            if name not in record.tags:  # it may have been run under no attempt's name
                self._client().set_tag(record.run_id, name, value)
        above = os.environ.get(SWEEP)
        if above is not None and record.tags.get("mlflow.parentRunId") != above:
            self._client().set_tag(above, f"{REUSED}{record.run_id}", record.name)

    def connect(self) -> "tuple[mlflow.MlflowClient, str]":
        """A client of the store, made ready, and the id of the experiment, made if it is not there.

        Raises:
            Refused: where the store cannot be reached or used.
        """
        if self._server is not None:
            self._server.awaited, self._server.hurried = True, False  # what records waits from the beginning
        client, known = self._look()
        if known is not None:
            return client, known
        elsewhere = self._server is not None or self.uri.startswith("databricks")  # a server has a place of its own for artifacts
        place = None if elsewhere else Path(self.artifacts).expanduser().resolve().as_uri()
        try:
            return client, client.create_experiment(self.experiment, artifact_location=place, tags=_KIND)
        except Refused:
            made = self._look()[1]  # by another job, meanwhile
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
            os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")  # MLflow's go on for minutes without a word; `Server` has its own
            os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")  # seconds; a machine that is off does not refuse, it says nothing
            user = urlsplit(self.uri)
            if user.password:
                os.environ |= {"MLFLOW_TRACKING_USERNAME": unquote(user.username or ""), "MLFLOW_TRACKING_PASSWORD": unquote(user.password)}
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
    def _server(self) -> Server | None:
        """The server, if that is what records; it is one for all of a process."""
        if not self.uri.startswith(("http://", "https://")):
            return None
        server = _server(self._address, os.getpid())
        server.patience_seconds = 60 * self.patience_minutes
        return server

    @contextlib.contextmanager
    def reached(self) -> Iterator[None]:
        """Turns what goes wrong with the store in the body into `Refused`."""
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError  # of a damaged database, which MLflow lets through

        try:
            yield
        except (MlflowException, SQLAlchemyError, OSError) as error:
            why = masked(" ".join(str(error).split()))[:200]
            raise Refused(
                f"tracking.uri={masked(self.uri)} cannot be used ({why}). It must be sqlite:///<file>, whole and on a disk "
                "with room, the address of an MLflow server, or another database that MLflow knows. Type tracking.uri=sqlite:///mlflow.db or "
                "tracking=none, or mend it and run the same command again."
            ) from error

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
            found += map(_record, page)
            token = page.token
            if not token:
                return found

    def record(self, run_id: str) -> Record:
        """What is recorded under an id."""
        return _record(self._client().get_run(run_id))

    def named(self, beginning: str) -> list[Record]:
        """The experiment's runs whose ids begin so, whatever became of them."""
        return [record for record in self._search("") if record.run_id.startswith(beginning)]

    def page(self, record: Record, ui: str) -> str:
        """The address of MLflow's page of a run: of the server that records it, or, of a local store, of the one that shows it.

        Args:
            record: the run.
            ui: where `make ui` or another server shows a local store.

        Raises:
            Refused: where that is no address.
        """
        parts = urlsplit(self.uri if self.uri.startswith(("http://", "https://")) else ui)
        host = parts.netloc.rpartition("@")[2]  # a name and password that stand in the address are for nobody else's eyes
        if parts.scheme not in ("http", "https") or not host:
            raise Refused(f"ui was {ui!r}. It must be the address where MLflow shows runs, with http:// or https://. Type ui=http://127.0.0.1:5000.")
        return f"{parts.scheme}://{host}{parts.path.rstrip('/')}/#/experiments/{record.experiment_id}/runs/{record.run_id}"

    def config(self, run_id: str) -> str:
        """The composed config of a run, as YAML."""
        with tempfile.TemporaryDirectory() as folder:
            return self._downloaded(run_id, CONFIG, Path(folder), "config").read_text()

    def network(self, run_id: str, folder: Path) -> Path:
        """The file of a run's trained network, put into a folder; the run must have kept one."""
        return self._downloaded(run_id, f"{_MODEL_FOLDER}/{_MODEL_FILE}", folder, "network")

    def _remove_left_over(self, run_id: str, folder: Path, place: str) -> None:
        """Removes artifacts that an earlier folder had and this one has not; after the new ones are there, whatever cuts this off."""
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        client = self._client()
        repository = client.calls(get_artifact_repository(client.get_run(run_id).info.artifact_uri))
        left = [place]
        while left:
            for item in repository.list_artifacts(left.pop()):
                if not (folder / Path(item.path).relative_to(place)).exists():
                    repository.delete_artifacts(item.path)
                elif item.is_dir:
                    left.append(item.path)

    def _downloaded(self, run_id: str, place: str, folder: Path, what: str) -> Path:
        try:
            return Path(self._client().download_artifacts(run_id, place, str(folder)))
        except Refused as error:
            if error.__cause__ is None:  # a server that is away says nothing of what it has
                raise
            raise Refused(
                f"The {what} of run {short(run_id)} cannot be fetched ({' '.join(str(error.__cause__).split())[:160]}). It must lie among the run's "
                f"artifacts, as {place}. Put it back, or name another run."
            ) from error

    def add(self, run_id: str, folder: Path, place: str, metrics: dict[str, float]) -> None:
        """Adds a folder's files and numbers to a run that has finished, in the place of those of an earlier folder."""
        client = self._client()
        client.log_artifacts(run_id, str(folder), place)
        self._remove_left_over(run_id, folder, place)
        for name, value in metrics.items():
            if np.isfinite(value):
                client.log_metric(run_id, name, value)

    def note(self, run_id: str, name: str, text: str, metrics: dict[str, float]) -> None:
        """Adds a text and numbers to a run."""
        client = self._client()
        client.log_text(run_id, text, name)
        for metric, value in metrics.items():
            client.log_metric(run_id, metric, value)

    def history(self, run_id: str, metric: str) -> list[float]:
        client = self._client()
        return [point.value for point in sorted(client.get_metric_history(run_id, metric), key=lambda point: point.step)]

    def parent(self, wanted: str | None, alike: dict[str, Any], seed: int, folder: Path) -> Parent:
        client, experiment_id = self.connect()
        frozen = client.search_runs([experiment_id], _FROZEN, max_results=5000)
        expected = {name: _plain(value) for name, value in alike.items()}
        if wanted is not None:
            named = [record for record in frozen if record.info.run_id.startswith(wanted)]
            if len(named) != 1:
                raise Refused(
                    f"phase.parent={wanted} names {len(named)} finished frozen attempts of experiment '{self.experiment}'. It must name one, by its "
                    "run's id or the beginning of it. Type phase.parent=null to have the best one that matches found."
                )
            _refuse_differences(named[0], expected)
            matching = named
        else:
            matching = [record for record in frozen if not _differences(record, expected)]
        kept = [record for record in matching if record.data.tags.get("head") == "kept"]
        if not kept:
            lacking = "kept its head" if matching else f"matches in {', '.join(sorted(expected))}"
            raise Refused(
                f"No finished frozen attempt of experiment '{self.experiment}' {lacking}. phase=finetune goes on from the best weights of one with "
                "the same model, pixels, head and data. Type the same command with phase=frozen first, without tracking.model=none."
            )

        def rank(record: "MlflowRun") -> tuple[bool, float, float]:
            """Of those that do as well, the one with the lower loss: which began last is chance where they ran side by side."""
            measured = record.data.metrics
            return record.data.params.get("seed") == str(seed), measured[RANKING], -measured.get("best/val_loss", math.inf)

        best = max(kept, key=rank)
        head = client.download_artifacts(best.info.run_id, _HEAD, str(folder))
        baseline = {name: value for name, value in best.data.metrics.items() if name.startswith("baseline/")}
        predictions = self.predictions(best.info.run_id)
        return Parent(best.info.run_id, Path(head), best.data.metrics[RANKING], predictions, baseline, best.data.tags.get("baseline", ""))

    def predictions(self, run_id: str) -> "dict[str, Predictions]":
        """What a run's best weights said of each photo, by split; empty where it finished no epoch."""
        client = self._client()
        with tempfile.TemporaryDirectory() as folder:
            if not client.list_artifacts(run_id, _PREDICTIONS):
                return {}
            said = Path(client.download_artifacts(run_id, _PREDICTIONS, folder))
            return {file.stem: _read(file) for file in said.glob("*.npz")}


def _record(run: "MlflowRun") -> Record:
    info, data = run.info, run.data
    return Record(info.run_id, info.run_name, info.start_time / 1000, info.status, data.params, data.metrics, data.tags, info.experiment_id)


def _read(file: Path) -> Predictions:
    with np.load(file) as stored:
        names = stored["class_names"].tolist() if "class_names" in stored.files else ()
        return Predictions(stored["ids"].tolist(), stored["labels"], stored["logits"], tuple(names))


def _differences(record: "MlflowRun", expected: dict[str, str]) -> list[str]:
    return [name for name, value in expected.items() if record.data.params.get(name) != value]


def _refuse_differences(record: "MlflowRun", expected: dict[str, str]) -> None:
    different = _differences(record, expected)
    if different:
        said = "; ".join(f"{name} is {record.data.params.get(name)} there and {expected[name]} here" for name in different)
        raise Refused(
            f"phase.parent={short(record.info.run_id)} does not fit: {said}. A fine-tune needs the weights, pixels, head and data of its frozen "
            "attempt. Type phase.parent=null to have one that matches found, or make the settings the same."
        )


class _MlflowTracker(Tracker):
    def __init__(self, tracking: Mlflow, client: "mlflow.MlflowClient", run: "MlflowRun"):
        super().__init__(run.info.run_name, run.info.run_id)
        self._tracking, self._client, self._run = tracking, client, run
        # What an earlier process has recorded of this run is not recorded twice.
        names = [name for name in run.data.metrics if not name.startswith("system/")]
        self._logged = {(name, point.step) for name in names for point in client.get_metric_history(self.run_id, name)}

    def parameters(self, values: dict[str, Any]) -> None:
        from mlflow.entities import Param

        params = [Param(name, masked(_plain(value))) for name, value in values.items() if name not in self._run.data.params]
        for start in range(0, len(params), _PARAMETERS_AT_ONCE):
            self._client.kept.log_batch(self.run_id, params=params[start : start + _PARAMETERS_AT_ONCE])

    def metrics(self, values: dict[str, float], step: int = 0) -> None:
        self._log((name, value, step) for name, value in values.items())

    def series(self, values: dict[str, Sequence[float]]) -> None:
        self._log((name, value, step) for name, those in values.items() for step, value in enumerate(those, 1))

    def _log(self, values: Iterable[tuple[str, float, int]]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        new = [(name, value, step) for name, value, step in values if np.isfinite(value) and (name, step) not in self._logged]
        self._logged |= {(name, step) for name, _, step in new}
        self._client.keep_metrics(self.run_id, [Metric(name, value, now, step) for name, value, step in new])

    def tags(self, values: dict[str, str]) -> None:
        from mlflow.entities import RunTag

        if values:
            self._client.kept.log_batch(self.run_id, tags=[RunTag(name, value) for name, value in values.items()])

    def describe(self, text: str) -> None:
        self._client.kept.set_tag(self.run_id, "mlflow.note.content", text)

    def dataset(self, name: str, fingerprint: str, sizes: dict[str, int]) -> None:
        from mlflow.entities import Dataset as MlflowDataset
        from mlflow.entities import DatasetInput

        about = MlflowDataset(name, fingerprint[:36], "local", json.dumps({"name": name}), profile=json.dumps(sizes))
        self._client.keep_inputs(self.run_id, [DatasetInput(about, [])])

    def picture(self, draw: "Callable[[], Figure]", name: str) -> None:
        self._client.log_figure(self.run_id, draw(), name)

    def predictions(self, split: str, said: Predictions) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"{split}.npz"
            names = np.asarray(said.class_names, dtype=np.str_)
            np.savez_compressed(path, ids=np.asarray(said.ids), labels=said.labels, logits=said.logits, class_names=names)
            self._client.log_artifact(self.run_id, str(path), _PREDICTIONS)

    def model(self, whole: "Callable[[], keras.Model]", accuracy: float) -> None:
        if self._tracking.model == "none":
            return
        if self._tracking.model == "best" and not self._beats_its_sweep(accuracy):
            return
        with tempfile.TemporaryDirectory() as folder:
            whole().save(Path(folder) / _MODEL_FILE)
            self._client.log_artifacts(self.run_id, folder, _MODEL_FOLDER)
        self.tags({"model": "kept"})

    def head(self, head: "keras.Model") -> None:
        if self._tracking.model == "none":
            return
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / Path(_HEAD).name
            head.save_weights(path)
            self._client.log_artifact(self.run_id, str(path), str(Path(_HEAD).parent))
        self.tags({"head": "kept"})

    def _beats_its_sweep(self, accuracy: float) -> bool:
        """Whether no other job of the sweep has done as well; the models of those that did worse are removed."""
        parent = self._run.data.tags.get("mlflow.parentRunId")
        if parent is None:
            return True
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        jobs = self._client.search_runs(
            [self._run.info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent}' and tags.model = 'kept'", max_results=1000
        )
        others = [job for job in jobs if job.info.run_id != self.run_id]  # this one may have been cut off right after keeping its own
        if any(other.data.metrics.get(RANKING, 0.0) >= accuracy for other in others):
            return False
        for other in others:
            self._client.calls(get_artifact_repository(other.info.artifact_uri)).delete_artifacts(_MODEL_FOLDER)
            self._client.set_tag(other.info.run_id, "model", "removed: another job of the sweep did better")
        return True

    def where(self) -> str:
        return f"MLflow experiment '{self._tracking.experiment}', run {short(self.run_id)} '{self._run.info.run_name}'"


@functools.cache
def _server(address: str, _process: int) -> Server:
    """A thread does not live on in a process that was forked."""
    return Server(address)


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

    def __init__(self, client: "mlflow.MlflowClient", reached: Callable[[], contextlib.AbstractContextManager[None]], server: Server | None):
        super().__init__(client, self._ask)
        self._reached, self._server = reached, server
        self._waiting: list[Future[Any]] = []
        self._unsent: dict[str, list[Metric]] = collections.defaultdict(list)
        self._sending = threading.Lock()  # with a local store each thread sends for itself
        self._heeding = threading.Lock()  # system metrics come from a thread of their own
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
                del unsent[: len(now)]  # only then: a call that got no answer is made again, and MLflow takes the same number once

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


def _plain(value: Any) -> str:
    return (
        "null" if value is None else str(list(value)) if isinstance(value, tuple) else str(value).lower() if isinstance(value, bool) else str(value)
    )
