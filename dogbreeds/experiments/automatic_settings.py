"""Settings that are `auto` until a run starts: pixel convention, decoder, and runtime and precision of features.

They are part of a run's identity, so they are decided before the run is looked up, locked and recorded. The pixel
convention is what the weights tell. Decoder, runtime and precision are, in this order, those of

1. the run that is resumed, or that finished with the same settings;
2. a fine-tune's parent;
3. complete arrays in the cache;
4. the fastest: Pillow; and OpenVINO where it is installed and converts the frozen part, else TensorFlow.
"""

import contextlib
from collections.abc import Sequence
from pathlib import Path

from dogbreeds.data.dataset import Dataset
from dogbreeds.experiments import decoder_choice, runtimes
from dogbreeds.experiments.pixel_convention import with_pixels
from dogbreeds.experiments.prepare import Assembly
from dogbreeds.experiments.run import Run
from dogbreeds.training.checkpoint import Checkpoints


def resolve(run: Run, dataset: Dataset, looks_up_runs: bool = True) -> tuple[Run, Assembly | None]:
    """Decide the settings of a run that are `auto`.

    Args:
        run: settings.
        dataset: opened dataset.
        looks_up_runs: whether recorded runs with the same settings decide first.

    Returns:
        The run without any of them; and its backbone and network, if they were needed.

    Raises:
        MissingFileError, UserError: the runtime that was asked for by name is not installed, what was asked for cannot
            be computed here, or as `assemble_network`.
    """
    run = with_pixels(run, dataset)
    choices = runtimes.choices(run)
    if looks_up_runs and not run.rerun:
        candidates = [
            runtimes.with_choice(decoded, choice) for decoded in decoder_choice.candidates(run) for choice in choices
        ]
        recorded = _last_started(candidates, dataset) if len(candidates) > 1 else None
        if recorded is not None:
            return recorded, None
    return runtimes.choose(decoder_choice.choose(run, dataset), dataset, choices)


def _last_started(candidates: Sequence[Run], dataset: Dataset) -> Run | None:
    """Return the candidate that was started last, as far as records and checkpoints tell; None if none was."""
    started: dict[int, float] = {}
    for number, run in enumerate(candidates):
        identity = run.identity(dataset.fingerprint)
        record = run.tracking.newest_run(identity)
        checkpoint = Checkpoints(Path(run.checkpoint_dir).expanduser() / identity).newest
        if record is not None:
            started[number] = record.started
        elif checkpoint is not None:
            # With tracking=none only a checkpoint tells of an unfinished run, which another process may just finish.
            with contextlib.suppress(FileNotFoundError):
                started[number] = checkpoint.stat().st_mtime
    return candidates[max(started, key=lambda number: started[number])] if started else None
