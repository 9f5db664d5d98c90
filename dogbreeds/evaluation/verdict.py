"""Verdict of a run: what happened, in one word, with the numbers that show it and advice. It is computed from curves.

The thresholds were chosen on one half of the seeds of `make faults`, which reports its error rates on the other half.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dogbreeds.evaluation.metrics import PairedOutcome, Proportion

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

# A collapse leaves at most this share of the peak accuracy.
_COLLAPSED_SHARE = 0.85
# A collapse falls by at least this many standard errors.
_COLLAPSED_DEVIATIONS = 4.0
# Training that ends above this share of its best accuracy has not collapsed.
_UNHARMED_SHARE = 0.95
# Learning gains at least this share of the way from chance to 100 %.
_LEARNED_SHARE = 0.05
# Learning ends at least this many standard errors above chance.
_LEARNED_DEVIATIONS = 4.0
# Overfitting raises the validation loss to at least this multiple of its lowest value.
_OVERFIT_RISE = 1.15
# Overfitting ends with a training accuracy at least this far above the validation accuracy.
_OVERFIT_GAP = 0.15
# Epochs in which a run must learn something; a collapse shows in as many.
_MAX_EPOCHS_WITHOUT_LEARNING = 3
# Significance level of the paired test.
PAIRED_LEVEL = 0.01


@dataclass(frozen=True)
class Verdict:
    """What happened in a run.

    Attributes:
        name: one of `VERDICTS`.
        reason: the numbers that show it, a clause without a full stop.
        advice: what to do, one line.
        numbers: those of the reason by name, recorded as metrics.
    """

    name: str
    reason: str
    advice: str
    numbers: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.name.replace('_', ' ')}: {self.reason}. {self.advice}"


@dataclass(frozen=True)
class Reference:
    """What the reference probe reaches on the images on which the run is judged, and what the run reaches there.

    Attributes:
        probe: of the probe.
        run: of the run, on the same images.
        pair: image by image, the probe first and the run second, so that only the run is right on the images gained;
            None where only accuracies are known.
    """

    probe: Proportion
    run: Proportion
    pair: PairedOutcome | None = None


@dataclass(frozen=True)
class Setting:
    """The facts about a run that its verdict needs, apart from its curves.

    Attributes:
        classes: number of classes.
        lr: `optimizer.lr`.
        native: whether the run's pixels are those that the preflight found to fit best; None if it cannot tell.
        pair: the fine-tune compared with its frozen parent; None for a frozen run.
        diverged: at which step and learning rate the loss was not finite; empty if it never was.
        settings: the run's settings by dotted name, as `Run.parameters` gives them; they decide the advice alone.
        finetune: what to type to fine-tune from the run; empty if that is not possible.
        reference: what the run's features can give at all; None where no probe was fitted.
        n_train: number of training images; None if unknown.
    """

    classes: int
    lr: float
    native: bool | None = None
    pair: PairedOutcome | None = None
    diverged: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    finetune: str = "phase=finetune"
    reference: Reference | None = None
    n_train: int | None = None

    def lacks(self, name: str, value: str) -> bool:
        """Whether typing a setting would change the run. A setting that the run does not have cannot be typed."""
        return self.settings.get(name, "") not in ("", value) if self.settings else True


def judge(epochs: "Sequence[Epoch]", setting: Setting) -> Verdict:
    """Return the verdict of a run.

    Args:
        epochs: finished epochs, in order.
        setting: facts about the run.
    """
    if setting.diverged:
        advice = f"Type optimizer.lr={_lower_rate(setting.lr)}; if that diverges too, check preprocessing."
        return Verdict("diverged", setting.diverged, advice, {"epochs": float(len(epochs))})
    failure = _find_collapse(epochs) or (_find_no_learning(epochs, setting) if setting.pair is None else None)
    if failure:
        return _with_advice(failure, epochs, setting)
    if setting.pair is not None:
        return _compared_with_parent(setting.pair, setting)
    return _find_overfitting(epochs, setting) or _learned(epochs, setting)


def has_collapsed(epochs: "Sequence[Epoch]") -> bool:
    """Tell whether a running attempt has collapsed: two epochs in a row far below its peak, in training too."""
    return _find_collapse(epochs) is not None


def early_failure(epochs: "Sequence[Epoch]", setting: Setting) -> Verdict | None:
    """Return why a running attempt cannot succeed: it has collapsed, or learned nothing in three epochs; else None.

    Args:
        epochs: finished epochs, in order.
        setting: facts about the run.
    """
    is_due = len(epochs) >= _MAX_EPOCHS_WITHOUT_LEARNING
    return _find_collapse(epochs) or (_find_no_learning(epochs, setting) if is_due else None)


def _find_collapse(epochs: "Sequence[Epoch]") -> Verdict | None:
    """Find a peak, and an end significantly below it.

    The better of the last two epochs counts as the end, so that a single dip is no collapse.
    """
    accuracies = [epoch.val.accuracy.value for epoch in epochs]
    if len(accuracies) < 3:
        return None
    n = epochs[0].val.accuracy.n
    peak = max(accuracies)
    peak_epoch = accuracies.index(peak) + 1
    end = max(accuracies[-2:])
    error = math.sqrt((peak * (1 - peak) + end * (1 - end)) / n) or 1 / n
    is_recent = peak_epoch > len(accuracies) - 2
    if is_recent or end > _COLLAPSED_SHARE * peak or peak - end < _COLLAPSED_DEVIATIONS * error:
        return None
    # Training is intact: the run overfits.
    if epochs[-1].train_accuracy > _UNHARMED_SHARE * max(epoch.train_accuracy for epoch in epochs):
        return None
    reason = (
        f"validation accuracy peaked at {_percent(peak)} in epoch {peak_epoch} and fell to {_percent(accuracies[-1])},"
        f" by {(peak - end) / error:.0f} standard errors or more in the last two epochs"
    )
    numbers = {"peak": peak, "fall": peak - accuracies[-1], "peak_epoch": float(peak_epoch)}
    return Verdict("collapsed", reason, "", numbers)


def _find_no_learning(epochs: "Sequence[Epoch]", setting: Setting) -> Verdict | None:
    """Find a best validation accuracy that is not above chance."""
    if not epochs:
        return Verdict("never_learned", "no epoch was finished", "", {})
    n = epochs[0].val.accuracy.n
    best = max(epoch.val.accuracy.value for epoch in epochs)
    chance = 1 / setting.classes
    error = math.sqrt(chance * (1 - chance) / n)
    # With few images the noise is large, but 100 % must still count as learned.
    noise = min(_LEARNED_DEVIATIONS * error, (1 - chance) / 2)
    if best - chance >= max(_LEARNED_SHARE * (1 - chance), noise):
        return None
    trained = max(epoch.train_accuracy for epoch in epochs)
    reason = (
        f"validation accuracy is {_percent(best)} at best, where chance is {_percent(chance)}; training accuracy is"
        f" {_percent(trained)}"
    )
    return Verdict("never_learned", reason, "", {"peak": best, "chance": chance})


def _with_advice(failure: Verdict, epochs: "Sequence[Epoch]", setting: Setting) -> Verdict:
    """Add advice to a collapse or to nothing learned, for the likeliest cause: the most certain ones come first."""
    trained = max((epoch.train_accuracy for epoch in epochs), default=0.0)
    peak = failure.numbers.get("peak", 0.0)
    lower_rate = _lower_rate(setting.lr)
    if setting.native is False:
        # Where `native` names the wrong pixels, the preflight has said which are right.
        is_native = not setting.lacks("preprocessing.mode", setting.settings.get("model.pixels", ""))
        fix = "set preprocessing as the preflight says" if is_native else "type preprocessing=native"
        advice = f"The pixels are not those of pretraining: {fix}."
    elif failure.name == "never_learned" and trained > 2 * peak + 0.1:
        advice = "The training images were memorised: check whether their labels are correct."
    elif setting.pair is not None:
        batchnorm = ", and unfreeze.batchnorm=frozen" if setting.lacks("unfreeze.batchnorm", "frozen") else ""
        advice = f"Fine-tuning was too aggressive: type optimizer.lr={lower_rate}{batchnorm}."
    elif setting.lr >= 3e-3 or failure.name == "collapsed":
        other_head = ", or head=batchnorm" if setting.lacks("head", "BatchNorm") else ""
        advice = f"The learning rate is too high for this head: type optimizer.lr={lower_rate}{other_head}."
    elif epochs and epochs[-1].train_loss < 0.95 * epochs[0].train_loss:
        advice = "The training loss is still falling: increase phase.epochs, or find a rate with phase=lr_range."
    else:
        advice = "Find a learning rate with phase=lr_range, and check some images and their labels."
    return Verdict(failure.name, failure.reason, advice, failure.numbers)


def _compared_with_parent(pair: PairedOutcome, setting: Setting) -> Verdict:
    """Return the verdict of a fine-tune that neither diverged nor collapsed."""
    if pair.p_value >= PAIRED_LEVEL:
        name = "no_better_than_frozen"
        advice = f"{pair.n:,} images show no significant difference: use the frozen network, which is cheaper."
    elif pair.difference > 0:
        name = "better_than_frozen"
        advice = "Use the fine-tuned network."
    else:
        name = "worse_than_frozen"
        batchnorm = ", or unfreeze.batchnorm=frozen" if setting.lacks("unfreeze.batchnorm", "frozen") else ""
        lower_rate = _lower_rate(setting.lr)
        advice = f"Use the frozen network, or fine-tune again: type optimizer.lr={lower_rate}{batchnorm}."
    numbers = {
        "difference": pair.difference,
        "p_value": pair.p_value,
        "gained": float(pair.gained),
        "lost": float(pair.lost),
    }
    return Verdict(
        name, f"{pair} compared with the frozen parent (significant if p < {PAIRED_LEVEL:g})", advice, numbers
    )


def _find_overfitting(epochs: "Sequence[Epoch]", setting: Setting) -> Verdict | None:
    """Find a validation loss that rose while the training loss fell."""
    losses = [epoch.val.loss for epoch in epochs]
    lowest = losses.index(min(losses))
    last = epochs[-1]
    rise = losses[-1] / losses[lowest] if losses[lowest] else math.inf
    gap = last.train_accuracy - last.val.accuracy.value
    if rise < _OVERFIT_RISE or gap < _OVERFIT_GAP or last.train_loss >= epochs[lowest].train_loss:
        return None
    reason = (
        f"validation loss rose from {losses[lowest]:.2f} in epoch {lowest + 1} to {losses[-1]:.2f}, while training"
        f" accuracy reached {_percent(last.train_accuracy)} and validation {_percent(last.val.accuracy.value)}"
    )
    numbers = {"peak": max(epoch.val.accuracy.value for epoch in epochs), "loss_rise": rise, "gap": gap}
    has_dropout = not setting.settings or "head.dropout" in setting.settings
    remedies = ["raise head.dropout"] if has_dropout else []
    remedies += ["type augment=guide"] if setting.lacks("augment", "Guide") else ["raise augment.copies"]
    return Verdict("overfitting", reason, f"Stop at that epoch, {', or '.join(remedies)}.", numbers)


def _learned(epochs: "Sequence[Epoch]", setting: Setting) -> Verdict:
    best = max(epochs, key=lambda epoch: epoch.val.accuracy.correct)
    reason = (
        f"best validation {best.val.accuracy} in epoch {best.number}, {_percent(epochs[-1].val.accuracy.value)} in the"
        " last"
    )
    return Verdict("learned", reason, _next_step(setting), {"peak": best.val.accuracy.value})


def _next_step(setting: Setting) -> str:
    """Return what to do after a run that has learned: a fine-tune, or what it lacks to be the parent of one."""
    if setting.settings.get("unfreeze", "Nothing") != "Nothing":
        return "To see what the unfrozen blocks add, or to fine-tune, train with a frozen backbone: type unfreeze=none."
    if setting.settings.get("tracking.model") == "none":
        return "Fine-tuning can start from it once its head is saved: type tracking.model=best."
    if not setting.finetune:
        return "No fine-tuning can start from it, since it was not saved: leave tracking.folder=null out."
    return f"Fine-tuning can start from it: type {setting.finetune}."


def _lower_rate(lr: float) -> str:
    """A tenth of a learning rate, at most 1e-2, as it is typed."""
    return f"{min(lr / 10, 1e-2):.0e}".replace("e-0", "e-")


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
