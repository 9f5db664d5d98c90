from types import SimpleNamespace

import pytest

from dogbreeds.core.errors import UserError
from dogbreeds.models.unfreeze import All, Blocks, Gradual, LastN, Nothing, Plan


def blocks(**sizes: int) -> list[SimpleNamespace]:
    return [
        SimpleNamespace(name=name, layers=[SimpleNamespace(name=f"{name}_{n}") for n in range(size)])
        for name, size in sizes.items()
    ]


# EfficientNet-B4's end
B4 = blocks(stem=6, block6f=15, block6g=15, block6h=15, block7a=13, block7b=15, top=3)
MODES = {"batchnorm": "frozen", "drop_connect": "off"}


def last(layers: int, exact: bool = False) -> Plan:
    return LastN(layers=layers, exact=exact, **MODES).plan(B4)


@pytest.mark.parametrize(
    ("asked", "trained", "cut", "said"),
    [
        (20, 18, 5, "20 layers would cut block7a; unfreezing block7b, top (18 layers)"),
        (50, 46, 3, "50 layers would cut block6g; unfreezing block6h, block7a, block7b, top (46 layers)"),
        (3, 3, 6, "top (3 layers)"),
        (31, 31, 4, "block7a, block7b, top (31 layers)"),
        (82, 82, 0, "stem to top, 7 blocks (82 layers)"),
    ],
)
def test_last_n_snaps_to_whole_blocks_and_says_so(asked: int, trained: int, cut: int, said: str) -> None:
    plan = last(asked)
    assert (plan.asked, plan.layers, plan.cut, plan.summary) == (asked, trained, cut, said)


def test_exact_keeps_the_literal_layers_and_cuts_below() -> None:
    plan = last(20, exact=True)
    assert (plan.cut, plan.layers, plan.asked) == (4, 20, 20)
    assert {"block7a_11", "block7a_12"} <= plan.stages[0]
    assert "block7a_10" not in plan.stages[0]
    assert plan.summary == "20 layers, from block7a_11 within block7a; the kept prefix ends below block7a"


def test_none_all_and_blocks() -> None:
    assert (Nothing(**MODES).plan(B4).cut, Nothing(**MODES).plan(B4).layers) == (7, 0)
    assert (All(**MODES).plan(B4).cut, All(**MODES).plan(B4).layers) == (0, 82)
    top = Blocks(top=2, names=(), **MODES).plan(B4)
    assert (top.cut, top.layers, top.summary) == (5, 18, "block7b, top (18 layers)")
    named = Blocks(top=None, names=("block7a", "top"), **MODES).plan(B4)
    assert (named.cut, named.layers) == (4, 16)
    assert not any(name.startswith("block7b") for name in named.stages[0])
    assert named.depth["top_0"] == 1
    assert named.depth["block7a_0"] == 3


def test_gradual_goes_down_block_by_block() -> None:
    plan = Gradual(top=3, every_epochs=2, **MODES).plan(B4)
    assert plan.cut == 4
    assert [len(plan.at(epoch)) for epoch in range(7)] == [3, 3, 18, 18, 31, 31, 31]
    assert plan.summary == "block7a, block7b, top (31 layers), from the top, one more every 2 epochs"


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        (
            LastN(layers=83, exact=False, **MODES),
            "unfreeze.layers was 83. The backbone has 82 layers. Type unfreeze.layers=20, or unfreeze=all",
        ),
        (
            LastN(layers=2, exact=False, **MODES),
            "unfreeze.layers was 2, and top, the last block, has 3. Blocks train whole unless",
        ),
        (
            Blocks(top=8, names=(), **MODES),
            "unfreeze.top was 8. The backbone has 7 blocks. Type unfreeze.top=7 or less.",
        ),
        (
            Blocks(top=None, names=(), **MODES),
            "unfreeze.top was None and unfreeze.names []. One of the two must be given.",
        ),
        (
            Blocks(top=None, names=("block9z",), **MODES),
            "unfreeze.names has 'block9z'. The backbone's blocks are stem, block6f,",
        ),
        (Gradual(top=8, every_epochs=1, **MODES), "unfreeze.top was 8. The backbone has 7 blocks."),
    ],
)
def test_what_the_backbone_lacks_is_refused(policy, said: str) -> None:
    with pytest.raises(UserError) as refusal:
        policy.plan(B4)
    assert str(refusal.value).startswith(said)
