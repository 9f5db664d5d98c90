"""`predict`: that it says what the network says, in order, in bounded memory; its formats; and the command as a user runs it."""

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
from dogbreeds.data.image import Unreadable
from dogbreeds.inference.classifier import Classifier, load
from dogbreeds.inference.grad_cam import Overlays
from dogbreeds.inference.image_sources import Named
from dogbreeds.inference.predictions import Csv, JsonLines, Prediction, Table, fitted
from dogbreeds.inference.predictor import answers, network
from dogbreeds.models.head import Linear
from dogbreeds.models.model import Miniature
from dogbreeds.models.network import assemble
from dogbreeds.models.preprocessing import Preprocessing
from dogbreeds.models.unfreeze import Nothing
from tests.said import until
from tests.tiers import tiered

NAMES = ("n02085620-Chihuahua", 'Bärli, "the" dog', "n02086079-Pekinese", "wire-haired_fox_terrier", "a=b")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network as an attempt keeps it, its head made so that it is sure of something."""
    backbone = Miniature(architecture="Miniature", image_size=64, pixels="raw", weights="shipped").build(0)
    plan = Nothing(batchnorm="frozen", drop_connect="off").plan(backbone.blocks)
    built = assemble(
        backbone, Preprocessing(mode="raw"), plan, lambda features: Linear(dropout=0.0).build(features, len(NAMES), 0)
    )
    built.head.set_weights([3 * array for array in built.head.get_weights()])
    path = tmp_path_factory.mktemp("network") / "model.keras"
    built.whole(NAMES, "pad").save(path)
    return path


@pytest.fixture(scope="module")
def classifier(file: Path) -> Classifier:
    return load(file)


def drawn(number: int, decoded: list[int] | None = None) -> Named:
    def pixels() -> np.ndarray:
        if decoded is not None:
            decoded.append(number)
        if number % 7 == 3:
            raise Unreadable(f"{number} is a pipe. Photos must be files. Remove it, or type data.on_corrupt=skip.")
        photo = drawn_dogs.draw("test", number % 50, number // 50)
        return photo[: 64 - number % 5, : 64 - number % 3]

    return Named(str(number), f"/{number}", pixels)


def said(classifier: Classifier, count: int, batch: int, top: int = 2, **more: object) -> list[Prediction]:
    return list(
        answers(classifier, network(classifier, "overlays" in more), map(drawn, range(count)), batch, top, **more)
    )  # type: ignore[arg-type]


@pytest.mark.parametrize("batch", [4, pytest.param(100, marks=pytest.mark.slow)])
def test_it_says_what_the_saved_network_says_in_order(classifier: Classifier, batch: int) -> None:
    found = said(classifier, 6, batch)
    assert [answer.photo for answer in found] == [str(number) for number in range(6)]
    for number, answer in enumerate(found):
        if number % 7 == 3:
            assert answer == Prediction(str(number), error=f"{number} is a pipe. Photos must be files. Remove it.")
            continue
        whole = classifier.whole(drawn(number).pixels()[None])
        shares = whole["probabilities"].numpy()[0]
        (first, share), (second, less) = answer.top
        assert first == whole["breed"].numpy()[0].decode()
        assert second == NAMES[np.argsort(-shares)[1]]
        assert np.allclose([share, less], np.sort(shares)[::-1][:2], atol=1e-5)
        assert answer.error == "" and answer.explained is None


def test_only_some_batches_are_opened_ahead_and_nothing_after_it_is_closed(classifier: Classifier) -> None:
    decoded: list[int] = []
    running = answers(classifier, network(classifier, False), (drawn(number, decoded) for number in range(10**9)), 4, 1)
    for number in range(40):
        assert next(running).photo == str(number)
        assert len(decoded) <= number + 4 * 4
    running.close()
    begun = len(decoded)
    time.sleep(0.1)
    assert len(decoded) == begun


def test_bad_photos_alone_are_no_batch(classifier: Classifier) -> None:
    photos = [drawn(3), drawn(10), drawn(17)]
    assert [bool(answer.error) for answer in answers(classifier, network(classifier, False), photos, 2, 1)] == [
        True
    ] * 3


def test_a_network_whose_answers_are_no_numbers_is_refused(classifier: Classifier) -> None:
    def run(pixels: np.ndarray) -> tuple[np.ndarray, None]:
        return np.full((len(pixels), len(NAMES)), np.nan), None

    with pytest.raises(
        UserError,
        match=(
            r"^The network's answers are not numbers: its training diverged\. A network must give probabilities\. Type"
            r" run=best"
        ),
    ):
        list(answers(classifier, run, [drawn(0)], 2, 1))


def test_explained_photos_are_answered_alike_and_have_pictures(classifier: Classifier, tmp_path: Path) -> None:
    overlays = Overlays(tmp_path, classifier.resize)
    plain, explained = said(classifier, 12, 5), said(classifier, 12, 5, overlays=overlays)
    assert [answer.error for answer in plain] == [answer.error for answer in explained]
    for one, other in zip(plain, explained, strict=True):
        assert [breed for breed, _ in one.top] == [breed for breed, _ in other.top]
        assert np.allclose([share for _, share in one.top], [share for _, share in other.top], atol=1e-5)
    pictures = {answer.explained for answer in explained if not answer.error}
    assert pictures == {str(path) for path in tmp_path.iterdir()}
    assert len(pictures) == 10


def test_a_photo_that_goes_away_before_it_is_drawn_is_a_bad_one(classifier: Classifier, tmp_path: Path) -> None:
    looks = iter([drawn_dogs.draw("test", 0, 0)])

    def once() -> np.ndarray:
        try:
            return next(looks)
        except StopIteration:
            raise Unreadable(
                "a cannot be opened. Photos must be files. Mend it, or type data.on_corrupt=skip."
            ) from None

    (answer,) = answers(
        classifier, network(classifier, True), [Named("a", "/a", once)], 2, 1, Overlays(tmp_path, "pad")
    )
    assert answer == Prediction("a", error="a cannot be opened. Photos must be files. Mend it.")


# --- how it is said -------------------------------------------------------------------------------------------------------

ANSWERS = [
    Prediction("photos/a.jpg", ((NAMES[0], 0.9314159265), (NAMES[1], 0.0500000001)), explained="x/a-1.jpg"),
    Prediction("photos/Bär, 犬.jpg", ((NAMES[3], 0.4), (NAMES[2], 1e-9))),
    Prediction("photos/cut.jpg", error='photos/cut.jpg is "cut", off. Photos must be whole. Replace the file.'),
]


def test_json_lines_hold_what_programs_need() -> None:
    lines = [json.loads(JsonLines()(answer)) for answer in ANSWERS]
    assert lines[0] == {
        "photo": "photos/a.jpg",
        "breed": NAMES[0],
        "probability": 0.931416,
        "top": [{"breed": NAMES[0], "probability": 0.931416}, {"breed": NAMES[1], "probability": 0.05}],
        "explained": "x/a-1.jpg",
    }
    assert lines[1]["top"][1] == {"breed": "n02086079-Pekinese", "probability": 1e-9}
    assert "explained" not in lines[1]
    assert lines[2] == {"photo": "photos/cut.jpg", "error": ANSWERS[2].error}
    assert all(JsonLines()(answer).count("\n") == 1 for answer in ANSWERS)


@pytest.mark.parametrize("explained", [False, True])
def test_csv_has_the_same_columns_on_every_row(explained: bool) -> None:
    lines = Csv(2, explained)
    rows = list(csv.DictReader(io.StringIO(lines.heading + "".join(map(lines, ANSWERS)))))
    columns = [
        "photo",
        "breed",
        "probability",
        "breed_2",
        "probability_2",
        *(["explained"] if explained else []),
        "error",
    ]
    assert [list(row) for row in rows] == [columns] * 3
    assert rows[0]["breed_2"] == 'Bärli, "the" dog'
    assert float(rows[1]["probability_2"]) == 1e-9
    assert rows[2] == dict.fromkeys(columns, "") | {"photo": "photos/cut.jpg", "error": ANSWERS[2].error}
    if explained:
        assert [row["explained"] for row in rows] == ["x/a-1.jpg", "", ""]


@pytest.mark.parametrize("width", [20, 40, 60, 80, 120, 200])
@pytest.mark.parametrize("coloured", [False, True])
def test_a_table_keeps_to_the_terminal_s_width(width: int, coloured: bool) -> None:
    lines = Table(NAMES, 2, width, coloured)
    shown = [re.sub(r"\x1b\[\d+m", "", lines(answer)) for answer in ANSWERS]
    # Its sentence stands on the standard error
    assert shown[2] == ""
    assert max(cell_len(line.rstrip("\n")) for line in shown) <= width
    assert " 93.1 %" in shown[0]
    assert shown[0].startswith("photos/a.jpg" if width >= 40 else "ph")
    assert ("Chihuahua" in shown[0]) == (width >= 40)
    assert (" 5.0 %" in shown[0]) == (width >= 80)
    assert ("\x1b[" in lines(ANSWERS[0])) == coloured


def test_a_table_in_a_file_shortens_nothing() -> None:
    long = Prediction("a" * 200, ANSWERS[0].top)
    assert (
        Table(NAMES, 2, None, False)(long)
        == f"{'a' * 200}  Chihuahua               {' 93.1 %'}  {NAMES[1].ljust(23)}   5.0 %\n"
    )


def test_what_is_shortened_loses_its_middle() -> None:
    assert fitted("photos/summer/dog.jpg", 11) == "photo…g.jpg"[:5] + "…" + "g.jpg"
    assert fitted("short", 8) == "short   "
    for width in range(1, 12):
        assert cell_len(fitted("犬の写真です.jpg", width)) == width


# --- the command ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten photos, one of them cut off, and one that is none."""
    root = tmp_path / "shots"
    (root / "deep").mkdir(parents=True)
    for number in range(8):
        Image.fromarray(drawn_dogs.draw("test", number, 0)).save(
            root / ("deep" if number % 2 else "") / f"{number}.jpg", quality=95
        )
    (root / "cut.jpg").write_bytes((root / "0.jpg").read_bytes()[:700])
    (root / "text.png").write_text("no photo")
    return root


@pytest.mark.slow
def test_a_folder_from_a_saved_file_in_each_format(
    command, typed, file: Path, classifier: Classifier, folder: Path, tmp_path: Path
) -> None:
    done = typed("predict", f"run={file}", "images=shots", "format=jsonl", "explain=true", "explain_dir=seen")
    errors = done.stderr.splitlines()
    assert done.returncode == 2
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    good = [line for line in lines if "error" not in line]
    assert [line["photo"] for line in lines] == [
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
        with Image.open(tmp_path / line["photo"]) as photo:
            shares = classifier.whole(np.asarray(photo)[None])["probabilities"].numpy()[0]
        assert line["breed"] == NAMES[int(shares.argmax())]
        assert abs(line["probability"] - shares.max()) < 1e-4
    assert {line["explained"] for line in good} == {f"seen/{path.name}" for path in (tmp_path / "seen").iterdir()}
    assert errors[0] == f"{file}: 5 breeds, 64 px"
    assert [error.split(" (")[0] for error in errors[1:3]] == [
        "shots/cut.jpg cannot be read as a photo",
        "shots/text.png cannot be read as a photo",
    ]
    assert re.fullmatch(r"8 photos in [\d.]+ s, [\d,]+ images/s; 2 could not be read; overlays in seen", errors[3])
    # MLflow was left alone
    assert not (tmp_path / "home/mlruns").exists()

    table = command("predict", f"run={file}", "images=shots/*.jpg", "tracking=none")
    assert table.returncode == 2
    assert table.stdout.splitlines()[0].split()[0] == "shots/0.jpg"
    assert "\x1b" not in table.stdout
    assert len(table.stdout.splitlines()) == 4

    written = command(
        "predict", f"run={file}", "images=[shots/0.jpg,shots/deep]", "format=csv", "output=out/breeds.csv", "top=99"
    )
    assert (written.returncode, written.stdout) == (0, "out/breeds.csv\n"), written.stderr
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out/breeds.csv").read_text())))
    assert [row["photo"] for row in rows] == ["shots/0.jpg", *(f"shots/deep/{n}.jpg" for n in (1, 3, 5, 7))]
    assert abs(sum(float(rows[0][f"probability{end}"]) for end in ("", "_2", "_3", "_4", "_5")) - 1) < 1e-5
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["breeds.csv"]


@pytest.mark.slow
def test_the_standard_input_and_a_reader_that_leaves(
    command, at_home, file: Path, folder: Path, tmp_path: Path
) -> None:
    one = command("predict", f"run={file}", "images=-", "format=csv", "top=1", given=(folder / "0.jpg").read_bytes())
    assert (one.returncode, one.stdout.splitlines()[1].split(",")[0]) == (0, "standard input")
    listed = command(
        "predict", f"run={file}", "images=-", "format=csv", "top=1", given=b"shots/0.jpg\nshots/gone.jpg\nshots/2.jpg\n"
    )
    assert listed.returncode == 2
    assert [line.split(",")[0] for line in listed.stdout.splitlines()[1:]] == [
        "shots/0.jpg",
        "shots/gone.jpg",
        "shots/2.jpg",
    ]
    assert (
        "shots/gone.jpg cannot be opened (No such file or directory). Photos must be files that you may read. Mend or"
        " remove it.\n" in listed.stderr
    )
    line = (
        f"yes shots/0.jpg | {sys.executable} -m dogbreeds.predict run={file} images=- batch_size=4 format=jsonl"
        " 2>errors | head -2"
    )
    script = ["bash", "-c", f"{line}; echo ${{PIPESTATUS[1]}}"]
    early = subprocess.run(script, cwd=tmp_path, env=at_home(), capture_output=True, timeout=900, text=True)
    assert early.stdout.splitlines()[2] == "0"
    assert (tmp_path / "errors").read_text() == f"{file}: 5 breeds, 64 px\n"


@pytest.mark.slow
def test_errors_are_sentences_and_come_before_anything_is_computed(
    command, file: Path, folder: Path, tmp_path: Path
) -> None:
    import keras

    (tmp_path / "empty").mkdir()
    keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]).save(tmp_path / "nameless.keras")
    (tmp_path / "cut.keras").write_bytes(file.read_bytes()[:-2000])
    (tmp_path / "text.keras").write_text("not a network")
    for arguments, sentence in (
        (
            [],
            (
                "images was not given. It must be a photo, a folder of photos, a pattern, or - for the standard input."
                " Type images="
            ),
        ),
        (
            ["images=empty"],
            (
                "images=empty holds no photos. They are files that end in .jpg, .jpeg, .png, .webp and are not hidden."
                " Type images="
            ),
        ),
        (["images=none/*.jpg"], "images=none/*.jpg holds no photos. They are files that end in"),
        (["images=gone"], f"images=gone is not there (looked for {tmp_path}/gone). It must be a photo, a folder"),
        (["images=-"], "images=- was given, and the standard input is empty. It must be a photo, or paths of photos"),
        (
            ["images=a.jpg,b.jpg"],
            "The command line was not understood (Ambiguous value for argument 'images=a.jpg,b.jpg')",
        ),
        (["images=shots", "imagse=x"], "imagse is not a setting. Near it there are run, images,"),
        (
            ["images=shots", "format=xml"],
            "format was 'xml'. It must be one of table, jsonl, csv. Type format=table, for example.",
        ),
        (["images=shots", "top=0"], "top was 0. It must be a whole number of 1 or more. Type top=3, for example."),
        (
            ["images=shots", "tracking=none"],
            "tracking=none was chosen. A run's network is found through MLflow, which kept it. Type tracking=mlflow.",
        ),
        (
            ["images=shots"],
            (
                "Experiment 'dogbreeds' has no finished attempt that kept its network. run=latest is one of those. Type"
                " python -m"
            ),
        ),
        (
            ["images=shots", "run=abc"],
            (
                "run=abc names no run of experiment 'dogbreeds'. It must be latest, best, or the beginning of one run's"
                " id. Type"
            ),
        ),
        (
            ["images=shots", "run=gone.keras"],
            "run=gone.keras is not a file. It must be a network that was saved as .keras, or a run. Type run=latest",
        ),
        (
            ["images=shots", "run=nameless.keras"],
            "nameless.keras is a network without class names. It must give names and probabilities,",
        ),
        (["images=shots", "run=cut.keras"], "cut.keras cannot be read as a saved network ("),
        (["images=shots", "run=text.keras"], "text.keras cannot be read as a saved network ("),
        (
            ["images=shots", f"run={file}", "output=shots"],
            f"{tmp_path}/shots cannot be written (it is no file). output must be a file. Type output=",
        ),
        (
            ["images=shots", f"run={file}", "output=/dev/null"],
            "/dev/null cannot be written (it is no file). output must be a file.",
        ),
        (
            ["images=shots", f"run={file}", "explain=true", "explain_dir=shots/0.jpg"],
            "shots/0.jpg cannot be written (File exists). Overlays need a",
        ),
    ):
        refused = command("predict", *arguments)
        errors = refused.stderr
        assert f"error: {sentence}" in errors, errors
        assert "Traceback" not in errors
        assert (refused.returncode, refused.stdout) == (1, "")


@pytest.mark.parametrize(
    "name",
    tiered(
        [("Bärli, [2024] (1).jpg",), ("it's = 1.jpg",), ("my dog.jpg",), ("007",)], slow=[("it's = 1.jpg",), ("007",)]
    ),
)
def test_names_that_hydra_would_trip_over_can_be_quoted(
    name: str, command, file: Path, folder: Path, tmp_path: Path
) -> None:
    (folder / "0.jpg").rename(tmp_path / name)
    quote = '"' if "'" in name else "'"
    done = command("predict", f"run={file}", f"images={quote}{name}{quote}", "format=jsonl", "top=1")
    assert (done.returncode, json.loads(done.stdout or "{}").get("photo")) == (0, name), done.stderr


@pytest.mark.slow
def test_interrupted_it_leaves_nothing_half_written(begun, file: Path, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "breeds.csv").write_text("from before")
    with begun(
        "predict", f"run={file}", "images=-", "format=csv", "output=breeds.csv", given=b"shots/0.jpg\n" * 1_000_000
    ) as process:
        until(lambda: any(path.stat().st_size > 5_000 for path in tmp_path.glob(".breeds.csv.*")), process)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.splitlines()[-1] == "interrupted"
    assert (tmp_path / "breeds.csv").read_text() == "from before"
    assert list(tmp_path.glob(".breeds.csv.*")) == []


def on_a_terminal(width: int, arguments: list[str], folder: Path, environment: dict[str, str]) -> list[str]:
    import fcntl
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, width, 0, 0))
    with subprocess.Popen(arguments, cwd=folder, env=environment, stdout=theirs, stderr=subprocess.DEVNULL) as process:
        os.close(theirs)
        shown = b""
        while True:
            try:
                more = os.read(ours, 65_536)
            except OSError:
                # the other side has closed
                break
            shown += more
        process.wait(timeout=60)
    os.close(ours)
    return shown.decode().splitlines()


@pytest.mark.parametrize(
    ("width", "colours"),
    [
        pytest.param(40, {}, marks=pytest.mark.slow),
        *(pytest.param(*each, marks=pytest.mark.long) for each in ((80, {"NO_COLOR": "1"}), (200, {"TERM": "dumb"}))),
    ],
)
def test_on_a_terminal_lines_fit(
    at_home, made_home, file: Path, folder: Path, tmp_path: Path, width: int, colours: dict[str, str]
) -> None:
    made_home(tmp_path / "home")
    environment = at_home(TERM="xterm") | colours
    environment = {name: value for name, value in environment.items() if name != "NO_COLOR" or colours}
    arguments = [sys.executable, "-m", "dogbreeds.predict", f"run={file}", "images=shots/deep"]
    lines = on_a_terminal(width, arguments, tmp_path, environment)
    assert len(lines) == 4
    assert any("\x1b[" in line for line in lines) == (not colours)
    assert max(cell_len(re.sub(r"\x1b\[\d+m", "", line)) for line in lines) <= width


@pytest.mark.slow
def test_a_recorded_run_answers(command: Callable[..., "subprocess.CompletedProcess[str]"], folder: Path) -> None:
    ran = command("train", "data.breeds=8", "phase.epochs=3", "tracking.system_metrics_seconds=0")
    assert ran.returncode == 0, ran.stderr
    done = command("predict", "images=shots/deep", "format=jsonl", "top=1")
    assert done.returncode == 0, done.stderr
    right = [
        json.loads(line)["breed"] == drawn_dogs.breed_name(int(Path(json.loads(line)["photo"]).stem))
        for line in done.stdout.splitlines()
    ]
    assert sum(right) >= 3
    assert re.match(r"run [0-9a-f]{8,}, Miniature on miniature, [\d.]+ % on validation: 8 breeds, 64 px\n", done.stderr)
    other = command("predict", "images=shots", "only.model=effnetb4")
    assert (
        "has no finished attempt that kept its network with only.model=effnetb4. run=latest is one of those."
        in other.stderr
    )
