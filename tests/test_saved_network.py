"""Identity of a run's saved network: swapped files are refused wherever a network is opened, old runs are not."""

import logging
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from dogbreeds.core.errors import UserError
from dogbreeds.core.text import digest_file
from dogbreeds.evaluation.results import Predictions
from dogbreeds.experiments import network_export
from dogbreeds.experiments.network_evaluation import evaluate_network
from dogbreeds.experiments.recorded_runs import Only, open_dataset, open_network
from dogbreeds.inference.classifier import Classifier
from dogbreeds.inference.evaluation_set import EvaluationSet
from dogbreeds.models.precision import probability_tolerance
from dogbreeds.tracking import saved_network
from dogbreeds.tracking.mlflow_backend import Mlflow
from dogbreeds.tracking.records import HEAD_WEIGHTS, Record, RunOrigin, short
from dogbreeds.tracking.saved_network import check_class_count, check_predictions
from tests.tiny_network import SIZE, class_names, save_tiny, tiny_network

ANY = Only(model=None, data=None)
IDS = tuple(f"test/{number}" for number in range(6))
IMAGES = np.random.default_rng(0).integers(0, 256, size=(6, 1, 1, 3)).astype(np.uint8) + np.zeros(
    (6, SIZE, SIZE, 3), np.uint8
)


@pytest.fixture
def tracking(composed) -> Mlflow:
    return composed("tracking.system_metrics_seconds=0").tracking


def record_run(tracking: Mlflow, folder: Path, classes: int = 3, seed: int = 0) -> str:
    """Record a finished run with a tiny network and its predictions; return its id."""
    network = tiny_network(classes, seed)
    logits = network.head(network.prefix.graph(IMAGES.astype(np.float32))).numpy()
    with tracking.open(RunOrigin("seed: 0\n", (), "tiny", folder)) as tracker:
        tracker.parameters({"data.classes": classes, "data.name": "drawn", "model.architecture": "Tiny"})
        tracker.predictions("test", Predictions(IDS, np.zeros(6, int), logits, class_names(classes)))
        tracker.tags({"verdict": "learned"})
        tracker.model(lambda: network.full_model(class_names(classes), "stretch"), accuracy=0.5, tolerance=1e-4)
        tracker.head(network.head)
    return tracker.run_id


def artifact(tracking: Mlflow, run_id: str, path: str = "model/model.keras") -> Path:
    client = tracking.connect()[0]
    return Path(client.get_run(run_id).info.artifact_uri.removeprefix("file://")) / path


def forget(tracking: Mlflow, run_id: str) -> None:
    """Make a run one of a version that recorded no digests."""
    for tag in ("model.digest", "model.tolerance", "head.digest"):
        tracking.connect()[0].delete_tag(run_id, tag)


def opened(tracking: Mlflow, run_id: str) -> tuple[Record, Classifier]:
    with open_network(tracking, run_id, ANY) as (record, classifier, _):
        assert record is not None
        return record, classifier


def test_a_run_s_own_network_is_opened_without_a_note(
    tracking: Mlflow, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    run_id = record_run(tracking, tmp_path)
    record, classifier = opened(tracking, run_id)
    assert record.tags["model.digest"] == digest_file(artifact(tracking, run_id))
    assert record.tags["head.digest"] == digest_file(artifact(tracking, run_id, HEAD_WEIGHTS))
    assert record.tags["model.tolerance"] == "0.0001"
    assert classifier.class_names == class_names(3)
    assert not any("digest" in message for message in caplog.messages)


def test_a_swapped_network_is_refused_by_its_digest(tracking: Mlflow, tmp_path: Path) -> None:
    run_id, other = record_run(tracking, tmp_path), record_run(tracking, tmp_path, seed=1)
    shutil.copy(artifact(tracking, other), artifact(tracking, run_id))
    with pytest.raises(UserError) as error:
        opened(tracking, run_id)
    message = str(error.value)
    assert message.startswith(f"model/model.keras of run {short(run_id)} is not the file that the run saved: ")
    record = tracking.record(other)
    assert record.tags["model.digest"][:8] in message
    assert message.endswith("Restore the file, or name another run.")
    opened(tracking, other)


def test_a_network_without_a_digest_is_opened_with_one_line(
    tracking: Mlflow, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run_id = record_run(tracking, tmp_path)
    forget(tracking, run_id)
    caplog.set_level(logging.INFO)
    record, classifier = opened(tracking, run_id)
    assert [message for message in caplog.messages if "digest" in message] == [
        f"run {short(run_id)} has no digest of model/model.keras, as before version 0.2.0: the file is taken as it is"
    ]
    difference = check_predictions(
        record,
        tracking.predictions(run_id)["test"],
        classifier.class_names,
        IDS,
        classifier.logits(IMAGES),
        probability_tolerance(),
    )
    assert difference == pytest.approx(0, abs=1e-5)


def test_a_network_with_another_number_of_classes_is_refused_without_a_digest(tracking: Mlflow, tmp_path: Path) -> None:
    run_id = record_run(tracking, tmp_path)
    forget(tracking, run_id)
    save_tiny(artifact(tracking, run_id), classes=120)
    with pytest.raises(UserError) as error:
        opened(tracking, run_id)
    assert f"run {short(run_id)}" in str(error.value)
    assert "it has 120 classes, and the run has 3. " in str(error.value)


def images_of_test() -> EvaluationSet:
    return EvaluationSet("test", IDS, np.zeros(6, int), IMAGES, np.arange(6), "6 images")


def test_evaluate_stops_at_other_probabilities_than_were_recorded(tracking: Mlflow, tmp_path: Path) -> None:
    run_id = record_run(tracking, tmp_path)
    forget(tracking, run_id)
    save_tiny(artifact(tracking, run_id), classes=3, seed=1)
    record, classifier = opened(tracking, run_id)
    with pytest.raises(UserError) as error:
        evaluate_network(
            classifier,
            images_of_test(),
            record=record,
            file=artifact(tracking, run_id),
            run_predictions=tracking.predictions(run_id),
            views=1,
            seed=0,
        )
    message = str(error.value)
    assert message.startswith(f"The saved network of run {short(run_id)} is not the one that the run trained: ")
    assert "a probability differs by " in message
    assert "model/model.keras" in message


def test_export_stops_at_other_probabilities_than_were_recorded(
    tracking: Mlflow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = record_run(tracking, tmp_path)
    forget(tracking, run_id)
    images = {name: lambda pixels=pixels: pixels for name, pixels in zip(IDS[1::2], IMAGES[1::2], strict=True)}
    monkeypatch.setattr(network_export.sample, "sample_split", lambda split, count, skip: images)
    dataset = type("Opened", (), {"test": object(), "val": None})
    data = type("Data", (), {"on_corrupt": "stop"})
    monkeypatch.setattr(network_export, "open_dataset", lambda *arguments: (data, dataset))

    def check() -> list:
        record, classifier = opened(tracking, run_id)
        return network_export.sample_of_run(tracking, record, None, 3, classifier, tracking.predictions(run_id))

    assert check() == list(images.values())
    save_tiny(artifact(tracking, run_id), classes=3, seed=1)
    with pytest.raises(UserError, match=r"is not the one that the run trained: a probability differs by "):
        check()


RECORD = Record("a" * 32, "tiny", 0.0, "FINISHED", {"data.classes": "3"}, {}, {"model.tolerance": "0.0001"})
LOGITS = np.array([[2.0, 1.0, 0.0], [0.0, 1.0, 2.0]])
RECORDED = Predictions(["a", "b"], np.array([0, 2]), LOGITS, class_names(3))


def test_check_predictions_returns_the_largest_difference_of_the_same_images() -> None:
    arguments = (RECORD, RECORDED, class_names(3))
    assert check_predictions(*arguments, ["b", "a"], LOGITS[::-1], 1e-4) == 0
    assert check_predictions(*arguments, ["b"], np.array([[0, 1, 2.0001]]), 1e-4) == pytest.approx(2.2e-5, rel=0.1)
    # Images that the run did not record, and a run that recorded none.
    assert check_predictions(*arguments, ["a", "c"], LOGITS + 9, 1e-4) is None
    assert check_predictions(RECORD, None, class_names(3), ["a", "b"], LOGITS, 1e-4) is None


@pytest.mark.parametrize(
    ("recorded", "this_machine", "difference", "passes"),
    [
        ("0.0001", 1e-4, 9e-5, True),
        ("0.0001", 1e-4, 2e-4, False),
        # The run was computed in reduced precision, or the network is now.
        ("0.05", 1e-4, 2e-2, True),
        ("0.0001", 5e-2, 2e-2, True),
        ("0.05", 1e-4, 6e-2, False),
        # A run of an earlier version.
        (None, 1e-4, 2e-2, True),
        (None, 1e-4, 0.8, False),
        ("0.0001", 1e-4, np.nan, False),
    ],
)
def test_check_predictions_allows_what_was_recorded(
    recorded: str | None, this_machine: float, difference: float, passes: bool
) -> None:
    record = replace(RECORD, tags={"model.tolerance": recorded} if recorded else {})
    # Two classes at 0.5, of which one gains the difference.
    before = Predictions(["a"], np.array([0]), np.log([[0.1, 0.9, 1e-30]]), class_names(3))
    now = np.log([[0.1 + difference, 0.9 - difference, 1e-30]])
    arguments = (record, before, class_names(3), ["a"], now, this_machine)
    if passes:
        assert check_predictions(*arguments) == pytest.approx(difference)
        return
    with pytest.raises(UserError, match=r"^The saved network of run aaaaaaaa is not the one that the run trained: a"):
        check_predictions(*arguments)


def test_check_predictions_compares_class_names_and_their_number() -> None:
    with pytest.raises(UserError, match="it has the class wolf where the run has class 1"):
        check_predictions(RECORD, RECORDED, ("class 0", "wolf", "class 2"), ["a", "b"], LOGITS, 1e-4)
    with pytest.raises(UserError, match="it has 2 classes, and the run has 3"):
        check_predictions(RECORD, RECORDED, class_names(2), ["a", "b"], LOGITS[:, :2], 1e-4)
    check_class_count(replace(RECORD, params={}), class_names(7))


def test_probabilities_from_float16_features_may_differ_more() -> None:
    assert probability_tolerance() == 1e-4
    assert 1e-4 < probability_tolerance("float16") < 0.1


def test_a_fine_tune_refuses_a_parent_s_head_that_was_swapped(tracking: Mlflow, tmp_path: Path) -> None:
    client = tracking.connect()[0]
    run_id = record_run(tracking, tmp_path)
    for name, value in {"phase": "Frozen", "unfreeze": "Nothing", "seed": "0"}.items():
        client.log_param(run_id, name, value)
    client.log_metric(run_id, "best/val_accuracy", 0.5)
    found = tracking.find_parent(None, {"data.classes": 3}, 0, tmp_path)
    assert found.run_id == run_id
    tiny_network(3, seed=1).head.save_weights(artifact(tracking, run_id, HEAD_WEIGHTS))
    with pytest.raises(UserError, match=rf"^{HEAD_WEIGHTS} of run {short(run_id)} is not the file that the run saved"):
        tracking.find_parent(None, {"data.classes": 3}, 0, tmp_path)
    artifact(tracking, run_id, HEAD_WEIGHTS).unlink()
    with pytest.raises(UserError, match=rf"^The head of run {short(run_id)} cannot be downloaded .*{HEAD_WEIGHTS}"):
        tracking.find_parent(None, {"data.classes": 3}, 0, tmp_path)


@pytest.mark.parametrize("config", ["data: [", "", "seed: 1\n", "- 1", "data: ${oc.env:", "a: b: c", "\t- x", "\0"])
def test_a_damaged_recorded_config_is_a_user_s_error(config: str) -> None:
    tracking = SimpleNamespace(config=lambda run_id: config)
    with pytest.raises(UserError, match=r"^The config of run aaaaaaaa is damaged .*config/config\.yaml"):
        open_dataset(tracking, RECORD, None)


@pytest.mark.parametrize(("half", "smaller"), [(True, True), (False, False)])
def test_network_is_compressed_if_that_saves_space_and_is_the_same(tmp_path: Path, half: bool, smaller: bool) -> None:
    file, weights = tmp_path / "network.keras", np.random.default_rng(0).normal(size=100_000).astype(np.float32)
    content = (weights.astype(np.float16).astype(np.float32) if half else weights).tobytes()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("model.weights.h5", content)
        archive.writestr("config.json", "{}")
    before = file.stat().st_size
    saved_network._compress(file)
    assert (file.stat().st_size < 0.8 * before) == smaller
    with zipfile.ZipFile(file) as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == {
            "model.weights.h5": content,
            "config.json": b"{}",
        }
    assert [path.name for path in tmp_path.iterdir()] == ["network.keras"]
