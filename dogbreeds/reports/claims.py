"""Checks of measured results against published claims, such as those of the guide."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from dogbreeds.evaluation.metrics import PAIRED_LEVEL, PairedOutcome
from dogbreeds.tracking.records import RANKING_METRIC

REPRODUCED, REFUTED, UNDECIDED, NOT_TESTED = "reproduced", "refuted", "undecided", "not tested here"
# Directions of a claimed difference.
BETTER, WORSE, NO_BETTER = "better", "worse", "no better"
# A claimed difference is refuted where one of this size is excluded.
_MATTERS = 0.01


@dataclass(frozen=True)
class Setup:
    """The setup that a source measured its accuracies in.

    Attributes:
        source: who made the claims, as the subject of a sentence.
        model: architecture.
        model_option: name of that architecture in `conf/model/`.
        image_size: pixels a side.
        params: recorded params of the setup, other than the model's.
        overrides: what to type for these params.
        metric: recorded metric that the source reports.
    """

    source: str
    model: str
    model_option: str
    image_size: int
    params: Mapping[str, str] = field(default_factory=dict)
    overrides: str = ""
    metric: str = RANKING_METRIC

    def all_params(self) -> dict[str, str]:
        """Return the recorded params of the setup."""
        return {
            "model.architecture": self.model,
            "model.weights": "imagenet",
            "model.image_size": str(self.image_size),
            **self.params,
        }


@dataclass(frozen=True)
class Claim:
    """A published result of one attempt: an outcome, which must hold on any setup, and mostly an accuracy.

    The outcome is a verdict, or a difference from another attempt.

    Attributes:
        attempt: name of the attempt in `conf/attempt/`.
        result: the result as its source prints it.
        setup: what `accuracy` was measured in.
        verdicts: allowed verdicts; empty if a difference is claimed.
        against: attempt from which it is claimed to differ; empty if a verdict is claimed.
        direction: `BETTER`, `WORSE` or `NO_BETTER` than that.
        accuracy: published accuracy, in [0, 1]; None if there is none.
        tolerance: allowed distance of a measured accuracy from `accuracy`. A source mostly ran each attempt once, so
            the width is a judgement.
        n: number of images behind `accuracy`.
        where: where `accuracy` is published.
    """

    attempt: str
    result: str
    setup: Setup
    verdicts: tuple[str, ...] = ()
    against: str = ""
    direction: str = WORSE
    accuracy: float | None = None
    tolerance: float = 0.015
    n: int = 1
    where: str = ""


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
    if untested := _untested(claim.attempt, bool(verdicts), changed, setup):
        return untested
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


def check_difference(
    claim: Claim, was_run: bool, pairs: Sequence[PairedOutcome], changed: str = "", setup: str = ""
) -> ClaimCheck:
    """Compare measured differences between two attempts with the claimed direction.

    Args:
        claim: the attempt's claim.
        was_run: whether the attempt was run.
        pairs: of each seed that both attempts have, image by image: the attempt that it is compared with, then the
            claim's own.
        changed: overrides that make the run differ from the named attempt; empty if there are none.
        setup: overrides that choose the model and data set, for the command that tests the claim.
    """
    if untested := _untested(claim.attempt, was_run, changed, setup):
        return untested
    if not pairs:
        command = _command(claim.against, setup)
        return ClaimCheck(NOT_TESTED, f"{claim.against} was not run with the same seeds. Type {command}")
    if claim.direction == NO_BETTER:
        return _check_no_better(claim.against, pairs)
    claimed = f"{claim.direction} than {claim.against}"
    sign = 1 if claim.direction == BETTER else -1
    significant = sum(sign * pair.difference > 0 and pair.p_value < PAIRED_LEVEL for pair in pairs)
    opposite = sum(sign * pair.difference < 0 and pair.p_value < PAIRED_LEVEL for pair in pairs)
    excluded = sum(max(sign * bound for bound in pair.interval) < _MATTERS for pair in pairs)
    seeds = f"{significant} of {len(pairs)} seed{'s' if len(pairs) > 1 else ''}"
    listed = "; ".join(map(str, pairs))
    if significant == len(pairs):
        return ClaimCheck(REPRODUCED, f"{claimed} in {seeds}: {listed}")
    if opposite or excluded == len(pairs):
        return ClaimCheck(REFUTED, f"{claimed} in {seeds}: {listed}")
    return ClaimCheck(UNDECIDED, f"significantly {claimed} in {seeds}: {listed}")


def _check_no_better(against: str, pairs: Sequence[PairedOutcome]) -> ClaimCheck:
    """Check the claim that an attempt is no better: reproduced where a gain that matters is excluded in each seed."""
    better = sum(pair.difference > 0 and pair.p_value < PAIRED_LEVEL for pair in pairs)
    excluded = sum(pair.interval[1] < _MATTERS for pair in pairs)
    seeds = f"of {len(pairs)} seed{'s' if len(pairs) > 1 else ''}: {'; '.join(map(str, pairs))}"
    if better:
        return ClaimCheck(REFUTED, f"significantly better than {against} in {better} {seeds}")
    status = REPRODUCED if excluded == len(pairs) else UNDECIDED
    return ClaimCheck(status, f"a gain of a point over {against} is excluded in {excluded} {seeds}")


def _untested(attempt: str, was_run: bool, changed: str, setup: str) -> ClaimCheck | None:
    """Return why the outcome of an attempt is not tested; None if it is."""
    if was_run and not changed:
        return None
    how = f"run with {changed}" if changed else "not run"
    return ClaimCheck(NOT_TESTED, f"it was {how}. Type {_command(attempt, setup)}")


def _command(attempt: str, setup: str) -> str:
    """Return the command that runs an attempt in a setup, as overrides."""
    return f"python -m dogbreeds.train attempt={attempt}{f' {setup}' if setup else ''}"


def claim_status(outcome: ClaimCheck, number: ClaimCheck) -> str:
    """Say what of a claim was reproduced: its outcome, its number, or both.

    A number is tested in the source's setup only.

    Args:
        outcome: of `check_verdict` or `check_difference`.
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
    """Compare the measured accuracy with the claimed one, if the run used the source's setup.

    Args:
        claim: the attempt's claim.
        params: recorded params of the runs, by dotted name.
        accuracies: the setup's metric of each seed, in [0, 1]; empty if the attempt was not run.
        changed: as in `check_verdict`.
    """
    if claim.accuracy is None:
        return ClaimCheck(NOT_TESTED, "its source gives no accuracy")
    setup = claim.setup
    expected = setup.all_params()
    different = {key: params.get(key, "absent") for key, value in expected.items() if params.get(key) != value}
    if not accuracies or different or changed:
        reason = ", ".join(f"{key} is {value}" for key, value in different.items()) or changed
        command = _command(claim.attempt, f"model={setup.model_option} {setup.overrides}")
        return ClaimCheck(NOT_TESTED, f"{reason if accuracies else 'it was not run'}. Type {command}")
    mean = sum(accuracies) / len(accuracies)
    # Both accuracies come from a sample of images, so the sampling error counts twice.
    sampling_error = 1.96 * math.sqrt(claim.accuracy * (1 - claim.accuracy) / claim.n * 2)
    tolerance = max(claim.tolerance, sampling_error)
    evidence = (
        f"measured {100 * mean:.1f} %, {setup.source} reports {100 * claim.accuracy:.1f} %"
        f" (tolerance ± {100 * tolerance:.1f} points; {claim.where})"
    )
    return ClaimCheck(REPRODUCED if abs(mean - claim.accuracy) <= tolerance else REFUTED, evidence)
