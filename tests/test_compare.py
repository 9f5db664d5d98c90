"""The command `compare`, on runs that are recorded by training."""

import csv
import io
from pathlib import Path

import numpy as np
import pytest

from dogbreeds.compare import Settings
from dogbreeds.core.errors import UserError
from dogbreeds.evaluation.results import Predictions
from dogbreeds.tracking.records import RunOrigin, short

SETTINGS = {
    "first": "best",
    "second": "latest",
    "split": None,
    "alpha": 0.05,
    "classes": 10,
    "ui": "http://x",
    "format": "text",
    "output": None,
}


def test_recorded_predictions_have_class_names_and_older_ones_without_can_be_read(composed, tmp_path: Path) -> None:
    tracking = composed().tracking
    client, experiment = tracking.connect()
    predictions = Predictions(
        ["a", "b"], np.array([0, 1]), np.array([[2.0, 1.0], [0.5, 0.0]]), ("Große Dogge", "beagle")
    )
    with tracking.open(RunOrigin("seed: 0\n", (), "an attempt", tmp_path)) as tracker:
        tracker.predictions("val", predictions)
    loaded = tracking.predictions(tracker.run_id)["val"]
    assert (loaded.ids, loaded.class_names) == (["a", "b"], ("Große Dogge", "beagle"))
    assert loaded.logits.tolist() == predictions.logits.tolist()
    assert tracking.record(tracker.run_id).experiment_id == experiment
    # An earlier version recorded no class names.
    np.savez_compressed(tmp_path / "val.npz", ids=np.array(["a"]), labels=np.array([1]), logits=np.eye(2)[[1]])
    client.log_artifact(tracker.run_id, str(tmp_path / "val.npz"), "predictions")
    assert tracking.predictions(tracker.run_id)["val"].class_names == ()


def test_settings_accept_a_run_id_of_digits_only_and_reject_alpha_1() -> None:
    assert Settings(**SETTINGS | {"first": 12345678}).first == "12345678"
    with pytest.raises(
        UserError, match=r"alpha was 1\. It must be a finite number above 0 and below 1\. Type alpha=0.01"
    ):
        Settings(**SETTINGS | {"alpha": 1})


@pytest.mark.slow
def test_compare_command_on_recorded_runs(command, tmp_path: Path) -> None:
    nothing = command("compare", "first=latest", "second=latest")
    assert nothing.returncode == 1
    assert "has no finished run. first=latest needs one" in nothing.stderr
    assert "Type python -m dogbreeds.train first." in nothing.stderr
    small = [
        "data.train_per_class=6",
        "data.val_per_class=4",
        "data.test_per_class=5",
        "phase.epochs=6",
        "preflight=none",
        "tracking.system_metrics_seconds=0",
    ]
    trained = command("train", "--multirun", *small, "data.classes=20,10", "optimizer.lr=1e-5,1e-3")
    assert trained.returncode == 0, trained.stderr
    rows = list(csv.DictReader(io.StringIO(command("table", "runs=all", "format=csv").stdout)))
    # Newest first.
    fewer, _, learned, untrained = (row["runs"] for row in rows if row["runs"])

    compared = command("compare", f"first={untrained}", f"second={learned}")
    assert compared.returncode == 0, compared.stderr
    assert "On the 100 images of test." in compared.stdout
    conclusion = f"Compared with run {short(untrained)}, run {short(learned)} is better at significance level 0.01."
    assert conclusion in compared.stdout
    lines = [line.strip() for line in compared.stdout.splitlines()]
    row = lines.index("optimizer.lr  1e-05  0.001")
    # No other setting differs.
    assert (set(lines[row - 1]), lines[row + 1]) == ({"─"}, "")
    assert "Traceback" not in compared.stderr

    classes = list(
        csv.DictReader(
            io.StringIO(command("compare", f"first={untrained}", f"second={learned}", "split=val", "format=csv").stdout)
        )
    )
    assert len(classes) == 20
    assert {row["n"] for row in classes} == {"4"}
    # The recorded class names, not class indices.
    assert all(row["class"].split("-")[0].isdigit() for row in classes)
    changes = [int(row["second_right"]) - int(row["first_right"]) for row in classes]
    assert changes == [int(row["gained"]) - int(row["lost"]) for row in classes]
    assert [abs(change) for change in changes] == sorted(map(abs, changes), reverse=True)

    itself = command("compare", "first=latest", f"second={fewer}", "format=markdown")
    assert f"**first and second are the same run ({short(fewer)}): there is no difference.**" in itself.stdout
    page = command("compare", f"first={untrained}", f"second={learned}", "format=html")
    assert page.stdout.strip() == str(tmp_path / "home/multirun/compare.html")
    assert conclusion in Path(page.stdout.strip()).read_text()

    for arguments, message in (
        (
            [],
            (
                "first was not set. It must be latest, best or the beginning of a run's id; the newest runs are"
                f" {short(fewer)}"
            ),
        ),
        (
            [f"first={fewer}", f"second={learned}"],
            "first has 10 classes and second 20. Both must have the same classes.",
        ),
        (["first=latest", "second=latest", "output=/proc/none/x"], "cannot be written"),
        (["first=latest", "secnd=latest"], "secnd is not a setting. Similar settings are first, second"),
    ):
        refused = command("compare", *arguments)
        assert (refused.returncode, refused.stdout) == (1, "")
        assert message in refused.stderr
