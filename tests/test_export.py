"""The command `export`: formats and their checks, what is added to the run, the promotion gate, and error messages."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dogbreeds import export
from dogbreeds.core import files
from dogbreeds.core.errors import MissingFileError, UserError
from dogbreeds.data import drawn_dogs
from dogbreeds.data.sample import sample_folder, sample_split
from dogbreeds.experiments import network_export
from dogbreeds.export import Settings
from dogbreeds.inference import export_formats, exporter
from dogbreeds.inference.classifier import load
from dogbreeds.inference.exporter import ExportedFormat, ParityCheck
from dogbreeds.models.unfreeze import Nothing
from tests.test_network import FROZEN, NAMES, build

DATA = ("data.classes=12", "tracking.system_metrics_seconds=0")


def test_sample_spreads_images_over_a_folder_or_split(write_images) -> None:
    from dogbreeds.data.folder import Folder

    root = write_images(classes=3, train=4, test=5)
    shared = {"resize": "stretch", "decoder": "pillow", "max_corrupt_fraction": 0.5}
    split = Folder(root=str(root), val_fraction=0.3, split_seed=0, on_corrupt="skip", **shared).open().test
    assert len(sample_folder(str(root / "test"), 7)) == 7
    assert len(sample_folder(str(root), 1000)) == 27
    chosen = sample_split(split, 3, skip=False)
    # The first row, the middle one, the last one.
    expected = [image for row, image in enumerate(split.source.loaders()) if row in (0, 7, 14)]
    assert [image().tobytes() for image in chosen.values()] == [image().tobytes() for image in expected]
    # Damage row 7.
    damaged = root / "test/breed_1/2.jpg"
    damaged.write_bytes(damaged.read_bytes()[:-400])
    split = Folder(root=str(root), val_fraction=0.3, split_seed=0, on_corrupt="skip", **shared).open().test
    assert len(sample_split(split, 3, skip=True)) == 2
    with pytest.raises(UserError, match=r"2.jpg cannot be read as an image"):
        [image() for image in sample_folder(str(root / "test/breed_1"), 5)]


def test_sample_refuses_a_missing_folder_and_one_without_images(tmp_path: Path) -> None:
    with pytest.raises(
        MissingFileError,
        match=(
            r"images_from=nowhere is not a folder\. It must contain images, at any depth\. Type"
            r" images_from=path/to/images\."
        ),
    ):
        sample_folder("nowhere", 3)
    with pytest.raises(UserError, match=r"contains no images. They must be JPEG, PNG or WebP files."):
        sample_folder(str(tmp_path), 3)


def make_settings(**changes) -> Settings:
    values = {"run": "latest", "formats": ["keras"], "images": 200, "images_from": None, "output": None}
    return Settings(**(values | {"register": None, "alias": "champion", "alpha": 0.05} | changes))


@pytest.mark.parametrize(
    ("changes", "received", "facts"),
    [
        (
            {"formats": ["coreml"]},
            "formats has 'coreml'. ",
            ("keras, savedmodel, tflite, tflite_float16, onnx", "Type 'formats=[keras,onnx]'"),
        ),
        ({"formats": "onnx"}, "formats was 'onnx'. ", ("Type 'formats=[keras,onnx]'",)),
        ({"run": "a.keras"}, "run=a.keras is a file", ("Type images_from=path/to/images",)),
        (
            {"run": "a.keras", "images_from": "x", "register": "dogs"},
            "register=dogs was given with run=a.keras, which is a file. ",
            ("Type run=<a run's id>, or leave out register.",),
        ),
        ({"register": "a/b"}, "register was 'a/b'. ", ("letters, digits, - and _", "Type register=dogs")),
        ({"register": "dogs' or '1"}, "register was \"dogs' or '1\". ", ("Type register=dogs",)),
        ({"register": "dogs", "alias": "Latest"}, "alias was 'Latest'. ", ("such as latest", "Type alias=champion")),
        ({"alias": "v3"}, "alias was 'v3'. ", ("Type alias=champion",)),
        ({"images": 0}, "images was 0. ", ("1 or more",)),
        ({"alpha": 1}, "alpha was 1. ", ("above 0", "below 1")),
    ],
)
def test_settings_refuse_what_cannot_be_exported(changes, received: str, facts: tuple[str, ...]) -> None:
    make_settings(register="dogs", images=3)
    with pytest.raises(UserError) as error:
        make_settings(**changes)
    message = str(error.value)
    assert message.startswith(received)
    assert all(fact in message for fact in facts), message


@pytest.mark.slow
def test_a_format_with_other_probabilities_is_removed_and_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = build(Nothing(**FROZEN))
    network.full_model(NAMES, "stretch").save(tmp_path / "network.keras")
    classifier = load(tmp_path / "network.keras")
    trained = export_formats.keras_predictor(classifier.model)

    def off(images: np.ndarray) -> export_formats.BatchPrediction:
        probabilities, class_names = trained(images)
        return probabilities + 3e-4, class_names

    wrong = replace(
        export_formats.FORMATS["onnx"],
        requires=(),
        write=lambda classifier, file: file.write_text("wrong"),
        load=lambda file: off,
    )
    monkeypatch.setitem(export_formats.FORMATS, "onnx", wrong)
    place = tmp_path / "place"
    (place / "savedmodel").mkdir(parents=True)
    (place / "model.onnx").write_text("of an earlier export")
    (place / "notes.txt").write_text("the user's own")
    (place / "checks.json").write_text("{}")
    with files.atomic_folder(place, network_export._OWNED_FILES) as folder:
        (folder / "checks.json").write_text("{}")
        images = [lambda: drawn_dogs.draw("test", 0, 0)] * 3
        formats = exporter.export_and_check(["keras", "onnx"], classifier, images, folder)
    assert {file.name for file in place.iterdir()} == {"model.keras", "notes.txt", "checks.json"}
    assert [each.agrees for each in formats] == [True, False]
    table = export._parity_table(formats)
    assert "no: removed" in table
    assert "3.0e-04" in table
    with pytest.raises(UserError) as error:
        exporter.require_agreement(formats)
    message = str(error.value)
    assert message.startswith("onnx does not match the trained network: a probability differs by 0.0003. ")
    assert "0.0001 is allowed" in message
    assert "Type formats=[…]" in message
    exporter.require_agreement(formats[:1])


@pytest.mark.parametrize("width", [40, 60, 80, 120, None])
def test_parity_table_fits_the_terminal(width: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export.console, "terminal_width", lambda stream: width)
    formats = [ExportedFormat(name, 123_456_789, ParityCheck(3e-4, 1_200, 1_200)) for name in export_formats.FORMATS]
    lines = re.sub(r"\x1b\[[0-9;]*m", "", export._parity_table(formats)).splitlines()
    assert max(map(len, lines)) <= (width or 120)
    if width is None or width >= 80:
        # Headings, a rule, and one line per format.
        assert [line.split()[0] for line in lines[2:]] == list(export_formats.FORMATS)
        assert all("1,200 of 1,200" in line for line in lines[2:])
    assert any("model.float16.tflite" in line for line in lines) == (width is None or width >= 90)


def artifacts(home: Path, run: str) -> Path:
    (found,) = (home / "mlruns/artifacts").glob(f"{run}*/artifacts")
    return found


def trained(command, *overrides: str) -> str:
    """Train, and return the run's id."""
    ran = command("train", *overrides, *DATA)
    assert ran.returncode == 0, ran.stderr
    (run,) = re.findall(r"^run   (\w+) '.*', MLflow experiment 'dogbreeds'$", ran.stdout, re.MULTILINE)
    return run


@pytest.mark.long
def test_export_writes_and_checks_every_format_and_adds_it_to_the_run(command, tmp_path: Path, write_images) -> None:
    home = tmp_path / "home"
    nothing = command("export")
    assert nothing.returncode == 1
    assert "has no finished run with a saved network. run=latest needs one" in nothing.stderr
    assert "Type python -m dogbreeds.train first" in nothing.stderr
    trained(command, "phase.epochs=3")

    exported = command("export", "images=20")
    assert exported.returncode == 0, exported.stderr
    (place,) = (home / "multirun/exported").iterdir()
    run = place.name
    files = {
        "README.md",
        "classes.txt",
        "checks.json",
        "model.keras",
        "savedmodel",
        "model.tflite",
        "model.float16.tflite",
        "model.onnx",
    }
    assert {file.name for file in place.iterdir()} == files
    assert {file.name for file in (artifacts(home, run) / "exported").iterdir()} == files
    checks = json.loads((place / "checks.json").read_text())
    assert {name: (check["n"], check["same"], check["agrees"]) for name, check in checks.items()} == dict.fromkeys(
        checks, (24, 24, True)
    )
    assert all(check["difference"] <= (0.01 if name == "tflite_float16" else 1e-4) for name, check in checks.items())
    assert len((place / "classes.txt").read_text().splitlines()) == 12
    assert exported.stdout.count("24 of 24") == 5
    assert f"{place}\n" in exported.stdout
    readme = (place / "README.md").read_text()
    assert "n = 120) on test images" in readme
    assert f"MLflow run `{run}" in readme
    assert 'Interpreter("model.float16.tflite")' in readme

    fewer = command("export", f"run={run}", "formats=[keras]", "images=5")
    assert fewer.returncode == 0, fewer.stderr
    assert {file.name for file in place.iterdir()} == {"README.md", "classes.txt", "checks.json", "model.keras"}
    assert {file.name for file in (artifacts(home, run) / "exported").iterdir()} == {
        "README.md",
        "classes.txt",
        "checks.json",
        "model.keras",
    }
    # The network is logged once, although it was exported twice.
    assert len(list((home / "mlruns/artifacts/models").iterdir())) == 1

    saved = tmp_path / "saved.keras"
    shutil.copy(place / "model.keras", saved)
    root = write_images(classes=2, flat=6)
    by_file = command("export", f"run={saved}", f"images_from={root}", "formats=[keras]", f"output={tmp_path}/out")
    assert by_file.returncode == 0, by_file.stderr
    assert "16 of 16" in by_file.stdout
    assert "mlflow models serve" not in by_file.stdout
    assert "Unknown: the network was exported from a file" in (tmp_path / "out/README.md").read_text()


@pytest.mark.long
def test_export_refuses_what_cannot_be_exported_in_a_message(command, tmp_path: Path, write_images) -> None:
    trained(command, "phase.epochs=1")
    root, first, again = write_images(classes=2, flat=6), tmp_path / "first", tmp_path / "again"
    assert command("export", "formats=[keras]", "images=5", f"output={first}").returncode == 0
    by_file = (f"run={first}/model.keras", f"images_from={root}", "formats=[keras]")
    assert command("export", *by_file, f"output={again}").returncode == 0
    for arguments, message in (
        (
            ["run=zzzz"],
            (
                "run=zzzz names no run of experiment 'dogbreeds'. It must be latest, best, or the beginning of one"
                " run's id"
            ),
        ),
        (["data.root=/tmp"], "data.root=/tmp was given, and run "),
        (
            [f"output={first}/model.keras/x", "formats=[keras]"],
            "cannot be created (Not a directory). output must be a folder",
        ),
        ([f"output={tmp_path}", "formats=[keras]"], "contains other files, such as "),
        (
            [f"run={again}/model.keras", f"images_from={root}", f"output={again}"],
            f"{again}/model.keras lies in {again}, which is the output folder.",
        ),
        (["format=onnx"], "format is not a setting."),
    ):
        refused = command("export", *arguments)
        assert refused.returncode == 1, arguments
        assert message in refused.stderr, refused.stderr


def register(command, run: str, *more: str) -> tuple[int, str]:
    """Register a run as `dogs`, and return the exit code and the last line of output, or the error output."""
    done = command("export", f"run={run}", "formats=[keras]", "images=5", "register=dogs", *more)
    return done.returncode, done.stdout.splitlines()[-1] if done.returncode == 0 else done.stderr


# Significantly worse than six epochs, yet not so far below the reference probe that it may not be registered.
STRONG = ("phase.epochs=6", "data.train_per_class=10", "data.test_per_class=40")
WEAK = ("phase.epochs=2", "optimizer.lr=4e-4", *STRONG[1:])


@pytest.mark.long
def test_register_moves_the_alias_only_to_a_run_that_beats_the_current_one(command, tmp_path: Path) -> None:
    home = tmp_path / "home"
    weak, strong = (trained(command, *overrides) for overrides in (WEAK, STRONG))
    assert register(command, weak) == (
        0,
        f"dogs@champion now points to version 1, run {weak}: there was no version before.",
    )
    code, output = register(command, strong)
    assert code == 0, output
    assert output.startswith(
        f"dogs@champion now points to version 2, run {strong}: compared with version 1, run {weak}, it has +"
    )

    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{home}/mlruns/mlflow.db")
    champion = client.get_model_version_by_alias("dogs", "champion")
    assert champion.tags["beaten"].startswith(weak)
    assert " points on test (95 % interval +" in champion.tags["pair"]
    assert {
        run.info.status for run in client.search_runs([client.get_experiment_by_name("dogbreeds").experiment_id])
    } == {"FINISHED"}


@pytest.mark.long
def test_register_refuses_a_run_that_is_alike(command, tmp_path: Path) -> None:
    weak, alike = (trained(command, *overrides) for overrides in (WEAK, (*WEAK, "head.dropout=0.49")))
    assert register(command, weak)[0] == 0
    code, output = register(command, alike)
    assert code == 1
    assert f"error: Run {alike} was not registered: compared with dogs@champion, run {weak}, it has " in output
    assert "with p below 0.01. Type run=" in output
    assert (tmp_path / "home/multirun/exported" / alike / "model.keras").exists()


@pytest.mark.long
def test_register_adds_a_run_once_and_points_any_alias_to_it(command) -> None:
    strong, weak = trained(command, *STRONG), trained(command, *WEAK)
    assert register(command, strong) == (
        0,
        f"dogs@champion now points to version 1, run {strong}: there was no version before.",
    )
    assert register(command, strong) == (
        0,
        f"dogs@champion already points to version 1, run {strong}: nothing was registered.",
    )
    code, output = register(command, weak)
    assert code == 1
    assert f"dogs@champion, run {strong}, it has -" in output
    assert register(command, strong, "alias=fallback") == (
        0,
        f"dogs@fallback now points to version 1, run {strong}: there was no version before.",
    )
    assert register(command, weak, "alias=challenger") == (
        0,
        f"dogs@challenger now points to version 2, run {weak}: there was no version before.",
    )
