"""Delivery to a tracking server that is away: MLflow's own client, on loopback, and a server with a settable status."""

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
from dogbreeds.core.text import mask_passwords
from dogbreeds.tracking.client import Client
from dogbreeds.tracking.delivery import DeliveryQueue, is_outage
from dogbreeds.tracking.lifecycle import end_run_on_exit, start_run
from dogbreeds.tracking.mlflow_backend import Mlflow
from dogbreeds.tracking.records import RunOrigin


class FakeServer(http.server.ThreadingHTTPServer):
    """HTTP server that answers each request with a settable status.

    Attributes:
        status: HTTP status of the answers.
        accepted: bodies of the requests that were answered with 200.
        requests: number of all requests.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.status = 200
        self.accepted = []
        self.requests = 0
        self.uri = f"http://127.0.0.1:{self.server_port}"


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests += 1
        status = self.server.status
        if status == 200:
            self.server.accepted.append(body)
        answer = b"{}" if status == 200 else b'{"error_code": "PERMISSION_DENIED", "message": "not yours"}'
        self.send_response(status)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(autouse=True)
def no_retries_by_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    # As the package sets it for a store with a server.
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


@pytest.fixture
def fake_server() -> Iterator[FakeServer]:
    server = FakeServer()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


def unused_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


def log_metric_call(uri: str, step: int):
    client = mlflow.MlflowClient(uri)
    return lambda: client.log_batch("r", metrics=[Metric("loss", 0.5, 1000, step)])


def waiting_queue(uri: str) -> DeliveryQueue:
    delivery_queue = DeliveryQueue(uri)
    delivery_queue.patience_seconds = 60.0
    delivery_queue.wait_enabled = True
    return delivery_queue


def test_queue_delivers_submitted_calls_once_and_in_order_after_an_outage(
    fake_server: FakeServer, caplog: pytest.LogCaptureFixture
) -> None:
    delivery_queue = waiting_queue(fake_server.uri)
    fake_server.status = 503
    futures = [delivery_queue.submit(log_metric_call(fake_server.uri, step)) for step in range(5)]
    # An outage of three seconds: the queue retries once a second.
    while fake_server.requests < 4:
        time.sleep(0.05)
    assert not any(future.done() for future in futures)
    fake_server.status = 200
    delivery_queue.submit_and_wait(lambda: None)
    assert [body["metrics"][0]["step"] for body in fake_server.accepted] == [0, 1, 2, 3, 4]
    assert {body["metrics"][0]["timestamp"] for body in fake_server.accepted} == {1000}
    outage, recovery = caplog.messages
    assert outage.startswith(
        f"the tracking server at {fake_server.uri} does not answer (too many 503 error responses): metrics are queued"
    )
    assert outage.endswith("wait up to 1 minutes")
    assert recovery.startswith(f"the tracking server at {fake_server.uri} answers again, after ")


@pytest.mark.slow
def test_client_sends_metrics_in_batches_of_1000_after_an_outage(fake_server: FakeServer) -> None:
    delivery_queue = waiting_queue(fake_server.uri)
    client = Client(mlflow.MlflowClient(fake_server.uri), contextlib.nullcontext, delivery_queue)
    fake_server.status = 503
    for step in range(1500):
        client.queue_metrics("r", [Metric("loss", step / 2, 1000, step), Metric("accuracy", step / 3, 1000, step)])
    while fake_server.requests < 2:
        time.sleep(0.05)
    fake_server.status = 200
    client.flush()
    assert [len(body["metrics"]) for body in fake_server.accepted] == [1000, 1000, 1000]
    sent = [(point["key"], point["step"], point["value"]) for body in fake_server.accepted for point in body["metrics"]]
    assert sent == [(name, step, step / part) for step in range(1500) for name, part in (("loss", 2), ("accuracy", 3))]


def test_queue_raises_a_refusal_without_a_retry(fake_server: FakeServer) -> None:
    delivery_queue = waiting_queue(fake_server.uri)
    fake_server.status = 403
    with pytest.raises(MlflowException, match="not yours"):
        delivery_queue.submit_and_wait(log_metric_call(fake_server.uri, 0))
    assert fake_server.requests == 1


def test_queue_does_not_wait_for_a_server_that_never_answered_unless_waiting_is_enabled(
    caplog: pytest.LogCaptureFixture,
) -> None:
    uri = unused_address()
    delivery_queue = DeliveryQueue(uri)
    delivery_queue.patience_seconds = 600.0
    with pytest.raises(UserError) as refused:
        delivery_queue.submit_and_wait(log_metric_call(uri, 0))
    assert str(refused.value).startswith(
        f"The tracking server at {uri} does not answer ([Errno 111] Connection refused). tracking.uri must be "
    )
    assert caplog.messages == []


def test_queue_does_not_wait_again_after_a_timeout_until_the_server_answers(fake_server: FakeServer) -> None:
    delivery_queue = waiting_queue(fake_server.uri)
    delivery_queue.patience_seconds = 1.5
    fake_server.status = 500
    with pytest.raises(
        UserError, match=r"does not answer \(too many 500 error responses; waited 0\.025 minutes\)\. tracking\.uri "
    ):
        delivery_queue.submit_and_wait(log_metric_call(fake_server.uri, 0))
    delivery_queue.patience_seconds = 600.0
    with pytest.raises(UserError):
        delivery_queue.submit_and_wait(log_metric_call(fake_server.uri, 1))
    fake_server.status = 200
    delivery_queue.submit(log_metric_call(fake_server.uri, 2)).result(timeout=30)
    # Calls whose wait timed out are not sent later.
    assert [body["metrics"][0]["step"] for body in fake_server.accepted] == [2]


def test_a_signal_ends_a_wait_inside_a_deferred_block(caplog: pytest.LogCaptureFixture) -> None:
    delivery_queue = waiting_queue(unused_address())
    handler = signal.getsignal(signal.SIGTERM)
    signals.install_handlers()
    try:
        threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGTERM)).start()
        with pytest.raises(signals.Terminated), signals.deferred():
            delivery_queue.submit_and_wait(log_metric_call(delivery_queue.address, 0))
    finally:
        signal.signal(signal.SIGTERM, handler)
        signal.signal(signal.SIGINT, signal.default_int_handler)
    with signals.deferred():
        # The signal was raised above and is not raised again.
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
def test_is_outage_tells_outages_from_refusals(error: Exception, outage: bool) -> None:
    assert is_outage(error) is outage


def test_start_run_creates_one_run_if_the_answer_is_lost(composed, tmp_path: Path) -> None:
    class LosesFirstAnswer(mlflow.MlflowClient):
        answers_to_lose = 1

        def create_run(self, *arguments, **named):
            run = super().create_run(*arguments, **named)
            if self.answers_to_lose:
                self.answers_to_lose -= 1
                raise requests.ConnectionError("Remote end closed connection without response")
            return run

    tracking = composed().tracking
    client, experiment = tracking.connect()
    losing = Client(LosesFirstAnswer(tracking.uri), tracking.user_errors, waiting_queue("a store that loses answers"))
    run = start_run(losing, experiment, RunOrigin("seed: 0\n", (), "an attempt", tmp_path), None)
    assert [found.info.run_id for found in client.search_runs([experiment])] == [run.info.run_id]


def test_passwords_are_masked_in_all_that_is_recorded(composed, tmp_path: Path) -> None:
    uri = "https://me:pa55word@lab.example:8443/mlflow"
    assert mask_passwords(f"tracking:\n  uri: {uri}\n") == "tracking:\n  uri: https://me:***@lab.example:8443/mlflow\n"
    assert (
        mask_passwords("sqlite:////data/a@b.db http://127.0.0.1:5000 https://me@lab")
        == "sqlite:////data/a@b.db http://127.0.0.1:5000 https://me@lab"
    )
    tracking = composed().tracking
    client, _ = tracking.connect()
    origin = RunOrigin(
        f"tracking:\n  uri: {uri}\n", (f"tracking.uri={uri}",), f"miniature frozen tracking.uri={uri}", tmp_path
    )
    with tracking.open(origin) as tracker:
        tracker.parameters({"tracking.uri": uri})
    run = client.get_run(tracker.run_id)
    files = [
        Path(client.download_artifacts(tracker.run_id, artifact_path, str(tmp_path)))
        for artifact_path in ("config/config.yaml", "config/overrides.txt")
    ]
    written = [str(run.to_dictionary()), *(file.read_text() for file in files)]
    assert [("pa55word" in text, "me:***@lab.example:8443/mlflow" in text) for text in written] == [(False, True)] * 3


def test_connect_passes_the_password_by_environment_and_leaves_it_out_of_errors(
    composed, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        # Set here, so that pytest restores them after the test.
        monkeypatch.setenv(name, "before")
    uri = unused_address()
    tracking = composed(f"tracking.uri={uri.replace('//', '//me:pa%2Fss@')}", "tracking.patience_minutes=0").tracking
    with pytest.raises(UserError, match=f"The tracking server at {uri} does not answer") as refused:
        tracking.connect()
    assert "pa%2Fss" not in str(refused.value)
    assert (os.environ["MLFLOW_TRACKING_USERNAME"], os.environ["MLFLOW_TRACKING_PASSWORD"]) == ("me", "pa/ss")


def test_connect_uses_the_experiment_that_another_job_creates_meanwhile(
    composed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both jobs find no experiment, and one creates it."""
    tracking = composed("tracking.experiment=new").tracking
    client, experiment = tracking.connect()
    found = iter([None, experiment])
    monkeypatch.setattr(Mlflow, "_find_experiment", lambda self: (client, next(found)))
    assert tracking.connect()[1] == experiment
    assert list(found) == []


def test_a_refused_background_call_ends_the_run_as_failed(composed, tmp_path: Path) -> None:
    tracking = composed().tracking
    local, experiment = tracking.connect()
    client = Client(mlflow.MlflowClient(tracking.uri), tracking.user_errors, waiting_queue("a store that refuses"))
    run = start_run(client, experiment, RunOrigin("seed: 0\n", (), "an attempt", tmp_path), None)
    with pytest.raises(UserError, match="cannot be used"), end_run_on_exit(client, run.info.run_id):
        client.background.log_param(run.info.run_id, "overrides", "MLflow refuses to change one")
    assert local.get_run(run.info.run_id).info.status == "FAILED"
