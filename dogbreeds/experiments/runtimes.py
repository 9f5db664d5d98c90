"""Choice of a run's runtime: what computes the frozen part of its network, and in which precision.

Several devices and GPUs belong to TensorFlow.
"""

import itertools
import logging
from dataclasses import replace

from dogbreeds.core.errors import UserError
from dogbreeds.core.spec import AUTO
from dogbreeds.data.dataset import Dataset
from dogbreeds.experiments.parents import parent_params
from dogbreeds.experiments.prepare import Assembly, assemble_network
from dogbreeds.experiments.run import Run
from dogbreeds.experiments.training_inputs import TrainingInputs
from dogbreeds.models.network import Network
from dogbreeds.models.precision import FLOAT32
from dogbreeds.models.runtime import (
    BFLOAT16,
    ONNX_RUNTIME,
    OPENVINO,
    TENSORFLOW,
    RuntimeUnavailableError,
    check_available,
    has_bfloat16,
    is_installed,
)
from dogbreeds.models.strategy import Mirrored

log = logging.getLogger(__name__)

# Runtime and precision.
Choice = tuple[str, str]
_PLAIN = (TENSORFLOW, FLOAT32)


def choose(run: Run, dataset: Dataset, choices: list[Choice]) -> tuple[Run, Assembly | None]:
    """Decide the runtime and the precision of a run that has not been started before.

    Args:
        run: settings, whose decoder is decided.
        dataset: opened dataset.
        choices: what `choices` returned for it.

    Returns:
        The run with a runtime and a precision that are not `auto`; and its backbone and network, if they were needed.

    Raises:
        MissingFileError, UserError: what was asked for cannot be computed here, or as `assemble_network`.
    """
    if choices == [_PLAIN]:
        return with_choice(run, _PLAIN), None
    assembly = assemble_network(run, dataset)
    network = _choose(run, dataset, assembly, choices)
    choice = (network.prefix.runtime, network.prefix.precision)
    if choice != _PLAIN or run.features.precision == AUTO:
        log.info("features are computed by %s in %s", *choice)
    assembly.pooled.network = network
    return with_choice(run, choice), assembly


def with_choice(run: Run, choice: Choice) -> Run:
    """Return the run with a runtime and a precision."""
    runtime, precision = choice
    return replace(run, features=replace(run.features, runtime=runtime, precision=precision))


def choices(run: Run) -> list[Choice]:
    """Return what is asked for and can be computed on this machine, the fastest first.

    Raises:
        UserError: nothing can.
    """
    features = run.features
    if features.runtime not in (AUTO, TENSORFLOW):
        check_available(features.runtime, FLOAT32)
    if features.runtime != AUTO:
        runtimes = [features.runtime]
    elif isinstance(run.strategy, Mirrored):
        runtimes = [TENSORFLOW]
    else:
        runtimes = [runtime for runtime in (OPENVINO, *_runtimes_of_arrays(run), TENSORFLOW) if is_installed(runtime)]
    precisions = [BFLOAT16, FLOAT32] if features.precision == AUTO else [features.precision]
    computable = [
        (runtime, precision)
        for runtime, precision in itertools.product(runtimes, precisions)
        if precision == FLOAT32 or (runtime == OPENVINO and has_bfloat16())
    ]
    return computable or [_refuse(run)]


def _runtimes_of_arrays(run: Run) -> list[str]:
    """Return ONNX Runtime, which `auto` takes for the sake of its arrays only, if the cache has any."""
    entries = run.features.open_cache().entries()
    return [ONNX_RUNTIME] if any(info.identity.get("runtime") == ONNX_RUNTIME for info in entries) else []


def _refuse(run: Run) -> Choice:
    """Raise the error for bfloat16 where nothing computes in it."""
    check_available(OPENVINO, BFLOAT16)
    raise UserError(
        "features.precision=bfloat16 was given, and TensorFlow computes the features on these devices, in float32. Only"
        " OpenVINO, on the processor, computes them in bfloat16. Type features.runtime=openvino, or"
        " features.precision=float32."
    )


def _choose(run: Run, dataset: Dataset, assembly: Assembly, choices: list[Choice]) -> Network:
    """Return the network with the runtime of its parent, of an array that is cached, or of the fastest that works."""
    network = assembly.network
    if not network.uses_cache:
        return network.with_runtime(*_PLAIN)
    import tensorflow as tf

    asked = run.features
    if asked.runtime == AUTO and tf.config.list_physical_devices("GPU"):
        choices = [choice for choice in choices if choice[0] == TENSORFLOW] or [_refuse(run)]
    inherited = _parent_choice(run, assembly.facts(dataset))
    if inherited is not None and inherited in (*choices, _PLAIN):
        choices = [inherited]
    elif inherited is not None:
        log.info("%s, which computed the parent's features, cannot compute them here in %s", *inherited)
    cached = TrainingInputs(run, dataset, network).cached_runtimes()
    for choice in choices:
        if choice in cached:
            return network.with_runtime(*choice)
    if asked.runtime == AUTO and len(choices) > 1:
        # It is among them for its arrays only.
        choices = [choice for choice in choices if choice[0] != ONNX_RUNTIME]
    return _first_that_works(network, choices, asked.precision)


def _parent_choice(run: Run, facts: dict[str, str]) -> Choice | None:
    """Return what a fine-tune takes over from its parent; None without a parent, or if nothing is `auto`."""
    asked = run.features
    params = parent_params(run, facts) if AUTO in (asked.runtime, asked.precision) else None
    if params is None:
        return None
    return (
        params["features.runtime"] if asked.runtime == AUTO else asked.runtime,
        params["features.precision"] if asked.precision == AUTO else asked.precision,
    )


def _first_that_works(network: Network, choices: list[Choice], asked_precision: str) -> Network:
    """Return the network with the first choice whose runtime converts it, else with TensorFlow."""
    for choice in choices:
        candidate = network.with_runtime(*choice)
        if choice == _PLAIN:
            return candidate
        try:
            # Compiled here, because the run's identity names the runtime that computes.
            _ = candidate.prefix.compiled
            return candidate
        except RuntimeUnavailableError as error:
            if asked_precision == BFLOAT16:
                raise
            log.warning("%s: TensorFlow computes the features", error.reason)
    return network.with_runtime(*_PLAIN)
