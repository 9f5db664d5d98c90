"""Command `python -m dogbreeds.why`: the ablation's arithmetic, its runs, and its errors."""

import re
import shlex

import pytest

from dogbreeds.core.errors import UserError
from dogbreeds.evaluation.ablation import cells, effects, interval
from dogbreeds.experiments.ablation_runs import parent_overrides, replace_overrides
from dogbreeds.experiments.compose import compose_config
from dogbreeds.reports.ablation_report import AblationReport, conclusion
from dogbreeds.why import _factors

LR, HEAD = "optimizer.lr=1e-3", "head=linear"
NONE, BOTH = frozenset(), frozenset({LR, HEAD})


def measured(none, lr, head, both):
    """Return the accuracies of each cell: nothing reverted, one factor, the other, and both."""
    return {NONE: none, frozenset({LR}): lr, frozenset({HEAD}): head, BOTH: both}


def test_cells_are_none_each_factor_all_but_one_and_all() -> None:
    assert cells(["a=1"]) == [frozenset(), frozenset({"a=1"})]
    assert len(cells([LR, HEAD])) == 4
    assert len(cells(["a=1", "b=2", "c=3"])) == 8
    assert len(cells(["a=1", "b=2", "c=3", "d=4"])) == 10


def test_effects_of_two_factors_sum_to_the_total() -> None:
    found = effects([LR, HEAD], measured([0.1, 0.2], [0.5, 0.6], [0.3, 0.2], [0.9, 0.8]))
    lr, head = found
    assert lr.alone == pytest.approx((0.4, 0.4))
    assert lr.last == pytest.approx((0.6, 0.6))
    assert lr.explains == pytest.approx((0.5, 0.5))
    assert [first + second for first, second in zip(lr.explains, head.explains, strict=True)] == pytest.approx(
        [0.8, 0.6]
    )


def test_interval_is_students_t() -> None:
    assert interval([1.0]) is None
    # The mean is 2, the standard error 1/sqrt(3), and t with 2 degrees of freedom 4.303.
    low, high = interval([1.0, 2.0, 3.0])
    assert (low, high) == pytest.approx((2 - 4.303 / 3**0.5, 2 + 4.303 / 3**0.5))
    assert interval([0.5] * 20) == (0.5, 0.5)


@pytest.mark.parametrize(
    ("values", "beginning"),
    [
        (
            measured([0.1, 0.11], [0.9, 0.91], [0.1, 0.11], [0.9, 0.91]),
            "optimizer.lr=1e-3 has the largest effect: it explains +80.0 (+80.0 to +80.0) points of +80.0, all other"
            " factors +0.0.",
        ),
        (
            measured([0.1, 0.1], [0.9, 0.9], [0.88, 0.88], [0.91, 0.91]),
            "Reverting any one of optimizer.lr=1e-3, head=linear suffices: alone it gives 90 % or more of +",
        ),
        (
            measured([0.1, 0.2], [0.2, 0.1], [0.1, 0.1], [0.2, 0.11]),
            "No factor is significant: reverting all of them changes the accuracy by +0.5 (",
        ),
        (
            measured([0.5, 0.5], [0.7, 0.7], [0.3, 0.3], [0.5, 0.5]),
            (
                "The factors counteract each other (optimizer.lr=1e-3 +20.0 (+20.0 to +20.0), head=linear -20.0 (-20.0"
                " to -20.0)): reverting all"
            ),
        ),
        (
            measured([0.1], [0.9], [0.1], [0.9]),
            "With one seed there is no interval: reverting all factors changes the accuracy by +80.0 points. Set"
            " why.seeds",
        ),
    ],
)
def test_conclusion_names_the_pattern_of_the_effects(values, beginning: str) -> None:
    total = [after - before for before, after in zip(values[NONE], values[BOTH], strict=True)]
    assert conclusion(effects([LR, HEAD], values), total).startswith(beginning)


def test_report_lists_each_cell_and_each_factor() -> None:
    values = measured([0.354, 0.466], [0.919, 0.925], [0.906, 0.918], [0.932, 0.933])
    verdicts = {cell: ["learned", "learned"] for cell in values} | {NONE: ["collapsed", "never_learned"]}
    text = AblationReport([LR, HEAD], values, verdicts).as_markdown()
    assert "| nothing | 35.4 46.6 | collapsed (1), never learned (1) |" in text
    assert "| optimizer.lr=1e-3 head=linear | 93.2 93.3 | learned (2) |" in text
    assert "| optimizer.lr=1e-3 | +26.6 (" in text


@pytest.mark.parametrize("width", [40, 60, 80, 150])
def test_report_fits_a_terminal(width: int) -> None:
    factors = ["unfreeze.layers=20", LR, "unfreeze.batchnorm=frozen"]
    accuracies = {cell: [0.5 + 0.1 * len(cell), 0.6 + 0.1 * len(cell)] for cell in cells(factors)}
    verdicts = {cell: ["collapsed", "no_better_than_frozen"] for cell in accuracies}
    text = re.sub(r"\x1b\[[0-9;]*m", "", AblationReport(factors, accuracies, verdicts).as_text(width))
    lines = text.splitlines()
    assert max(map(len, lines)) <= width
    assert len([line for line in lines if line.startswith(" unfreeze.batchnorm=frozen ")]) >= (2 if width >= 60 else 0)
    assert "  60.0 70.0  " in text
    assert "interaction" in text or width == 40
    assert "+30.0" in text


def test_replace_overrides_replaces_overrides_of_the_same_key() -> None:
    assert replace_overrides(["attempt=a", "head=mlp", "+optimizer.lr=1"], [HEAD, LR]) == ["attempt=a", HEAD, LR]


def test_parent_overrides_keep_the_model_and_head_of_a_fine_tune(composed) -> None:
    choices = {
        "attempt": "resnet50_finetune_50",
        "model": "resnet50",
        "data": "stanford_dogs",
        "head": "mlp",
        "phase": "finetune",
    }
    overrides = parent_overrides(
        ["attempt=resnet50_finetune_50", "head=linear", "unfreeze.layers=20", "phase.epochs=3", "seed=1"], choices
    )
    assert overrides == ["attempt=frozen", "data=stanford_dogs", "model=resnet50", "head=linear", "seed=1"]
    params = composed(*overrides).parameters()
    assert (params["model.architecture"], params["head"], params["phase"], params["seed"]) == (
        "ResNet50",
        "Linear",
        "Frozen",
        1,
    )


def test_parent_overrides_of_a_logistic_regression_have_nothing_of_gradient_descent(composed) -> None:
    tuned = ["phase=finetune", "mix=mixup", "mix.alpha=0.4", "loss.label_smoothing=0.1", "ema.decay=0.9"]
    choices = {"head": "logistic", "schedule": "cosine", "augment": "flip"}
    overrides = parent_overrides(["head=logistic", *tuned, "schedule=cosine", "head.C=1e-3"], choices)
    assert overrides == ["attempt=frozen", "augment=flip", "head=logistic", "head.C=1e-3"]
    assert composed(*overrides).parameters()["head"] == "Logistic"
    # What is left out has no value.
    assert parent_overrides(["~plugins", "head=logistic"], {}) == ["attempt=frozen", "~plugins", "head=logistic"]
    # Another head has been trained with them, too.
    assert "mix=mixup" in parent_overrides([*tuned, "head=linear"], choices)


@pytest.mark.long
def test_why_runs_every_cell_once_and_skips_finished_ones(command) -> None:
    small = ("data.classes=20", "phase.epochs=5", "tracking.system_metrics_seconds=0")
    first = command("why", "attempt=lr_collapse", "why.seeds=[0,1]", *small)
    assert first.returncode == 0, first.stderr
    assert first.stderr.count("skipped: run ") == 0
    assert "| nothing | " in first.stdout
    assert "| optimizer.lr=1e-3 head=linear | " in first.stdout
    again = command("why", "attempt=lr_collapse", "why.seeds=[0,1]", *small)
    # The table, up to the links of the sweep's own run.
    tables = [done.stdout.partition("| reverted |")[2].partition("\nopen ")[0] for done in (first, again)]
    assert tables[0] == tables[1] != ""
    assert again.stdout.count("skipped: run ") + again.stderr.count("skipped: run ") == 8


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["attempt=frozen"], "attempt=frozen has no reference in conf/why.yaml."),
        (
            [],
            (
                "No attempt was named. It must be one of torch_pixels, lr_collapse, finetune_50, resnet50_finetune_50,"
                " or the settings to revert must be listed."
            ),
        ),
        (["attempt=lr_collapse", "why.seeds=[a]"], "why.seeds was ['a']. It must be a list of different whole numbers"),
        (
            ["attempt=lr_collapse", "why.seeds=[0,0]"],
            "why.seeds was [0, 0]. It must be a list of different whole numbers",
        ),
        (["attempt=lr_collapse", "phase=lr_range"], "phase=lr_range was given."),
        (["attempt=lr_collapse", "why.reverts=[]"], "why.reverts was []. It must be a list of settings."),
        (["attempt=lr_collapse", "tracking=none"], "tracking=none was given."),
    ],
)
def test_why_rejects_settings_that_it_cannot_explain(command, arguments: list[str], message: str) -> None:
    done = command("why", *arguments)
    assert done.returncode == 1
    assert message in done.stderr


@pytest.mark.parametrize("overrides", [[], ["why.reverts=[]"]])
def test_setting_that_the_error_says_to_type_composes(overrides: list[str]) -> None:
    with pytest.raises(UserError) as error:
        _factors(compose_config("why", overrides), None)
    (typed,) = [word for word in shlex.split(str(error.value).split("Type ")[1]) if word.startswith("why.reverts=")]
    assert _factors(compose_config("why", [typed.rstrip(",")]), None) == ("optimizer.lr=1e-3",)


def test_removal_report_says_which_ingredients_pay() -> None:
    from dogbreeds.evaluation.metrics import PairedOutcome
    from dogbreeds.reports.removal_report import Removal, RemovalReport

    worse = [PairedOutcome(gained=5, lost=30, n=500, split="val"), PairedOutcome(gained=4, lost=32, n=500, split="val")]
    same = [PairedOutcome(gained=9, lost=8, n=500, split="val"), PairedOutcome(gained=7, lost=9, n=500, split="val")]
    report = RemovalReport(
        Removal("", (0.8, 0.81), (60, 62)),
        [
            Removal("augment=none", (0.75, 0.754), (31, 33), tuple(worse)),
            Removal("ema.decay=null", (0.802, 0.806), (60, 60), tuple(same)),
        ],
    )
    assert report.changes(report.removals[0]) == pytest.approx((-0.05, -0.056))
    lines = report.as_markdown().splitlines()
    assert len(lines) == 7
    assert re.search(r"\+9 -62 of 1,000, p = [\d.]+e-1\d ", lines[3])
    assert lines[3].startswith("| augment=none")
    assert "61" in lines[2]
    assert re.search(r"augment=none, an ingredient pays.* ema\.decay=null removes pays is not shown", lines[6])
    shown = re.sub(r"\x1b\[[\d;]*m", "", report.as_text(80))
    assert max(map(len, shown.splitlines())) <= 80
