"""The command `evaluate`, on a trained run: what it prints, writes and records."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dogbreeds.core.errors import UserError
from dogbreeds.data import drawn_dogs
from dogbreeds.evaluate import Settings
from dogbreeds.experiments.compose import build_spec, compose_config
from dogbreeds.tracking.records import short

BEGINNING = "or the beginning of one run's id; the newest are"
TRAINED = (
    "data.classes=12",
    "data.val_per_class=5",
    "data.test_per_class=8",
    "phase.epochs=4",
    "tracking.system_metrics_seconds=0",
)


def make_settings(**changes: object) -> Settings:
    return Settings(
        **{
            "run": "latest",
            "split": None,
            "images": None,
            "on_corrupt": "stop",
            "mistakes": 24,
            "seed": 0,
            "output": None,
        }
        | changes
    )


@pytest.mark.parametrize(
    ("changes", "received", "to_type"),
    [
        (
            {"images": "x", "split": "val"},
            "split=val and images=x were given. ",
            "Leave one out.",
        ),
        ({"run": "model.keras"}, "run=model.keras is a file", "Type images=path/to/images"),
        (
            {"split": "dev"},
            "split was 'dev'. It must be one of train, val, test, or null. ",
            "Type split=train, for example.",
        ),
        ({"mistakes": -1}, "mistakes was -1. ", "0 or more"),
    ],
)
def test_settings_refuse_what_cannot_be_evaluated(changes: dict[str, object], received: str, to_type: str) -> None:
    with pytest.raises(UserError, match=f"^{re.escape(received)}.*{re.escape(to_type)}"):
        make_settings(**changes)


def test_settings_accept_a_run_id_of_digits_only() -> None:
    assert make_settings(run=380).run == "380"


@pytest.mark.slow
def test_evaluate_measures_a_run_and_adds_the_report_to_it(
    command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = command("evaluate")
    assert nothing.returncode == 1
    assert "Experiment 'dogbreeds' has no finished run with a saved network. run=latest needs one" in nothing.stderr
    assert "Type python -m dogbreeds.train first" in nothing.stderr
    assert command("train", *TRAINED).returncode == 0

    done = command("evaluate", "tta.views=2")
    assert done.returncode == 0, done.stderr
    monkeypatch.setenv("DOGBREEDS_HOME", str(tmp_path / "home"))
    tracking = build_spec(compose_config("evaluate"), "tracking")
    (record,) = tracking.records()
    measured = record.metrics["test/accuracy"]
    assert record.metrics["evaluation/test/accuracy"] == measured
    assert record.metrics["evaluation/test/n"] == 96
    assert record.status == "FINISHED"
    low, high = (record.metrics[f"evaluation/test/accuracy_{end}"] for end in ("low", "high"))
    accuracy = next(line for line in done.stdout.splitlines() if line.startswith("accuracy "))
    assert accuracy.split() == [
        "accuracy",
        f"{100 * measured:.1f}",
        "%",
        f"{100 * low:.1f}–{100 * high:.1f}",
        "n",
        "=",
        "96",
    ]
    assert re.search(r"2 views of each image changes the accuracy by [+-]", done.stdout), done.stdout
    assert "reproduces the probabilities recorded during training to within" in done.stdout
    assert "fitted on 60 validation images" in done.stdout

    artifacts = Path(tracking.connect()[0].download_artifacts(record.run_id, "evaluation/test", str(tmp_path)))
    names = {
        "report.html",
        "confusion.png",
        "reliability.png",
        "mistakes.jpg",
        "classes.csv",
        "confusions.csv",
        "images.csv",
        "scores.json",
    }
    assert {file.name for file in artifacts.iterdir()} == names
    images = list(csv.DictReader((artifacts / "images.csv").open()))
    recorded = tracking.predictions(record.run_id)["test"]
    assert [row["image"] for row in images] == list(recorded.ids)
    predicted = [drawn_dogs.breed_name(index) for index in recorded.logits.argmax(axis=1)]
    assert [row["called"] for row in images] == predicted
    assert np.mean([row["called"] == row["class"] for row in images]) == pytest.approx(measured)
    classes = list(csv.DictReader((artifacts / "classes.csv").open()))
    assert sum(int(row["right"]) for row in classes) == round(96 * measured)
    assert json.loads((artifacts / "scores.json").read_text())["tta/views"] == 2
    page = (artifacts / "report.html").read_text()
    assert 'src="http' not in page and 'href="http' not in page
    assert page.count("<svg") == 2
    assert f"{100 * measured:.1f}&nbsp;%" in page

    own = tmp_path / "other photos"
    for label in range(3):
        folder = own / drawn_dogs.breed_name(label)
        folder.mkdir(parents=True)
        for number in range(4):
            Image.fromarray(drawn_dogs.draw("test", label, 50 + number)).resize((90, 70)).save(folder / f"{number}.png")
    network = tracking.download_network(record.run_id, tmp_path)
    alone = command("evaluate", f"run={network}", f"images='{own}'", "output=here", "tracking=none")
    assert alone.returncode == 0, alone.stderr
    assert "n = 12" in alone.stdout
    assert "Its training images are unknown" in alone.stdout
    assert (tmp_path / "here/report.html").is_file()
    (own / "wolf").mkdir()
    (own / "wolf/1.jpg").write_bytes(b"no photo")

    for arguments, *facts in (
        (
            ("run=ffffff",),
            (
                f"run=ffffff names no run of experiment 'dogbreeds'. It must be latest, best, {BEGINNING}"
                f" {short(record.run_id)}"
            ),
        ),
        (
            (f"images='{own}'",),
            (
                "wolf is a class that the network does not have. Classes of other photos must be among those of the"
                " network."
            ),
        ),
        (
            (f"images='{own / 'wolf'}'",),
            "has no class folders. It must contain <class>/ folders of images, named as the network's classes are.",
        ),
        (("images=nowhere",), "images=nowhere is not a folder. ", "<class>/", "Type images=path/to/images."),
        (("run=3801e552",), "run=3801e552 names no run of experiment 'dogbreeds'."),
        (("output=.", "split=val"), "contains other files, such as "),
        (("spilt=val",), "spilt is not a setting. Similar settings are run, split,"),
        (
            ("tracking=none",),
            "tracking=none was given. A run's network is loaded from MLflow. Type tracking=mlflow.",
        ),
    ):
        refused = command("evaluate", *arguments)
        assert refused.returncode == 1, arguments
        assert all(fact in refused.stderr for fact in facts), refused.stderr
        assert "Traceback" not in refused.stderr
    for path, message in (
        ("broken.keras", "cannot be read as a saved network"),
        ("nameless.keras", "is a network without class names."),
    ):
        if path == "broken.keras":
            (tmp_path / path).write_bytes(network.read_bytes()[:5000])
        else:
            import keras

            keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]).save(tmp_path / path)
        refused = command("evaluate", f"run={path}", f"images='{own}'")
        assert refused.returncode == 1
        assert message in refused.stderr


@pytest.mark.long
def test_evaluate_refuses_a_run_whose_images_were_moved_or_changed(command, write_images) -> None:
    root = write_images(classes=3, train=6, test=3)
    trained = command(
        "train", "data=folder", f"data.root={root}", "phase.epochs=2", "tracking.system_metrics_seconds=0"
    )
    assert trained.returncode == 0, trained.stderr
    assert command("evaluate", "split=val", "mistakes=0").returncode == 0
    moved = root.rename(root.with_name("moved"))
    gone = command("evaluate")
    assert gone.returncode == 1
    assert "is not a folder" in gone.stderr
    there = command("evaluate", f"data.root={moved}")
    assert there.returncode == 0, there.stderr
    (moved / "test/breed_0/0.jpg").unlink()
    changed = command("evaluate", f"data.root={moved}")
    assert changed.returncode == 1
    assert "are not those of run" in changed.stderr
