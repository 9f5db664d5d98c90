"""Paired comparison of two networks, with counts and p-values by hand, and its reports."""

import csv
import io
import re

import numpy as np
import pytest

from dogbreeds.core.errors import UserError
from dogbreeds.evaluation.metrics import PairedOutcome
from dogbreeds.evaluation.paired_comparison import Comparison, Confusion, adjust_p_values, compare
from dogbreeds.evaluation.results import Predictions
from dogbreeds.reports import comparison_rendering
from dogbreeds.reports.run_comparison import RunComparison
from dogbreeds.tracking.records import Record

NAMES = ("n02085620-Chihuahua", "beagle", "border_collie")


def predictions(
    labels: list[int],
    predicted: list[int],
    ids: list[str] | None = None,
    names: tuple[str, ...] = NAMES,
    classes: int = 3,
) -> Predictions:
    """Return predictions of the given classes.

    Args:
        labels: true class of each image.
        predicted: predicted class of each image.
        ids: name of each image; None for `test/0`, `test/1` and so on.
        names: names of the classes.
        classes: number of classes.
    """
    return Predictions(
        ids or [f"test/{row}" for row in range(len(labels))], np.array(labels), np.eye(classes)[predicted], names
    )


# 9 Chihuahuas: one correct in the first run, eight in the second. 6 beagles: all correct, then five. 5 border collies:
# four correct in both.
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


def run_comparison(paired: Comparison, alpha: float = 0.05, max_classes: int = 10) -> RunComparison:
    return RunComparison(
        first=record("a" * 32), second=record("b" * 32), paired=paired, alpha=alpha, max_classes=max_classes
    )


@pytest.fixture
def compared() -> Comparison:
    return compare(predictions(LABELS, FIRST), predictions(LABELS, SECOND), "test")


def test_compare_counts_gained_and_lost_images(compared) -> None:
    assert compared.pair == PairedOutcome(8, 2, 20, "test")
    assert compared.pair.p_value == pytest.approx(2 * (1 + 10 + 45) / 2**10)
    assert [(share.correct, share.n) for share in compared.accuracies] == [(11, 20), (17, 20)]


def test_changes_are_sorted_by_net_change_and_have_adjusted_p_values(compared) -> None:
    assert [
        (change.name, change.pair.n, change.before, change.after, change.pair.gained, change.pair.lost)
        for change in compared.changes
    ] == [
        ("n02085620-Chihuahua", 9, 1, 8, 8, 1),
        ("beagle", 6, 6, 5, 0, 1),
        ("border_collie", 5, 4, 4, 0, 0),
    ]
    # 2 * (1 + 9) / 2**9 = 0.039.
    p = 2 * (1 + 9) / 2**9
    assert [change.pair.p_value for change in compared.changes] == pytest.approx([p, 1, 1])
    assert [change.adjusted_p for change in compared.changes] == pytest.approx([3 * p, 1, 1])
    assert [change.name for change in compared.different(0.12)] == ["n02085620-Chihuahua"]
    assert compared.different(0.05) == []


def test_introduced_and_fixed_list_confusions_of_two_images_or_more(compared) -> None:
    # Each of the two introduced mistakes was made once.
    assert compared.introduced(NAMES) == []
    assert compared.fixed(NAMES) == [
        Confusion("n02085620-Chihuahua", "beagle", 5),
        Confusion("n02085620-Chihuahua", "border_collie", 3),
    ]
    assert compared.fixed(["beagle"]) == []
    swapped = compare(predictions(LABELS, SECOND), predictions(LABELS, FIRST), "test")
    assert (swapped.introduced(NAMES), swapped.fixed(NAMES)) == (compared.fixed(NAMES), [])


@pytest.mark.parametrize(
    ("values", "adjusted"),
    [
        # 4 * 0.005 / 1, 4 * 0.01 / 2, 4 * 0.03 / 3 and 4 * 0.04 / 4.
        ([0.01, 0.04, 0.03, 0.005], [0.02, 0.04, 0.04, 0.02]),
        # 4 * 0.02 is more than 4 * 0.021 / 2, so both get the latter.
        ([0.9, 0.02, 0.021, 0.6], [0.9, 0.042, 0.042, 0.8]),
        ([0.3], [0.3]),
        ([1.0, 1.0], [1.0, 1.0]),
        ([], []),
    ],
)
def test_adjust_p_values_gives_those_calculated_by_hand(values: list[float], adjusted: list[float]) -> None:
    assert adjust_p_values(values) == pytest.approx(adjusted)


def test_adjust_p_values_controls_the_false_discovery_rate_by_benjamini_and_hochberg(rng: np.random.Generator) -> None:
    # Rounding makes some of them equal.
    values = np.round(rng.random(200) ** 3, 2)
    n = len(values)
    # The smallest p * n / rank of all tests with at least this p-value, and at most 1.
    expected = [
        min([1.0, *(other * n / (values <= other).sum() for other in values if other >= value)]) for value in values
    ]
    assert adjust_p_values(values.tolist()) == pytest.approx(expected)


@pytest.mark.parametrize(("classes", "alpha"), [(1, 0.05), (2, 0.05), (120, 0.05), (120, 0.01), (16, 0.0625)])
def test_images_needed_is_the_smallest_number_that_is_significant(classes: int, alpha: float) -> None:
    labels = list(range(classes))
    found = compare(*[predictions(labels, labels, names=(), classes=classes)] * 2, "test").images_needed(alpha)
    lowest = [
        adjust_p_values([PairedOutcome(gained, 0, gained, "test").p_value] + [1.0] * (classes - 1))[0]
        for gained in (found - 1, found)
    ]
    assert lowest[1] <= alpha < lowest[0]


def test_compare_matches_shared_images_by_name_in_any_order() -> None:
    first = predictions([0, 1, 2, 0], [0, 0, 2, 1], ["a", "b", "c", "only first"])
    second = predictions([2, 1, 0], [2, 1, 1], ["c", "b", "a"], names=())
    found = compare(first, second, "val")
    assert (found.pair.gained, found.pair.lost, found.pair.n, found.images) == (1, 1, 3, (4, 3))
    assert run_comparison(found).images_note == "On the 3 images of val in both runs (first: 4, second: 3)."
    # Only one of the two has recorded class names.
    assert found.class_names == NAMES
    assert run_comparison(found).caveats[0].startswith("Each network's best epoch was chosen on its val")


def test_compare_numbers_classes_without_recorded_names() -> None:
    assert compare(*[predictions([0, 2], [0, 2], names=())] * 2, "test").changes[1].name == "class 2"


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (
            predictions([0], [0], classes=4, names=()),
            "first has 3 classes and second 4. Both must have the same classes. Type only.data=<data>",
        ),
        (
            predictions([0], [0], names=("n02085620-Chihuahua", "basset", "pug")),
            "first has a class 'beagle' where second has 'basset'. Both must have the same classes. Type"
            " only.data=<data>",
        ),
        (
            predictions([0], [0], ["elsewhere"]),
            "share no image of test (such as test/0 and elsewhere). A paired test needs the same images. Type"
            " split=test",
        ),
        (
            predictions([0, 2], [0, 2]),
            "test/1 has another class in first than in second. An image of the same name must be the same image.",
        ),
    ],
)
def test_compare_refuses_other_classes_images_or_labels(second: Predictions, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        compare(predictions([0, 1], [0, 1]), second, "test")


def test_conclusion_states_a_difference_only_if_it_is_significant(compared) -> None:
    first, second = "run aaaaaaaa", "run bbbbbbbb"
    assert run_comparison(compared).conclusion.startswith(
        f"No significant difference at level 0.05. Compared with {first}, {second} may be anything from no difference"
        " to 54.5 points better (95 % interval)"
    )
    assert (
        run_comparison(compared, alpha=0.2).conclusion
        == f"Compared with {first}, {second} is better at significance level 0.2."
    )
    swapped = compare(predictions(LABELS, SECOND), predictions(LABELS, FIRST), "test")
    assert (
        run_comparison(swapped, alpha=0.2).conclusion
        == f"Compared with {first}, {second} is worse at significance level 0.2."
    )
    same = RunComparison(record("a"), record("a"), compare(*[predictions(LABELS, FIRST)] * 2, "test"), 0.05, 10)
    assert same.conclusion == "first and second are the same run (a): there is no difference."
    assert same.paired.pair.p_value == 1.0
    assert (same.setting_differences, same.most_changed, same.caveats) == ([], (), [])


def test_class_summary_names_classes_that_differ_and_how_many_images_it_takes(compared) -> None:
    assert run_comparison(compared, alpha=0.2).class_summary == (
        "1 of 3 classes differs significantly (p adjusted for that many tests by Benjamini and Hochberg, level 0.2):"
        " Chihuahua (+7 of 9)."
    )
    assert run_comparison(compared).class_summary == (
        "None of 3 classes differs significantly (p adjusted for that many tests by Benjamini and Hochberg, level"
        " 0.05). With 5 to 9 images per class, a single class would have to gain or lose 7 images, with no change the"
        " other way."
    )
    unchanged = compare(*[predictions([0, 1, 2], [0, 1, 2])] * 2, "test")
    assert run_comparison(unchanged).class_summary.endswith(
        "With 1 image per class, a single class would have to gain or lose 7 images, with no change the other way:"
        " more than there are."
    )


def test_most_changed_leaves_out_unchanged_classes(compared) -> None:
    assert [change.name for change in run_comparison(compared).most_changed] == ["n02085620-Chihuahua", "beagle"]
    assert run_comparison(compared).confusion_notes == [
        "Only the first confuses Chihuahua with beagle (5 images), Chihuahua with border collie (3 images)."
    ]
    assert len(run_comparison(compared, max_classes=1).most_changed) == 1


def test_setting_differences_leave_out_what_cannot_change_the_result(compared) -> None:
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
    assert RunComparison(first, second, compared, 0.05, 10).setting_differences == [
        ("features.dtype", "float32", "float16"),
        ("head", "MLP", "Linear"),
        ("head.widths", "[512]", "–"),
        ("seed", "0", "3"),
        # Hydra would parse the first eight digits alone as a number.
        ("parent", "–", "0123456789a"),
        ("version.keras", "–", "3.15.1"),
    ]


@pytest.mark.parametrize(
    ("changes", "names", "warned"),
    [
        # The same settings, other files.
        ({"data.fingerprint": "g"}, ["data.fingerprint"], True),
        # The same files in other splits.
        ({"data.fingerprint": "g", "data.split_seed": "1"}, ["data.split_seed"], False),
        ({"data.fingerprint": "g", "data.root": "there"}, ["data.root"], True),
        # The same files in another folder.
        ({"data.root": "there"}, ["data.root"], False),
    ],
)
def test_caveats_warn_of_other_files_that_no_setting_explains(
    compared, changes: dict[str, str], names: list[str], warned: bool
) -> None:
    comparison = RunComparison(record("a"), record("b", **changes), compared, 0.05, 10)
    assert [difference.name for difference in comparison.setting_differences] == names
    assert any("files are not identical" in caveat for caveat in comparison.caveats) == warned


def run_url(of: Record) -> str:
    return f"http://mlflow/#/experiments/{of.experiment_id}/runs/{of.run_id}"


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_text_fits_the_terminal_s_width(compared, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    text = comparison_rendering.as_text(run_comparison(compared), width, run_url)
    assert f"http://mlflow/#/experiments/7/runs/{'a' * 32}\x1b" in text
    bare = re.sub(r"\x1b\[[0-9;]*m|\x1b\]8;[^\x1b]*\x1b\\", "", text)
    assert "\x1b" not in bare
    assert max(map(len, bare.splitlines())) <= width
    assert re.search(r"Chihuahua +9 +1 → 8 +8 +1 +(0\.039 +)?0\.12", bare)
    assert ("0.039" in bare) == (width >= 80)


def test_text_for_a_file_has_no_colours_and_no_links(compared) -> None:
    text = comparison_rendering.as_text(run_comparison(compared), None, run_url)
    assert "\x1b" not in text
    assert "first   run aaaaaaaa: 55.0 % (95 % interval 34.2–74.2, n = 20)" in text


def test_markdown_csv_and_html_have_the_same_results(compared) -> None:
    comparison = run_comparison(compared)
    markdown = comparison_rendering.as_markdown(comparison, run_url)
    assert "| Chihuahua | 9 | 1 → 8 | 8 | 1 | 0.039 | 0.12 |" in markdown
    assert (
        f"- second: run [bbbbbbbb](http://mlflow/#/experiments/7/runs/{'b' * 32}), `attempt of {'b' * 32}`: 85.0 %"
        in markdown
    )
    rows = list(csv.DictReader(io.StringIO(comparison_rendering.as_csv(comparison))))
    assert [(row["class"], row["n"], row["first_right"], row["second_right"]) for row in rows] == [
        ("Chihuahua", "9", "1", "8"),
        ("beagle", "6", "6", "5"),
        ("border collie", "5", "4", "4"),
    ]
    assert float(rows[0]["p"]) == pytest.approx(0.0390625)
    assert (rows[0]["first"], rows[0]["second"], rows[0]["split"]) == ("a" * 32, "b" * 32, "test")
    page = comparison_rendering.as_html(comparison, run_url)
    assert page.count("<svg") == 1
    # Headings and two runs, headings and three classes.
    assert page.count("<tr>") == 1 + 2 + 1 + 3
    assert "No significant difference at level 0.05" in page
    assert "run bbbbbbbb compared with run aaaaaaaa" in page
    assert set(re.findall(r'href="(http[^"]*)"', page)) == {run_url(comparison.first), run_url(comparison.second)}


def test_class_changes_draws_the_most_changed_classes_and_a_histogram_of_all(compared) -> None:
    most_changed, histogram = comparison_rendering.class_changes(run_comparison(compared)).axes
    assert [label.get_text() for label in most_changed.get_yticklabels()] == ["Chihuahua", "beagle"]
    assert most_changed.lines[0].get_xdata().tolist() == pytest.approx([100 / 9, 800 / 9])
    assert {round(bar.get_x() + bar.get_width() / 2): bar.get_height() for bar in histogram.patches} == {
        7: 1,
        -1: 1,
        0: 1,
    }
