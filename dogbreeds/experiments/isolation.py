"""Isolation of a run from the process it runs in, which may be a Python caller's.

A run handles signals, seeds random generators, and sets Keras' dtype policy and MLflow's environment variables, all of
which are process-wide. Not restored are what TensorFlow takes once per process (its devices and their memory growth)
and the counters of eager operations with a seed of their own, which start over whenever a seed is set.
"""

import contextlib
import gc
import random
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from dogbreeds.core import process, signals
from dogbreeds.core.console import log_levels_restored, log_lines_printed
from dogbreeds.experiments import network_pool
from dogbreeds.features.cache import FeatureCache
from dogbreeds.tracking.connection import mlflow_settings_restored


@contextlib.contextmanager
def process_state_restored() -> Iterator[None]:
    """Restore, after the block, the process-wide state that a run changes: see the module.

    Within the block SIGINT and SIGTERM are raised as exceptions, and Keras starts with a new session.
    """
    with signals.handled():
        stack = contextlib.ExitStack()
        try:
            with signals.deferred():
                stack.enter_context(mlflow_settings_restored())
                # `console.quiet_stderr` sets it.
                stack.enter_context(log_levels_restored("tensorflow"))
                stack.enter_context(_random_state_restored())
                stack.enter_context(_garbage_collected())
                stack.enter_context(_new_keras_session())
            yield
        finally:
            # A second signal must not cut this off.
            with signals.deferred():
                stack.close()


@contextlib.contextmanager
def python_call() -> Iterator[None]:
    """Surround a call of the Python API: print its messages as a command does, and leave the process as it was."""
    with log_lines_printed(), process_state_restored():
        try:
            yield
        finally:
            FeatureCache.release()


@contextlib.contextmanager
def _random_state_restored() -> Iterator[None]:
    """Restore the random state of Python, NumPy and TensorFlow. That of Keras belongs to its session."""
    python_state = random.getstate()
    numpy_state = np.random.get_state(legacy=False)
    context = _tensorflow_context()
    # The generator draws the seeds of operations without one. It exists once a global seed has been set.
    seed, generator = (context._seed, getattr(context, "_rng", None)) if context is not None else (None, None)
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        context = _tensorflow_context()
        if context is not None:
            # `tf.random.set_seed` would start the sequence over.
            context._seed, context._rng = seed, generator


def _tensorflow_context() -> Any:
    """Return TensorFlow's eager context, which holds its global seed; None if TensorFlow has not been imported."""
    if "tensorflow" not in sys.modules:
        return None
    from tensorflow.python.eager import context

    return context.context()


@contextlib.contextmanager
def _new_keras_session() -> Iterator[None]:
    """Give the block an empty Keras session, and this thread its own session back afterwards.

    The session holds the counters of layer names, the dtype policy and the seeds. `keras.backend.clear_session` would
    end the caller's, in all threads, and Keras has no public function that restores one.
    """
    earlier = dict(_keras_session())
    _keras_session().clear()
    try:
        yield
    finally:
        session = _keras_session()
        session.clear()
        session.update(earlier)


@contextlib.contextmanager
def _garbage_collected() -> Iterator[None]:
    """Free the block's networks afterwards, since the objects of a network refer to each other.

    Meanwhile garbage collection leaves out what was there before, such as TensorFlow's modules: going through those
    took a third of the time of a run of a few seconds. A command leaves them out for good: see `prepare`. So a command
    collects nothing after a job that built no network.
    """
    built = network_pool.num_built()
    freezes = not process.is_command() and gc.get_freeze_count() == 0
    if freezes:
        gc.freeze()
    try:
        yield
    finally:
        if not process.is_command() or network_pool.num_built() != built:
            gc.collect()
        if freezes:
            gc.unfreeze()


def _keras_session() -> dict[str, Any]:
    """Return this thread's Keras session, by name; an empty one if Keras has not been imported."""
    if "keras" not in sys.modules:
        return {}
    from keras.src.backend.common import global_state

    return vars(global_state.GLOBAL_STATE_TRACKER)
