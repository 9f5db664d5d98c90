"""The ledger of published claims, by attempt.

Sources: the guide "EfficientNet Training Guide: From Failure to 93.7% Accuracy" (2025) and the training logs behind it;
and Keras' example "Image classification via fine-tuning with EfficientNet" (version of 2026).
"""

from dogbreeds.reports.claims import BETTER, NO_BETTER, WORSE, Claim, Setup

# A fifth of all 20,580 images. The guide chose the best epoch on them too.
_GUIDE_VAL_IMAGES = 4_072
_GUIDE_PARAMS = {
    "data.name": "stanford_dogs",
    "data.split": "guide",
    "augment": "Guide",
    "schedule": "Plateau",
}
_GUIDE_OVERRIDES = "data.split=guide augment=guide augment.copies=20 schedule=plateau"
_GUIDE_B4 = Setup("the guide", "EfficientNetB4", "effnetb4", 380, _GUIDE_PARAMS, _GUIDE_OVERRIDES)
_GUIDE_RESNET50 = Setup("the guide", "ResNet50", "resnet50", 224, _GUIDE_PARAMS, _GUIDE_OVERRIDES)
# The example validates on the official test split, and trains on all other images.
_KERAS = Setup(
    "Keras' example",
    "EfficientNetB0",
    "effnetb0",
    224,
    {"data.name": "stanford_dogs", "data.split": "official"},
    "data.split=official",
    metric="test/accuracy",
)
_KERAS_TEST_IMAGES = 8_580


def _guide(
    attempt: str, result: str, verdicts: tuple[str, ...], accuracy: float, tolerance: float, where: str
) -> Claim:
    setup = _GUIDE_RESNET50 if attempt.startswith("resnet50") else _GUIDE_B4
    return Claim(
        attempt, result, setup, verdicts, accuracy=accuracy, tolerance=tolerance, n=_GUIDE_VAL_IMAGES, where=where
    )


def _keras(
    attempt: str,
    result: str,
    *,
    verdicts: tuple[str, ...] = (),
    against: str = "",
    direction: str = WORSE,
    accuracy: float | None = None,
    tolerance: float = 0.015,
) -> Claim:
    where = "the outputs of the example"
    return Claim(attempt, result, _KERAS, verdicts, against, direction, accuracy, tolerance, _KERAS_TEST_IMAGES, where)


_TABLE = "the guide's table"

CLAIMS = {
    claim.attempt: claim
    for claim in (
        _guide("torch_pixels", "1–5 %", ("never_learned",), 0.0484, 0.04, "the guide's attempt 1, first epoch"),
        _guide("lr_collapse", "43 → 14 %", ("collapsed",), 0.4310, 0.15, "the guide's attempt 2, epochs 1 to 4"),
        _guide("frozen", "93.7 %", ("learned",), 0.9371, 0.015, _TABLE),
        _guide(
            "finetune_50",
            "92.9 %",
            ("no_better_than_frozen", "worse_than_frozen"),
            0.9317,
            0.015,
            "the log; the guide's table has 92.9 %",
        ),
        _guide(
            "finetune_20",
            "to be tested",
            ("no_better_than_frozen", "better_than_frozen"),
            0.9376,
            0.015,
            "the log; the guide left it open",
        ),
        _guide("resnet50_frozen", "54.7 %", ("learned",), 0.5469, 0.03, _TABLE),
        _guide("resnet50_finetune_50", "77.7 %", ("better_than_frozen",), 0.7768, 0.03, _TABLE),
        _keras("keras_frozen", "75.2 %", verdicts=("learned",), accuracy=0.752),
        _keras(
            "keras_no_augmentation",
            "may only reach ~60 %",
            against="keras_frozen",
            accuracy=0.60,
            # "~60 %" has no more digits.
            tolerance=0.05,
        ),
        _keras("keras_small_batches", "smaller batches benefit", against="keras_frozen", direction=BETTER),
        _keras("keras_ema", "EMA: not so much for transfer", against="keras_frozen", direction=NO_BETTER),
        _keras(
            "keras_finetune",
            "77.0 %, a small improvement",
            verdicts=("better_than_frozen", "no_better_than_frozen"),
            accuracy=0.770,
        ),
        _keras("keras_batchnorm", "first epoch: significantly reduced", verdicts=("worse_than_frozen",)),
        _keras("keras_split_block", "significantly harms", against="keras_finetune"),
    )
}
# Attempts that have a row in every table. The others have one where they were run.
ALWAYS_LISTED = tuple(name for name, claim in CLAIMS.items() if claim.setup is _GUIDE_B4)
