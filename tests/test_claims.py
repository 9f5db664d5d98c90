"""The guide's claims: which results reproduce, refute or do not test them."""

import pytest

from dogbreeds.core.paths import config_folder
from dogbreeds.evaluation.metrics import PairedOutcome
from dogbreeds.evaluation.verdict import VERDICTS
from dogbreeds.reports.claims import (
    NOT_TESTED,
    REFUTED,
    REPRODUCED,
    UNDECIDED,
    ClaimCheck,
    check_accuracy,
    check_difference,
    check_verdict,
    claim_status,
)
from dogbreeds.reports.published_claims import CLAIMS

GUIDE_PARAMS = {
    "model.architecture": "EfficientNetB4",
    "model.weights": "imagenet",
    "model.image_size": "380",
    "data.name": "stanford_dogs",
    "data.split": "guide",
    "augment": "Guide",
    "schedule": "Plateau",
}


def test_claims_cover_the_attempts_in_conf() -> None:
    assert set(CLAIMS) == {path.stem for path in (config_folder() / "attempt").glob("*.yaml")}
    assert {verdict for claim in CLAIMS.values() for verdict in claim.verdicts} <= set(VERDICTS)
    # An outcome is a verdict, or a difference from another attempt.
    assert all(bool(claim.verdicts) != bool(claim.against) for claim in CLAIMS.values())
    assert {claim.against for claim in CLAIMS.values()} - {""} <= set(CLAIMS)


@pytest.mark.parametrize(
    ("attempt", "verdicts", "changed", "status", "reason"),
    [
        ("lr_collapse", ["collapsed"], "", REPRODUCED, "collapsed in the only seed"),
        ("lr_collapse", ["collapsed"] * 3, "", REPRODUCED, "collapsed in 3 of 3 seeds"),
        ("lr_collapse", ["never_learned"], "", REFUTED, "collapsed in 0 of 1 seed, otherwise never learned"),
        (
            "finetune_50",
            ["worse_than_frozen", "no_better_than_frozen", "better_than_frozen"],
            "",
            REFUTED,
            "no better than frozen or worse than frozen in 2 of 3 seeds, otherwise better than frozen",
        ),
        (
            "finetune_20",
            ["better_than_frozen", "no_better_than_frozen"],
            "",
            REPRODUCED,
            "no better than frozen or better than frozen in 2 of 2 seeds",
        ),
        ("frozen", ["undecided"], "", UNDECIDED, "the images are too few in the only seed, otherwise learned"),
        (
            "frozen",
            ["learned", "undecided"],
            "",
            UNDECIDED,
            "the images are too few in 1 of 2 seeds, otherwise learned",
        ),
        (
            "frozen",
            ["underperforming", "undecided"],
            "",
            REFUTED,
            "learned in 0 of 2 seeds, otherwise undecided, underperforming",
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
def test_check_verdict_compares_all_seeds_with_the_claim(
    attempt: str, verdicts: list[str], changed: str, status: str, reason: str
) -> None:
    check = check_verdict(CLAIMS[attempt], verdicts, changed)
    assert (check.status, check.reason) == (status, reason)


WORSE, BETTER = PairedOutcome(10, 60, 960, "val"), PairedOutcome(60, 10, 960, "val")
# Neither a difference nor its absence is shown; and a loss of a point is excluded.
UNCLEAR, EQUAL = PairedOutcome(20, 28, 960, "val"), PairedOutcome(7, 5, 2400, "test")


@pytest.mark.parametrize(
    ("attempt", "pairs", "changed", "status", "reason"),
    [
        ("keras_split_block", [WORSE], "", REPRODUCED, "worse than keras_finetune in 1 of 1 seed: -5.2 points on val "),
        ("keras_split_block", [WORSE, WORSE], "", REPRODUCED, "worse than keras_finetune in 2 of 2 seeds: "),
        ("keras_split_block", [WORSE, UNCLEAR], "", UNDECIDED, "significantly worse than keras_finetune in 1 of 2 "),
        ("keras_split_block", [UNCLEAR], "", UNDECIDED, "significantly worse than keras_finetune in 0 of 1 seed: "),
        ("keras_split_block", [EQUAL, EQUAL], "", REFUTED, "worse than keras_finetune in 0 of 2 seeds: +0.1 points "),
        ("keras_split_block", [WORSE, BETTER], "", REFUTED, "worse than keras_finetune in 1 of 2 seeds: "),
        ("keras_small_batches", [BETTER], "", REPRODUCED, "better than keras_frozen in 1 of 1 seed: +5.2 points "),
        ("keras_small_batches", [WORSE], "", REFUTED, "better than keras_frozen in 0 of 1 seed: "),
        (
            "keras_ema",
            [EQUAL, WORSE],
            "",
            REPRODUCED,
            "a gain of a point over keras_frozen is excluded in 2 of 2 seeds: ",
        ),
        (
            "keras_ema",
            [EQUAL, PairedOutcome(28, 20, 960, "val")],
            "",
            UNDECIDED,
            "a gain of a point over keras_frozen is excluded in 1 of 2 ",
        ),
        ("keras_ema", [BETTER, EQUAL], "", REFUTED, "significantly better than keras_frozen in 1 of 2 seeds: "),
        (
            "keras_small_batches",
            [],
            "",
            NOT_TESTED,
            "keras_frozen was not run with the same seeds. Type python -m dogbreeds.train attempt=keras_frozen",
        ),
        (
            "keras_small_batches",
            [BETTER],
            "optimizer.lr=0.1",
            NOT_TESTED,
            "it was run with optimizer.lr=0.1. Type python -m dogbreeds.train attempt=keras_small_batches",
        ),
    ],
)
def test_check_difference_asks_for_a_significant_one_in_every_seed(
    attempt: str, pairs: list[PairedOutcome], changed: str, status: str, reason: str
) -> None:
    check = check_difference(CLAIMS[attempt], True, pairs, changed)
    assert check.status == status
    assert check.reason.startswith(reason)


@pytest.mark.parametrize(
    ("outcome", "number", "status"),
    [
        (REPRODUCED, REPRODUCED, "outcome and number reproduced"),
        (REPRODUCED, NOT_TESTED, "outcome reproduced"),
        (REPRODUCED, REFUTED, "outcome reproduced, number refuted"),
        (REFUTED, REPRODUCED, "outcome refuted, number reproduced"),
        (REFUTED, REFUTED, "outcome and number refuted"),
        (UNDECIDED, NOT_TESTED, "outcome undecided"),
        (NOT_TESTED, NOT_TESTED, "not tested here"),
    ],
)
def test_claim_status_says_whether_the_outcome_or_the_number_was_reproduced(
    outcome: str, number: str, status: str
) -> None:
    assert claim_status(ClaimCheck(outcome, ""), ClaimCheck(number, "")) == status


@pytest.mark.parametrize(
    ("attempt", "params", "accuracies", "status", "reason"),
    [
        (
            "frozen",
            GUIDE_PARAMS,
            [0.931],
            REPRODUCED,
            "measured 93.1 %, the guide reports 93.7 % (tolerance ± 1.5 points; the guide's table)",
        ),
        ("frozen", GUIDE_PARAMS, [0.93, 0.94], REPRODUCED, "measured 93.5 %, "),
        ("frozen", GUIDE_PARAMS, [0.90], REFUTED, "measured 90.0 %, the guide reports 93.7 %"),
        (
            "lr_collapse",
            GUIDE_PARAMS,
            [0.60],
            REFUTED,
            "measured 60.0 %, the guide reports 43.1 % (tolerance ± 15.0 points",
        ),
        (
            "frozen",
            GUIDE_PARAMS | {"data.split": "official"},
            [0.93],
            NOT_TESTED,
            "data.split is official. Type python -m dogbreeds.train attempt=frozen ",
        ),
        (
            "resnet50_frozen",
            GUIDE_PARAMS,
            [0.5],
            NOT_TESTED,
            (
                "model.architecture is EfficientNetB4, model.image_size is 380. Type python -m dogbreeds.train"
                " attempt=resnet50_frozen "
            ),
        ),
        ("frozen", {}, [], NOT_TESTED, "it was not run. Type python -m dogbreeds.train attempt=frozen "),
        ("keras_batchnorm", {}, [0.7], NOT_TESTED, "its source gives no accuracy"),
        ("frozen", GUIDE_PARAMS, [], NOT_TESTED, "it was not run. Type"),
    ],
)
def test_check_accuracy_tests_the_claim_in_its_source_s_setup_only(
    attempt: str, params: dict[str, str], accuracies: list[float], status: str, reason: str
) -> None:
    check = check_accuracy(CLAIMS[attempt], params, accuracies)
    assert check.status == status
    assert check.reason.startswith(reason)


@pytest.mark.parametrize("attempt", [name for name, claim in CLAIMS.items() if claim.accuracy is not None])
def test_check_accuracy_s_command_composes_its_source_s_setup(composed, attempt: str) -> None:
    claim = CLAIMS[attempt]
    command = check_accuracy(claim, {}, []).reason.split("python -m dogbreeds.train ")[1]
    params = composed(*command.split()).parameters()
    params = {name: str(value) for name, value in params.items()} | {"data.name": "stanford_dogs"}
    assert check_accuracy(claim, params, [claim.accuracy]).status == REPRODUCED
