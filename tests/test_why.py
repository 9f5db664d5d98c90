import pytest

from dogbreeds.evaluation.ablation import cells, conclusion, effects, interval, report
from dogbreeds.experiments.ablation_runs import changed, parent_of

LR, HEAD = "optimizer.lr=1e-3", "head=linear"
NONE, BOTH = frozenset(), frozenset({LR, HEAD})


def measured(none, lr, head, both):
    return {NONE: none, frozenset({LR}): lr, frozenset({HEAD}): head, BOTH: both}


def test_cells_are_none_each_all_but_one_and_all() -> None:
    assert cells(["a=1"]) == [frozenset(), frozenset({"a=1"})]
    assert len(cells([LR, HEAD])) == 4
    assert len(cells(["a=1", "b=2", "c=3"])) == 8
    assert len(cells(["a=1", "b=2", "c=3", "d=4"])) == 10


def test_two_knobs_explain_all_there_is() -> None:
    found = effects([LR, HEAD], measured([0.1, 0.2], [0.5, 0.6], [0.3, 0.2], [0.9, 0.8]))
    lr, head = found
    assert lr.alone == pytest.approx((0.4, 0.4))
    assert lr.last == pytest.approx((0.6, 0.6))
    assert lr.explains == pytest.approx((0.5, 0.5))
    assert [first + second for first, second in zip(lr.explains, head.explains, strict=True)] == pytest.approx(
        [0.8, 0.6]
    )


def test_the_interval_is_student_s() -> None:
    assert interval([1.0]) is None
    # Mean 2, standard error 1/sqrt(3), t of 2 degrees of freedom 4.303
    low, high = interval([1.0, 2.0, 3.0])
    assert (low, high) == pytest.approx((2 - 4.303 / 3**0.5, 2 + 4.303 / 3**0.5))
    assert interval([0.5] * 20) == (0.5, 0.5)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            measured([0.1, 0.11], [0.9, 0.91], [0.1, 0.11], [0.9, 0.91]),
            "optimizer.lr=1e-3 did most: it explains +80.0 (+80.0 to +80.0) points of +80.0, all else +0.0.",
        ),
        (
            measured([0.1, 0.1], [0.9, 0.9], [0.88, 0.88], [0.91, 0.91]),
            "Putting back any one of optimizer.lr=1e-3, head=linear is enough",
        ),
        (
            measured([0.1, 0.2], [0.2, 0.1], [0.1, 0.1], [0.2, 0.11]),
            "No knob stands out from noise: putting all of them back changes +0.5 (",
        ),
        (
            measured([0.5, 0.5], [0.7, 0.7], [0.3, 0.3], [0.5, 0.5]),
            (
                "The knobs pull against each other (optimizer.lr=1e-3 +20.0 (+20.0 to +20.0), head=linear -20.0 (-20.0"
                " to -20.0)): putting all"
            ),
        ),
        (
            measured([0.1], [0.9], [0.1], [0.9]),
            "With one seed there is no interval: the knobs together change +80.0 points.",
        ),
    ],
)
def test_the_conclusion(values, said: str) -> None:
    total = [after - before for before, after in zip(values[NONE], values[BOTH], strict=True)]
    assert conclusion(effects([LR, HEAD], values), total).startswith(said)


def test_the_report_has_each_cell_and_each_knob() -> None:
    values = measured([0.354, 0.466], [0.919, 0.925], [0.906, 0.918], [0.932, 0.933])
    verdicts = {cell: ["learned", "learned"] for cell in values} | {NONE: ["collapsed", "never_learned"]}
    said = report([LR, HEAD], values, verdicts)
    assert "| nothing | 35.4 46.6 | collapsed (1), never learned (1) |" in said
    assert "| optimizer.lr=1e-3 head=linear | 93.2 93.3 | learned (2) |" in said
    assert "| optimizer.lr=1e-3 | +26.6 (" in said


def test_what_is_put_back_replaces_what_was_typed() -> None:
    assert changed(["attempt=a", "head=mlp", "+optimizer.lr=1"], [HEAD, LR]) == ["attempt=a", HEAD, LR]


def test_the_parent_of_a_fine_tune_has_its_model_and_head_wherever_they_came_from(composed) -> None:
    choices = {
        "attempt": "resnet50_finetune_50",
        "model": "resnet50",
        "data": "stanford_dogs",
        "head": "mlp",
        "phase": "finetune",
    }
    overrides = parent_of(
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


@pytest.mark.slow
def test_why_an_attempt_collapsed(command) -> None:
    small = ("data.breeds=20", "phase.epochs=5", "tracking.system_metrics_seconds=0")
    asked = command("why", "attempt=lr_collapse", "why.seeds=[0,1]", *small)
    assert asked.returncode == 0, asked.stderr
    assert asked.stderr.count("already there") == 0
    assert "| nothing | " in asked.stdout
    assert "| optimizer.lr=1e-3 head=linear | " in asked.stdout
    again = command("why", "attempt=lr_collapse", "why.seeds=[0,1]", *small)
    assert again.stdout.split("| put back |")[1] == asked.stdout.split("| put back |")[1]
    assert again.stdout.count("already there") + again.stderr.count("already there") == 8


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["attempt=frozen"], "attempt=frozen has no reference in conf/why.yaml."),
        (
            [],
            (
                "No attempt was named. It must be one of torch_pixels, lr_collapse, finetune_50, resnet50_finetune_50,"
                " or its knobs must be named."
            ),
        ),
        (["attempt=lr_collapse", "why.seeds=[a]"], "why.seeds was ['a']. It must be a list of different whole numbers"),
        (
            ["attempt=lr_collapse", "why.seeds=[0,0]"],
            "why.seeds was [0, 0]. It must be a list of different whole numbers",
        ),
        (["attempt=lr_collapse", "phase=lr_range"], "phase=lr_range was asked about."),
        (["attempt=lr_collapse", "why.put_back=[]"], "why.put_back was []. It must be a list of settings."),
        (["attempt=lr_collapse", "tracking=none"], "tracking=none was chosen."),
    ],
)
def test_what_cannot_be_asked(command, arguments: list[str], said: str) -> None:
    asked = command("why", *arguments)
    assert asked.returncode == 1
    assert said in asked.stderr
