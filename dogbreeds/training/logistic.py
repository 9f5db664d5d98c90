"""Logistic regression as the training of a head: one epoch is one strength of regularisation, from strong to weak."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from dogbreeds.core import console, signals
from dogbreeds.evaluation.linear_classifier import StackedRows
from dogbreeds.evaluation.logistic_regression import STRENGTHS, Solution, TrainingProblem
from dogbreeds.evaluation.metrics import Scores, score
from dogbreeds.evaluation.results import Epoch
from dogbreeds.models.head import Logistic
from dogbreeds.models.network import Network
from dogbreeds.training.loop import Stop, predict
from dogbreeds.training.rows import Rows
from dogbreeds.training.state import History, TrainingState

# Parts of the training images, each of which is left out once in cross-validation.
_FOLDS = 5


def strengths(head: Logistic) -> tuple[float, ...]:
    """Return the values of `C` to try, ascending; there is one epoch for each."""
    return STRENGTHS if head.C is None else (head.C,)


def fit_logistic(
    network: Network,
    head: Logistic,
    *,
    train: Sequence[Rows],
    val: Rows,
    monitor: str,
    on_epoch: Callable[[Epoch], None],
    stop: Stop = lambda epochs: None,
    resume_from: TrainingState | None = None,
    save: Callable[[TrainingState], None] = lambda state: None,
    class_weights: np.ndarray | None = None,
) -> History:
    """Fit the head, a dense layer, for each strength of regularisation, then give it the weights of the best one.

    Each fit starts from the weights of the one before. Where `choose_by` asks for it, each is also fitted without one
    fold of the images at a time; all copies of an image are in the same fold.

    Args:
        network: the network, whose head is changed in place. Its backbone is frozen.
        head: settings of the head.
        train: the training rows: those of the images, or of each augmented copy of them, in the same order.
        val: validation rows.
        monitor: metric that the best epoch has most of, one of `MONITORS`.
        on_epoch, stop, resume_from, save: as of `loop.fit`.
        class_weights: [classes] float32, weight of each class in the loss; None for 1.
    """
    path = strengths(head)
    state = resume_from or TrainingState()
    history = state.history
    if state.epoch < len(path) and not history.stop_reason:
        folds = _folds(train[0].labels, len(train)) if head.choose_by == "cross_validation" and len(path) > 1 else None
        fits = _Fits(network, train, class_weights, folds, state.optimizer_variables)
    while state.epoch < len(path) and not history.stop_reason:
        started = time.perf_counter()
        with console.progress(f"C {path[state.epoch]:g}", 1, "fits", brief=True):
            left_out = fits.fit(path[state.epoch])
        epoch, logits = _measure(network, train, val, state.epoch + 1, path[state.epoch], left_out, started)
        with signals.deferred():
            _record(history, epoch, logits, network, head, monitor)
            history.stop_reason = history.stop_reason or stop(history.epochs) or ""
            state.epoch += 1
            state.weights = [variable.numpy() for variable in network.variables]
            state.optimizer_variables = fits.weights
            if not history.diverged:
                save(state)
        on_epoch(epoch)
    for variable, value in zip(network.variables, history.best_weights or state.weights, strict=True):
        variable.assign(value)
    return history


def refitted(
    network: Network, head: Logistic, rows: Sequence[Rows], strength: float, class_weights: np.ndarray | None
) -> Network:
    """Return the network with another head, fitted at one strength to the rows, such as those of two splits.

    Args:
        network: its head stays as it is.
        head, class_weights: as of `fit_logistic`.
        rows: all rows to fit to.
        strength: `C`.
    """
    import keras

    problem = _problem(rows, network, class_weights)
    kernel, bias = problem.classifier(problem.fit(strength)).dense()
    with network.replicas.scope():
        other = keras.models.clone_model(network.head)
    other.set_weights([kernel, bias])
    return replace(network, head=other)


class _Fits:
    """Fits of one training problem, of all images and of all but one fold, each starting from the one before."""

    def __init__(
        self,
        network: Network,
        train: Sequence[Rows],
        class_weights: np.ndarray | None,
        folds: np.ndarray | None,
        weights: Sequence[np.ndarray],
    ):
        self._network = network
        self._problem = _problem(train, network, class_weights)
        self._labels = np.concatenate([rows.labels for rows in train])
        self._folds = folds
        # Of the last fit of all images, and of those without each fold.
        self.weights = list(weights)

    def fit(self, strength: float) -> Scores | None:
        """Give the network's head the weights of a fit; return the scores on images left out; None without folds."""
        # Images that are left out: none, then those of each fold.
        without: list[np.ndarray | None] = [None]
        if self._folds is not None:
            without += [self._folds == fold for fold in range(_FOLDS)]
        starts: Sequence[np.ndarray | None] = self.weights if self.weights else [None] * len(without)
        solutions = [self._problem.fit(strength, start, images) for start, images in zip(starts, without, strict=True)]
        self.weights = [solution.weights for solution in solutions]
        self._network.head.set_weights(self._problem.classifier(solutions[0]).dense())
        return self._left_out_scores(solutions[1:]) if self._folds is not None else None

    def _left_out_scores(self, solutions: Sequence[Solution]) -> Scores:
        logits = np.empty((len(self._labels), solutions[0].weights.shape[1]), np.float32)
        for fold, solution in enumerate(solutions):
            images = np.flatnonzero(self._folds == fold)
            logits[images] = self._problem.logits(solution, images)
        return score(logits, self._labels)


def _problem(rows: Sequence[Rows], network: Network, class_weights: np.ndarray | None) -> TrainingProblem:
    firsts = np.cumsum([0, *(len(each.array) for each in rows)])
    return TrainingProblem(
        StackedRows([each.array for each in rows]),
        np.concatenate([each.labels for each in rows]),
        network.head.output_shape[-1],
        np.concatenate([each.indices + first for each, first in zip(rows, firsts, strict=False)]),
        class_weights,
    )


def _folds(labels: np.ndarray, copies: int) -> np.ndarray:
    """Return the fold of each image, [copies · n] int. Each class is spread over all folds."""
    order = np.argsort(labels, kind="stable")
    firsts = np.searchsorted(labels[order], labels[order])
    folds = np.empty(len(labels), int)
    folds[order] = (np.arange(len(labels)) - firsts) % _FOLDS
    return np.tile(folds, copies)


def _measure(
    network: Network,
    train: Sequence[Rows],
    val: Rows,
    number: int,
    strength: float,
    left_out: Scores | None,
    started: float,
) -> tuple[Epoch, np.ndarray]:
    """Return the epoch of the head's present weights, and its validation logits."""
    logits = predict(network, val)
    trained = score(
        np.concatenate([predict(network, rows) for rows in train]), np.concatenate([rows.labels for rows in train])
    )
    epoch = Epoch(
        number=number,
        lr=None,
        train_loss=trained.loss,
        train_accuracy=trained.accuracy.value,
        train_top5=trained.top5.value if trained.top5 is not None else None,
        val=score(logits, val.labels),
        seconds=time.perf_counter() - started,
        strength=strength,
        cross_validation=left_out,
    )
    return epoch, logits


def _record(history: History, epoch: Epoch, logits: np.ndarray, network: Network, head: Logistic, monitor: str) -> None:
    """Append an epoch to the history, as the best one if it is, and set the reason to stop, if there is one."""
    history.epochs.append(epoch)
    if not math.isfinite(epoch.val.loss):
        history.stop_reason = f"the validation loss was {epoch.val.loss} at C {epoch.strength:g}"
        history.diverged = True
        return
    if history.best is None or _merit(epoch, monitor) > _merit(history.best, monitor):
        history.best, history.best_logits = epoch, logits
        history.best_weights = [variable.numpy() for variable in network.variables]
    # Accuracy is coarse: while the loss falls, it may still rise.
    lowest = min(history.epochs, key=lambda tried: tried.selecting.loss)
    waited = epoch.number - max(history.best.number, lowest.number)
    if waited >= head.patience:
        chosen_on = "cross-validation" if epoch.cross_validation is not None else "validation"
        values = "1 value" if waited == 1 else f"{waited} values"
        history.stop_reason = f"no better {chosen_on} {monitor.replace('_', ' ')} or loss at {values} of C"


def _merit(epoch: Epoch, monitor: str) -> tuple[float, float]:
    """Return what the best epoch has most of. Of equally accurate ones it is that with the least loss."""
    return epoch.selecting.monitored(monitor), -epoch.selecting.loss
