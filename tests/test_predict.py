"""`predictor`, the formats of `predictions`, and the command `predict` as a user runs it."""

import csv
import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.cells import cell_len

from dogbreeds.core.errors import UserError
from dogbreeds.data import drawn_dogs
from dogbreeds.data.image import UnreadableImageError
from dogbreeds.inference.classifier import Classifier, load
from dogbreeds.inference.grad_cam import OverlayWriter
from dogbreeds.inference.image_sources import NamedImage
from dogbreeds.inference.predictions import Csv, JsonLines, Prediction
from dogbreeds.inference.predictor import inference_function, predict_images
from dogbreeds.models.assembly import assemble
from dogbreeds.models.head import Linear
from dogbreeds.models.model import Miniature
from dogbreeds.models.preprocessing import Preprocessing
from dogbreeds.models.unfreeze import Nothing
from dogbreeds.reports.predictions_table import PredictionsTable
from tests.process_output import wait_until
from tests.tiers import tiered

NAMES = ("n02085620-Chihuahua", 'Bärli, "the" dog', "n02086079-Pekinese", "wire-haired_fox_terrier", "a=b")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved network whose head has large weights, so that its predictions are confident."""
    backbone = Miniature(architecture="Miniature", image_size=64, pixels="raw", weights="shipped").build(0)
    plan = Nothing(batchnorm="frozen", drop_connect="off").plan(backbone.blocks)
    built = assemble(
        backbone, Preprocessing(mode="raw"), plan, lambda features: Linear(dropout=0.0).build(features, len(NAMES), 0)
    )
    built.head.set_weights([3 * array for array in built.head.get_weights()])
    path = tmp_path_factory.mktemp("network") / "model.keras"
    built.full_model(NAMES, "pad").save(path)
    return path


@pytest.fixture(scope="module")
def classifier(file: Path) -> Classifier:
    return load(file)


def drawn_image(number: int, decoded: list[int] | None = None) -> NamedImage:
    def pixels() -> np.ndarray:
        if decoded is not None:
            decoded.append(number)
        if number % 7 == 3:
            raise UnreadableImageError(
                f"{number} is a pipe. Images must be files. Remove it, or type data.on_corrupt=skip."
            )
        image = drawn_dogs.draw("test", number % 50, number // 50)
        return image[: 64 - number % 5, : 64 - number % 3]

    return NamedImage(str(number), f"/{number}", pixels)


def predictions_of(
    classifier: Classifier, count: int, batch_size: int, overlays: OverlayWriter | None = None
) -> list[Prediction]:
    infer = inference_function(classifier, explain=overlays is not None)
    images = map(drawn_image, range(count))
    return list(predict_images(classifier, infer, images, batch_size=batch_size, top=2, overlays=overlays))


@pytest.mark.parametrize("batch_size", [4, pytest.param(100, marks=pytest.mark.slow)])
def test_predict_images_gives_the_saved_network_s_predictions_in_order(classifier: Classifier, batch_size: int) -> None:
    found = predictions_of(classifier, 6, batch_size)
    assert [prediction.image for prediction in found] == [str(number) for number in range(6)]
    for number, prediction in enumerate(found):
        if number % 7 == 3:
            assert prediction == Prediction(str(number), error=f"{number} is a pipe. Images must be files. Remove it.")
            continue
        outputs = classifier.model(drawn_image(number).pixels()[None])
        expected = outputs["probabilities"].numpy()[0]
        (first, first_probability), (second, second_probability) = prediction.top
        assert first == outputs["class"].numpy()[0].decode()
        assert second == NAMES[np.argsort(-expected)[1]]
        assert np.allclose([first_probability, second_probability], np.sort(expected)[::-1][:2], atol=1e-5)
        assert prediction.error == "" and prediction.overlay is None


def test_predict_images_decodes_a_bounded_number_ahead_and_nothing_after_it_is_closed(classifier: Classifier) -> None:
    decoded: list[int] = []
    images = (drawn_image(number, decoded) for number in range(10**9))
    predictions = predict_images(classifier, inference_function(classifier, False), images, batch_size=4, top=1)
    for number in range(40):
        assert next(predictions).image == str(number)
        assert len(decoded) <= number + 4 * 4
    predictions.close()
    decoded_when_closed = len(decoded)
    time.sleep(0.1)
    assert len(decoded) == decoded_when_closed


def test_predict_images_yields_errors_for_a_batch_of_unreadable_images(classifier: Classifier) -> None:
    images = [drawn_image(3), drawn_image(10), drawn_image(17)]
    predictions = predict_images(classifier, inference_function(classifier, False), images, batch_size=2, top=1)
    assert [bool(prediction.error) for prediction in predictions] == [True] * 3


def test_predict_images_refuses_a_network_whose_outputs_are_not_finite(classifier: Classifier) -> None:
    def infer(pixels: np.ndarray) -> tuple[np.ndarray, None]:
        return np.full((len(pixels), len(NAMES)), np.nan), None

    with pytest.raises(
        UserError, match=r"^The network's outputs are not finite numbers: its training diverged\. .* Type run=best"
    ):
        list(predict_images(classifier, infer, [drawn_image(0)], batch_size=2, top=1))


@pytest.mark.slow
def test_predict_images_gives_the_same_predictions_with_overlays(classifier: Classifier, tmp_path: Path) -> None:
    plain = predictions_of(classifier, 12, 5)
    explained = predictions_of(classifier, 12, 5, overlays=OverlayWriter(tmp_path, classifier.resize))
    assert [prediction.error for prediction in plain] == [prediction.error for prediction in explained]
    for one, other in zip(plain, explained, strict=True):
        assert [name for name, _ in one.top] == [name for name, _ in other.top]
        probabilities, other_probabilities = ([probability for _, probability in each.top] for each in (one, other))
        assert np.allclose(probabilities, other_probabilities, atol=1e-5)
    overlays = {prediction.overlay for prediction in explained if not prediction.error}
    assert overlays == {str(path) for path in tmp_path.iterdir()}
    assert len(overlays) == 10


@pytest.mark.slow
def test_predict_images_reports_an_image_that_is_deleted_before_its_overlay_is_drawn(
    classifier: Classifier, tmp_path: Path
) -> None:
    reads = iter([drawn_dogs.draw("test", 0, 0)])

    def read_once() -> np.ndarray:
        try:
            return next(reads)
        except StopIteration:
            raise UnreadableImageError(
                "a cannot be opened. Images must be files. Repair it, or type data.on_corrupt=skip."
            ) from None

    infer = inference_function(classifier, explain=True)
    images = [NamedImage("a", "/a", read_once)]
    overlays = OverlayWriter(tmp_path, "pad")
    (prediction,) = predict_images(classifier, infer, images, batch_size=2, top=1, overlays=overlays)
    assert prediction == Prediction("a", error="a cannot be opened. Images must be files. Repair it.")


# --- formats ----------------------------------------------------------

PREDICTIONS = [
    Prediction("photos/a.jpg", ((NAMES[0], 0.9314159265), (NAMES[1], 0.0500000001)), overlay="x/a-1.jpg"),
    Prediction("photos/Bär, 犬.jpg", ((NAMES[3], 0.4), (NAMES[2], 1e-9))),
    Prediction("photos/cut.jpg", error='photos/cut.jpg is "cut", off. Images must be whole. Replace the file.'),
]


def test_json_lines_have_the_documented_keys() -> None:
    lines = [json.loads(JsonLines()(prediction)) for prediction in PREDICTIONS]
    assert lines[0] == {
        "image": "photos/a.jpg",
        "class": NAMES[0],
        "probability": 0.931416,
        "top": [{"class": NAMES[0], "probability": 0.931416}, {"class": NAMES[1], "probability": 0.05}],
        "explained": "x/a-1.jpg",
    }
    assert lines[1]["top"][1] == {"class": "n02086079-Pekinese", "probability": 1e-9}
    assert "explained" not in lines[1]
    assert lines[2] == {"image": "photos/cut.jpg", "error": PREDICTIONS[2].error}
    assert all(JsonLines()(prediction).count("\n") == 1 for prediction in PREDICTIONS)


@pytest.mark.parametrize("overlays", [False, True])
def test_csv_has_the_same_columns_in_every_row(overlays: bool) -> None:
    formatter = Csv(2, overlays)
    rows = list(csv.DictReader(io.StringIO(formatter.heading + "".join(map(formatter, PREDICTIONS)))))
    columns = [
        "image",
        "class",
        "probability",
        "class_2",
        "probability_2",
        *(["explained"] if overlays else []),
        "error",
    ]
    assert [list(row) for row in rows] == [columns] * 3
    assert rows[0]["class_2"] == 'Bärli, "the" dog'
    assert float(rows[1]["probability_2"]) == 1e-9
    assert rows[2] == dict.fromkeys(columns, "") | {"image": "photos/cut.jpg", "error": PREDICTIONS[2].error}
    if overlays:
        assert [row["explained"] for row in rows] == ["x/a-1.jpg", "", ""]


@pytest.mark.parametrize("width", [20, 40, 60, 80, 120, 200])
@pytest.mark.parametrize("styled", [False, True])
def test_table_fits_the_width_of_the_terminal(width: int, styled: bool) -> None:
    formatter = PredictionsTable(NAMES, 2, width, styled)
    lines = [re.sub(r"\x1b\[\d+m", "", formatter(prediction)) for prediction in PREDICTIONS]
    # Errors are printed to standard error instead.
    assert lines[2] == ""
    assert max(cell_len(line.rstrip("\n")) for line in lines) <= width
    assert " 93.1 %" in lines[0]
    assert lines[0].startswith("photos/a.jpg" if width >= 40 else "ph")
    assert ("Chihuahua" in lines[0]) == (width >= 40)
    assert (" 5.0 %" in lines[0]) == (width >= 80)
    assert ("\x1b[" in formatter(PREDICTIONS[0])) == styled


def test_table_shortens_nothing_outside_a_terminal() -> None:
    long = Prediction("a" * 200, PREDICTIONS[0].top)
    assert (
        PredictionsTable(NAMES, 2, None, False)(long)
        == f"{'a' * 200}  Chihuahua               {' 93.1 %'}  {NAMES[1].ljust(23)}   5.0 %\n"
    )


def test_table_escapes_control_characters_in_names() -> None:
    line = PredictionsTable(("a\x1b[2Jb", "c"), 1, None, False)(Prediction("x\ny.jpg", (("a\x1b[2Jb", 0.5),)))
    assert line.split() == [r"x\ny.jpg", r"a\x1b[2Jb", "50.0", "%"]


# --- the command ------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with eight images, one truncated image, and a text file named as an image."""
    root = tmp_path / "shots"
    (root / "deep").mkdir(parents=True)
    for number in range(8):
        Image.fromarray(drawn_dogs.draw("test", number, 0)).save(
            root / ("deep" if number % 2 else "") / f"{number}.jpg", quality=95
        )
    (root / "cut.jpg").write_bytes((root / "0.jpg").read_bytes()[:700])
    (root / "text.png").write_text("not an image")
    return root


@pytest.mark.slow
def test_predict_reads_a_folder_with_a_saved_network_and_writes_each_format(
    command, fresh_command, file: Path, classifier: Classifier, folder: Path, tmp_path: Path
) -> None:
    done = fresh_command("predict", f"run={file}", "images=shots", "format=jsonl", "explain=true", "explain_dir=seen")
    errors = done.stderr.splitlines()
    assert done.returncode == 2
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    good = [line for line in lines if "error" not in line]
    assert [line["image"] for line in lines] == [
        f"shots/{name}"
        for name in (
            "0.jpg",
            "2.jpg",
            "4.jpg",
            "6.jpg",
            "cut.jpg",
            *(f"deep/{n}.jpg" for n in (1, 3, 5, 7)),
            "text.png",
        )
    ]
    for line in good:
        with Image.open(tmp_path / line["image"]) as image:
            probabilities = classifier.model(np.asarray(image)[None])["probabilities"].numpy()[0]
        assert line["class"] == NAMES[int(probabilities.argmax())]
        assert abs(line["probability"] - probabilities.max()) < 1e-4
    assert {line["explained"] for line in good} == {f"seen/{path.name}" for path in (tmp_path / "seen").iterdir()}
    assert errors[:2] == [f"loading {file}", f"{file}: 5 classes, 64 px"]
    assert [error.split(" (")[0] for error in errors[2:4]] == [
        "shots/cut.jpg cannot be read as an image",
        "shots/text.png cannot be read as an image",
    ]
    assert re.fullmatch(r"8 images in [\d.]+ s, [\d,]+ images/s; 2 could not be read; overlays in seen", errors[4])
    # Nothing was written to MLflow.
    assert not (tmp_path / "home/mlruns").exists()

    table = command("predict", f"run={file}", "images=shots/*.jpg", "tracking=none")
    assert table.returncode == 2
    assert table.stdout.splitlines()[0].split()[0] == "shots/0.jpg"
    assert "\x1b" not in table.stdout
    assert len(table.stdout.splitlines()) == 4

    written = command(
        "predict", f"run={file}", "images=[shots/0.jpg,shots/deep]", "format=csv", "output=out/classes.csv", "top=99"
    )
    assert (written.returncode, written.stdout) == (0, "out/classes.csv\n"), written.stderr
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out/classes.csv").read_text())))
    assert [row["image"] for row in rows] == ["shots/0.jpg", *(f"shots/deep/{n}.jpg" for n in (1, 3, 5, 7))]
    assert abs(sum(float(rows[0][f"probability{end}"]) for end in ("", "_2", "_3", "_4", "_5")) - 1) < 1e-5
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["classes.csv"]


@pytest.mark.long
def test_predict_reads_standard_input_and_ends_when_its_reader_leaves(
    command, command_environment, file: Path, folder: Path, tmp_path: Path
) -> None:
    one = command("predict", f"run={file}", "images=-", "format=csv", "top=1", stdin=(folder / "0.jpg").read_bytes())
    assert (one.returncode, one.stdout.splitlines()[1].split(",")[0]) == (0, "standard input")
    listed = command(
        "predict", f"run={file}", "images=-", "format=csv", "top=1", stdin=b"shots/0.jpg\nshots/gone.jpg\nshots/2.jpg\n"
    )
    assert listed.returncode == 2
    assert [line.split(",")[0] for line in listed.stdout.splitlines()[1:]] == [
        "shots/0.jpg",
        "shots/gone.jpg",
        "shots/2.jpg",
    ]
    assert (
        "shots/gone.jpg cannot be opened (No such file or directory). Images must be readable files. Repair or remove"
        " it.\n" in listed.stderr
    )
    line = (
        f"yes shots/0.jpg | {sys.executable} -m dogbreeds.predict run={file} images=- batch_size=4 format=jsonl"
        " 2>errors | head -2"
    )
    script = ["bash", "-c", f"{line}; echo ${{PIPESTATUS[1]}}"]
    early = subprocess.run(script, cwd=tmp_path, env=command_environment(), capture_output=True, timeout=900, text=True)
    assert early.stdout.splitlines()[2] == "0"
    assert (tmp_path / "errors").read_text() == f"loading {file}\n{file}: 5 classes, 64 px\n"


@pytest.mark.long
def test_predict_reports_errors_before_anything_is_computed(command, file: Path, folder: Path, tmp_path: Path) -> None:
    import keras

    (tmp_path / "empty").mkdir()
    keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]).save(tmp_path / "nameless.keras")
    (tmp_path / "cut.keras").write_bytes(file.read_bytes()[:-2000])
    (tmp_path / "text.keras").write_text("not a network")
    for arguments, received, *facts in (
        ([], "images was not given. ", "a folder, a pattern, or - for standard input", "Type images=path/to/images"),
        (
            ["images=empty"],
            "images=empty has no images. ",
            ".jpg, .jpeg, .png, .webp and are not hidden",
            "Type images=path/to/images",
        ),
        (["images=none/*.jpg"], "images=none/*.jpg has no images. "),
        (["images=gone"], f"images=gone does not exist (looked for {tmp_path}/gone). "),
        (["images=-"], "images=- was given, and standard input is empty. ", "Type find photos"),
        (
            ["images=a.jpg,b.jpg"],
            "images=a.jpg,b.jpg was given without --multirun. ",
            "Type 'images=[a.jpg,b.jpg]'.",
        ),
        (["images=shots", "imagse=x"], "imagse is not a setting. ", "run, images,"),
        (["images=shots", "format=xml"], "format was 'xml'. ", "table, jsonl, csv", "Type format=table"),
        (["images=shots", "top=0"], "top was 0. ", "1 or more", "Type top=3"),
        (["images=shots", "tracking=none"], "tracking=none was given. ", "MLflow", "Type tracking=mlflow."),
        (
            ["images=shots"],
            "Experiment 'dogbreeds' has no finished run with a saved network. ",
            "run=latest",
            "Type python -m dogbreeds.train",
        ),
        (
            ["images=shots", "run=abc"],
            "run=abc names no run of experiment 'dogbreeds'. ",
            "latest, best, or the beginning of one run's id",
            "Type run=latest",
        ),
        (["images=shots", "run=gone.keras"], "run=gone.keras is not a file. ", ".keras", "Type run=latest"),
        (
            ["images=shots", "run=nameless.keras"],
            "nameless.keras is a network without class names. ",
            "probabilities and class",
            "Type run=latest",
        ),
        (["images=shots", "run=cut.keras"], "cut.keras cannot be read as a saved network ("),
        (["images=shots", "run=text.keras"], "text.keras cannot be read as a saved network ("),
        (
            ["images=shots", f"run={file}", "output=shots"],
            f"{tmp_path}/shots cannot be written (not a regular file). ",
            "output must be a file",
            "Type output=",
        ),
        (
            ["images=shots", f"run={file}", "output=/dev/null"],
            "/dev/null cannot be written (not a regular file). ",
            "output must be a file",
        ),
        (
            ["images=shots", f"run={file}", "explain=true", "explain_dir=shots/0.jpg"],
            "shots/0.jpg cannot be written (File exists). ",
            "Type explain_dir=<folder>",
        ),
    ):
        refused = command("predict", *arguments)
        errors = refused.stderr
        assert f"error: {received}" in errors, errors
        assert all(fact in errors for fact in facts), errors
        assert "Traceback" not in errors
        assert (refused.returncode, refused.stdout) == (1, "")


@pytest.mark.parametrize(
    "name",
    tiered(
        [("Bärli, [2024] (1).jpg",), ("it's = 1.jpg",), ("my dog.jpg",), ("007",)], slow=[("it's = 1.jpg",), ("007",)]
    ),
)
def test_predict_accepts_quoted_names_with_characters_that_hydra_parses(
    name: str, command, file: Path, folder: Path, tmp_path: Path
) -> None:
    (folder / "0.jpg").rename(tmp_path / name)
    quote = '"' if "'" in name else "'"
    done = command("predict", f"run={file}", f"images={quote}{name}{quote}", "format=jsonl", "top=1")
    assert (done.returncode, json.loads(done.stdout or "{}").get("image")) == (0, name), done.stderr


@pytest.mark.slow
def test_predict_leaves_no_partial_output_after_an_interruption(
    start_command, file: Path, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "classes.csv").write_text("from before")
    with start_command(
        "predict", f"run={file}", "images=-", "format=csv", "output=classes.csv", stdin=b"shots/0.jpg\n" * 1_000_000
    ) as process:
        wait_until(lambda: any(path.stat().st_size > 5_000 for path in tmp_path.glob(".classes.csv.*")), process)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.splitlines()[-1] == "interrupted"
    assert (tmp_path / "classes.csv").read_text() == "from before"
    assert list(tmp_path.glob(".classes.csv.*")) == []


def on_a_terminal(width: int, arguments: list[str], folder: Path, environment: dict[str, str]) -> list[str]:
    import fcntl
    import struct
    import termios

    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 30, width, 0, 0))
    with subprocess.Popen(
        arguments, cwd=folder, env=environment, stdout=terminal, stderr=subprocess.DEVNULL
    ) as process:
        os.close(terminal)
        output = b""
        while True:
            try:
                more = os.read(controller, 65_536)
            except OSError:
                # The command has closed the terminal.
                break
            output += more
        process.wait(timeout=60)
    os.close(controller)
    return output.decode().splitlines()


@pytest.mark.parametrize(
    ("width", "colours"),
    [
        *(
            pytest.param(*each, marks=pytest.mark.long)
            for each in ((40, {}), (80, {"NO_COLOR": "1"}), (200, {"TERM": "dumb"}))
        ),
    ],
)
def test_predict_fits_its_lines_into_a_terminal(
    command_environment, make_home, file: Path, folder: Path, tmp_path: Path, width: int, colours: dict[str, str]
) -> None:
    make_home(tmp_path / "home")
    environment = command_environment(TERM="xterm") | colours
    environment = {name: value for name, value in environment.items() if name != "NO_COLOR" or colours}
    arguments = [sys.executable, "-m", "dogbreeds.predict", f"run={file}", "images=shots/deep"]
    lines = on_a_terminal(width, arguments, tmp_path, environment)
    assert len(lines) == 4
    assert any("\x1b[" in line for line in lines) == (not colours)
    assert max(cell_len(re.sub(r"\x1b\[\d+m", "", line)) for line in lines) <= width


@pytest.mark.slow
def test_predict_uses_the_network_of_a_recorded_run(
    command: Callable[..., "subprocess.CompletedProcess[str]"], folder: Path
) -> None:
    ran = command("train", "data.classes=8", "phase.epochs=3", "preflight=none", "tracking.system_metrics_seconds=0")
    assert ran.returncode == 0, ran.stderr
    done = command("predict", "images=shots/deep", "format=jsonl", "top=1")
    assert done.returncode == 0, done.stderr
    right = [
        json.loads(line)["class"] == drawn_dogs.breed_name(int(Path(json.loads(line)["image"]).stem))
        for line in done.stdout.splitlines()
    ]
    assert sum(right) >= 3
    assert re.match(
        r"loading runs of experiment 'dogbreeds'\nrun [0-9a-f]{8,}, Miniature on miniature, [\d.]+ % on validation:"
        r" 8 classes, 64 px\n",
        done.stderr,
    )
    other = command("predict", "images=shots", "only.model=effnetb4")
    assert "has no finished run with a saved network for only.model=effnetb4. run=latest needs one in " in other.stderr
