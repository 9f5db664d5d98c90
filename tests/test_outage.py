"""What a process does while its tracking server is away: MLflow's own client, on loopback, and a server that answers as it is told."""

import contextlib
import http.server
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
import requests
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException

from dogbreeds.core import signals
from dogbreeds.core.errors import UserError
from dogbreeds.core.text import masked
from dogbreeds.tracking.connection import _Client
from dogbreeds.tracking.delivery import DeliveryQueue, is_outage
from dogbreeds.tracking.lifecycle import begin, ended
from dogbreeds.tracking.mlflow_backend import Mlflow
from dogbreeds.tracking.records import RunOrigin


class Answers(http.server.ThreadingHTTPServer):
    """It answers with `status`, and takes down what it was sent and answered well."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.status, self.taken, self.asked = 200, [], 0
        self.uri = f"http://127.0.0.1:{self.server_port}"


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked += 1
        status = self.server.status
        if status == 200:
            self.server.taken.append(body)
        answer = b"{}" if status == 200 else b'{"error_code": "PERMISSION_DENIED", "message": "not yours"}'
        self.send_response(status)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    # As the client of a server has it
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


@pytest.fixture
def answers() -> Iterator[Answers]:
    server = Answers()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


def nowhere() -> str:
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{place.getsockname()[1]}"


def metric(uri: str, step: int):
    client = mlflow.MlflowClient(uri)
    return lambda: client.log_batch("r", metrics=[Metric("loss", 0.5, 1000, step)])


def patient(uri: str) -> DeliveryQueue:
    server = DeliveryQueue(uri)
    server.patience_seconds, server.awaited = 60.0, True
    return server


def test_what_is_kept_arrives_once_in_order_and_nobody_waits(
    answers: Answers, caplog: pytest.LogCaptureFixture
) -> None:
    server = patient(answers.uri)
    answers.status = 503
    futures = [server.keep(metric(answers.uri, step)) for step in range(5)]
    # Three seconds of it
    while answers.asked < 4:
        time.sleep(0.05)
    assert not any(future.done() for future in futures)
    answers.status = 200
    server.ask(lambda: None)
    assert [body["metrics"][0]["step"] for body in answers.taken] == [0, 1, 2, 3, 4]
    assert {body["metrics"][0]["timestamp"] for body in answers.taken} == {1000}
    assert len(caplog.messages) == 2
    away = (
        f"the tracking server at {answers.uri} does not answer (too many 503 error responses): metrics are kept until"
        " it does, "
    )
    assert caplog.messages[0] == away + "what cannot go on without it waits 1 minutes"
    assert caplog.messages[1].startswith(f"the tracking server at {answers.uri} answers again, after ")


def test_numbers_that_came_together_meanwhile_go_together(answers: Answers) -> None:
    server = patient(answers.uri)
    client = _Client(mlflow.MlflowClient(answers.uri), contextlib.nullcontext, server)
    answers.status = 503
    for step in range(1500):
        client.keep_metrics("r", [Metric("loss", step / 2, 1000, step), Metric("accuracy", step / 3, 1000, step)])
    while answers.asked < 2:
        time.sleep(0.05)
    answers.status = 200
    client.settle()
    assert [len(body["metrics"]) for body in answers.taken] == [1000, 1000, 1000]
    sent = [(point["key"], point["step"], point["value"]) for body in answers.taken for point in body["metrics"]]
    assert sent == [(name, step, step / part) for step in range(1500) for name, part in (("loss", 2), ("accuracy", 3))]


def test_a_refusal_is_said_at_once(answers: Answers) -> None:
    server = patient(answers.uri)
    answers.status = 403
    with pytest.raises(MlflowException, match="not yours"):
        server.ask(metric(answers.uri, 0))
    assert answers.asked == 1


def test_a_server_that_never_answered_is_waited_for_only_by_what_records(caplog: pytest.LogCaptureFixture) -> None:
    uri = nowhere()
    server = DeliveryQueue(uri)
    server.patience_seconds = 600.0
    with pytest.raises(UserError) as refused:
        server.ask(metric(uri, 0))
    assert str(refused.value).startswith(
        f"The tracking server at {uri} does not answer ([Errno 111] Connection refused). tracking.uri must be "
    )
    assert caplog.messages == []


def test_after_patience_is_over_nobody_waits_until_there_was_an_answer(answers: Answers) -> None:
    server = patient(answers.uri)
    server.patience_seconds, answers.status = 1.5, 500
    with pytest.raises(
        UserError, match=r"does not answer \(too many 500 error responses\), and was waited for 0\.025 minutes\. "
    ):
        server.ask(metric(answers.uri, 0))
    server.patience_seconds = 600.0
    with pytest.raises(UserError):
        server.ask(metric(answers.uri, 1))
    answers.status = 200
    server.keep(metric(answers.uri, 2)).result(timeout=30)
    # What nobody waits for any more is not sent later
    assert [body["metrics"][0]["step"] for body in answers.taken] == [2]


def test_a_signal_ends_a_wait_that_lies_in_a_held_block(caplog: pytest.LogCaptureFixture) -> None:
    server, before = patient(nowhere()), signal.getsignal(signal.SIGTERM)
    signals.handle()
    try:
        threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGTERM)).start()
        with pytest.raises(signals.Terminated), signals.deferred():
            server.ask(metric(server.address, 0))
    finally:
        signal.signal(signal.SIGTERM, before)
        signal.signal(signal.SIGINT, signal.default_int_handler)
    with signals.deferred():
        # It was raised once, and is over
        pass


@pytest.mark.parametrize(
    ("error", "outage"),
    [
        (requests.ConnectionError("refused"), True),
        (requests.exceptions.SSLError("[SSL: CERTIFICATE_VERIFY_FAILED]"), False),
        (MlflowException("RESOURCE_DOES_NOT_EXIST"), False),
        (OSError("No space left on device"), False),
        (
            MlflowException(
                "The following failures occurred while downloading: API request to http://x failed with exception"
                " HTTPConnectionPool"
            ),
            True,
        ),
    ],
)
def test_what_counts_as_an_outage(error: Exception, outage: bool) -> None:
    assert is_outage(error) is outage


def test_a_run_whose_making_was_not_confirmed_is_made_once(composed, tmp_path: Path) -> None:
    class Unconfirmed(mlflow.MlflowClient):
        lost = 1

        def create_run(self, *arguments, **named):
            run = super().create_run(*arguments, **named)
            if self.lost:
                self.lost -= 1
                raise requests.ConnectionError("Remote end closed connection without response")
            return run

    tracking = composed().tracking
    client, experiment = tracking.connect()
    doubtful = _Client(Unconfirmed(tracking.uri), tracking.reached, patient("a store that loses answers"))
    run = begin(doubtful, experiment, RunOrigin("seed: 0\n", (), "an attempt", tmp_path), None)
    assert [found.info.run_id for found in client.search_runs([experiment])] == [run.info.run_id]


def test_passwords_are_nowhere_to_be_read(composed, tmp_path: Path) -> None:
    uri = "https://me:pa55word@lab.example:8443/mlflow"
    assert masked(f"tracking:\n  uri: {uri}\n") == "tracking:\n  uri: https://me:***@lab.example:8443/mlflow\n"
    assert (
        masked("sqlite:////data/a@b.db http://127.0.0.1:5000 https://me@lab")
        == "sqlite:////data/a@b.db http://127.0.0.1:5000 https://me@lab"
    )
    tracking = composed().tracking
    client, _ = tracking.connect()
    composition = RunOrigin(
        f"tracking:\n  uri: {uri}\n", (f"tracking.uri={uri}",), f"miniature frozen tracking.uri={uri}", tmp_path
    )
    with tracking.open(composition) as tracker:
        tracker.parameters({"tracking.uri": uri})
    run = client.get_run(tracker.run_id)
    files = [
        Path(client.download_artifacts(tracker.run_id, place, str(tmp_path)))
        for place in ("config/config.yaml", "config/overrides.txt")
    ]
    written = [str(run.to_dictionary()), *(file.read_text() for file in files)]
    assert [("pa55word" in text, "me:***@lab.example:8443/mlflow" in text) for text in written] == [(False, True)] * 3


def test_a_server_s_password_is_not_in_what_goes_wrong(composed, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        # So that it is taken away afterwards
        monkeypatch.setenv(name, "before")
    uri = nowhere()
    tracking = composed(f"tracking.uri={uri.replace('//', '//me:pa%2Fss@')}", "tracking.patience_minutes=0").tracking
    with pytest.raises(UserError, match=f"The tracking server at {uri} does not answer") as refused:
        tracking.connect()
    assert "pa%2Fss" not in str(refused.value)
    assert (os.environ["MLFLOW_TRACKING_USERNAME"], os.environ["MLFLOW_TRACKING_PASSWORD"]) == ("me", "pa/ss")


def test_jobs_that_make_an_experiment_at_once(composed, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each sees that it is not there, and one makes it."""
    tracking = composed("tracking.experiment=new").tracking
    client, made = tracking.connect()
    seen = iter([None, made])
    monkeypatch.setattr(Mlflow, "_look", lambda self: (client, next(seen)))
    assert tracking.connect()[1] == made
    assert list(seen) == []


def test_what_was_refused_ends_a_run_as_failed(composed, tmp_path: Path) -> None:
    tracking = composed().tracking
    local, experiment = tracking.connect()
    client = _Client(mlflow.MlflowClient(tracking.uri), tracking.reached, patient("a store that refuses"))
    run = begin(client, experiment, RunOrigin("seed: 0\n", (), "an attempt", tmp_path), None)
    with pytest.raises(UserError, match="cannot be used"), ended(client, run.info.run_id):
        client.kept.log_param(run.info.run_id, "overrides", "MLflow refuses to change one")
    assert local.get_run(run.info.run_id).info.status == "FAILED"
