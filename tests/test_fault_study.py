"""The fault study: what it draws, what it takes for the truth, what it resumes, and how it counts."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dogbreeds.data.dataset import Split
from dogbreeds.evaluation import verdict
from dogbreeds.evaluation.metrics import Proportion, Scores
from dogbreeds.evaluation.results import Epoch
from dogbreeds.evaluation.verdict import Setting, Verdict
from tests.bench.faults import collect as collecting
from tests.bench.faults import report as reporting
from tests.bench.faults import study
from tests.bench.faults.backbones import CLASSES, IMAGES_PER_CLASS, backbones, open_images
from tests.bench.faults.collect import Job, open_draw, read_lines
from tests.bench.faults.draws import CASES, TRUTH_PER_CLASS, DataDraw, draw_data, draw_settings
from tests.bench.faults.kinds import kinds_table
from tests.bench.faults.pixels import PROBE, Pair
from tests.bench.faults.truth import from_hex, paired_error, to_hex, tuned_logistic_regression

# --- draws --------------------------------------------------------------------


def test_draws_cover_what_the_study_promises() -> None:
    draws = [draw_data(seed, "raw") for seed in range(300)]
    assert {draw.classes for draw in draws} >= {2, 3, CLASSES}
    assert {min(draw.train_per_class for draw in draws), max(draw.train_per_class for draw in draws)} == {5, 40}
    assert 0.4 < np.mean([draw.test_per_class == 0 for draw in draws]) < 0.6
    assert {draw.pixels for draw in draws} == {"native", "torch"}
    assert {draw.noise for draw in draws} >= {0.0, 1.0}
    for draw in draws:
        used = draw.train_per_class + draw.val_per_class + draw.test_per_class
        assert used <= IMAGES_PER_CLASS - TRUTH_PER_CLASS
        assert draw.val_per_class >= 1


def test_settings_cover_all_optimizers_heads_and_rates() -> None:
    rng = np.random.default_rng(0)
    drawn = [dict(setting.split("=", 1) for setting in draw_settings(rng, 4800)) for _ in range(400)]
    assert {settings["optimizer"] for settings in drawn} == {"adam", "adamw", "rmsprop", "sgd"}
    assert {settings["head"] for settings in drawn} == {"mlp", "linear", "batchnorm"}
    rates = [float(settings["optimizer.lr"]) for settings in drawn if settings["optimizer"] == "sgd"]
    assert min(rates) < 1e-4
    assert max(rates) > 3e-2
    sound = [dict(setting.split("=", 1) for setting in draw_settings(rng, 100, True)) for _ in range(100)]
    assert all(
        (1e-2 <= float(settings["optimizer.lr"]) <= 1e-1)
        if settings["optimizer"] == "sgd"
        else (3e-4 <= float(settings["optimizer.lr"]) <= 3.2e-3)
        for settings in sound
    )
    assert min(int(settings["phase.epochs"]) for settings in sound) == 10
    # A run with many images gets larger batches instead of more steps.
    assert all(int(settings["phase.batch_size"]) >= 16 for settings in drawn if int(settings["phase.epochs"]) > 10)


def test_open_draw_keeps_the_truth_apart_and_its_labels_correct() -> None:
    source, names = open_images(None)
    draw = DataDraw(classes=7, train_per_class=9, val_per_class=3, test_per_class=4, noise=0.5)
    dataset, truth = open_draw(source, names, draw, seed=3)
    rows = {name: set(split.rows.tolist()) for name, split in (dataset.splits | {"truth": truth}).items()}
    assert {name: len(found) for name, found in rows.items()} == {"train": 63, "val": 21, "test": 28, "truth": 308}
    assert len(set.union(*rows.values())) == 7 * IMAGES_PER_CLASS
    breeds = [names[label] for label in source.labels]

    def correct(split: Split) -> float:
        return float(
            np.mean(
                [dataset.class_names[label] == breeds[row] for row, label in zip(split.rows, split.labels, strict=True)]
            )
        )

    assert correct(truth) == 1
    assert all(0.4 < correct(split) < 0.8 for split in dataset.splits.values())
    # Features are cached by fingerprint.
    assert dataset.train.source.fingerprint == truth.source.fingerprint == source.fingerprint
    clean, _ = open_draw(source, names, dataclasses.replace(draw, noise=0.0), seed=3)
    assert all(correct(split) == 1 for split in clean.splits.values())


def test_cases_leave_images_for_the_truth() -> None:
    for draw, _ in CASES.values():
        assert draw.train_per_class + draw.val_per_class + draw.test_per_class <= IMAGES_PER_CLASS - TRUTH_PER_CLASS
        assert draw.classes <= CLASSES


def test_backbones_are_drawn_dogs_alone_without_real_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DOGBREEDS_REAL_DATA", raising=False)
    assert list(backbones()) == ["miniature"]
    monkeypatch.setenv("DOGBREEDS_REAL_DATA", "/photos")
    assert list(backbones()) == ["miniature", "mobilenetv2", "effnetb0"]


# --- truth --------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("images", "width"), [(60, 20), (30, 90)])
def test_logistic_regression_separates_classes_and_not_noise(images: int, width: int) -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(images) % 3
    means = rng.normal(size=(3, width))
    others = np.arange(300) % 3
    features, unseen = ((means[of] + rng.normal(size=(len(of), width))).astype(np.float32) for of in (labels, others))
    classify, _ = tuned_logistic_regression(features, labels)
    assert np.mean(classify(unseen) == others) > 0.9
    classify, _ = tuned_logistic_regression(features, rng.permutation(labels))
    assert np.mean(classify(unseen) == others) < 0.6


def test_hexadecimal_digits_restore_which_images_are_right(rng: np.random.Generator) -> None:
    for n in (1, 8, 13):
        right = rng.random(n) < 0.5
        assert (from_hex(to_hex(right), n) == right).all()


def test_paired_error_is_small_where_two_agree() -> None:
    right = np.arange(100) % 2 == 0
    assert paired_error(right, right) == pytest.approx(0.0071, abs=1e-3)
    assert paired_error(right, ~right) == pytest.approx(0.1, abs=1e-3)


# --- collect ------------------------------------------------------------------


def test_collect_trains_only_the_runs_that_the_lines_lack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[tuple[int, int]] = []

    def run_job(job: Job) -> list[dict[str, Any]]:
        trained.extend((job.seed, run) for run in job.runs)
        return [{"backbone": "miniature", "seed": job.seed, "case": "", "run": run} for run in job.runs]

    monkeypatch.setattr(collecting, "run_job", run_job)
    miniature = backbones()["miniature"]
    jobs = [Job(miniature, seed) for seed in (1, 3)]
    out = tmp_path / "lines.jsonl"
    collecting.collect(jobs[:1], out, workers=0)
    # A process that was killed has left half a line.
    texts = out.read_text().splitlines(keepends=True)
    out.write_text("".join(texts[:3]) + texts[3][:20])
    trained.clear()
    collecting.collect(jobs, out, workers=0)
    assert trained == [(1, 3), (3, 0), (3, 1), (3, 2), (3, 3)]
    assert [(line["seed"], line["run"]) for line in read_lines(out)] == [(s, run) for s in (1, 3) for run in range(4)]


# --- report -------------------------------------------------------------------


def line(
    run: float, *, truth: float = 0.8, last: float | None = None, backbone: str = "a", n: int = 400, **draw: Any
) -> dict[str, Any]:
    """Return a line of a run with these accuracies on the truth, and one epoch."""

    def right(accuracy: float) -> str:
        return to_hex(np.arange(n) < round(accuracy * n))

    epoch = Epoch(1, 1e-3, 1.0, run, None, Scores(1.0, Proportion(round(50 * run), 50), None), 1.0)
    return {
        "backbone": backbone,
        "seed": 1,
        "case": "",
        "run": 0,
        "draw": dataclasses.asdict(DataDraw(**{"classes": 10, "train_per_class": 5, "val_per_class": 5} | draw)),
        "n": {"train": 50, "val": 50, "truth": n},
        "native": True,
        "probe": {"val": to_hex(np.ones(50)), "truth": right(truth)},
        "truth": {"right": right(truth), "C": 1.0},
        "overrides": ["head=linear"],
        "settings": {"optimizer.lr": 1e-3, "optimizer": "SGD"},
        "epochs": [dataclasses.asdict(epoch)],
        "stop_reason": "",
        "diverged": False,
        "right": {"val": to_hex(np.arange(50) < round(50 * run)), "truth": right(run)},
        "last": right(run if last is None else last),
    }


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[reporting.Case]]:
    """A function from pairs of verdict and line to cases with these verdicts."""

    def cases(*pairs: tuple[str, dict[str, Any]]) -> list[reporting.Case]:
        names = iter([name for name, _ in pairs])
        monkeypatch.setattr(reporting, "judge", lambda epochs, setting: Verdict(next(names), "reason", "advice"))
        found = [reporting.Case(values) for _, values in pairs]
        for case in found:
            _ = case.verdict
        return found

    return cases


@pytest.mark.parametrize(
    ("values", "band"),
    [
        (line(0.79), "within 3 points"),
        (line(0.85), "within 3 points"),
        (line(0.75), "3 to 10 points below"),
        (line(0.65), "over 10 points below"),
        (line(0.6, n=20), "over 10 points below, within noise"),
        (line(0.4), "under 60 % of the truth"),
        (line(0.1, truth=0.1), "nothing to learn"),
        (line(0.1, noise=1.0), "nothing to learn"),
    ],
)
def test_case_is_in_the_band_of_its_distance_from_the_truth(values: dict[str, Any], band: str) -> None:
    assert reporting.Case(values).band == band


def test_case_tells_the_verdict_only_what_a_run_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Setting] = []

    def judge(epochs: list[Epoch], setting: Setting) -> Verdict:
        given.append(setting)
        return verdict.judge(epochs, setting)

    monkeypatch.setattr(reporting, "judge", judge)
    case = reporting.Case(line(0.4))
    assert case.verdict.name
    (setting,) = given
    assert (setting.classes, setting.n_train, setting.native) == (10, 50, True)
    assert setting.reference is not None
    # On validation, since there is no test split; never on the truth.
    assert (setting.reference.probe, setting.reference.run) == (Proportion(50, 50), Proportion(20, 50))


def test_conditions_count_what_the_issue_asks_for(judged: Callable[..., list[reporting.Case]]) -> None:
    cases = judged(
        ("learned", line(0.4)),
        ("collapsed", line(0.4)),
        ("learned", line(0.79)),
        ("underperforming", line(0.79)),
        ("overfitting", line(0.79, backbone="b")),
        ("collapsed", line(0.79, last=0.1)),
        ("never_learned", line(0.79, pixels="torch")),
        ("undecided", line(0.6)),
        ("never_learned", line(0.1, noise=1.0)),
    )
    runs, share, near, undecided = reporting.conditions(cases)
    assert runs.startswith("- FAILS: 9 runs on 2 backbones")
    assert "FAILS" in share
    assert "1 of 2 " in share
    # Of four near the truth one is called a fault, one collapsed after its best epoch, and one overfits.
    assert "1 of 4 " in near
    assert "1 whose last epoch" in near
    assert "1 called overfitting" in near
    assert "1 of 3 " in undecided
    # 20 points are not four standard errors of the 50 images that decide.
    assert undecided.count("0 of 2 ") == 1
    assert [case.verdict.name for case in reporting.misjudged(cases)] == [
        "learned",
        "underperforming",
        "collapsed",
        "undecided",
    ]


def test_conditions_hold_where_every_verdict_is_right(judged: Callable[..., list[reporting.Case]]) -> None:
    healthy = [("learned", line(0.79, backbone="abc"[number % 3])) for number in range(200)]
    faulty = [("underperforming", line(0.4)) for _ in range(100)]
    cases = judged(*healthy, *faulty)
    assert [condition.split(":")[0] for condition in reporting.conditions(cases)] == ["- holds"] * 4
    table = "\n".join(reporting.matrix(cases))
    assert "| within 3 points | 200 | 200 (98–100 %) | 0 (0–2 %) |" in table
    assert "| under 60 % of the truth | 100 | 0 (0–4 %) | 100 (96–100 %) |" in table


def test_case_with_a_name_is_no_run_of_the_search_and_its_curves_are_saved() -> None:
    named = line(0.4) | {"case": "slow"}
    said = reporting.report([line(0.79), named])
    assert said.startswith("1 runs on 1 backbones")
    assert "- slow: a, seed 1, run 0: 40.0 %, truth 80.0 %" in said
    saved = reporting.saved_curves(named)
    assert saved["history"] == {"loss": [1.0], "accuracy": [0.4], "val_loss": [1.0], "val_accuracy": [0.4]}
    assert (saved["classes"], saved["n_train"], saved["n_val"]) == (10, 50, 50)
    assert saved["settings"] == {"optimizer.lr": 1e-3, "optimizer": "SGD"}
    assert saved["reference"]["run"] == {"correct": 20, "n": 50}


def test_report_counts_preflights_by_backbone_and_convention() -> None:
    pairs = [
        Pair("a", "raw", is_native=True, mismatches=(False, False), distances=()),
        Pair("a", "tf", is_native=False, mismatches=(True, True), distances=()),
        # Wrong on one sample: the pair is wrong.
        Pair("a", "caffe", is_native=False, mismatches=(True, False), distances=()),
    ]
    said = reporting.report([line(0.79)], pairs)
    assert "wrong pixels refused: 1 of 2 " in said
    assert "right pixels accepted: 1 of 1 " in said
    assert "mode='caffe'" in said
    assert "without BatchNorm" not in said
    # Those of the check without BatchNorm are counted apart.
    pairs += [
        Pair("a", "raw", is_native=True, mismatches=(False, False), distances=(), check=PROBE),
        Pair("a", "tf", is_native=False, mismatches=(True, False), distances=(), check=PROBE),
    ]
    said = "\n".join(reporting.preflights(pairs))
    assert said.startswith("- wrong pixels refused: 1 of 2 ")
    assert "without BatchNorm, wrong pixels refused: 0 of 1 " in said
    assert "without BatchNorm, right pixels accepted: 1 of 1 " in said
    assert "without BatchNorm, a with tf: refused on 1 of 2 samples" in said


def test_kinds_table_names_a_misjudged_attempt_with_its_seed() -> None:
    results = [
        {"kind": "dead head", "seed": seed, "settings": (), "verdict": found, "reason": found}
        for seed, found in ((1, "never_learned"), (3, "learned"))
    ]
    said = "\n".join(kinds_table(results))
    assert "| never learned | 0.50 (" in said
    assert "misjudged: dead head, seed 3 (): learned" in said


# --- command line -------------------------------------------------------------


def test_command_line_names_steps_backbones_and_sizes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DOGBREEDS_REAL_DATA", "/photos")
    steps, whole = study.parse(["--out", str(tmp_path)])
    assert (steps, list(whole.backbones), whole.workload) == (
        study.ALL,
        ["miniature", "mobilenetv2", "effnetb0"],
        study.Workload(),
    )
    steps, small = study.parse(["--small", "--workers", "1"])
    assert list(small.backbones) == ["miniature", "mobilenetv2"]
    assert small.workload == dataclasses.replace(study.SMALL, workers=1)
    lite = "lite0=model=efficientnet_lite0 plugins=[lite] photos=/p config_dir=/c"
    steps, further = study.parse(["collect", "report", "--further", lite, "--backbones", "lite0"])
    assert steps == ("collect", "report")
    (backbone,) = further.backbones.values()
    assert backbone.overrides == ("model=efficientnet_lite0", "plugins=[lite]")
    assert (backbone.name, backbone.photos, backbone.config_dir) == ("lite0", "/p", "/c")


@pytest.mark.parametrize(
    ("typed", "wrong", "allowed"),
    [
        (["both"], "both is unknown", "collect"),
        (["--backbones", "resnet"], "resnet is unknown", "miniature"),
        (["--further", "lite0"], "lite0", "b1=model=effnetb1"),
    ],
)
def test_command_line_refuses_what_it_does_not_know(
    typed: list[str], wrong: str, allowed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        study.parse(typed)
    said = capsys.readouterr().err
    assert wrong in said
    assert allowed in said
