from types import SimpleNamespace

import pytest

from dogbreeds.core.errors import UserError
from dogbreeds.models.unfreeze import All, Blocks, Gradual, LastN, Nothing, Plan


def blocks(**sizes: int) -> list[SimpleNamespace]:
    return [
        SimpleNamespace(name=name, layers=[SimpleNamespace(name=f"{name}_{n}") for n in range(size)])
        for name, size in sizes.items()
    ]


# The last blocks of EfficientNet-B4.
B4 = blocks(stem=6, block6f=15, block6g=15, block6h=15, block7a=13, block7b=15, top=3)
MODES = {"batchnorm": "frozen", "drop_connect": "off"}


def last_n(layers: int, exact: bool = False) -> Plan:
    return LastN(layers=layers, exact=exact, **MODES).plan(B4)


@pytest.mark.parametrize(
    ("requested", "trained", "cut", "summary"),
    [
        (20, 18, 5, "block7b, top (18 layers; 20 would split block7a)"),
        (50, 46, 3, "block6h, block7a, block7b, top (46 layers; 50 would split block6g)"),
        (3, 3, 6, "top (3 layers)"),
        (31, 31, 4, "block7a, block7b, top (31 layers)"),
        (82, 82, 0, "stem to top, 7 blocks (82 layers)"),
    ],
)
def test_last_n_snaps_to_whole_blocks_and_summarises_it(requested: int, trained: int, cut: int, summary: str) -> None:
    plan = last_n(requested)
    assert (plan.num_requested, plan.num_layers, plan.cut, plan.summary) == (requested, trained, cut, summary)


def test_last_n_exact_unfreezes_just_so_many_layers_and_cuts_below_their_block() -> None:
    plan = last_n(20, exact=True)
    assert (plan.cut, plan.num_layers, plan.num_requested) == (4, 20, 20)
    assert {"block7a_11", "block7a_12"} <= plan.stages[0]
    assert "block7a_10" not in plan.stages[0]
    assert plan.summary == "20 layers, from block7a_11 within block7a; the cached prefix ends below block7a"


def test_nothing_all_and_blocks_cut_below_the_deepest_trained_block() -> None:
    assert (Nothing(**MODES).plan(B4).cut, Nothing(**MODES).plan(B4).num_layers) == (7, 0)
    assert (All(**MODES).plan(B4).cut, All(**MODES).plan(B4).num_layers) == (0, 82)
    top = Blocks(top=2, names=(), **MODES).plan(B4)
    assert (top.cut, top.num_layers, top.summary) == (5, 18, "block7b, top (18 layers)")
    named = Blocks(top=None, names=("block7a", "top"), **MODES).plan(B4)
    assert (named.cut, named.num_layers) == (4, 16)
    assert not any(name.startswith("block7b") for name in named.stages[0])
    assert named.depth["top_0"] == 1
    assert named.depth["block7a_0"] == 3


def test_gradual_unfreezes_one_more_block_per_stage() -> None:
    plan = Gradual(top=3, every_epochs=2, **MODES).plan(B4)
    assert plan.cut == 4
    assert [len(plan.layers_at(epoch)) for epoch in range(7)] == [3, 3, 18, 18, 31, 31, 31]
    assert plan.summary == "block7a, block7b, top (31 layers), from the top, one more block every 2 epochs"


@pytest.mark.parametrize(
    ("policy", "facts"),
    [
        (
            LastN(layers=83, exact=False, **MODES),
            ["unfreeze.layers was 83.", "The backbone has 82 layers.", "Type unfreeze.layers=20, or unfreeze=all"],
        ),
        (
            LastN(layers=2, exact=False, **MODES),
            [
                "unfreeze.layers was 2",
                "top, the last block, has 3 layers",
                "Type unfreeze.layers=3 or unfreeze.exact=true.",
            ],
        ),
        (
            Blocks(top=8, names=(), **MODES),
            ["unfreeze.top was 8.", "The backbone has 7 blocks.", "Type unfreeze.top=7 or less."],
        ),
        (
            Blocks(top=None, names=(), **MODES),
            ["unfreeze.top was None and unfreeze.names [].", "one of the two", "Type unfreeze.top=2"],
        ),
        (
            Blocks(top=None, names=("block9z",), **MODES),
            ["unfreeze.names has 'block9z'.", "blocks are stem, block6f,", "Type 'unfreeze.names=[top]'"],
        ),
        (
            Gradual(top=8, every_epochs=1, **MODES),
            ["unfreeze.top was 8.", "The backbone has 7 blocks.", "Type unfreeze.top=7 or less."],
        ),
    ],
)
def test_layers_or_blocks_that_the_backbone_does_not_have_raise_a_user_error(policy, facts: list[str]) -> None:
    with pytest.raises(UserError) as error:
        policy.plan(B4)
    assert str(error.value).startswith(facts[0])
    assert all(fact in str(error.value) for fact in facts)
