"""What happened in an attempt, in a word, with the reason in numbers and what to do about it. Pure arithmetic on curves.

The thresholds were chosen on one half of the seeds of `make faults`; the error rates that it reports are of the other half.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dogbreeds.evaluation.metrics import PairedOutcome

if TYPE_CHECKING:
    from dogbreeds.evaluation.results import Epoch

VERDICTS = (
    "learned",
    "collapsed",
    "never_learned",
    "diverged",
    "overfitting",
    "no_better_than_frozen",
    "worse_than_frozen",
    "better_than_frozen",
)

# Of the peak: what is left after a collapse is less
_COLLAPSED_SHARE = 0.85
# Standard errors between the peak and what is left
_COLLAPSED_DEVIATIONS = 4.0
# Of the best training accuracy: with more than that at the end, training has not collapsed
_UNHARMED_SHARE = 0.95
# Of the way from chance to perfection
_LEARNED_SHARE = 0.05
# Standard errors above chance
_LEARNED_DEVIATIONS = 4.0
# Validation loss at the end, of its lowest
_OVERFIT_RISE = 1.15
# Training accuracy less validation accuracy, at the end
_OVERFIT_GAP = 0.15
# That an attempt is given to learn anything, as many as a collapse needs to be seen
_PATIENT_EPOCHS = 3
# Of the paired test
PAIRED_LEVEL = 0.01


@dataclass(frozen=True)
class Verdict:
    """What happened.

    Attributes:
        name: one of `VERDICTS`.
        reason: the numbers that say so, half a sentence.
        advice: what to do, one line.
        numbers: those of the reason, to be searched by.
    """

    name: str
    reason: str
    advice: str
    numbers: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.name.replace('_', ' ')}: {self.reason}. {self.advice}"


@dataclass(frozen=True)
class Setting:
    """What a verdict needs to know of an attempt besides its curves.

    Attributes:
        classes: how many.
        lr: `optimizer.lr`.
        native: whether the pixels are those that the preflight found to fit best; None where it cannot tell.
        pair: the fine-tune beside its parent, photo by photo.
        diverged: at which step and rate the loss stopped being a number; empty where it did not.
    """

    classes: int
    lr: float
    native: bool | None = None
    pair: PairedOutcome | None = None
    diverged: str = ""


def judge(epochs: "Sequence[Epoch]", setting: Setting) -> Verdict:
    """The verdict on an attempt.

    Args:
        epochs: finished ones, in order.
        setting: of the attempt.
    """
    if setting.diverged:
        advice = f"Type optimizer.lr={_lower(setting.lr)}; if that diverges too, look at preprocessing."
        return Verdict("diverged", setting.diverged, advice, {"epochs": float(len(epochs))})
    found = _fall(epochs) or (_never(epochs, setting) if setting.pair is None else None)
    if found:
        return _advised(found, epochs, setting)
    if setting.pair is not None:
        return _beside_parent(setting.pair, setting)
    return _overfit(epochs) or _learned(epochs)


def has_collapsed(epochs: "Sequence[Epoch]") -> bool:
    """Whether a running attempt has collapsed: two epochs in a row far below its peak, and training with them."""
    return _fall(epochs) is not None


def lost(epochs: "Sequence[Epoch]", setting: Setting) -> Verdict | None:
    """Why a running attempt is not worth going on with: it has collapsed, or has learned nothing in three epochs; None where it may be."""
    return _fall(epochs) or (_never(epochs, setting) if len(epochs) >= _PATIENT_EPOCHS else None)


def _fall(epochs: "Sequence[Epoch]") -> Verdict | None:
    """A peak, and after it an end that lies below it beyond noise. The better of the last two epochs counts, so that one dip is none."""
    shares = [epoch.val.accuracy.value for epoch in epochs]
    if len(shares) < 3:
        return None
    peak, n = max(shares), epochs[0].val.accuracy.n
    number, end = shares.index(peak) + 1, max(shares[-2:])
    error = math.sqrt((peak * (1 - peak) + end * (1 - end)) / n) or 1 / n
    if number > len(shares) - 2 or end > _COLLAPSED_SHARE * peak or peak - end < _COLLAPSED_DEVIATIONS * error:
        return None
    # That is learning by heart
    if epochs[-1].train_accuracy > _UNHARMED_SHARE * max(epoch.train_accuracy for epoch in epochs):
        return None
    how_far = f"{(peak - end) / error:.0f} standard errors"
    reason = (
        f"validation accuracy peaked at {_percent(peak)} in epoch {number} and fell to {_percent(shares[-1])},"
        f" {how_far}"
    )
    return Verdict("collapsed", reason, "", {"peak": peak, "fall": peak - shares[-1], "peak_epoch": float(number)})


def _never(epochs: "Sequence[Epoch]", setting: Setting) -> Verdict | None:
    if not epochs:
        return Verdict("never_learned", "no epoch was finished", "", {})
    best, n, chance = max(epoch.val.accuracy.value for epoch in epochs), epochs[0].val.accuracy.n, 1 / setting.classes
    error = math.sqrt(chance * (1 - chance) / n)
    # Few photos make much noise, and all right is still all right
    noise = min(_LEARNED_DEVIATIONS * error, (1 - chance) / 2)
    if best - chance >= max(_LEARNED_SHARE * (1 - chance), noise):
        return None
    trained = max(epoch.train_accuracy for epoch in epochs)
    reason = (
        f"validation accuracy is {_percent(best)} at best, where chance is {_percent(chance)}; training accuracy is"
        f" {_percent(trained)}"
    )
    return Verdict("never_learned", reason, "", {"peak": best, "chance": chance})


def _advised(found: Verdict, epochs: "Sequence[Epoch]", setting: Setting) -> Verdict:
    """What to do about a collapse, or about nothing learned: the cause that is known first."""
    trained = max((epoch.train_accuracy for epoch in epochs), default=0.0)
    peak = found.numbers.get("peak", 0.0)
    if setting.native is False:
        advice = "The pixels are not those of pretraining: type preprocessing=native."
    elif found.name == "never_learned" and trained > 2 * peak + 0.1:
        advice = "The photos were learned by heart: look whether the labels are those of the photos."
    elif setting.pair is not None:
        advice = (
            f"The fine-tune was too harsh: type optimizer.lr={_lower(setting.lr)}, and unfreeze.batchnorm=frozen if it"
            " is not."
        )
    elif setting.lr >= 3e-3 or found.name == "collapsed":
        advice = (
            f"The learning rate is too high for this head: type optimizer.lr={_lower(setting.lr)}, or head=batchnorm."
        )
    elif epochs and epochs[-1].train_loss < 0.95 * epochs[0].train_loss:
        advice = "The training loss is still falling: type more phase.epochs, or find a rate with phase=lr_range."
    else:
        advice = "Find a rate with phase=lr_range, and look at some photos with their labels."
    return Verdict(found.name, found.reason, advice, found.numbers)


def _beside_parent(pair: PairedOutcome, setting: Setting) -> Verdict:
    lower = f"optimizer.lr={_lower(setting.lr)}"
    name = (
        "no_better_than_frozen"
        if pair.p_value >= PAIRED_LEVEL
        else "better_than_frozen"
        if pair.difference > 0
        else "worse_than_frozen"
    )
    advice = {
        "no_better_than_frozen": (
            f"No difference is shown by {pair.n:,} photos: the frozen network is cheaper, keep it."
        ),
        "better_than_frozen": "Keep the fine-tuned network.",
        "worse_than_frozen": (
            f"Keep the frozen network; to go on, type {lower}, or unfreeze.batchnorm=frozen if it is not."
        ),
    }[name]
    numbers = {
        "difference": pair.difference,
        "p_value": pair.p_value,
        "gained": float(pair.gained),
        "lost": float(pair.lost),
    }
    return Verdict(name, f"{pair} against the frozen parent, judged at p < {PAIRED_LEVEL:g}", advice, numbers)


def _overfit(epochs: "Sequence[Epoch]") -> Verdict | None:
    """The validation loss has risen while the training loss went on falling."""
    losses = [epoch.val.loss for epoch in epochs]
    low, last = losses.index(min(losses)), epochs[-1]
    rise = losses[-1] / losses[low] if losses[low] else math.inf
    gap = last.train_accuracy - last.val.accuracy.value
    if rise < _OVERFIT_RISE or gap < _OVERFIT_GAP or last.train_loss >= epochs[low].train_loss:
        return None
    reason = (
        f"validation loss rose from {losses[low]:.2f} in epoch {low + 1} to {losses[-1]:.2f}, while training accuracy"
        f" reached {_percent(last.train_accuracy)} and validation {_percent(last.val.accuracy.value)}"
    )
    numbers = {"peak": max(epoch.val.accuracy.value for epoch in epochs), "loss_rise": rise, "gap": gap}
    return Verdict("overfitting", reason, "Stop at that epoch, raise head.dropout, or type augment=guide.", numbers)


def _learned(epochs: "Sequence[Epoch]") -> Verdict:
    best = max(epochs, key=lambda epoch: epoch.val.accuracy.correct)
    reason = (
        f"best validation {best.val.accuracy} in epoch {best.number}, {_percent(epochs[-1].val.accuracy.value)} in the"
        " last"
    )
    return Verdict(
        "learned", reason, "Fine-tuning can start from it: type phase=finetune.", {"peak": best.val.accuracy.value}
    )


def _lower(lr: float) -> str:
    """A tenth of a rate, or what is usual where that is still absurd, as one types it."""
    return f"{min(lr / 10, 1e-2):.0e}".replace("e-0", "e-")


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
