"""Advice after a verdict: what to type next. Settings decide it, which the verdict itself does not look at."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dogbreeds.evaluation.results import Epoch
    from dogbreeds.evaluation.verdict import Setting, Verdict

# Learning rates of a head that are usual, and those from which on it is likely to be too high, by optimizer.
_USUAL_RATES = {"SGD": 1e-2}
_USUAL_RATE = 1e-3
_HIGH_RATES = {"SGD": 0.1}
_HIGH_RATE = 3e-3
# A training accuracy of at least this multiple of its best value before the last two epochs is still rising.
_STILL_RISING = 1.05
# A training loss below this share of its first value has fallen.
_FALLEN = 0.95
# A training accuracy that is at least this far above validation comes from memorised images.
_MEMORISED_GAP = 0.3
# Training accuracy in a fine-tune's first epoch that a memorised head gives. Measured on Stanford Dogs: of 9 fine-tunes
# without mixing, which hides it, the four below it gained 1.7 to 2.3 points on test, and the five above 0.9 at most.
_MEMORISED_START = 0.98
# Verdicts after which the advice names a learning rate, which a logistic regression lacks.
_FAILURES = ("diverged", "never_learned", "underperforming")


def advise(found: "Verdict", epochs: "Sequence[Epoch]", setting: "Setting") -> str:
    """Return what to do after a verdict, one line.

    Args:
        found: the verdict.
        epochs: finished epochs, in order.
        setting: facts about the run.
    """
    if setting.settings.get("head") == "Logistic" and setting.pair is None and found.name in _FAILURES:
        return _after_logistic(setting)
    match found.name:
        case "diverged":
            return f"Type {_against_divergence(setting)}; if that diverges too, check preprocessing."
        case "collapsed" | "never_learned":
            return _after_failure(found, epochs, setting)
        case "overfitting" if _loss_is_above_chance(epochs, setting):
            return _lower_the_rate(setting)
        case "overfitting":
            return f"Stop at that epoch, {_against_overfitting(setting)}."
        case "underperforming":
            return _after_underperforming(epochs, setting)
        case "undecided":
            return _after_doubt(found, epochs, setting)
        case "no_better_than_frozen":
            n = setting.pair.n if setting.pair is not None else 0
            cheaper = f"{n:,} images show no significant difference: use the frozen network, which is cheaper"
            return f"{cheaper}{_or_regularised_start(epochs, setting)}."
        case "better_than_frozen":
            return "Use the fine-tuned network."
        case "worse_than_frozen":
            start = _or_regularised_start(epochs, setting)
            remedy = f"optimizer.lr={_lower_rate(setting.lr)}{_frozen_batchnorm(setting, 'or')}"
            return f"Use the frozen network{start or f', or fine-tune again: type {remedy}'}."
    return _next_step(setting)


def _or_regularised_start(epochs: "Sequence[Epoch]", setting: "Setting") -> str:
    """Return how to fine-tune again where the head of the parent left nothing to learn; empty where it did not."""
    if setting.settings.get("head") != "Logistic" or not epochs or epochs[0].train_accuracy < _MEMORISED_START:
        return ""
    strength = setting.settings.get("head.C")
    lower = _typed(float(strength) / 10) if strength is not None else "1e-3"
    return (
        ", or fine-tune again from a more regularised head. The parent's had memorised the training images: type"
        f" head.C={lower}, for the frozen run too"
    )


def _after_logistic(setting: "Setting") -> str:
    """Return what to do after a logistic regression that failed: it has no learning rate and no end to come to."""
    if setting.native is False:
        return _fix_pixels(setting)
    if setting.settings.get("head.C") is not None:
        return "This strength of regularisation may be wrong: type head.C=null, which tries a path of them."
    return "Check some images and their labels, and preprocessing."


def _against_divergence(setting: "Setting") -> str:
    """Return what keeps a loss finite: a lower rate, or clipping where the run had none."""
    clips = setting.settings.get("optimizer.clipnorm") is not None
    return f"optimizer.lr={_lower_rate(setting.lr)}" + (
        ", or optimizer.clipnorm=1" if setting.settings and not clips else ""
    )


def _after_failure(found: "Verdict", epochs: "Sequence[Epoch]", setting: "Setting") -> str:
    """After a collapse, or where nothing was learned: the likeliest cause, the most certain ones first."""
    if setting.native is False:
        return _fix_pixels(setting)
    if found.name == "never_learned" and _memorised(epochs):
        return "The training images were memorised: check whether their labels are correct."
    if setting.pair is not None:
        lower = _lower_rate(setting.lr)
        return f"Fine-tuning was too aggressive: type optimizer.lr={lower}{_frozen_batchnorm(setting, 'and')}."
    if found.name == "collapsed" or _is_high(setting):
        return _lower_the_rate(setting)
    if epochs and epochs[-1].train_loss < _FALLEN * epochs[0].train_loss:
        return f"The training loss is still falling: {_more_training(setting)}."
    return "Find a learning rate with phase=lr_range, and check some images and their labels."


def _after_underperforming(epochs: "Sequence[Epoch]", setting: "Setting") -> str:
    """Where the features could give more: what the curves show of the cause."""
    if setting.native is False:
        return _fix_pixels(setting)
    accuracies = [epoch.train_accuracy for epoch in epochs]
    earlier = accuracies[:-2] or accuracies[:-1]
    is_rising = bool(earlier) and accuracies[-1] >= _STILL_RISING * max(earlier)
    if _is_high(setting) and not is_rising:
        return _lower_the_rate(setting)
    if _memorised(epochs):
        return f"The head memorises the training images: {_against_overfitting(setting)}, or check their labels."
    if is_rising or setting.lr < _usual_rate(setting):
        return f"Training has not come to its end: {_more_training(setting)}."
    other_head = "head=linear" if setting.lacks("head", "Linear") else "head=batchnorm"
    return f"The head does not use the features: type {other_head}, or find a rate with phase=lr_range."


def _after_doubt(found: "Verdict", epochs: "Sequence[Epoch]", setting: "Setting") -> str:
    """Where the images are too few for a verdict: how to have more, and what the curves hint at."""
    if setting.pair is not None:
        return f"Use the frozen network until more images decide: {_more_images(setting, setting.pair.split)}."
    hint = " The training images were memorised: check their labels too." if _memorised(epochs) else ""
    split = setting.reference.pair.split if setting.reference and setting.reference.pair else "val"
    return f"Decide with more images: {_more_images(setting, split)}.{hint}"


def _more_images(setting: "Setting", split: str) -> str:
    held_out = next((name for name in ("data.val_fraction", "data.val_per_class") if name in setting.settings), None)
    if split == "test" or held_out is None:
        return f"add some to {'test' if split == 'test' else 'validation'}"
    return f"raise {held_out}, or add some to validation"


def _fix_pixels(setting: "Setting") -> str:
    # Where `native` names the wrong pixels, the preflight has said which are right.
    is_native = not setting.lacks("preprocessing.mode", setting.settings.get("model.pixels", ""))
    fix = "set preprocessing as the preflight says" if is_native else "type preprocessing=native"
    return f"The pixels are not those of pretraining: {fix}."


def _lower_the_rate(setting: "Setting") -> str:
    other_head = ", or head=batchnorm" if setting.lacks("head", "BatchNorm") else ""
    return f"The learning rate is too high for this head: type optimizer.lr={_lower_rate(setting.lr)}{other_head}."


def _more_training(setting: "Setting") -> str:
    """How to train further: at a higher rate where it is low, else in more epochs."""
    usual = _usual_rate(setting)
    if setting.lr < usual:
        return f"type optimizer.lr={_typed(min(10 * setting.lr, usual))}, or increase phase.epochs"
    return "increase phase.epochs, or find a rate with phase=lr_range"


def _against_overfitting(setting: "Setting") -> str:
    has_dropout = not setting.settings or "head.dropout" in setting.settings
    remedies = ["raise head.dropout"] if has_dropout else []
    remedies += ["type augment=guide"] if setting.lacks("augment", "Guide") else ["raise augment.copies"]
    return ", or ".join(remedies)


def _frozen_batchnorm(setting: "Setting", conjunction: str) -> str:
    return f", {conjunction} unfreeze.batchnorm=frozen" if setting.lacks("unfreeze.batchnorm", "frozen") else ""


def _next_step(setting: "Setting") -> str:
    """Return what to do after a run that has learned: a fine-tune, or what it lacks to be the parent of one."""
    if setting.settings.get("unfreeze", "Nothing") != "Nothing":
        return "To see what the unfrozen blocks add, or to fine-tune, train with a frozen backbone: type unfreeze=none."
    if setting.settings.get("tracking.model") == "none":
        return "Fine-tuning can start from it once its head is saved: type tracking.model=best."
    if not setting.finetune:
        return "No fine-tuning can start from it, since it was not saved: leave tracking.folder=null out."
    return f"Fine-tuning can start from it: type {setting.finetune}."


def _memorised(epochs: "Sequence[Epoch]") -> bool:
    """Whether training accuracy is far above what validation ever reached."""
    best = max((epoch.val.accuracy.value for epoch in epochs), default=0.0)
    trained = max((epoch.train_accuracy for epoch in epochs), default=0.0)
    return trained - best > min(_MEMORISED_GAP, best + 0.1)


def _loss_is_above_chance(epochs: "Sequence[Epoch]", setting: "Setting") -> bool:
    """Whether the validation loss was never below that of guessing, which too high a rate causes in the first steps."""
    return all(epoch.val.loss > math.log(setting.classes) for epoch in epochs)


def _usual_rate(setting: "Setting") -> float:
    return _USUAL_RATES.get(str(setting.settings.get("optimizer")), _USUAL_RATE)


def _is_high(setting: "Setting") -> bool:
    return setting.lr >= _HIGH_RATES.get(str(setting.settings.get("optimizer")), _HIGH_RATE)


def _lower_rate(lr: float) -> str:
    return _typed(min(lr / 10, 1e-2))


def _typed(lr: float) -> str:
    """A learning rate as it is typed, to one digit."""
    return f"{lr:.0e}".replace("e-0", "e-")
