"""The command as a user runs it: formats, what is kept, the gate, and the sentence of each mistake."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dogbreeds import export, formats, miniature, output
from dogbreeds.classifier import load
from dogbreeds.export import Wanted
from dogbreeds.sample import of_folder, of_split
from dogbreeds.spec import Missing, Refused
from dogbreeds.unfreeze import Nothing
from tests.test_network import FROZEN, NAMES, build

BREEDS = ("data.breeds=12", "tracking.system_metrics_seconds=0")


def test_photos_are_spread_over_all_that_there_are(photos) -> None:
    from dogbreeds.data import Folder

    root = photos(classes=3, train=4, test=5)
    shared = {"resize": "stretch", "max_corrupt_fraction": 0.5}
    split = Folder(root=str(root), val_fraction=0.3, split_seed=0, on_corrupt="skip", **shared).open().test
    assert len(of_folder(str(root / "test"), 7)) == 7
    assert len(of_folder(str(root), 1000)) == 27
    chosen = of_split(split, 3, skip=False)
    expected = [photo for row, photo in enumerate(split.source.read()) if row in (0, 7, 14)]  # the first of all, the middle, the last
    assert [photo().tobytes() for photo in chosen] == [photo().tobytes() for photo in expected]
    damaged = root / "test/breed_1/2.jpg"  # row 7
    damaged.write_bytes(damaged.read_bytes()[:-400])
    split = Folder(root=str(root), val_fraction=0.3, split_seed=0, on_corrupt="skip", **shared).open().test
    assert len(of_split(split, 3, skip=True)) == 2
    with pytest.raises(Refused, match=r"2.jpg cannot be read as a photo"):
        [photo() for photo in of_folder(str(root / "test/breed_1"), 5)]


def test_folders_without_photos_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Missing, match=r"photos_from=nowhere is not a folder. It must hold photos, at any depth. Type photos_from=path/to/photos."):
        of_folder("nowhere", 3)
    with pytest.raises(Refused, match=r"holds no photos. They must be JPEG, PNG or WebP files."):
        of_folder(str(tmp_path), 3)


def wanted(**changes) -> Wanted:
    settings = {"run": "latest", "formats": ["keras"], "photos": 200, "photos_from": None, "output": None}
    return Wanted(**(settings | {"register": None, "alias": "champion", "alpha": 0.05} | changes))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"formats": ["coreml"]}, "formats has 'coreml'. It must be a list of keras, savedmodel, tflite, tflite_float16, onnx. Type 'formats="),
        ({"formats": "onnx"}, "formats was 'onnx'. It must be a list of names. Type 'formats=[keras,onnx]', for example."),
        ({"run": "a.keras"}, "run=a.keras is a file, which does not know its photos. Each format is checked on photos, so that some must be named."),
        ({"run": "a.keras", "photos_from": "x", "register": "dogs"}, "register=dogs was asked for with run=a.keras, which is a file."),
        ({"register": "a/b"}, "register was 'a/b'. It must be a name of letters, digits, - and _ that begins with a letter"),
        ({"register": "dogs' or '1"}, "register was \"dogs' or '1\"."),
        ({"register": "dogs", "alias": "Latest"}, "alias was 'Latest'."),
        ({"alias": "v3"}, "alias was 'v3'."),
        ({"photos": 0}, "photos was 0. It must be a whole number of 1 or more."),
        ({"alpha": 1}, "alpha was 1. It must be a finite number above 0 and below 1."),
    ],
)
def test_what_cannot_be_exported_is_said_before_anything_is_loaded(changes, said: str) -> None:
    wanted(register="dogs", photos=3)
    with pytest.raises(Refused) as refused:
        wanted(**changes)
    assert str(refused.value).startswith(said)


def test_a_format_that_is_another_network_is_removed_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = build(Nothing(**FROZEN))
    network.whole(NAMES, "stretch").save(tmp_path / "network.keras")
    classifier = load(tmp_path / "network.keras")
    trained = formats.ask_keras(classifier.whole)

    def off(photos: np.ndarray) -> formats.Answers:
        probabilities, breeds = trained(photos)
        return probabilities + 3e-4, breeds

    wrong = replace(formats.FORMATS["onnx"], needs=(), write=lambda classifier, file: file.write_text("wrong"), open=lambda file: off)
    monkeypatch.setitem(formats.FORMATS, "onnx", wrong)
    place = tmp_path / "place"
    (place / "savedmodel").mkdir(parents=True)
    (place / "model.onnx").write_text("of an earlier export")
    (place / "notes.txt").write_text("the user's own")
    (place / "checks.json").write_text("{}")
    with output.folder(place, export._OWN) as folder:
        (folder / "checks.json").write_text("{}")
        found = export._export(["keras", "onnx"], classifier, [lambda: miniature.draw("test", 0, 0)] * 3, folder)
    assert {file.name for file in place.iterdir()} == {"model.keras", "notes.txt", "checks.json"}
    assert [each.agrees for each in found] == [True, False]
    shown = export._table(found)
    assert "no: removed" in shown
    assert "3.0e-04" in shown
    with pytest.raises(Refused) as refused:
        export._check_all_agree(found)
    assert str(refused.value).startswith(
        "onnx is not the network that was trained: a probability differs by 0.0003. 0.0001 is allowed, so that its file"
    )
    export._check_all_agree(found[:1])


def artifacts(home: Path, run: str) -> Path:
    (found,) = (home / "mlruns/artifacts").glob(f"{run}*/artifacts")
    return found


def trained(command, *overrides: str) -> str:
    """The run of an attempt."""
    ran = command("train", *overrides, *BREEDS)
    assert ran.returncode == 0, ran.stderr
    (run,) = re.findall(r"^run   MLflow experiment 'dogbreeds', run (\w+) '", ran.stdout, re.MULTILINE)
    return run


@pytest.mark.slow
def test_every_format_is_written_checked_and_kept(command, tmp_path: Path, photos) -> None:
    home = tmp_path / "home"
    nothing = command("export")
    assert nothing.returncode == 1
    assert "has no finished attempt that kept its network. run=latest is one of those. Type python -m dogbreeds.train first" in nothing.stderr
    trained(command, "phase.epochs=3")

    exported = command("export", "photos=20")
    assert exported.returncode == 0, exported.stderr
    (place,) = (home / "multirun/exported").iterdir()
    run = place.name
    files = {"README.md", "breeds.txt", "checks.json", "model.keras", "savedmodel", "model.tflite", "model.float16.tflite", "model.onnx"}
    assert {file.name for file in place.iterdir()} == files
    assert {file.name for file in (artifacts(home, run) / "exported").iterdir()} == files
    checks = json.loads((place / "checks.json").read_text())
    assert {name: (check["n"], check["same"], check["agrees"]) for name, check in checks.items()} == dict.fromkeys(checks, (24, 24, True))
    assert all(check["difference"] <= (0.01 if name == "tflite_float16" else 1e-4) for name, check in checks.items())
    assert len((place / "breeds.txt").read_text().splitlines()) == 12
    assert exported.stdout.count("24 of 24") == 5
    assert f"{place}\n" in exported.stdout
    readme = (place / "README.md").read_text()
    assert "n = 120) on test photos" in readme
    assert f"MLflow run `{run}" in readme
    assert 'Interpreter("model.float16.tflite")' in readme

    fewer = command("export", f"run={run}", "formats=[keras]", "photos=5")
    assert fewer.returncode == 0, fewer.stderr
    assert {file.name for file in place.iterdir()} == {"README.md", "breeds.txt", "checks.json", "model.keras"}
    assert {file.name for file in (artifacts(home, run) / "exported").iterdir()} == {"README.md", "breeds.txt", "checks.json", "model.keras"}
    assert len(list((home / "mlruns/artifacts/models").iterdir())) == 1  # the same network is logged once

    saved = tmp_path / "saved.keras"
    shutil.copy(place / "model.keras", saved)
    root = photos(classes=2, flat=6)
    by_file = command("export", f"run={saved}", f"photos_from={root}", "formats=[keras]", f"output={tmp_path}/out")
    assert by_file.returncode == 0, by_file.stderr
    assert "16 of 16" in by_file.stdout
    assert "mlflow models serve" not in by_file.stdout
    assert "That is not known" in (tmp_path / "out/README.md").read_text()


@pytest.mark.long
def test_what_cannot_be_exported_is_a_sentence(command, tmp_path: Path, photos) -> None:
    trained(command, "phase.epochs=1")
    root, first, again = photos(classes=2, flat=6), tmp_path / "first", tmp_path / "again"
    assert command("export", "formats=[keras]", "photos=5", f"output={first}").returncode == 0
    by_file = (f"run={first}/model.keras", f"photos_from={root}", "formats=[keras]")
    assert command("export", *by_file, f"output={again}").returncode == 0
    for arguments, said in (
        (["run=zzzz"], "run=zzzz names no run of experiment 'dogbreeds'. It must be latest, best, or the beginning of one run's id"),
        (["data.root=/tmp"], "the photos of run"),
        ([f"output={first}/model.keras/x", "formats=[keras]"], "cannot be made (Not a directory). output must be a folder"),
        ([f"output={tmp_path}", "formats=[keras]"], "holds other things, such as "),
        (
            [f"run={again}/model.keras", f"photos_from={root}", f"output={again}"],
            "which the export goes to. It must go to another folder.",
        ),
        (["format=onnx"], "format is not a setting."),
    ):
        refused = command("export", *arguments)
        assert refused.returncode == 1, arguments
        assert said in refused.stderr, refused.stderr


def register(command, run: str, *more: str) -> tuple[int, str]:
    """The exit code of registering a run as `dogs`, and the last that was said."""
    done = command("export", f"run={run}", "formats=[keras]", "photos=5", "register=dogs", *more)
    return done.returncode, done.stdout.splitlines()[-1] if done.returncode == 0 else done.stderr


WEAK = ("optimizer.lr=1e-4", "phase.epochs=2")


@pytest.mark.slow
def test_only_what_beats_the_champion_takes_its_place(command, tmp_path: Path) -> None:
    home = tmp_path / "home"
    weak, alike, strong = (trained(command, *overrides) for overrides in (WEAK, (*WEAK, "seed=1"), ("phase.epochs=6",)))
    assert register(command, weak) == (0, f"dogs@champion is version 1 now, run {weak}: there was none before.")
    code, said = register(command, alike)
    assert code == 1
    assert f"error: Run {alike} was not registered: beside dogs@champion, run {weak}, it has " in said
    assert "with p below 0.01. Type run=" in said
    assert (home / "multirun/exported" / alike / "model.keras").exists()
    code, said = register(command, strong)
    assert code == 0, said
    assert said.startswith(f"dogs@champion is version 2 now, run {strong}: beside version 1, run {weak}, it has +")

    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{home}/mlruns/mlflow.db")
    champion = client.get_model_version_by_alias("dogs", "champion")
    assert champion.tags["beaten"].startswith(weak)
    assert " points on test (95 % interval +" in champion.tags["pair"]
    assert {run.info.status for run in client.search_runs([client.get_experiment_by_name("dogbreeds").experiment_id])} == {"FINISHED"}


@pytest.mark.long
def test_a_run_is_registered_once_and_by_any_alias(command) -> None:
    strong, weak = trained(command, "phase.epochs=6"), trained(command, *WEAK)
    assert register(command, strong) == (0, f"dogs@champion is version 1 now, run {strong}: there was none before.")
    assert register(command, strong) == (0, f"dogs@champion is run {strong} already, as version 1: nothing was registered.")
    code, said = register(command, weak)
    assert code == 1
    assert f"beside dogs@champion, run {strong}, it has -" in said
    assert register(command, strong, "alias=fallback") == (0, f"dogs@fallback is version 1 now, run {strong}: there was none before.")
    assert register(command, weak, "alias=challenger") == (0, f"dogs@challenger is version 2 now, run {weak}: there was none before.")
