"""Logged models, asked through MLflow's scoring route: as a user asks, without parameters, and with bad requests."""

import ast
import asyncio
import io
import json
import shutil
import sys
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import dogbreeds
from dogbreeds.core.errors import UserError
from dogbreeds.inference import exporter
from dogbreeds.tracking import logged_model
from dogbreeds.tracking.logged_model import SERVED_MODEL, SHIPPED_MODULES, ServingLimits
from dogbreeds.tracking.mlflow_backend import Mlflow
from dogbreeds.tracking.records import Record
from tests.tiny_network import class_names, save_tiny

PACKAGE = Path(dogbreeds.__file__).parent
LIMITS = ServingLimits(max_images=4, max_megapixels=1)


def jpeg(*colour: int) -> bytes:
    encoded = io.BytesIO()
    Image.fromarray(np.zeros((20, 30, 3), np.uint8) + np.uint8(colour)).save(encoded, "JPEG")
    return encoded.getvalue()


RED, GREEN = jpeg(200, 20, 10), jpeg(10, 150, 20)
Log = Callable[..., str]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, composed_in, shared_cache: Path) -> tuple[Mlflow, Record]:
    """A store of MLflow with a finished run."""
    tracking = composed_in(tmp_path_factory.mktemp("store"), shared_cache)().tracking
    client, experiment_id = tracking.connect()
    run_id = client.create_run(experiment_id).info.run_id
    client.set_terminated(run_id)
    return tracking, tracking.record(run_id)


@pytest.fixture(scope="module")
def log(store: tuple[Mlflow, Record], tmp_path_factory: pytest.TempPathFactory) -> Log:
    """A function that logs a tiny network of some classes, unless it is logged already, and returns the model's id."""
    folder = tmp_path_factory.mktemp("networks")

    def log_tiny(classes: int, limits: ServingLimits = LIMITS) -> str:
        network = folder / f"{classes}.keras"
        if not network.exists():
            save_tiny(network, classes)
        return logged_model.log_model(*store, network, RED, classes, limits)

    return log_tiny


@pytest.mark.parametrize("classes", [2, 3, 120])
def test_logged_model_answers_a_request_without_parameters(
    store: tuple[Mlflow, Record], log: Log, tmp_path: Path, classes: int
) -> None:
    path = list(sys.path)
    answers = logged_model.ask(*store, log(classes), [RED, GREEN])
    assert sys.path == path
    assert [len(answer["probabilities"]) for answer in answers] == [min(5, classes)] * 2
    trained = save_tiny(tmp_path / "again.keras", classes)
    for encoded, answer in zip((RED, GREEN), answers, strict=True):
        exporter.check_served(trained, encoded, answer)
    assert answers[0]["probability"] != pytest.approx(answers[1]["probability"], abs=1e-2)
    another = save_tiny(tmp_path / "other.keras", classes, seed=1)
    with pytest.raises(UserError, match=r"^The served model does not match .*0\.0001 is allowed"):
        exporter.check_served(another, RED, answers[0])


def test_logged_model_is_logged_once_for_each_network_and_limits(log: Log) -> None:
    first = log(3)
    assert log(3) == first
    assert log(3, ServingLimits(max_images=5, max_megapixels=1)) != first


@pytest.fixture(scope="module")
def post(store: tuple[Mlflow, Record], log: Log) -> Callable[[dict], tuple[int, dict]]:
    """A function from the body of a request to the HTTP status and the answer of MLflow's server."""
    import mlflow
    from mlflow.pyfunc import scoring_server

    path = sys.path
    model = mlflow.pyfunc.load_model(f"models:/{log(3)}")
    sys.path = path
    app = scoring_server.init(model)
    return lambda body: asyncio.run(invoke(app, json.dumps(body).encode()))


async def invoke(app: Callable, body: bytes) -> tuple[int, dict]:
    """Send a request to MLflow's server, as its HTTP server does, without a socket."""
    sent: list[dict] = []

    async def receive() -> dict:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: dict) -> None:
        sent.append(message)

    headers = [(b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": "/invocations", "headers": headers, "query_string": b""}
    await app(scope, receive, send)
    return sent[0]["status"], json.loads(b"".join(message.get("body", b"") for message in sent))


def records(*images: object, column: str = "image") -> dict:
    cells = [b64encode(image).decode() if isinstance(image, bytes) else image for image in images]
    return {"dataframe_records": [{column: cell} for cell in cells]}


def test_two_images_in_one_request_are_answered_in_order(post: Callable[[dict], tuple[int, dict]]) -> None:
    status, body = post(records(RED, GREEN))
    assert status == 200
    first, second = body["predictions"]
    assert first.keys() == second.keys() == {"class", "probability", "probabilities"}
    # The order within a batch changes the last digits.
    for prediction, earlier in zip(post(records(GREEN, RED))[1]["predictions"], (second, first), strict=True):
        assert prediction["class"] == earlier["class"]
        assert prediction["probabilities"] == pytest.approx(earlier["probabilities"], abs=1e-4)
    assert first["class"] != second["class"]
    assert first["probabilities"].keys() == set(class_names(3))


@pytest.mark.parametrize(
    ("body", "facts"),
    [
        # The form that version 0.1.0 took.
        (records(RED, column="photo"), ("missing inputs ['image']", "extra inputs: ['photo']")),
        (
            {"dataframe_split": {"columns": ["photo"], "data": [[b64encode(RED).decode()]]}},
            ("missing inputs ['image']", "extra inputs: ['photo']"),
        ),
        (records(*[RED] * 5), ("The request has 5 images. At most 4 are allowed",)),
        (records(RED, b"GIF89a nothing"), ("Image 2 of 2 cannot be read",)),
        (records(RED) | {"params": {"top": 4}}, ("params.top was 4. ", "from 1 to 3")),
        (records(RED, None), ("column image",)),
        (records(7), ("column image",)),
        (records("not base64!"), ("column image", "base64")),
        (records(""), ("Image 1 of 1 cannot be read",)),
        ({"dataframe_records": []}, ("missing inputs ['image']",)),
        ({}, ("dataframe_records",)),
    ],
)
def test_a_bad_request_gets_400_and_a_reason(
    post: Callable[[dict], tuple[int, dict]], body: dict, facts: tuple[str, ...]
) -> None:
    status, answer = post(body)
    assert status == 400
    assert all(fact in answer["message"] for fact in facts), answer["message"]
    assert "stack_trace" not in answer


def test_a_limit_is_set_by_the_server_s_environment(
    store: tuple[Mlflow, Record], log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_PYFUNC_INFERENCE_CONFIG", json.dumps({"max_images": 1}))
    with pytest.raises(UserError, match=r"The request has 2 images\. At most 1 are allowed"):
        logged_model.ask(*store, log(3), [RED, GREEN])
    assert len(logged_model.ask(*store, log(3), [RED])) == 1


def test_a_logged_network_that_was_replaced_does_not_answer(
    store: tuple[Mlflow, Record], log: Log, tmp_path: Path
) -> None:
    tracking, record = store
    model_id = log(3, ServingLimits(max_images=6, max_megapixels=1))
    location = Path(tracking.connect()[0].get_logged_model(model_id).artifact_location.removeprefix("file://"))
    (network,) = location.glob("artifacts/*.keras")
    save_tiny(tmp_path / "other.keras", classes=3, seed=1)
    shutil.copy(tmp_path / "other.keras", network)
    with pytest.raises(UserError) as error:
        logged_model.ask(tracking, record, model_id, [RED])
    assert "is not the network that was logged. " in str(error.value)
    assert model_id in str(error.value)


def imports(module: str) -> set[str]:
    """Return the modules of the package that a module imports when it runs, as paths."""
    tree = ast.parse((PACKAGE / module).read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            node.body = []
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dogbreeds"):
            for name in [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]:
                file = "/".join(name.split(".")[1:]) + ".py"
                found |= {file} if (PACKAGE / file).is_file() else set()
    return found


def test_all_modules_that_the_served_model_imports_are_logged_with_it() -> None:
    needed = set()
    pending = [SERVED_MODEL]
    while pending:
        new = imports(pending.pop()) - needed
        needed |= new
        pending += new
    assert needed == set(SHIPPED_MODULES)
