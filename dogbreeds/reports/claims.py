"""The guide's claims, and the checks of measured results against them.

Each named attempt makes two claims: a verdict, which must hold on any model and data set, and an accuracy, which holds
for the guide's own setup only. Source of both: the guide "EfficientNet Training Guide: From Failure to 93.7% Accuracy"
(2025) and the training logs behind it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

REPRODUCED, REFUTED, UNDECIDED, NOT_TESTED = "reproduced", "refuted", "undecided", "not tested here"

# A fifth of all 20,580 images. The guide chose the best epoch on them too.
_GUIDE_VAL_IMAGES = 4_072
# Recorded params of the guide's setup, other than the model's.
_GUIDE_PARAMS = {
    "data.name": "stanford_dogs",
    "data.split": "guide",
    "augment": "Guide",
    "schedule": "Plateau",
}
# The overrides that give these params.
_GUIDE_OVERRIDES = "data.split=guide augment=guide augment.copies=20 schedule=plateau"


@dataclass(frozen=True)
class Claim:
    """The guide's result for one attempt.

    Attributes:
        attempt: name of the attempt in `conf/attempt/`.
        guide_result: the result as the guide's table prints it.
        verdicts: allowed verdicts. A run on any setup must get one of them.
        accuracy: best validation accuracy in the guide's own setup, in [0, 1].
        tolerance: allowed distance of a measured accuracy from `accuracy`. The guide ran each attempt once, so the
            width is a judgement.
        model: architecture of the guide's setup.
        model_option: name of that architecture in `conf/model/`.
        image_size: side length in pixels in the guide's setup.
        n: number of validation images behind `accuracy`.
        source: where `accuracy` is published.
    """

    attempt: str
    guide_result: str
    verdicts: tuple[str, ...]
    accuracy: float
    tolerance: float
    model: str = "EfficientNetB4"
    model_option: str = "effnetb4"
    image_size: int = 380
    n: int = _GUIDE_VAL_IMAGES
    source: str = "the guide's table"


CLAIMS = {
    claim.attempt: claim
    for claim in (
        Claim("torch_pixels", "1–5 %", ("never_learned",), 0.0484, 0.04, source="the guide's attempt 1, first epoch"),
        Claim("lr_collapse", "43 → 14 %", ("collapsed",), 0.4310, 0.15, source="the guide's attempt 2, epochs 1 to 4"),
        Claim("frozen", "93.7 %", ("learned",), 0.9371, 0.015),
        Claim(
            "finetune_50",
            "92.9 %",
            ("no_better_than_frozen", "worse_than_frozen"),
            0.9317,
            0.015,
            source="the log; the guide's table has 92.9 %",
        ),
        Claim(
            "finetune_20",
            "to be tested",
            ("no_better_than_frozen", "better_than_frozen"),
            0.9376,
            0.015,
            source="the log; the guide left it open",
        ),
        Claim(
            "resnet50_frozen",
            "54.7 %",
            ("learned",),
            0.5469,
            0.03,
            model="ResNet50",
            model_option="resnet50",
            image_size=224,
        ),
        Claim(
            "resnet50_finetune_50",
            "77.7 %",
            ("better_than_frozen",),
            0.7768,
            0.03,
            model="ResNet50",
            model_option="resnet50",
            image_size=224,
        ),
    )
}


@dataclass(frozen=True)
class ClaimCheck:
    """The outcome of checking one claim.

    Attributes:
        status: `REPRODUCED`, `REFUTED`, `UNDECIDED` or `NOT_TESTED`.
        reason: evidence for the status. Where the claim is not tested, the command that tests it.
    """

    status: str
    reason: str


def check_verdict(claim: Claim, verdicts: Sequence[str], changed: str = "", setup: str = "") -> ClaimCheck:
    """Compare measured verdicts with the claimed ones.

    Args:
        claim: the attempt's claim.
        verdicts: measured verdict of each seed; empty if the attempt was not run.
        changed: overrides that make the run differ from the named attempt; empty if there are none.
        setup: overrides that choose the model and data set, for the command that tests the claim.
    """
    command = f"python -m dogbreeds.train attempt={claim.attempt}{f' {setup}' if setup else ''}"
    if changed:
        return ClaimCheck(NOT_TESTED, f"it was run with {changed}. Type {command}")
    if not verdicts:
        return ClaimCheck(NOT_TESTED, f"it was not run. Type {command}")
    claimed = " or ".join(name.replace("_", " ") for name in claim.verdicts)
    matches = sum(verdict in claim.verdicts for verdict in verdicts)
    if matches == len(verdicts):
        seeds = f"{matches} of {len(verdicts)} seeds" if len(verdicts) > 1 else "the only seed"
        return ClaimCheck(REPRODUCED, f"{claimed} in {seeds}")
    if all(verdict in claim.verdicts or verdict == UNDECIDED for verdict in verdicts):
        undecided = f"{len(verdicts) - matches} of {len(verdicts)} seeds" if len(verdicts) > 1 else "the only seed"
        return ClaimCheck(UNDECIDED, f"the images are too few in {undecided}, otherwise {claimed}")
    others = sorted({verdict.replace("_", " ") for verdict in verdicts if verdict not in claim.verdicts})
    seeds = f"{matches} of {len(verdicts)} seed{'s' if len(verdicts) > 1 else ''}"
    return ClaimCheck(REFUTED, f"{claimed} in {seeds}, otherwise {', '.join(others)}")


def claim_status(outcome: ClaimCheck, number: ClaimCheck) -> str:
    """Say what of a claim was reproduced: its outcome, its number, or both.

    A number is tested in the guide's setup only.

    Args:
        outcome: of `check_verdict`.
        number: of `check_accuracy`.
    """
    if outcome.status == NOT_TESTED:
        return NOT_TESTED
    if outcome.status == number.status:
        return f"outcome and number {outcome.status}"
    return f"outcome {outcome.status}" + (f", number {number.status}" if number.status != NOT_TESTED else "")


def check_accuracy(
    claim: Claim, params: Mapping[str, str], accuracies: Sequence[float], changed: str = ""
) -> ClaimCheck:
    """Compare the measured accuracy with the claimed one, if the run used the guide's setup.

    Args:
        claim: the attempt's claim.
        params: recorded params of the runs, by dotted name.
        accuracies: best validation accuracy of each seed, in [0, 1].
        changed: as in `check_verdict`.
    """
    setup = {
        "model.architecture": claim.model,
        "model.weights": "imagenet",
        "model.image_size": str(claim.image_size),
        **_GUIDE_PARAMS,
    }
    different = {key: params.get(key, "absent") for key, value in setup.items() if params.get(key) != value}
    if not accuracies or different or changed:
        reason = ", ".join(f"{key} is {value}" for key, value in different.items()) or changed or "it was not run"
        command = f"python -m dogbreeds.train attempt={claim.attempt} model={claim.model_option} {_GUIDE_OVERRIDES}"
        return ClaimCheck(NOT_TESTED, f"{reason}. Type {command}")
    mean = sum(accuracies) / len(accuracies)
    # Both accuracies come from a sample of images, so the sampling error counts twice.
    sampling_error = 1.96 * math.sqrt(claim.accuracy * (1 - claim.accuracy) / claim.n * 2)
    tolerance = max(claim.tolerance, sampling_error)
    evidence = (
        f"measured {100 * mean:.1f} %, the guide reports {100 * claim.accuracy:.1f} %"
        f" (tolerance ± {100 * tolerance:.1f} points; {claim.source})"
    )
    return ClaimCheck(REPRODUCED if abs(mean - claim.accuracy) <= tolerance else REFUTED, evidence)
