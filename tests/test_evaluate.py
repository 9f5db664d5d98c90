"""The command, on a real attempt: what it says, writes and records."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dogbreeds.core.errors import UserError
from dogbreeds.data import drawn_dogs
from dogbreeds.evaluate import Wanted
from dogbreeds.experiments.compose import composed as compose
from dogbreeds.experiments.compose import part
from dogbreeds.tracking.records import short

BEGINNING = "or the beginning of one run's id; the newest are"
TRAINED = (
    "data.breeds=12",
    "data.val_per_breed=5",
    "data.test_per_breed=8",
    "phase.epochs=4",
    "tracking.system_metrics_seconds=0",
)


def wanted(**changes: object) -> Wanted:
    return Wanted(
        **{
            "run": "latest",
            "split": None,
            "photos": None,
            "on_corrupt": "stop",
            "mistakes": 24,
            "seed": 0,
            "output": None,
        }
        | changes
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"photos": "x", "split": "val"},
            "split=val and photos=x were given. A network is evaluated on one of the two. Leave one out.",
        ),
        (
            {"run": "model.keras"},
            (
                "run=model.keras is a file, which does not know the photos it was trained on. Photos must be named."
                " Type photos="
            ),
        ),
        (
            {"split": "dev"},
            "split was 'dev'. It must be one of train, val, test, or null. Type split=train, for example.",
        ),
        ({"mistakes": -1}, "mistakes was -1. It must be a whole number of 0 or more."),
    ],
)
def test_what_cannot_be_evaluated_is_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=re.escape(words)):
        wanted(**changes)


def test_a_run_s_beginning_may_be_all_digits() -> None:
    assert wanted(run=380).run == "380"


@pytest.mark.slow
def test_an_attempt_is_evaluated_and_everything_lies_in_its_run(
    command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = command("evaluate")
    assert nothing.returncode == 1
    assert (
        "Experiment 'dogbreeds' has no finished attempt that kept its network. run=latest is one of those. Type"
        " python -m" in nothing.stderr
    )
    assert command("train", *TRAINED).returncode == 0

    done = command("evaluate", "tta.views=2")
    assert done.returncode == 0, done.stderr
    monkeypatch.setenv("DOGBREEDS_HOME", str(tmp_path / "home"))
    tracking = part(compose("evaluate"), "tracking")
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
    assert "2 views of each photo change the accuracy by" in done.stdout
    assert "The saved network gives the probabilities that training measured, to within" in done.stdout
    assert "fitted on 60 validation photos" in done.stdout

    kept = Path(tracking.connect()[0].download_artifacts(record.run_id, "evaluation/test", str(tmp_path)))
    names = {
        "report.html",
        "confusion.png",
        "reliability.png",
        "mistakes.jpg",
        "breeds.csv",
        "confusions.csv",
        "photos.csv",
        "scores.json",
    }
    assert {file.name for file in kept.iterdir()} == names
    photos = list(csv.DictReader((kept / "photos.csv").open()))
    said = tracking.predictions(record.run_id)["test"]
    assert [row["photo"] for row in photos] == list(said.ids)
    assert [row["called"] for row in photos] == [drawn_dogs.breed_name(index) for index in said.logits.argmax(axis=1)]
    assert np.mean([row["called"] == row["breed"] for row in photos]) == pytest.approx(measured)
    breeds = list(csv.DictReader((kept / "breeds.csv").open()))
    assert sum(int(row["right"]) for row in breeds) == round(96 * measured)
    assert json.loads((kept / "scores.json").read_text())["tta/views"] == 2
    page = (kept / "report.html").read_text()
    assert 'src="http' not in page and 'href="http' not in page
    assert page.count("<svg") == 2
    assert f"{100 * measured:.1f}&nbsp;%" in page

    own = tmp_path / "other photos"
    for breed in range(3):
        folder = own / drawn_dogs.breed_name(breed)
        folder.mkdir(parents=True)
        for number in range(4):
            Image.fromarray(drawn_dogs.draw("test", breed, 50 + number)).resize((90, 70)).save(folder / f"{number}.png")
    network = tracking.network(record.run_id, tmp_path)
    alone = command("evaluate", f"run={network}", f"photos='{own}'", "output=here", "tracking=none")
    assert alone.returncode == 0, alone.stderr
    assert "n = 12" in alone.stdout
    assert "What it was trained on is not known here: photos that it has seen flatter it." in alone.stdout
    assert (tmp_path / "here/report.html").is_file()
    (own / "wolf").mkdir()
    (own / "wolf/1.jpg").write_bytes(b"no photo")

    for arguments, words in (
        (
            ("run=ffffff",),
            (
                f"run=ffffff names no run of experiment 'dogbreeds'. It must be latest, best, {BEGINNING}"
                f" {short(record.run_id)}"
            ),
        ),
        (
            (f"photos='{own}'",),
            (
                "wolf is a class that the network does not have. Classes of other photos must be among those of the"
                " network."
            ),
        ),
        (
            (f"photos='{own / 'wolf'}'",),
            "has no class folders. It must hold <class>/ folders of photos, named as the network's classes are.",
        ),
        (("photos=nowhere",), "photos=nowhere is not a folder. It must hold <class>/ folders of photos"),
        (("run=3801e552",), "run=3801e552 names no run of experiment 'dogbreeds'."),
        (("output=.", "split=val"), "holds other things, such as "),
        (("spilt=val",), "spilt is not a setting. Near it there are run, split,"),
        (
            ("tracking=none",),
            "tracking=none was chosen. A run's network is found through MLflow, which kept it. Type tracking=mlflow.",
        ),
    ):
        refused = command("evaluate", *arguments)
        assert refused.returncode == 1, arguments
        assert words in refused.stderr
        assert "Traceback" not in refused.stderr
    for path, words in (
        ("broken.keras", "cannot be read as a saved network"),
        ("nameless.keras", "is a network without class names."),
    ):
        if path == "broken.keras":
            (tmp_path / path).write_bytes(network.read_bytes()[:5000])
        else:
            import keras

            keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]).save(tmp_path / path)
        refused = command("evaluate", f"run={path}", f"photos='{own}'")
        assert refused.returncode == 1
        assert words in refused.stderr


@pytest.mark.slow
def test_other_photos_than_the_run_s_are_not_taken_for_its_own(command, photos) -> None:
    root = photos(classes=3, train=6, test=3)
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
    assert "are others than run" in changed.stderr
