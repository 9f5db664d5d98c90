"""The training loop.

Keras' own `fit` is not used: it overrides the inference mode of a frozen part (keras-team/keras#20285), its shuffling
cannot be resumed, and it does not report the step at which a loss stopped being finite. Here the order of the images in
an epoch follows from (seed, epoch) alone.
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from dogbreeds.core import console, signals
from dogbreeds.data.mix import Mix
from dogbreeds.evaluation.metrics import score
from dogbreeds.evaluation.results import Epoch
from dogbreeds.models.network import Network
from dogbreeds.models.precision import FLOAT32
from dogbreeds.training.optimizer import Optimizer
from dogbreeds.training.phase import Training
from dogbreeds.training.rows import Rows
from dogbreeds.training.schedule import Schedule
from dogbreeds.training.state import History, TrainingState
from dogbreeds.training.step import Step, StepMetrics

if TYPE_CHECKING:
    import keras

# Separates these random draws from others with the same seed.
_ORDER_STREAM = 0x0DE7
# Size of the feature batches of an evaluation, and of the inputs of several steps in one call.
_EVALUATION_BYTES = 64 << 20
_CALL_BYTES = 16 << 20
# Seconds that several steps in one call may take, where their number is chosen: signals wait for their end.
_CALL_SECONDS = 0.25

Stop = Callable[[Sequence[Epoch]], str | None]


def epoch_order(seed: int, epoch: int, n: int) -> np.ndarray:
    """Return the shuffled order, a permutation of n rows, of an epoch counted from 0."""
    return np.random.Generator(np.random.Philox(key=[seed, epoch], counter=[0, 0, 0, _ORDER_STREAM])).permutation(n)


def predict(network: Network, rows: Rows) -> np.ndarray:
    """Compute [n, classes] float32 logits in inference mode."""
    batch_size = int(np.clip(_EVALUATION_BYTES // max(1, rows.array[:1].nbytes), 16, 2048))
    batches = [np.arange(start, min(start + batch_size, len(rows))) for start in range(0, len(rows), batch_size)]
    return np.concatenate([network.infer(rows[batch][0]).numpy() for batch in batches])


def fit(
    network: Network,
    *,
    train: Callable[[int], Rows],
    val: Rows,
    phase: Training,
    optimizer: Optimizer,
    schedule: Schedule,
    seed: int,
    on_epoch: Callable[[Epoch], None],
    stop: Stop = lambda epochs: None,
    resume_from: TrainingState | None = None,
    save: Callable[[TrainingState], None] = lambda state: None,
    save_steps: int | None = None,
    class_weights: np.ndarray | None = None,
    steps_per_execution: int | None = None,
    precision: str = FLOAT32,
    label_smoothing: float = 0.0,
    ema_decay: float | None = None,
    mix: Mix | None = None,
) -> History:
    """Train a network's suffix and head, then restore the weights of the best epoch.

    Args:
        network: the network to train, in place.
        train: returns the training rows of an epoch, counted from 0.
        val: validation rows; the best epoch is the first with the best value of `phase.monitor` on them.
        phase: epochs, batch size, patience and monitored metric.
        optimizer: its learning rate is the peak of the schedule.
        schedule: gives the learning rate of each step.
        seed: of the order of the training rows.
        on_epoch: called after each epoch.
        stop: given the finished epochs, returns the reason to stop training, or None to continue.
        resume_from: state of an earlier process; training resumes from it to the same weights, bit for bit.
        save: writes a checkpoint. Called after each epoch, every `save_steps` steps, and before an interruption is
            raised; never after a loss or a gradient was not finite.
        save_steps: None for after each epoch only.
        class_weights: [classes] float32, weight of each class in the loss; None for 1.
        steps_per_execution: steps in one call of TensorFlow, at most, which changes no result; None for as many as take
            a fraction of a second.
        precision: in which the layers compute in a training step, one of `PRECISIONS`.
        label_smoothing: share of each label that is spread evenly over all classes.
        ema_decay: share of the weights' moving average that each step keeps. The average is validated and kept in place
            of the weights; None for no average.
        mix: mixes the rows of each batch; None mixes none.
    """
    run = _TrainingRun(
        network=network,
        phase=phase,
        optimizer=optimizer,
        schedule=schedule,
        seed=seed,
        state=resume_from or TrainingState(),
        save=save,
        save_steps=save_steps,
        step=Step.of(network, optimizer, class_weights, precision, label_smoothing, ema_decay),
        steps_per_execution=steps_per_execution,
        mix=mix if mix is not None and mix.is_active else None,
    )
    state, history = run.state, run.state.history
    try:
        while state.epoch < phase.epochs and not history.stop_reason:
            started = time.perf_counter() - state.seconds
            rows = train(state.epoch)
            run.take_steps(rows, started)
            if history.diverged:
                break
            on_epoch(run.finish_epoch(rows, val, started, stop))
    except KeyboardInterrupt:
        if not history.diverged:
            run.checkpoint()
        raise
    _assign(network.variables, history.best_weights)
    return history


class _TrainingRun:
    """One call of `fit`: its settings, the compiled step, and the state so far."""

    def __init__(
        self,
        network: Network,
        phase: Training,
        optimizer: Optimizer,
        schedule: Schedule,
        seed: int,
        state: TrainingState,
        save: Callable[[TrainingState], None],
        save_steps: int | None,
        step: Step,
        steps_per_execution: int | None,
        mix: Mix | None,
    ):
        self._network = network
        self._phase = phase
        self._schedule = schedule
        self._peak_lr = optimizer.lr
        self._seed = seed
        self.state = state
        self._save = save
        self._save_steps = save_steps
        self._step = step
        self._steps_per_execution = steps_per_execution
        self._mix = mix
        # Of a step in the last call; unknown until one needed no compilation.
        self._step_seconds: float | None = None
        self._is_compiled = False
        _assign(network.variables, state.weights)
        _assign(self._step.variables, state.optimizer_variables)

    def take_steps(self, rows: Rows, started: float) -> None:
        """Take the remaining steps of the current epoch, up to the first that diverges."""
        state = self.state
        shuffled = epoch_order(self._seed, state.epoch, len(rows))
        steps = self._steps(rows)
        with console.progress(f"epoch {state.epoch + 1}", steps, "steps", state.step, brief=True) as advance:
            while state.step < steps:
                count = self._num_steps(rows)
                # A signal is raised after the steps are counted, never between an update and the count.
                with signals.deferred():
                    self._take(rows, shuffled, count, started)
                    if self.state.history.diverged:
                        return
                total_steps = state.epoch * steps + state.step
                if self._save_steps and total_steps % self._save_steps == 0:
                    self.checkpoint()
                advance(count)

    def _num_steps(self, rows: Rows) -> int:
        """Return how many steps to take in the next call: up to the next checkpoint, all with whole batches or one."""
        state = self.state
        steps = self._steps(rows)
        batch_size = self._phase.batch_size
        whole = len(rows) // batch_size - state.step
        limits = [whole]
        if self._save_steps:
            limits.append(self._save_steps - (state.epoch * steps + state.step) % self._save_steps)
        if self._steps_per_execution is not None:
            limits.append(self._steps_per_execution)
        else:
            limits.append(_CALL_BYTES // max(1, batch_size * rows.array[:1].nbytes))
            limits.append(int(_CALL_SECONDS / self._step_seconds) if self._step_seconds else 1)
        return max(1, min(limits))

    def _take(self, rows: Rows, shuffled: np.ndarray, count: int, started: float) -> None:
        """Take steps in one call, and count them, or record that one of them diverged."""
        state, history = self.state, self.state.history
        batch_size = self._phase.batch_size
        steps = self._steps(rows)
        first = state.step
        called = time.perf_counter()
        inputs, labels = rows[shuffled[first * batch_size : (first + count) * batch_size]]
        lrs = [self._lr(index, steps) for index in range(first, first + count)]
        inputs, targets = inputs.reshape(count, -1, *inputs.shape[1:]), labels.reshape(count, -1)
        if self._mix is not None:
            inputs, targets = self._mix.apply_steps(
                inputs, targets, seed=self._seed, epoch=state.epoch, first_step=state.step
            )
        measured = self._step.take(self._network.plan.layers_at(state.epoch), lrs, inputs, targets)
        if self._is_compiled:
            self._step_seconds = (time.perf_counter() - called) / count
        self._is_compiled = True
        for lr, metrics in zip(lrs, measured, strict=False):
            fault = _fault(metrics)
            if fault:
                number = state.epoch * steps + state.step + 1
                history.stop_reason = f"{fault} at step {number} (epoch {state.epoch + 1}), lr {lr:g}"
                history.diverged = True
                return
            images = len(labels) // count
            sums = np.array([metrics.loss * images, metrics.correct, metrics.top5_correct])
            state.metric_sums = state.metric_sums + sums
            state.step += 1
        state.seconds = time.perf_counter() - started

    def finish_epoch(self, rows: Rows, val: Rows, started: float, stop: Stop) -> Epoch:
        """Evaluate on the validation rows, record the epoch, and write a checkpoint unless it diverged."""
        state, history = self.state, self.state.history
        steps = self._steps(rows)
        with self._validated_weights() as weights:
            logits = predict(self._network, val)
        scores = score(logits, val.labels)
        loss, accuracy, top5 = (state.metric_sums / len(rows)).tolist()
        epoch = Epoch(
            number=state.epoch + 1,
            lr=self._lr(steps - 1, steps),
            train_loss=loss,
            train_accuracy=accuracy,
            train_top5=top5 if scores.top5 is not None else None,
            val=scores,
            seconds=time.perf_counter() - started,
        )
        with signals.deferred():
            self._record(epoch, logits, weights, steps)
            history.stop_reason = history.stop_reason or _stop_reason(history, self._phase, stop)
            state.epoch += 1
            state.step = 0
            state.metric_sums = np.zeros(3)
            state.seconds = 0.0
        if not history.diverged:
            self.checkpoint()
        return epoch

    @contextlib.contextmanager
    def _validated_weights(self) -> Iterator[list[np.ndarray] | None]:
        """Give the network the moving average of its weights, if there is one, and yield it; None without one."""
        if not self._step.has_average:
            yield None
            return
        trained = [variable.numpy() for variable in self._network.variables]
        try:
            self._step.average_weights()
            yield [variable.numpy() for variable in self._network.variables]
        finally:
            _assign(self._network.variables, trained)

    def checkpoint(self) -> None:
        """Save the state with the current weights and optimizer variables."""
        with signals.deferred():
            self.state.weights = [variable.numpy() for variable in self._network.variables]
            self.state.optimizer_variables = [variable.numpy() for variable in self._step.variables]
            self._save(self.state)

    def _record(self, epoch: Epoch, logits: np.ndarray, weights: list[np.ndarray] | None, steps: int) -> None:
        """Append an epoch to the history, as the best one if it is."""
        history = self.state.history
        history.epochs.append(epoch)
        if not math.isfinite(epoch.val.loss):
            history.stop_reason = (
                f"the validation loss was {epoch.val.loss} after step {epoch.number * steps} (epoch {epoch.number}), lr"
                f" {epoch.lr:g}"
            )
            history.diverged = True
        elif history.best is None or self._is_better(epoch, history.best):
            history.best, history.best_logits = epoch, logits
            history.best_weights = weights or [variable.numpy() for variable in self._network.variables]

    def _is_better(self, epoch: Epoch, best: Epoch) -> bool:
        monitor = self._phase.monitor
        return epoch.val.monitored(monitor) > best.val.monitored(monitor)

    def _steps(self, rows: Rows) -> int:
        return math.ceil(len(rows) / self._phase.batch_size)

    def _lr(self, step: int, steps: int) -> float:
        """Return the learning rate of a step of the current epoch, counted from 0."""
        val_losses = [epoch.val.loss for epoch in self.state.history.epochs]
        return self._schedule.lr(self._peak_lr, self.state.epoch + step / steps, self._phase.epochs, val_losses)


def _assign(variables: "list[keras.Variable]", values: list[np.ndarray]) -> None:
    """Set variables to values; without values, leave them as they are."""
    if values:
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)


def _fault(metrics: StepMetrics) -> str:
    """Describe a loss or a gradient that is not finite; empty if both are finite."""
    if not math.isfinite(metrics.loss):
        return f"the loss was {metrics.loss}"
    return "" if math.isfinite(metrics.grad_sum) else "the gradient was not finite"


def _stop_reason(history: History, phase: Training, stop: Stop) -> str:
    """Return why training stops after an epoch; empty if it continues."""
    waited = len(history.epochs) - history.best.number if history.best else 0
    # Patience is tested first: a search must not prune a run that ends anyway.
    if phase.patience_epochs is not None and waited >= phase.patience_epochs:
        return f"no better validation {phase.monitor.replace('_', ' ')} for {phase.patience_epochs} epochs"
    return stop(history.epochs) or ""
