"""Names of runs and sweeps."""

import pytest

from dogbreeds.experiments.compose import compose_run
from dogbreeds.experiments.run_name import SWEPT_ENV, run_name, sweep_name, swept_keys

FROZEN = {"model": "miniature", "phase": "frozen"}
MANY = ["optimizer.lr=1e-2", "head=linear", "seed=3", "augment=guide"]


@pytest.mark.parametrize(
    ("choices", "overrides", "swept", "expected"),
    [
        (FROZEN, [], [], "miniature frozen"),
        (FROZEN | {"attempt": "lr_collapse"}, ["attempt=lr_collapse", "model=miniature"], [], "miniature lr_collapse"),
        (FROZEN, ["optimizer.lr=1e-2", "seed=3"], [], "miniature frozen lr=1e-2 seed=3"),
        # What varies comes first, however many others there are.
        (FROZEN, MANY, ["seed"], "seed=3 miniature frozen lr=1e-2 head=linear augment=guide"),
        (FROZEN, MANY, [], "miniature frozen lr=1e-2 head=linear seed=3 …"),
        (FROZEN, MANY, ["augment", "seed"], "seed=3 augment=guide miniature frozen lr=1e-2 head=linear"),
        # Every name has the model and the phase.
        (FROZEN, ["model=miniature", "phase=frozen"], ["model", "phase"], "miniature frozen"),
        # Where the record, the cache and the checkpoints lie does not distinguish runs.
        (
            FROZEN,
            ["features.dir=/c", "rerun=true", "preflight=warn"],
            [],
            "miniature frozen",
        ),
        (FROZEN, ["tracking=none"], ["tracking"], "tracking=none miniature frozen"),
        (FROZEN, ["data=folder", "data.root=/home/me/my/photos"], [], "miniature frozen data=folder root=photos"),
        (FROZEN, ["+optimizer.lr=0.00031734567890123"], ["optimizer.lr"], "lr=0.000317 miniature frozen"),
        (FROZEN, ["head.widths=[1024,512,256,128,64,32,16]"], [], "miniature frozen widths=[1024,512,256,128,64,32…"),
        # Two settings of the same last name.
        (
            FROZEN,
            ["head.dropout=0.5", "optimizer.dropout=1"],
            [],
            "miniature frozen head.dropout=0.5 optimizer.dropout=1",
        ),
    ],
)
def test_run_name_is_short_and_begins_with_what_the_sweep_varies(choices, overrides, swept, expected: str) -> None:
    assert run_name(choices, overrides, swept) == expected


def test_sweep_name_has_what_it_varies_as_it_was_typed() -> None:
    overrides = [
        "model=miniature",
        "tracking.model=none",
        "head=choice(mlp,linear)",
        "optimizer.lr=1e-2,1e-3",
        "seed=4",
    ]
    keys = swept_keys(overrides)
    assert keys == ["head", "optimizer.lr"]
    assert sweep_name(overrides, keys) == "sweep head=choice(mlp,linear) optimizer.lr=1e-2,1e-3 miniature seed=4"
    assert swept_keys(["optimizer.lr=tag(log,interval(1e-5,1e-1))", "head.widths=[8,4]"]) == ["optimizer.lr"]
    many = [f"optimizer.lr={','.join(f'1e-{number}' for number in range(40))}"]
    assert len(sweep_name(many, ["optimizer.lr"])) < 80


def test_composed_run_is_named_after_its_sweep_and_keeps_all_overrides(monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = ("optimizer.lr=1e-3", "seed=5", "head=linear", "augment=guide", "phase.epochs=2")
    monkeypatch.setenv(SWEPT_ENV, "phase.epochs")
    origin = compose_run(overrides).origin
    assert origin is not None
    assert origin.name == "epochs=2 miniature frozen lr=1e-3 seed=5 head=linear …"
    assert origin.overrides == overrides
