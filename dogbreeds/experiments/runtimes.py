"""Runtime of a run: what computes the frozen part of its network, and in which precision.

Both are part of a run's identity, so `features.runtime=auto` and `features.precision=auto` are decided before the run
is looked up, locked and recorded. In this order, they are those of

1. the run that is resumed, or that finished with the same settings;
2. a fine-tune's parent;
3. a complete array of these features in the cache;
4. OpenVINO where it is installed and converts the frozen part, else TensorFlow.

Several devices and GPUs belong to TensorFlow.
"""

import contextlib
import itertools
import logging
from dataclasses import replace
from pathlib import Path

from dogbreeds.core.errors import MissingFileError, UserError
from dogbreeds.core.spec import AUTO
from dogbreeds.data.dataset import Dataset
from dogbreeds.experiments.prepare import Assembly, assemble_network, parent_must_match
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
from dogbreeds.tracking.records import FEATURES_IN_RUN_KEY, is_path
from dogbreeds.tracking.saved_run import SavedRun
from dogbreeds.training.checkpoint import Checkpoints
from dogbreeds.training.phase import Finetune

log = logging.getLogger(__name__)

# Runtime and precision.
Choice = tuple[str, str]
_PLAIN = (TENSORFLOW, FLOAT32)


def resolve(run: Run, dataset: Dataset, looks_up_runs: bool = True) -> tuple[Run, Assembly | None]:
    """Decide the runtime and the precision of a run.

    Args:
        run: settings.
        dataset: opened dataset.
        looks_up_runs: whether recorded runs with the same settings decide first.

    Returns:
        The run with a runtime and a precision that are not `auto`; and its backbone and network, if they were needed.

    Raises:
        MissingFileError, UserError: the runtime that was asked for by name is not installed, what was asked for cannot
            be computed here, or as `assemble_network`.
    """
    features = run.features
    if features.runtime not in (AUTO, TENSORFLOW):
        check_available(features.runtime, FLOAT32)
    choices = _choices(run)
    if choices == [_PLAIN]:
        return _with_choice(run, _PLAIN), None
    recorded = _recorded_choice(run, dataset, choices) if looks_up_runs and not run.rerun else None
    if recorded is not None:
        return _with_choice(run, recorded), None
    assembly = assemble_network(run, dataset)
    network = _choose(run, dataset, assembly, choices)
    choice = (network.prefix.runtime, network.prefix.precision)
    if choice != _PLAIN or features.precision == AUTO:
        log.info("features are computed by %s in %s", *choice)
    assembly.pooled.network = network
    return _with_choice(run, choice), assembly


def _with_choice(run: Run, choice: Choice) -> Run:
    runtime, precision = choice
    return replace(run, features=replace(run.features, runtime=runtime, precision=precision))


def _choices(run: Run) -> list[Choice]:
    """Return what is asked for and can be computed on this machine, the fastest first."""
    features = run.features
    if features.runtime != AUTO:
        runtimes = [features.runtime]
    elif isinstance(run.strategy, Mirrored):
        runtimes = [TENSORFLOW]
    else:
        runtimes = [runtime for runtime in (OPENVINO, *_runtimes_of_arrays(run), TENSORFLOW) if is_installed(runtime)]
    precisions = [BFLOAT16, FLOAT32] if features.precision == AUTO else [features.precision]
    choices = [
        (runtime, precision)
        for runtime, precision in itertools.product(runtimes, precisions)
        if precision == FLOAT32 or (runtime == OPENVINO and has_bfloat16())
    ]
    return choices or [_refuse(run)]


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


def _recorded_choice(run: Run, dataset: Dataset, choices: list[Choice]) -> Choice | None:
    """Return the choice with which a run of the same settings was started last; None if there is no such run."""
    started: dict[Choice, float] = {}
    for choice in choices:
        identity = _with_choice(run, choice).identity(dataset.fingerprint)
        record = run.tracking.newest_run(identity)
        checkpoint = Checkpoints(Path(run.checkpoint_dir).expanduser() / identity).newest
        if record is not None:
            started[choice] = record.started
        elif checkpoint is not None:
            # With tracking=none only a checkpoint tells of an unfinished run, which another process may just finish.
            with contextlib.suppress(FileNotFoundError):
                started[choice] = checkpoint.stat().st_mtime
    return max(started, key=lambda choice: started[choice]) if started else None


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
    if not isinstance(run.phase, Finetune) or AUTO not in (asked.runtime, asked.precision):
        return None
    parent = run.phase.parent
    try:
        if parent is not None and is_path(parent):
            params = SavedRun.read(parent).params
        else:
            params = run.tracking.parent_params(parent, parent_must_match(run, facts), run.seed)
    except (UserError, MissingFileError):
        # Where the parent is needed, the same error is raised.
        return None
    names = ("features.runtime", "features.precision")
    runtime, precision = (params.get(name, FEATURES_IN_RUN_KEY[name]) for name in names)
    return (
        runtime if asked.runtime == AUTO else asked.runtime,
        precision if asked.precision == AUTO else asked.precision,
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
