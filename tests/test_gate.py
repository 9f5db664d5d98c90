"""What may be registered, and the sentence that each other case gives."""

import numpy as np
import pytest

from dogbreeds.core.errors import UserError
from dogbreeds.evaluation.results import Predictions
from dogbreeds.tracking import promotion_gate
from dogbreeds.tracking.records import Record


def record(run_id: str, verdict: str = "learned") -> Record:
    return Record(run_id, "frozen", 0.0, "FINISHED", {}, {}, {"verdict": verdict})


def said(right: list[bool], first: int = 0, labels: int = 0) -> dict[str, Predictions]:
    """Test predictions of two breeds: of each photo, whether it is right."""
    truth = np.full(len(right), labels)
    logits = np.zeros((len(right), 2))
    logits[np.arange(len(right)), np.where(right, truth, 1 - truth)] = 1.0
    return {"test": Predictions([f"test/{first + number}" for number in range(len(right))], truth, logits)}


OURS, THEIRS = record("aaaaaaaaaaaa"), record("bbbbbbbbbbbb")


@pytest.mark.parametrize("verdict", ["learned", "better_than_frozen", "no_better_than_frozen"])
def test_what_learned_may_pass(verdict: str) -> None:
    promotion_gate.check_verdict(record("a", verdict), "dogs@champion")


@pytest.mark.parametrize("verdict", ["collapsed", "never_learned", "diverged", "overfitting", "worse_than_frozen"])
def test_where_something_went_wrong_nothing_is_registered(verdict: str) -> None:
    with pytest.raises(UserError) as refused:
        promotion_gate.check_verdict(record("aaaaaaaaaaaa", verdict), "dogs@champion")
    assert str(refused.value).startswith(
        f"Run aaaaaaaa was not registered as dogs@champion: its verdict is {verdict.replace('_', ' ')}. "
        "It must be learned, better than frozen or no better than frozen. Type run="
    )


def test_six_photos_gained_and_none_lost_are_enough_and_five_are_not() -> None:
    # Exact McNemar: 2 / 2**6 = 0.031 and 2 / 2**5 = 0.0625.
    for gained, passes in ((6, True), (5, False)):
        pair = promotion_gate.beside(
            OURS, THEIRS, said([True] * 40), said([True] * (40 - gained) + [False] * gained), "dogs@champion"
        )
        assert (pair.gained, pair.lost, pair.n) == (gained, 0, 40)
        if passes:
            promotion_gate.check_better(OURS, THEIRS, pair, 0.05, "dogs@champion")
        else:
            with pytest.raises(UserError) as refused:
                promotion_gate.check_better(OURS, THEIRS, pair, 0.05, "dogs@champion")
            assert (
                "Run aaaaaaaa was not registered: beside dogs@champion, run bbbbbbbb, it has +12.5 points on test"
                in str(refused.value)
            )
            assert "p = 0.062). It must have more photos right, with p below 0.05. Type run=" in str(refused.value)


def test_worse_is_not_better_however_sure() -> None:
    pair = promotion_gate.beside(OURS, THEIRS, said([False] * 30 + [True] * 10), said([True] * 40), "dogs@champion")
    assert pair.p_value < 1e-6
    with pytest.raises(UserError, match=r"it has -75.0 points on test"):
        promotion_gate.check_better(OURS, THEIRS, pair, 0.05, "dogs@champion")


def test_equal_is_not_better() -> None:
    pair = promotion_gate.beside(OURS, THEIRS, said([True, False] * 20), said([True, False] * 20), "dogs@champion")
    with pytest.raises(UserError, match=r"it has \+0.0 points on test"):
        promotion_gate.check_better(OURS, THEIRS, pair, 0.05, "dogs@champion")


def test_order_of_photos_does_not_matter() -> None:
    mine, theirs = said([True] * 8 + [False] * 2), said([False] * 8 + [True] * 2)
    one = theirs["test"]
    turned = {"test": Predictions(one.ids[::-1], one.labels[::-1], one.logits[::-1])}
    assert promotion_gate.beside(OURS, THEIRS, mine, turned, "x@y") == promotion_gate.beside(
        OURS, THEIRS, mine, theirs, "x@y"
    )


@pytest.mark.parametrize(
    ("mine", "theirs", "why"),
    [
        (said([True] * 4), said([True] * 4, first=2), "they share 2 of 4 and 4"),
        (said([True] * 4), said([True] * 3), "they share 3 of 4 and 3"),
        (said([True] * 4), said([True] * 4, labels=1), "some are of other breeds"),
        ({}, said([True] * 4), "run aaaaaaaa has none"),
        (said([True] * 4), {"val": said([True] * 4)["test"]}, "run bbbbbbbb has none"),
    ],
)
def test_other_photos_do_not_compare(mine, theirs, why: str) -> None:
    with pytest.raises(UserError) as refused:
        promotion_gate.beside(OURS, THEIRS, mine, theirs, "dogs@champion")
    assert f"dogs@champion is run bbbbbbbb, and they have no test photos in common to be compared on ({why})" in str(
        refused.value
    )
    assert str(refused.value).endswith("Train both on the same data, or type another name, such as register=other.")
