"""Two networks on the same photos: numbers counted by hand, and what is said of them."""

import csv
import io
import re

import numpy as np
import pytest

from dogbreeds.core.errors import UserError
from dogbreeds.evaluation.metrics import PairedOutcome
from dogbreeds.evaluation.paired_comparison import Comparison, Confusion, adjust, compare
from dogbreeds.evaluation.results import Predictions
from dogbreeds.reports import comparison_rendering
from dogbreeds.reports.run_comparison import Difference
from dogbreeds.tracking.records import Record

NAMES = ("n02085620-Chihuahua", "beagle", "border_collie")


def said(
    labels: list[int], calls: list[int], ids: list[str] | None = None, names: tuple[str, ...] = NAMES, classes: int = 3
) -> Predictions:
    """Predictions that call each photo what they should."""
    return Predictions(
        ids or [f"test/{row}" for row in range(len(labels))], np.array(labels), np.eye(classes)[calls], names
    )


# 9 Chihuahuas, of which the first gets one right and the second eight; 6 beagles, of which one is lost; 5 collies on which both are right but once.
LABELS = [0] * 9 + [1] * 6 + [2] * 5
FIRST = [0] + [1] * 5 + [2] * 3 + [1] * 6 + [0] + [2] * 4
SECOND = [1] + [0] * 8 + [1] * 5 + [2] + [1] + [2] * 4


def record(run_id: str, **params: str) -> Record:
    shared = {
        "model.architecture": "B0",
        "data.name": "dogs",
        "data.fingerprint": "f",
        "optimizer.lr": "0.001",
        "seed": "0",
    }
    return Record(run_id, f"attempt of {run_id}", 0, "FINISHED", shared | params, {}, {"verdict": "learned"}, "7")


def difference(compared: Comparison, alpha: float = 0.05, breeds: int = 10) -> Difference:
    return Difference(record("a" * 32), record("b" * 32), compared, alpha, breeds)


@pytest.fixture
def compared() -> Comparison:
    return compare(said(LABELS, FIRST), said(LABELS, SECOND), "test")


def test_gained_and_lost_are_counted_and_their_p_is_exact(compared) -> None:
    assert compared.pair == PairedOutcome(8, 2, 20, "test")
    assert compared.pair.p_value == pytest.approx(2 * (1 + 10 + 45) / 2**10)
    assert [(share.correct, share.n) for share in compared.accuracies] == [(11, 20), (17, 20)]


def test_breeds_stand_by_how_much_they_changed(compared) -> None:
    assert [
        (change.name, change.pair.n, change.before, change.after, change.pair.gained, change.pair.lost)
        for change in compared.changes
    ] == [
        ("n02085620-Chihuahua", 9, 1, 8, 8, 1),
        ("beagle", 6, 6, 5, 0, 1),
        ("border_collie", 5, 4, 4, 0, 0),
    ]
    # 0.039
    p = 2 * (1 + 9) / 2**9
    assert [change.pair.p_value for change in compared.changes] == pytest.approx([p, 1, 1])
    assert [change.adjusted for change in compared.changes] == pytest.approx([3 * p, 1, 1])
    assert [change.name for change in compared.different(0.12)] == ["n02085620-Chihuahua"]
    assert compared.different(0.05) == []


def test_what_is_confused_now_and_what_is_not_any_more(compared) -> None:
    # Each of the two mistakes was made once
    assert compared.made(NAMES) == []
    assert compared.mended(NAMES) == [
        Confusion("n02085620-Chihuahua", "beagle", 5),
        Confusion("n02085620-Chihuahua", "border_collie", 3),
    ]
    assert compared.mended(["beagle"]) == []
    turned = compare(said(LABELS, SECOND), said(LABELS, FIRST), "test")
    assert (turned.made(NAMES), turned.mended(NAMES)) == (compared.mended(NAMES), [])


@pytest.mark.parametrize(
    ("values", "adjusted"),
    [
        # 4 x 0.005 / 1, 4 x 0.01 / 2, 4 x 0.03 / 3, 4 x 0.04 / 4
        ([0.01, 0.04, 0.03, 0.005], [0.02, 0.04, 0.04, 0.02]),
        # 4 x 0.02 is more than 4 x 0.021 / 2, which stands for both
        ([0.9, 0.02, 0.021, 0.6], [0.9, 0.042, 0.042, 0.8]),
        ([0.3], [0.3]),
        ([1.0, 1.0], [1.0, 1.0]),
        ([], []),
    ],
)
def test_p_is_adjusted_as_by_hand(values: list[float], adjusted: list[float]) -> None:
    assert adjust(values) == pytest.approx(adjusted)


def test_p_is_adjusted_as_scipy_does(rng: np.random.Generator) -> None:
    from scipy.stats import false_discovery_control

    # With equal ones among them
    values = np.round(rng.random(200) ** 3, 2)
    assert adjust(values.tolist()) == pytest.approx(false_discovery_control(values).tolist())


@pytest.mark.parametrize(("breeds", "alpha"), [(1, 0.05), (2, 0.05), (120, 0.05), (120, 0.01), (16, 0.0625)])
def test_how_many_photos_a_single_breed_needs(breeds: int, alpha: float) -> None:
    labels = list(range(breeds))
    found = compare(*[said(labels, labels, names=(), classes=breeds)] * 2, "test").needed(alpha)
    lowest = [
        adjust([PairedOutcome(gained, 0, gained, "test").p_value] + [1.0] * (breeds - 1))[0]
        for gained in (found - 1, found)
    ]
    assert lowest[1] <= alpha < lowest[0]


def test_only_photos_that_both_have_are_compared_whatever_their_order() -> None:
    first = said([0, 1, 2, 0], [0, 0, 2, 1], ["a", "b", "c", "only first"])
    second = said([2, 1, 0], [2, 1, 1], ["c", "b", "a"], names=())
    found = compare(first, second, "val")
    assert (found.pair.gained, found.pair.lost, found.pair.n, found.photos) == (1, 1, 3, (4, 3))
    assert difference(found).photos == "On the 3 photos of val that both have; the first has 4 there, the second 3."
    # One of the two has recorded them
    assert found.class_names == NAMES
    assert difference(found).cautions[0].startswith("Each network's best epoch was chosen on its val")


def test_without_recorded_names_classes_have_numbers() -> None:
    assert compare(*[said([0, 2], [0, 2], names=())] * 2, "test").changes[1].name == "class 2"


@pytest.mark.parametrize(
    ("second", "sentence"),
    [
        (
            said([0], [0], classes=4, names=()),
            "first has 3 breeds and second 4. Both must know the same. Type only.data=<data>",
        ),
        (
            said([0], [0], names=("n02085620-Chihuahua", "basset", "pug")),
            "first has a breed 'beagle' where second has 'basset'.",
        ),
        (
            said([0], [0], ["elsewhere"]),
            "share no photo of test (such as test/0 and elsewhere). A paired test needs the same photos.",
        ),
        (
            said([0, 2], [0, 2]),
            "test/1 is of another breed in first than in second. A photo of the same name must be the same photo.",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused(second: Predictions, sentence: str) -> None:
    with pytest.raises(UserError, match=re.escape(sentence)):
        compare(said([0, 1], [0, 1]), second, "test")


def test_a_difference_is_said_only_where_the_test_shows_one(compared) -> None:
    said_of_20 = difference(compared).conclusion
    assert said_of_20.startswith(
        "No difference is shown at the level of 0.05. The second may be anything from no difference to 54.5 points"
        " better"
    )
    assert difference(compared, alpha=0.2).conclusion == "The second is better than the first, at the level of 0.2."
    turned = compare(said(LABELS, SECOND), said(LABELS, FIRST), "test")
    assert difference(turned, alpha=0.2).conclusion == "The second is worse than the first, at the level of 0.2."
    itself = Difference(record("a"), record("a"), compare(*[said(LABELS, FIRST)] * 2, "test"), 0.05, 10)
    assert itself.conclusion == "The first and the second are the same run: there is no difference."
    assert (itself.comparison.pair.p_value, itself.settings, itself.most_changed, itself.cautions) == (1.0, [], (), [])


def test_breeds_that_differ_are_named_and_few_photos_are_owned_up_to(compared) -> None:
    assert (
        difference(compared, alpha=0.2).about_breeds
        == "1 of 3 breeds, after adjusting for that many tests (Benjamini and Hochberg, 0.2), differs: Chihuahua (+7"
        " of 9)."
    )
    assert (
        difference(compared).about_breeds
        == "None of 3 breeds, after adjusting for that many tests (Benjamini and Hochberg, 0.05), differs. With 5 to 9"
        " photos of each, a single breed would have to gain or lose 7, with none the other way."
    )
    alike = compare(*[said([0, 1, 2], [0, 1, 2])] * 2, "test")
    assert difference(alike).about_breeds.endswith(
        "With 1 photo of each, a single breed would have to gain or lose 7, with none the other way: more than there"
        " are."
    )
    # The third did not change
    assert [change.name for change in difference(compared).most_changed] == ["n02085620-Chihuahua", "beagle"]
    assert difference(compared).confusions == [
        "Only the first takes Chihuahua for beagle (5 photos), Chihuahua for border collie (3 photos)."
    ]
    assert len(difference(compared, breeds=1).most_changed) == 1


def test_settings_that_differ_without_what_decides_nothing(compared) -> None:
    first = record(
        "a",
        **{
            "head": "MLP",
            "head.widths": "[512]",
            "tracking.uri": "x",
            "features.dir": "x",
            "features.dtype": "float32",
            "key": "1",
        },
    )
    second = record(
        "b",
        **{
            "head": "Linear",
            "tracking.uri": "y",
            "features.dir": "y",
            "features.dtype": "float16",
            "key": "2",
            "seed": "3",
        },
    )
    second.tags.update({"parent": "0123456789abcdef", "version.keras": "3.15.1", "process": "12"})
    assert Difference(first, second, compared, 0.05, 10).settings == [
        ("features.dtype", "float32", "float16"),
        ("head", "MLP", "Linear"),
        ("head.widths", "[512]", "–"),
        ("seed", "0", "3"),
        # Eight digits alone would be typed as a number
        ("parent", "–", "0123456789a"),
        ("version.keras", "–", "3.15.1"),
    ]


@pytest.mark.parametrize(
    ("changes", "names", "warned"),
    [
        # The same settings, and other files
        ({"data.fingerprint": "g"}, ["data.fingerprint"], True),
        # The same files, split otherwise
        ({"data.fingerprint": "g", "data.split_seed": "1"}, ["data.split_seed"], False),
        ({"data.fingerprint": "g", "data.root": "there"}, ["data.root"], True),
        # The same files in another place
        ({"data.root": "there"}, ["data.root"], False),
    ],
)
def test_files_that_are_not_the_same_are_told(
    compared, changes: dict[str, str], names: list[str], warned: bool
) -> None:
    found = Difference(record("a"), record("b", **changes), compared, 0.05, 10)
    assert [name for name, *_ in found.settings] == names
    assert any("had not quite the same files" in caution for caution in found.cautions) == warned


def address(of: Record) -> str:
    return f"http://mlflow/#/experiments/{of.experiment_id}/runs/{of.run_id}"


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_the_text_keeps_to_the_terminal_s_width(compared, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    text = comparison_rendering.as_text(difference(compared), width, address)
    assert f"http://mlflow/#/experiments/7/runs/{'a' * 32}\x1b" in text
    bare = re.sub(r"\x1b\[[0-9;]*m|\x1b\]8;[^\x1b]*\x1b\\", "", text)
    assert "\x1b" not in bare
    assert max(map(len, bare.splitlines())) <= width
    assert re.search(r"Chihuahua +9 +1 → 8 +8 +1 +(0\.039 +)?0\.12", bare)
    assert ("0.039" in bare) == (width >= 80)


def test_text_that_goes_into_a_file_has_no_colours_and_no_links(compared) -> None:
    text = comparison_rendering.as_text(difference(compared), None, address)
    assert "\x1b" not in text
    assert "first   run aaaaaaaa: 55.0 % (95 % interval 34.2–74.2, n = 20)" in text


def test_markdown_csv_and_html_say_the_same(compared) -> None:
    found = difference(compared)
    markdown = comparison_rendering.as_markdown(found, address)
    assert "| Chihuahua | 9 | 1 → 8 | 8 | 1 | 0.039 | 0.12 |" in markdown
    assert (
        f"- second: run [bbbbbbbb](http://mlflow/#/experiments/7/runs/{'b' * 32}), `attempt of {'b' * 32}`: 85.0 %"
        in markdown
    )
    rows = list(csv.DictReader(io.StringIO(comparison_rendering.as_csv(found))))
    assert [(row["breed"], row["n"], row["first_right"], row["second_right"]) for row in rows] == [
        ("Chihuahua", "9", "1", "8"),
        ("beagle", "6", "6", "5"),
        ("border collie", "5", "4", "4"),
    ]
    assert float(rows[0]["p"]) == pytest.approx(0.0390625)
    assert (rows[0]["first"], rows[0]["second"], rows[0]["split"]) == ("a" * 32, "b" * 32, "test")
    page = comparison_rendering.as_html(found, address)
    assert page.count("<svg") == 1
    # Headings and two runs, headings and three breeds
    assert page.count("<tr>") == 1 + 2 + 1 + 3
    assert "No difference is shown at the level of 0.05" in page
    assert set(re.findall(r'href="(http[^"]*)"', page)) == {address(found.first), address(found.second)}


def test_the_picture_shows_the_breeds_named_and_how_many_changed_by_how_much(compared) -> None:
    breeds, all_of_them = comparison_rendering.draw(difference(compared)).axes
    assert [label.get_text() for label in breeds.get_yticklabels()] == ["Chihuahua", "beagle"]
    assert breeds.lines[0].get_xdata().tolist() == pytest.approx([100 / 9, 800 / 9])
    assert {round(bar.get_x() + bar.get_width() / 2): bar.get_height() for bar in all_of_them.patches} == {
        7: 1,
        -1: 1,
        0: 1,
    }
