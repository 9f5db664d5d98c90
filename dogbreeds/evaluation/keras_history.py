"""Curves of a training outside this package, as Keras' `History.history` has them, for a verdict."""

import math
from collections.abc import Mapping, Sequence

from dogbreeds.core.errors import UserError
from dogbreeds.evaluation.metrics import Proportion, Scores
from dogbreeds.evaluation.results import Epoch
from dogbreeds.evaluation.verdict import Setting, Verdict, judge


def judge_curves(curves: Mapping[str, Sequence[float]], n_val: int, classes: int, lr: float) -> Verdict:
    """Return the verdict of a training from its curves.

    Args:
        curves: value of each epoch, by name: `loss`, `val_loss`, and one accuracy with and without `val_`.
        n_val: number of validation images.
        classes: number of classes.
        lr: learning rate.

    Raises:
        UserError: a curve is missing or of another length, or a number is not allowed.
    """
    for name, number, least in (("n_val", n_val, 1), ("classes", classes, 2)):
        if not isinstance(number, int) or number < least:
            raise UserError(
                f"{name} was {number!r}. It must be a whole number of {least} or more. Type {name}=120, for example."
            )
    accuracy = _accuracy_name(curves)
    names = ("loss", "val_loss", accuracy, f"val_{accuracy}")
    lengths = {name: len(curves[name]) for name in names if name in curves}
    if len(lengths) < len(names) or len(set(lengths.values())) > 1:
        raise UserError(
            f"The curves have the lengths {lengths}. loss, val_loss, {accuracy} and val_{accuracy} are needed, with one"
            " value for each epoch. Type judge_history(model.fit(..., validation_data=...).history, ...)."
        )
    epochs: list[Epoch] = []
    diverged = ""
    for number, values in enumerate(zip(*(curves[name] for name in names), strict=True), 1):
        loss, val_loss, train_accuracy, val_accuracy = map(float, values)
        if not math.isfinite(loss):
            diverged = f"the training loss was {loss} in epoch {number}, at lr {lr:g}"
            break
        correct = Proportion(round(val_accuracy * n_val), n_val)
        # Keras recorded no top-5 accuracy, and verdicts need none.
        val = Scores(val_loss, accuracy=correct, top5=correct)
        epochs.append(Epoch(number, lr, loss, train_accuracy, train_accuracy, val, seconds=0.0))
    return judge(epochs, Setting(classes, lr, diverged=diverged))


def _accuracy_name(curves: Mapping[str, Sequence[float]]) -> str:
    """Return the name of the only accuracy among the curves, without `val_`."""
    found = [name for name in curves if "acc" in name and "top" not in name and not name.startswith("val_")]
    if len(found) != 1:
        raise UserError(
            f"The curves are {', '.join(curves) or 'empty'}, of which {len(found)} are a training accuracy. There must"
            " be one. Compile the model with metrics=['accuracy']."
        )
    return found[0]
