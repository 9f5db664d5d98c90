"""Verdict of a training outside this package, from its learning curves and what else is known of it."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dogbreeds.core.errors import UserError
from dogbreeds.core.spec import Spec, integer, number, text
from dogbreeds.evaluation.history_curves import Curves
from dogbreeds.evaluation.metrics import Proportion, Reference, Scores
from dogbreeds.evaluation.results import Epoch
from dogbreeds.evaluation.verdict import Setting, Verdict, judge

# A number of validation images with which no difference is noise.
_ANY_NUMBER = 1_000_000
# Curves whose absence hides something: a collapse cannot be told from overfitting, or overfitting is not seen.
_OPTIONAL = {"accuracy": "training accuracy", "loss": "training loss", "val_loss": "validation loss"}
# A training accuracy that falls to this share of its best neither confirms a collapse nor contradicts it.
_NEITHER = 0.9
# Without accuracies: a loss that is at least this share of its first value, or of chance, has not fallen; one that rose
# by this factor over its lowest value has risen, as for runs with accuracies.
_NOT_FALLEN = 0.95
_RISEN = 1.15
# Keras' optimizers by their names in lower case, of those that advice tells apart.
_OPTIMIZERS = {name.lower(): name for name in ("Adam", "AdamW", "SGD", "RMSprop", "Nadam")}
# Settings that advice may name, though their values are not known.
_UNKNOWN_SETTINGS = dict.fromkeys(("head", "head.dropout", "augment"), "unknown")
# What reasons say of this package's own measurements, and of a training accuracy that was not recorded.
_PROBE = re.compile(r"the reference probe (reaches [\d.]+ %)(?: on the same features)?")
_TRAINING_ACCURACY = re.compile(r"; training accuracy is [\d.]+ %")
# Settings of this package in advice, in words for other code. Longer texts come first.
_PLAIN_WORDS = {
    ": type phase=finetune": "",
    "Type optimizer.lr=nan": "Lower the learning rate",
    "type optimizer.lr=nan": "lower the learning rate",
    "Type optimizer.lr=": "Set learning_rate=",
    "type optimizer.lr=": "set learning_rate=",
    "type augment=guide": "augment the images",
    "type head=batchnorm": "begin the head with BatchNormalization",
    "head=batchnorm": "a head that begins with BatchNormalization",
    "type head=linear": "make the head one dense layer",
    "phase=lr_range": "a learning-rate range test",
    "increase phase.epochs": "train for more epochs",
    "head.dropout": "the head's dropout",
}


@dataclass(frozen=True, kw_only=True)
class TrainingFacts(Spec):
    """What is known of a training apart from its curves; None for what is not.

    Attributes:
        classes: number of classes.
        n_val: number of validation images.
        lr: learning rate; of a schedule its highest.
        optimizer: Keras' name of the optimizer.
        reference: accuracy that is known to be possible, such as that of logistic regression on the same features, on
            the same images: a share, or per cent above 1.
    """

    group = ""
    classes: int | None = integer(at_least=2, example=120, optional=True)
    n_val: int | None = integer(at_least=1, example=1200, optional=True)
    lr: float | None = number(above=0, example=1e-3, optional=True)
    optimizer: str | None = text(example="adam", optional=True)
    reference: float | None = number(above=0, at_most=100, example=0.79, optional=True)


def judge_training(
    history: Mapping[str, Sequence[Any]], facts: TrainingFacts, names: Mapping[str, str] | None = None
) -> Verdict:
    """Return the verdict of a training from its curves.

    Args:
        history: value of each epoch, by name. Without a validation accuracy the losses are judged.
        facts: what else is known.
        names: name of the curve of a role, as for `Curves.of`.

    Raises:
        UserError: the curves cannot be used, or the number of classes or of validation images is needed.
    """
    curves = Curves.of(history, names, facts.classes)
    found = _find_divergence(curves, facts)
    if found is None:
        found = _judge_accuracies(curves, facts) if curves.recorded("val_accuracy") else _judge_losses(curves, facts)
    known = {"epochs": curves.epochs, "n_val": facts.n_val, "classes": facts.classes, "lr": _rate(curves, facts)}
    numbers = found.numbers | {name: float(value) for name, value in known.items() if value is not None}
    return replace(found, advice=_in_plain_words(found.advice), numbers=numbers)


def _in_plain_words(advice: str) -> str:
    for typed, words in _PLAIN_WORDS.items():
        advice = advice.replace(typed, words)
    return advice


def _find_divergence(curves: Curves, facts: TrainingFacts) -> Verdict | None:
    diverged = curves.first_divergence()
    if diverged is None:
        return None
    epoch, name, value = diverged
    rate = _rate(curves, facts)
    reason = f"the {name} was {value} in epoch {epoch}{'' if rate is None else f', at lr {rate:g}'}"
    return judge([], _setting(facts.classes or 2, rate, facts, diverged=reason))


def _rate(curves: Curves, facts: TrainingFacts) -> float | None:
    """Return the learning rate that was given, or else the highest of the curve."""
    return facts.lr or max(curves.recorded("lr"), default=None)


def _setting(classes: int, rate: float | None, facts: TrainingFacts, **more: Any) -> Setting:
    named = {"optimizer": _OPTIMIZERS.get(facts.optimizer.lower(), facts.optimizer)} if facts.optimizer else {}
    return Setting(classes, math.nan if rate is None else rate, settings=_UNKNOWN_SETTINGS | named, **more)


# --- with validation accuracies -----------------------------------------------


def _judge_accuracies(curves: Curves, facts: TrainingFacts) -> Verdict:
    if facts.classes is None:
        raise UserError(
            "classes was not given. It must be the number of classes, which says what accuracy guessing has. Type"
            " classes=120, for example."
        )
    missing = [name for role, name in _OPTIONAL.items() if role not in curves]
    omission = f" (not recorded: {', '.join(missing)})" if missing else ""
    found = _judge_number(curves, facts)
    reason = _PROBE.sub(r"the reference \1", found.reason)
    if "accuracy" not in curves:
        reason = _TRAINING_ACCURACY.sub("", reason)
    return replace(found, reason=f"{reason}{omission}")


def _judge_number(curves: Curves, facts: TrainingFacts) -> Verdict:
    """Return the verdict; if the number of validation images is not known, one that it cannot change."""
    if facts.n_val is not None:
        return _judge_with(facts.n_val, curves, facts)
    fewest = curves.fewest_images()
    if fewest is None:
        raise UserError(
            "n_val was not given, and the validation accuracies are no whole numbers of up to 100,000 images. It must"
            " be the number of validation images, which says what is noise. Type n_val=1200, for example."
        )
    found = _judge_with(fewest, curves, facts)
    at_most = _judge_with(_ANY_NUMBER, curves, facts)
    origin = f"n_val was not given: these accuracies need {fewest:,} images or more"
    numbers = found.numbers | {"fewest_n_val": float(fewest)}
    if found.name == at_most.name:
        return replace(found, reason=f"{found.reason} ({origin})", numbers=numbers)
    names = [each.name.replace("_", " ") for each in (found, at_most)]
    reason = f"{origin}; with that many the verdict is '{names[0]}', with a million '{names[1]}'"
    return Verdict("undecided", reason, "Give the number of validation images: n_val=1200, for example.", numbers)


def _judge_with(n_val: int, curves: Curves, facts: TrainingFacts) -> Verdict:
    """Return the verdict with a number of validation images."""
    rate = _rate(curves, facts)
    epochs = _epochs(curves, n_val, math.nan if rate is None else rate)
    if not epochs:
        raise UserError(
            "No epoch has a value of each curve. A verdict needs epochs with training and validation together. Leave"
            " out the curve without values, or name another one: names.accuracy=<name>."
        )
    reference = None
    if facts.reference is not None:
        share = facts.reference / 100 if facts.reference > 1 else facts.reference
        best = max((epoch.val.accuracy for epoch in epochs), key=lambda accuracy: accuracy.correct)
        reference = Reference(probe=Proportion(round(share * n_val), n_val), run=best, pair=None)
    return judge(epochs, _setting(facts.classes or 2, rate, facts, reference=reference))


def _epochs(curves: Curves, n_val: int, rate: float) -> list[Epoch]:
    """Return the epochs that have all of the curves, apart from the learning rate.

    A curve that was not recorded is replaced so that nothing is found in it: losses that never change, and a training
    accuracy that is that of validation, but falls less. Overfitting shows in training and validation together.
    """
    best = max(curves.recorded("val_accuracy"))
    has_training = "accuracy" in curves
    roles = [role for role in ("val_accuracy", *_OPTIONAL) if role in curves]
    epochs = []
    for row in range(curves.epochs):
        values = {role: value for role in roles if (value := curves.values[role][row]) is not None}
        if len(values) < len(roles):
            continue
        accuracy = values["val_accuracy"]
        correct = Proportion(round(accuracy * n_val), n_val)
        # Verdicts need no top-5 accuracy.
        val = Scores(values.get("val_loss", 1.0) if has_training else 1.0, accuracy=correct, top5=None)
        lr = curves.values["lr"][row] if "lr" in curves else None
        epochs.append(
            Epoch(
                number=row + 1,
                lr=rate if lr is None else lr,
                train_loss=values.get("loss", 1.0),
                train_accuracy=values.get("accuracy", max(accuracy, _NEITHER * best)),
                train_top5=None,
                val=val,
                seconds=0.0,
            )
        )
    return epochs


# --- with losses alone --------------------------------------------------------


def _judge_losses(curves: Curves, facts: TrainingFacts) -> Verdict:
    """Return what losses can tell: a collapse, overfitting, or that nothing was learned; else it is undecided."""
    train, val = curves.recorded("loss"), curves.recorded("val_loss")
    losses = train or val
    if not losses:
        raise UserError(
            "The curves have no value of a loss or of a validation accuracy in any epoch. A verdict needs one of them."
            " Train with validation_data and metrics=['accuracy'], or name the curves: names.loss=<name>."
        )
    kind = "training" if train else "validation"
    lowest = losses.index(min(losses))
    numbers = {"first_loss": losses[0], "lowest_loss": losses[lowest], "last_loss": losses[-1]}
    path = f"{kind} loss went from {losses[0]:.3g} to {losses[-1]:.3g}"
    chance = math.log(facts.classes) if facts.classes is not None else None
    if chance is not None and min(losses + val) >= _NOT_FALLEN * chance:
        reason = f"{path}, where guessing has {chance:.3g}; it never fell clearly below"
        advice = "Check the scale of the pixels and some labels, and find a rate with a learning-rate range test."
        return Verdict("never_learned", reason, advice, numbers | {"chance_loss": chance})
    # In both of the last epochs, so that a single peak is no collapse.
    if min(losses[-2:]) >= max(losses[0], _RISEN * losses[lowest]) and train and lowest < len(losses) - 2:
        reason = f"{path}, after {losses[lowest]:.3g} in epoch {lowest + 1}: all that was gained was lost"
        return Verdict("collapsed", reason, "The learning rate is too high: lower it to a tenth.", numbers)
    rise = val[-1] / min(val) if val and min(val) > 0 else 1.0
    best = val.index(min(val)) if val else 0
    if train and len(train) == len(val) and rise >= _RISEN and train[-1] < train[best]:
        reason = (
            f"validation loss rose from {val[best]:.3g} in epoch {best + 1} to {val[-1]:.3g}, while training loss fell"
            f" to {train[-1]:.3g}; whether accuracy fell too, losses cannot tell"
        )
        advice = "Stop at that epoch, raise the head's dropout, or augment the images."
        return Verdict("overfitting", reason, advice, numbers | {"loss_rise": rise})
    validation = f", validation loss from {val[0]:.3g} to {val[-1]:.3g}" if train and val else ""
    reason = f"{path}{validation}"
    missing = "no validation accuracy was recorded" if val else "nothing was recorded on validation images"
    advice = "Record the validation accuracy: metrics=['accuracy'] in compile, and validation_data in fit."
    return Verdict("undecided", f"{reason}; {missing}, and losses cannot tell what was learned", advice, numbers)
