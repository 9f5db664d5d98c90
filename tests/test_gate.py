"""Promotion gate: which runs pass, and the errors of those that do not."""

import numpy as np
import pytest

from dogbreeds.core.errors import UserError
from dogbreeds.evaluation.results import Predictions
from dogbreeds.tracking import promotion_gate
from dogbreeds.tracking.records import Record


def record(run_id: str, verdict: str = "learned") -> Record:
    return Record(run_id, "frozen", 0.0, "FINISHED", {}, {}, {"verdict": verdict})


def predictions(correct: list[bool], first: int = 0, label: int = 0) -> dict[str, Predictions]:
    """Return test predictions of two classes.

    Args:
        correct: of each image, whether its prediction is correct.
        first: number of the first image.
        label: class of all images.
    """
    labels = np.full(len(correct), label)
    logits = np.zeros((len(correct), 2))
    logits[np.arange(len(correct)), np.where(correct, labels, 1 - labels)] = 1.0
    return {"test": Predictions([f"test/{first + number}" for number in range(len(correct))], labels, logits)}


RUN = record("aaaaaaaaaaaa")
CURRENT = record("bbbbbbbbbbbb")


@pytest.mark.parametrize("verdict", ["learned", "better_than_frozen", "no_better_than_frozen"])
def test_check_verdict_passes_good_verdicts(verdict: str) -> None:
    promotion_gate.check_verdict(record("a", verdict), "dogs@champion")


@pytest.mark.parametrize(
    "verdict",
    ["collapsed", "never_learned", "diverged", "overfitting", "underperforming", "undecided", "worse_than_frozen"],
)
def test_check_verdict_refuses_bad_verdicts(verdict: str) -> None:
    with pytest.raises(UserError) as refused:
        promotion_gate.check_verdict(record("aaaaaaaaaaaa", verdict), "dogs@champion")
    assert str(refused.value).startswith(
        f"Run aaaaaaaa was not registered as dogs@champion: its verdict is {verdict.replace('_', ' ')}. "
        "It must be learned, better than frozen or no better than frozen. Type run="
    )


def test_check_improvement_passes_six_gained_images_and_refuses_five() -> None:
    # Exact McNemar: 2 / 2**6 = 0.031 and 2 / 2**5 = 0.0625.
    for gained, passes in ((6, True), (5, False)):
        pair = promotion_gate.compare_on_test(
            RUN,
            CURRENT,
            predictions([True] * 40),
            predictions([True] * (40 - gained) + [False] * gained),
            "dogs@champion",
        )
        assert (pair.gained, pair.lost, pair.n) == (gained, 0, 40)
        if passes:
            promotion_gate.check_improvement(RUN, CURRENT, pair, 0.05, "dogs@champion")
        else:
            with pytest.raises(UserError) as refused:
                promotion_gate.check_improvement(RUN, CURRENT, pair, 0.05, "dogs@champion")
            message = str(refused.value)
            assert message.startswith("Run aaaaaaaa was not registered: ")
            assert "dogs@champion, run bbbbbbbb, it has +12.5 points on test" in message
            assert "p = 0.062)" in message
            assert "with p below 0.05. Type run=" in message


def test_check_improvement_refuses_a_significantly_worse_run() -> None:
    pair = promotion_gate.compare_on_test(
        RUN, CURRENT, predictions([False] * 30 + [True] * 10), predictions([True] * 40), "dogs@champion"
    )
    assert pair.p_value < 1e-6
    with pytest.raises(UserError, match=r"it has -75.0 points on test"):
        promotion_gate.check_improvement(RUN, CURRENT, pair, 0.05, "dogs@champion")


def test_check_improvement_refuses_an_equal_run() -> None:
    pair = promotion_gate.compare_on_test(
        RUN, CURRENT, predictions([True, False] * 20), predictions([True, False] * 20), "dogs@champion"
    )
    with pytest.raises(UserError, match=r"it has \+0.0 points on test"):
        promotion_gate.check_improvement(RUN, CURRENT, pair, 0.05, "dogs@champion")


def test_compare_on_test_ignores_the_order_of_images() -> None:
    ours = predictions([True] * 8 + [False] * 2)
    theirs = predictions([False] * 8 + [True] * 2)
    test = theirs["test"]
    reversed_order = {"test": Predictions(test.ids[::-1], test.labels[::-1], test.logits[::-1])}
    assert promotion_gate.compare_on_test(RUN, CURRENT, ours, reversed_order, "x@y") == promotion_gate.compare_on_test(
        RUN, CURRENT, ours, theirs, "x@y"
    )


@pytest.mark.parametrize(
    ("ours", "theirs", "reason"),
    [
        (predictions([True] * 4), predictions([True] * 4, first=2), "they share 2 of 4 and 4"),
        (predictions([True] * 4), predictions([True] * 3), "they share 3 of 4 and 3"),
        (predictions([True] * 4), predictions([True] * 4, label=1), "some have other classes"),
        ({}, predictions([True] * 4), "run aaaaaaaa has none"),
        (predictions([True] * 4), {"val": predictions([True] * 4)["test"]}, "run bbbbbbbb has none"),
    ],
)
def test_compare_on_test_refuses_other_images(ours, theirs, reason: str) -> None:
    with pytest.raises(UserError) as refused:
        promotion_gate.compare_on_test(RUN, CURRENT, ours, theirs, "dogs@champion")
    message = str(refused.value)
    assert message.startswith("Run aaaaaaaa was not registered: dogs@champion is run bbbbbbbb, ")
    assert f"({reason})" in message
    assert message.endswith("Train both on the same data, or type another name, such as register=other.")
