"""What the guide says its attempts give, and whether a measurement agrees.

Each attempt makes two claims: a verdict, which must hold on any model and photos, and a number, which is of the guide's own setup only.
Source of both: the guide "EfficientNet Training Guide: From Failure to 93.7% Accuracy" (2025) and the training logs behind it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

REPRODUCED, REFUTED, NOT_TESTED = "reproduced", "refuted", "not tested here"

# The guide's validation photos: a fifth of all 20,580, from which the best epoch was chosen too
_N = 4_072
_SETUP = {
    "data.name": "stanford_dogs",
    "data.split": "guide",
    "augment": "Guide",
    "schedule": "Plateau",
}
_SETTINGS = "data.split=guide augment=guide augment.copies=20 schedule=plateau"


@dataclass(frozen=True)
class Claim:
    """What the guide says of an attempt.

    Attributes:
        attempt: its name in `conf/attempt/`.
        says: in the guide's table.
        verdicts: one of which must come out on any setup.
        value: best validation accuracy in the guide's own setup.
        spread: how far from it a measurement may lie; the guide ran each attempt once, so that this is a judgement.
        model: the architecture of that setup.
        option: its name in `conf/model/`.
        size: pixels a side there.
        n: photos that the value was measured on.
        source: where the value stands.
    """

    attempt: str
    says: str
    verdicts: tuple[str, ...]
    value: float
    spread: float
    model: str = "EfficientNetB4"
    option: str = "effnetb4"
    size: int = 380
    n: int = _N
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
        Claim("resnet50_frozen", "54.7 %", ("learned",), 0.5469, 0.03, "ResNet50", "resnet50", 224),
        Claim("resnet50_finetune_50", "77.7 %", ("better_than_frozen",), 0.7768, 0.03, "ResNet50", "resnet50", 224),
    )
}


@dataclass(frozen=True)
class Tested:
    """What became of a claim, and why."""

    status: str
    why: str


def verdict_claim(claim: Claim, verdicts: Sequence[str], changed: str = "", setup: str = "") -> Tested:
    """Whether the attempt's verdict is the one claimed.

    Args:
        claim: the attempt's.
        verdicts: of each seed; none where the attempt was not run.
        changed: settings that make the run another attempt; empty where it is the one it is named after.
        setup: the model and data that it would be run on, as one types them.
    """
    wanted = " or ".join(name.replace("_", " ") for name in claim.verdicts)
    command = f"python -m dogbreeds.train attempt={claim.attempt}{f' {setup}' if setup else ''}"
    if changed:
        return Tested(NOT_TESTED, f"it was run with {changed}. Type {command}")
    if not verdicts:
        return Tested(NOT_TESTED, f"it was not run. Type {command}")
    held = sum(verdict in claim.verdicts for verdict in verdicts)
    seeds = f"{held} of {len(verdicts)} seeds" if len(verdicts) > 1 else "the one seed that was run"
    if held == len(verdicts):
        return Tested(REPRODUCED, f"{wanted} in {seeds}")
    others = sorted({verdict.replace("_", " ") for verdict in verdicts if verdict not in claim.verdicts})
    return Tested(REFUTED, f"{wanted} in {held} of {len(verdicts)}, otherwise {', '.join(others)}")


def number_claim(claim: Claim, params: Mapping[str, str], values: Sequence[float], changed: str = "") -> Tested:
    """Whether the number is the guide's, where the setup is.

    Args:
        claim: the attempt's.
        params: of the runs, by their dotted names.
        values: best validation accuracy of each seed.
        changed: as in `verdict_claim`.
    """
    setup = {
        "model.architecture": claim.model,
        "model.weights": "imagenet",
        "model.image_size": str(claim.size),
        **_SETUP,
    }
    different = {key: params.get(key, "absent") for key, value in setup.items() if params.get(key) != value}
    command = f"python -m dogbreeds.train attempt={claim.attempt} model={claim.option} {_SETTINGS}"
    if not values or different or changed:
        here = ", ".join(f"{key} is {value}" for key, value in different.items()) or changed or "it was not run"
        return Tested(NOT_TESTED, f"{here}. Type {command}")
    mean = sum(values) / len(values)
    # Both sides were measured on photos: each has a sampling error.
    error = 1.96 * math.sqrt(claim.value * (1 - claim.value) / claim.n * 2)
    said = (
        f"{100 * mean:.1f} % where the guide has {100 * claim.value:.1f} % (± {100 * max(claim.spread, error):.1f}"
        f" allowed; {claim.source})"
    )
    return Tested(REPRODUCED if abs(mean - claim.value) <= max(claim.spread, error) else REFUTED, said)
