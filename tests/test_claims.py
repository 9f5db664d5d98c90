import pytest

from dogbreeds.core.paths import home
from dogbreeds.evaluation.verdict import VERDICTS
from dogbreeds.reports.claims import CLAIMS, NOT_TESTED, REFUTED, REPRODUCED, number_claim, verdict_claim

GUIDE = {
    "model.architecture": "EfficientNetB4",
    "model.weights": "imagenet",
    "model.image_size": "380",
    "data.name": "stanford_dogs",
    "data.split": "guide",
    "augment": "Guide",
    "schedule": "Plateau",
}


def test_every_attempt_has_a_claim_and_every_claim_an_attempt() -> None:
    assert set(CLAIMS) == {path.stem for path in (home() / "conf/attempt").glob("*.yaml")}
    assert {verdict for claim in CLAIMS.values() for verdict in claim.verdicts} <= set(VERDICTS)


@pytest.mark.parametrize(
    ("attempt", "verdicts", "changed", "status", "why"),
    [
        ("lr_collapse", ["collapsed"], "", REPRODUCED, "collapsed in the one seed that was run"),
        ("lr_collapse", ["collapsed"] * 3, "", REPRODUCED, "collapsed in 3 of 3 seeds"),
        ("lr_collapse", ["never_learned"], "", REFUTED, "collapsed in 0 of 1, otherwise never learned"),
        (
            "finetune_50",
            ["worse_than_frozen", "no_better_than_frozen", "better_than_frozen"],
            "",
            REFUTED,
            "no better than frozen or worse than frozen in 2 of 3, otherwise better than frozen",
        ),
        (
            "finetune_20",
            ["better_than_frozen", "no_better_than_frozen"],
            "",
            REPRODUCED,
            "no better than frozen or better than frozen in 2 of 2 seeds",
        ),
        ("frozen", [], "", NOT_TESTED, "it was not run. Type python -m dogbreeds.train attempt=frozen"),
        (
            "frozen",
            ["learned"],
            "optimizer.lr=0.1",
            NOT_TESTED,
            "it was run with optimizer.lr=0.1. Type python -m dogbreeds.train attempt=frozen",
        ),
    ],
)
def test_the_claim_on_the_verdict(attempt: str, verdicts: list[str], changed: str, status: str, why: str) -> None:
    tested = verdict_claim(CLAIMS[attempt], verdicts, changed)
    assert (tested.status, tested.why) == (status, why)


@pytest.mark.parametrize(
    ("attempt", "params", "values", "status", "said"),
    [
        ("frozen", GUIDE, [0.931], REPRODUCED, "93.1 % where the guide has 93.7 % (± 1.5 allowed; the guide's table)"),
        ("frozen", GUIDE, [0.93, 0.94], REPRODUCED, "93.5 % where"),
        ("frozen", GUIDE, [0.90], REFUTED, "90.0 % where the guide has 93.7 %"),
        ("lr_collapse", GUIDE, [0.60], REFUTED, "60.0 % where the guide has 43.1 % (± 15.0 allowed"),
        (
            "frozen",
            GUIDE | {"data.split": "official"},
            [0.93],
            NOT_TESTED,
            "data.split is official. Type python -m dogbreeds.train attempt=frozen ",
        ),
        (
            "resnet50_frozen",
            GUIDE,
            [0.5],
            NOT_TESTED,
            (
                "model.architecture is EfficientNetB4, model.image_size is 380. Type python -m dogbreeds.train"
                " attempt=resnet50_frozen "
            ),
        ),
        ("frozen", {}, [], NOT_TESTED, "model.architecture is absent, "),
        ("frozen", GUIDE, [], NOT_TESTED, "it was not run. Type"),
    ],
)
def test_the_claim_on_the_number_is_of_the_guide_s_own_setup(attempt, params, values, status, said) -> None:
    tested = number_claim(CLAIMS[attempt], params, values)
    assert tested.status == status
    assert tested.why.startswith(said)


@pytest.mark.parametrize("attempt", list(CLAIMS))
def test_the_command_that_would_test_it_composes_into_the_guide_s_setup(composed, attempt: str) -> None:
    claim = CLAIMS[attempt]
    command = number_claim(claim, {}, []).why.split("python -m dogbreeds.train ")[1]
    params = composed(*command.split()).parameters()
    params = {name: str(value) for name, value in params.items()} | {"data.name": "stanford_dogs"}
    assert number_claim(claim, params, [claim.value]).status == REPRODUCED
