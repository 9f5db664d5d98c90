"""The command that compares two runs, on what was really recorded."""

import csv
import io
from pathlib import Path

import numpy as np
import pytest

from dogbreeds.compare import Wanted
from dogbreeds.core.errors import UserError
from dogbreeds.evaluation.results import Predictions
from dogbreeds.tracking.records import RunOrigin, short

WANTED = {
    "first": "best",
    "second": "latest",
    "split": None,
    "alpha": 0.05,
    "breeds": 10,
    "ui": "http://x",
    "format": "text",
    "output": None,
}


def test_recorded_predictions_know_the_breeds_names_and_older_ones_can_be_read(composed, tmp_path: Path) -> None:
    tracking = composed().tracking
    client, experiment = tracking.connect()
    said = Predictions(["a", "b"], np.array([0, 1]), np.array([[2.0, 1.0], [0.5, 0.0]]), ("Große Dogge", "beagle"))
    with tracking.open(RunOrigin("seed: 0\n", (), "an attempt", tmp_path)) as tracker:
        tracker.predictions("val", said)
    found = tracking.predictions(tracker.run_id)["val"]
    assert (found.ids, found.class_names) == (["a", "b"], ("Große Dogge", "beagle"))
    assert found.logits.tolist() == said.logits.tolist()
    assert tracking.record(tracker.run_id).experiment_id == experiment
    # As before names were recorded
    np.savez_compressed(tmp_path / "val.npz", ids=np.array(["a"]), labels=np.array([1]), logits=np.eye(2)[[1]])
    client.log_artifact(tracker.run_id, str(tmp_path / "val.npz"), "predictions")
    assert tracking.predictions(tracker.run_id)["val"].class_names == ()


def test_an_id_without_letters_is_one_all_the_same() -> None:
    assert Wanted(**WANTED | {"first": 12345678}).first == "12345678"
    with pytest.raises(
        UserError, match=r"alpha was 1\. It must be a finite number above 0 and below 1\. Type alpha=0.01"
    ):
        Wanted(**WANTED | {"alpha": 1})


@pytest.mark.slow
def test_two_runs_are_compared_as_a_user_does(command, tmp_path: Path) -> None:
    nothing = command("compare", "first=latest", "second=latest")
    assert nothing.returncode == 1
    assert (
        "has no finished attempt. first=latest is one of those. Type python -m dogbreeds.train first." in nothing.stderr
    )
    small = [
        "data.train_per_breed=6",
        "data.val_per_breed=4",
        "data.test_per_breed=5",
        "phase.epochs=6",
        "tracking.system_metrics_seconds=0",
    ]
    trained = command("train", "--multirun", *small, "data.breeds=20,10", "optimizer.lr=1e-5,1e-3")
    assert trained.returncode == 0, trained.stderr
    rows = list(csv.DictReader(io.StringIO(command("table", "runs=all", "format=csv").stdout)))
    # The newest first
    fewer, _, learned, untrained = (row["runs"] for row in rows if row["runs"])

    shown = command("compare", f"first={untrained}", f"second={learned}")
    assert shown.returncode == 0, shown.stderr
    assert "On the 100 photos of test." in shown.stdout
    assert "The second is better than the first, at the level of 0.01." in shown.stdout
    lines = [line.strip() for line in shown.stdout.splitlines()]
    row = lines.index("optimizer.lr  1e-05  0.001")
    # Nothing else was set differently
    assert (set(lines[row - 1]), lines[row + 1]) == ({"─"}, "")
    assert "Traceback" not in shown.stderr

    breeds = list(
        csv.DictReader(
            io.StringIO(command("compare", f"first={untrained}", f"second={learned}", "split=val", "format=csv").stdout)
        )
    )
    assert len(breeds) == 20
    assert {row["n"] for row in breeds} == {"4"}
    # The names that were recorded, not numbers of classes
    assert all(row["breed"].split("-")[0].isdigit() for row in breeds)
    changes = [int(row["second_right"]) - int(row["first_right"]) for row in breeds]
    assert changes == [int(row["gained"]) - int(row["lost"]) for row in breeds]
    assert [abs(change) for change in changes] == sorted(map(abs, changes), reverse=True)

    itself = command("compare", "first=latest", f"second={fewer}", "format=markdown")
    assert "**The first and the second are the same run: there is no difference.**" in itself.stdout
    page = command("compare", f"first={untrained}", f"second={learned}", "format=html")
    assert page.stdout.strip() == str(tmp_path / "home/multirun/compare.html")
    assert "The second is better than the first" in Path(page.stdout.strip()).read_text()

    for arguments, said in (
        (
            [],
            (
                "first was not given. Two attempts are compared, each latest, best or the beginning of its run's id;"
                f" the newest runs are {short(fewer)}"
            ),
        ),
        ([f"first={fewer}", f"second={learned}"], "first has 10 breeds and second 20. Both must know the same."),
        (["first=latest", "second=latest", "output=/proc/none/x"], "cannot be written"),
        (["first=latest", "secnd=latest"], "secnd is not a setting. Near it there are first, second"),
    ):
        refused = command("compare", *arguments)
        assert (refused.returncode, refused.stdout) == (1, "")
        assert said in refused.stderr
