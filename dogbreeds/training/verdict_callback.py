"""The verdict as a callback of Keras, for any `model.fit`."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from dogbreeds.core.errors import UserError
from dogbreeds.evaluation.history_files import from_epochs
from dogbreeds.evaluation.history_verdict import TrainingFacts, judge_training
from dogbreeds.evaluation.verdict import Verdict

# Verdicts that no further epoch improves.
_FINAL = ("collapsed", "diverged")


class VerdictCallback:
    """Judges a training of Keras when it ends, and can stop it once it has collapsed.

    The verdict is printed, unless `fit` is silent (`verbose=0`). What is not given is taken from the model: the number
    of classes from its output, rate and optimizer from `compile`, and the number of validation images from the metrics.

    Examples:
        >>> import keras
        >>> rng = np.random.default_rng(0)
        >>> features, labels = rng.normal(size=(400, 8)), rng.integers(0, 4, 400)
        >>> model = keras.Sequential([keras.Input([8]), keras.layers.Dense(4, activation="softmax")])
        >>> model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
        >>> judged = db.VerdictCallback()
        >>> fitted = model.fit(features, labels, validation_split=0.5, verbose=0, epochs=3, callbacks=[judged])
        >>> judged.verdict.name, judged.verdict.numbers["n_val"]
        ('never_learned', 200.0)

    Attributes:
        verdict: of the training so far, from the end of its first epoch with a loss on; None before.
    """

    verdict: Verdict | None

    def __new__(cls, *_: Any, **__: Any) -> "VerdictCallback":
        # Keras is imported for the first callback that is made, and not for the name of the class.
        import keras

        if not issubclass(cls, keras.callbacks.Callback):
            cls = type(cls.__name__, (cls, keras.callbacks.Callback), {"__doc__": cls.__doc__})
        return super().__new__(cls)

    def __init__(
        self,
        *,
        classes: int | None = None,
        n_val: int | None = None,
        lr: float | None = None,
        optimizer: str | None = None,
        reference: float | None = None,
        names: Mapping[str, str] | None = None,
        stop_on_collapse: bool = True,
    ):
        """
        Args:
            classes: number of classes; None for the size of the model's output.
            n_val: number of validation images; None for the number on which the metrics were computed.
            lr: learning rate; None for the optimizer's.
            optimizer: Keras' name of the optimizer; None for the model's.
            reference: accuracy that is known to be possible on the same images, a share or per cent.
            names: names of curves that are not recognised, such as `{"val_accuracy": "val_top"}`.
            stop_on_collapse: whether to end the training in the epoch in which it has collapsed, or in which a loss is
                not finite.

        Raises:
            UserError: if a number is not allowed.
        """
        super().__init__()
        self._given = TrainingFacts(classes=classes, n_val=n_val, lr=lr, optimizer=optimizer, reference=reference)
        self._names = names
        self._stops = stop_on_collapse
        self._start()

    def _start(self) -> None:
        self._facts = self._given
        self._epochs: list[dict[str, Any]] = []
        self.verdict = None

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Take from the model what was not given.

        Raises:
            UserError: if the number of classes is in neither.
        """
        self._start()
        model: Any = self.model  # type: ignore[attr-defined]
        self._facts = facts_of_model(model, self._given)
        if self._facts.classes is None:
            raise UserError(
                "The model's output has no fixed size, so the number of classes is not known. The verdict needs it to"
                " tell what accuracy guessing has. Type VerdictCallback(classes=120), for example."
            )

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Judge the training so far, and stop it if that is wanted."""
        model: Any = self.model  # type: ignore[attr-defined]
        self._epochs.append({"lr": _rate(model), **(logs or {})})
        if self._facts.n_val is None and "val_loss" in (logs or {}):
            self._facts = dataclasses.replace(self._facts, n_val=_images_of_metrics(model))
        self.verdict = judge_training(from_epochs(self._epochs), self._facts, self._names)
        if self._stops and self.verdict.name in _FINAL:
            model.stop_training = True
            self._say(f"Training is stopped after epoch {epoch + 1}: it has {self.verdict.name}.")

    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        """Print the verdict."""
        if self.verdict is not None:
            self._say(str(self.verdict))

    def _say(self, line: str) -> None:
        if (self.params or {}).get("verbose"):  # type: ignore[attr-defined]
            print(f"\n{line}")


def facts_of_model(model: Any, given: TrainingFacts) -> TrainingFacts:
    """Add to what is known of a training what its Keras model says: classes, learning rate and optimizer.

    Args:
        model: compiled model of Keras.
        given: what is known; it is not replaced.
    """
    optimizer = getattr(model, "optimizer", None)
    # With mixed precision, the optimizer is within another.
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    return dataclasses.replace(
        given,
        classes=given.classes or _classes(model),
        lr=given.lr or _rate(model),
        optimizer=given.optimizer or (type(optimizer).__name__ if optimizer is not None else None),
    )


def _classes(model: Any) -> int | None:
    """Return the size of a model's only output; of a single logit two, and None if the size is not fixed."""
    shape = getattr(model, "output_shape", None)
    if not isinstance(shape, tuple) or not shape or not isinstance(shape[-1], int):
        return None
    return max(shape[-1], 2)


def _rate(model: Any) -> float | None:
    """Return the learning rate of a model at this moment; None if it has none above 0."""
    rate = getattr(getattr(model, "optimizer", None), "learning_rate", None)
    if rate is None:
        return None
    # Keras holds it in float32, where 1e-3 is 0.0010000000475.
    value = float(f"{float(rate):.6g}")
    return value if value > 0 else None


def _images_of_metrics(model: Any) -> int | None:
    """Return the number of images on which the loss was computed last, which is validation's at the end of an epoch."""
    counts = [metric.count for metric in model.metrics if metric.name == "loss" and hasattr(metric, "count")]
    return round(float(counts[0])) if counts and float(counts[0]) >= 1 else None
