"""Verdict of a run: what happened, in one word, with the numbers that show it and advice. It is computed from curves.

A verdict is earned: a run has learned if its accuracy is shown to be above chance and, where there is a reference
probe, near what its own features can give. Where the images are too few to show either, it is undecided.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from dogbreeds.evaluation import advice
from dogbreeds.evaluation.metrics import PAIRED_LEVEL, PairedOutcome, Proportion, Reference

if TYPE_CHECKING:
    from dogbreeds.evaluation.results import Epoch

VERDICTS = (
    "learned",
    "collapsed",
    "never_learned",
    "diverged",
    "overfitting",
    "underperforming",
    "undecided",
    "no_better_than_frozen",
    "worse_than_frozen",
    "better_than_frozen",
)

# A collapse leaves at most this share of the peak accuracy.
_COLLAPSED_SHARE = 0.85
# A collapse falls by at least this many standard errors.
_COLLAPSED_DEVIATIONS = 4.0
# The same on validation, if the training accuracy fell by `_COLLAPSED_DEVIATIONS`: few images, but two witnesses.
_CONFIRMED_DEVIATIONS = 2.0
# Training that ends above this share of its best accuracy has not collapsed.
_UNHARMED_SHARE = 0.95
# Learning gains at least this share of the way from chance to 100 %.
_LEARNED_SHARE = 0.05
# Learning ends at least this many standard errors above chance.
_LEARNED_DEVIATIONS = 4.0
# Nothing was learned only if more than this share of the way from chance to 100 % can be excluded.
_EXCLUDED_SHARE = 0.25
# Overfitting raises the validation loss to at least this multiple of its lowest value.
_OVERFIT_RISE = 1.15
# Overfitting ends with a training accuracy at least this far above the validation accuracy.
_OVERFIT_GAP = 0.15
# Epochs in which a run must learn something; a collapse shows in as many.
_MAX_EPOCHS_WITHOUT_LEARNING = 3
# A run underperforms if it loses at least this share of the probe's accuracy, and at least these points of 1.
_UNDERPERFORMING_SHARE = 0.08
_UNDERPERFORMING_POINTS = 0.03
# A run has learned only if the loss of this share of the probe's accuracy can be excluded.
_SERIOUS_SHARE = 0.25
# A fine-tune is no better only if a gain of this many points of 1 can be excluded.
_MISSED_GAIN = 0.05


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
        n_train: number of training images; None if it is not known.
        reference: the run compared with the reference probe; None if there is none.
        training: the same on training images that the run has seen, but the probe has not; None if there are none.
        no_reference: why there is none, a clause; empty if that goes without saying.
    """

    classes: int
    lr: float
    native: bool | None = None
    pair: PairedOutcome | None = None
    diverged: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    finetune: str = "phase=finetune"
    n_train: int | None = None
    reference: Reference | None = None
    training: Reference | None = None
    no_reference: str = ""

    def lacks(self, name: str, value: str) -> bool:
        """Whether typing a setting would change the run. A setting that the run does not have cannot be typed."""
        return self.settings.get(name, "") not in ("", value) if self.settings else True


def judge(epochs: "Sequence[Epoch]", setting: Setting) -> Verdict:
    """Return the verdict of a run.

    Args:
        epochs: finished epochs, in order.
        setting: facts about the run.
    """
    found = _find_failure(epochs, setting)
    if found is None and setting.pair is not None:
        found = _compared_with_parent(setting.pair)
    if found is None:
        found = (
            _find_overfitting(epochs)
            or _compared_with_reference(setting.reference, setting.training)
            or _find_doubtful_fall(epochs, setting)
            or _learned(epochs, setting)
        )
    return replace(found, advice=advice.advise(found, epochs, setting))


def has_collapsed(epochs: "Sequence[Epoch]", n_train: int | None = None) -> bool:
    """Tell whether a running attempt has collapsed: two epochs in a row far below its peak, in training too.

    Args:
        epochs: finished epochs, in order.
        n_train: number of training images; None if it is not known.
    """
    return _find_collapse(epochs, n_train) is not None


def early_failure(epochs: "Sequence[Epoch]", setting: Setting) -> Verdict | None:
    """Return why a running attempt cannot succeed: it has collapsed, or learned nothing in three epochs; else None.

    Args:
        epochs: finished epochs, in order.
        setting: facts about the run.
    """
    found = _find_collapse(epochs, setting.n_train)
    if found is None and len(epochs) >= _MAX_EPOCHS_WITHOUT_LEARNING:
        found = _find_no_learning(epochs, setting)
    return found if found is not None and found.name != "undecided" else None


def _find_failure(epochs: "Sequence[Epoch]", setting: Setting) -> Verdict | None:
    """Find divergence, a collapse, and in a run without a parent that nothing was learned."""
    if setting.diverged:
        return Verdict("diverged", setting.diverged, "", {"epochs": float(len(epochs))})
    found = _find_collapse(epochs, setting.n_train)
    return found or (_find_no_learning(epochs, setting) if setting.pair is None else None)


@dataclass(frozen=True)
class _Fall:
    """The fall of an accuracy from its peak.

    The better of the last two epochs counts as the end, so that a single dip is no fall.

    Attributes:
        peak: best accuracy.
        epoch: epoch of the peak, counted from 1.
        end: the better of the last two accuracies.
        deviations: the fall in standard errors.
    """

    peak: float
    epoch: int
    end: float
    deviations: float

    @classmethod
    def of(cls, accuracies: Sequence[float], n: int) -> "_Fall":
        peak, end = max(accuracies), max(accuracies[-2:])
        error = math.sqrt((peak * (1 - peak) + end * (1 - end)) / n) or 1 / n
        return cls(peak, accuracies.index(peak) + 1, end, (peak - end) / error)

    @property
    def is_large(self) -> bool:
        return self.end <= _COLLAPSED_SHARE * self.peak


def _large_fall(epochs: "Sequence[Epoch]") -> _Fall | None:
    """Return the fall of the validation accuracy; None if it is small, or if training is intact: then it overfits."""
    if len(epochs) < 3:
        return None
    fall = _Fall.of([epoch.val.accuracy.value for epoch in epochs], epochs[0].val.accuracy.n)
    trained = [epoch.train_accuracy for epoch in epochs]
    return fall if fall.is_large and trained[-1] <= _UNHARMED_SHARE * max(trained) else None


def _find_collapse(epochs: "Sequence[Epoch]", n_train: int | None) -> Verdict | None:
    """Find a peak, and an end significantly below it; few validation images need a fall in training as well."""
    fall = _large_fall(epochs)
    if fall is None:
        return None
    training = _Fall.of([epoch.train_accuracy for epoch in epochs], n_train or epochs[0].val.accuracy.n)
    is_confirmed = training.is_large and training.deviations >= _COLLAPSED_DEVIATIONS
    if fall.deviations < (_CONFIRMED_DEVIATIONS if is_confirmed else _COLLAPSED_DEVIATIONS):
        return None
    last = epochs[-1].val.accuracy.value
    confirmation = f", as did training accuracy, from {_percent(training.peak)}" if is_confirmed else ""
    reason = (
        f"validation accuracy peaked at {_percent(fall.peak)} in epoch {fall.epoch} and fell to {_percent(last)},"
        f" by {fall.deviations:.0f} standard errors or more in the last two epochs{confirmation}"
    )
    numbers = {"peak": fall.peak, "fall": fall.peak - last, "peak_epoch": float(fall.epoch)}
    return Verdict("collapsed", reason, "", numbers)


def _find_doubtful_fall(epochs: "Sequence[Epoch]", setting: Setting) -> Verdict | None:
    """Find a fall that would be a collapse if there were enough images to show it, and no reference that tells."""
    fall = _large_fall(epochs) if setting.reference is None else None
    if fall is None:
        return None
    n = epochs[0].val.accuracy.n
    reason = (
        f"validation accuracy fell from {_percent(fall.peak)} in epoch {fall.epoch} to {_percent(fall.end)}, by"
        f" {fall.deviations:.1f} standard errors: {n:,} images cannot tell a collapse from noise"
    )
    return Verdict("undecided", reason, "", {"peak": fall.peak})


def _find_no_learning(epochs: "Sequence[Epoch]", setting: Setting) -> Verdict | None:
    """Find a best validation accuracy that is not shown to be above chance.

    Nothing was learned if validation, training or the reference probe excludes that much was; else it is undecided.
    """
    if not epochs:
        return Verdict("never_learned", "no epoch was finished", "", {})
    best = max((epoch.val.accuracy for epoch in epochs), key=lambda accuracy: accuracy.correct)
    chance = 1 / setting.classes
    error = math.sqrt(chance * (1 - chance) / best.n)
    # With few images the noise is large, but 100 % must still count as learned.
    noise = min(_LEARNED_DEVIATIONS * error, (1 - chance) / 2)
    if best.value - chance >= max(_LEARNED_SHARE * (1 - chance), noise):
        return None
    trained = max(epoch.train_accuracy for epoch in epochs)
    reason = (
        f"validation accuracy is {_percent(best.value)} at best, where chance is {_percent(chance)}; training accuracy"
        f" is {_percent(trained)}"
    )
    numbers = {"peak": best.value, "chance": chance}
    measured = (
        [best] if setting.n_train is None else [best, Proportion(round(trained * setting.n_train), setting.n_train)]
    )
    much = chance + _EXCLUDED_SHARE * (1 - chance)
    is_excluded = any(accuracy.interval[1] < much for accuracy in measured)
    if is_excluded or any(map(_is_clearly_lower, (setting.reference, setting.training))):
        return Verdict("never_learned", reason, "", numbers)
    return Verdict("undecided", f"{reason}: {best.n:,} images cannot tell it from chance", "", numbers)


def _compared_with_parent(pair: PairedOutcome) -> Verdict:
    """Return the verdict of a fine-tune that neither diverged nor collapsed."""
    if pair.p_value < PAIRED_LEVEL:
        name = "better_than_frozen" if pair.difference > 0 else "worse_than_frozen"
    else:
        name = "no_better_than_frozen" if pair.interval[1] <= _MISSED_GAIN else "undecided"
    reason = f"{pair} compared with the frozen parent (significant if p < {PAIRED_LEVEL:g})"
    return Verdict(name, reason, "", pair.metrics())


def _find_overfitting(epochs: "Sequence[Epoch]") -> Verdict | None:
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
    return Verdict("overfitting", reason, "", numbers)


def _is_clearly_lower(reference: Reference | None) -> bool:
    """Whether a run is significantly below the probe, and by a share that matters."""
    if reference is None or not reference.is_lower:
        return False
    return -reference.difference >= max(_UNDERPERFORMING_POINTS, _UNDERPERFORMING_SHARE * reference.probe.value)


def _compared_with_reference(reference: Reference | None, training: Reference | None) -> Verdict | None:
    """Find an accuracy significantly and clearly below the probe's, or so few images that this cannot be excluded.

    A run that is below the probe even on images that it has seen is so on others: with few of these, that decides.
    """
    if reference is None:
        return None
    for compared in (reference, training):
        if compared is not None and _is_clearly_lower(compared):
            return Verdict("underperforming", f"accuracy is {_with_probe(compared)}", "", compared.numbers)
    if -reference.bounds[0] < _SERIOUS_SHARE * reference.probe.value:
        return None
    reason = f"accuracy is {_with_probe(reference)}: {reference.run.n:,} images cannot exclude that it is much worse"
    return Verdict("undecided", reason, "", reference.numbers)


def _with_probe(reference: Reference) -> str:
    """Name a run's accuracy and that of the reference probe."""
    low, high = reference.bounds
    split = f" on {reference.pair.split}" if reference.pair is not None else ""
    return (
        f"{_percent(reference.run.value)}{split}, where the reference probe reaches {_percent(reference.probe.value)}"
        f" on the same features: {100 * reference.difference:+.1f} points (99 % interval {100 * low:+.1f} to"
        f" {100 * high:+.1f}, n = {reference.run.n:,})"
    )


def _learned(epochs: "Sequence[Epoch]", setting: Setting) -> Verdict:
    best = max(epochs, key=lambda epoch: epoch.val.accuracy.correct)
    last = f"{_percent(epochs[-1].val.accuracy.value)} in the last"
    where = f"in epoch {best.number}, {last}" if best.strength is None else f"at C {best.strength:g}"
    reason = f"best validation {best.val.accuracy} {where}"
    numbers = {"peak": best.val.accuracy.value}
    reference = setting.reference
    if reference is not None:
        reason += f"; accuracy is {_with_probe(reference)}"
        numbers |= reference.numbers
    elif setting.no_reference:
        reason += f"; how much the features could give is not known: {setting.no_reference}"
    return Verdict("learned", reason, "", numbers)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
