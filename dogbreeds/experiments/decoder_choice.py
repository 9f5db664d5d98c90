"""Choice of a run's decoder, so that `data.decoder=auto` uses what was computed before."""

import contextlib
import logging
import os
from dataclasses import replace
from pathlib import Path

from dogbreeds.core.errors import MissingFileError, UserError
from dogbreeds.data.dataset import AUTO_DECODER, Dataset
from dogbreeds.data.decoder import DECODERS, PILLOW, TENSORFLOW
from dogbreeds.experiments.prepare import parent_settings
from dogbreeds.experiments.run import Run
from dogbreeds.features.extraction import DecodedImages
from dogbreeds.tracking.records import SWEEP_RUN_ENV, is_path
from dogbreeds.tracking.saved_run import SavedRun
from dogbreeds.training.checkpoint import Checkpoints
from dogbreeds.training.phase import Finetune

log = logging.getLogger(__name__)

# What `auto` takes from the cache, in order of preference. Scaled decodes are used only where they were asked for.
_AUTO_FROM_CACHE = (PILLOW, TENSORFLOW)


def with_decoder(run: Run, dataset: Dataset, resumes: bool) -> Run:
    """Return the run with the name of a decoder in the place of `data.decoder=auto`.

    That is the decoder of the run to resume (in a sweep, of the one to reuse), else that of a fine-tune's parent, else
    that of the cached images, else Pillow.

    Args:
        run: settings.
        dataset: opened dataset.
        resumes: whether recorded runs and checkpoints count.
    """
    if run.data.decoder != AUTO_DECODER:
        _log_other_images(run, dataset)
        return run
    found = _decoder_of_prior_run(run, dataset) if resumes else None
    if found is None and isinstance(run.phase, Finetune):
        found = _decoder_of_parent(run, run.phase, dataset)
    if found is None:
        found = _decoder_of_cached_images(run, dataset)
    return replace(run, data=replace(run.data, decoder=found or PILLOW))


def _decoder_of_prior_run(run: Run, dataset: Dataset) -> str | None:
    """Return the decoder of a run that was interrupted, or, in a sweep, has finished."""
    by_identity = {identity: decoder for decoder, identity in run.identities(dataset.fingerprint).items()}
    for identity, decoder in by_identity.items():
        # The only trace with tracking=none.
        if Checkpoints(Path(run.checkpoint_dir).expanduser() / identity).newest is not None:
            return decoder
    recorded = run.tracking.identities(run.key, finished=SWEEP_RUN_ENV in os.environ)
    return next((by_identity[identity] for identity in recorded if identity in by_identity), None)


def _decoder_of_parent(run: Run, phase: Finetune, dataset: Dataset) -> str | None:
    # A missing parent is an error where its weights are loaded.
    with contextlib.suppress(UserError, MissingFileError):
        if phase.parent is not None and is_path(phase.parent):
            return SavedRun.read(phase.parent).params["data.decoder"]
        facts = {"data.fingerprint": dataset.fingerprint, "model.architecture": run.model.architecture}
        must_match = parent_settings(run, facts)
        del must_match["data.decoder"]
        return run.tracking.parent_params(phase.parent, must_match, run.seed)["data.decoder"]
    return None


def _decoder_of_cached_images(run: Run, dataset: Dataset) -> str | None:
    found = next((decoder for decoder in _AUTO_FROM_CACHE if _is_cached(run, dataset, decoder)), None)
    if found not in (None, PILLOW):
        log.info("using the cached images of decoder %s (data.decoder=%s decodes them again)", found, PILLOW)
    return found


def _log_other_images(run: Run, dataset: Dataset) -> None:
    """Name the decoder of cached images that are not used, because another one was asked for."""
    cached = [decoder for decoder in DECODERS if _is_cached(run, dataset, decoder)]
    if cached and run.data.decoder not in cached:
        log.info(
            "the cached images of decoder %s are not used: data.decoder=%s decodes them again",
            " and ".join(cached),
            run.data.decoder,
        )


def _is_cached(run: Run, dataset: Dataset, decoder: str) -> bool:
    """Whether the training images are cached as a decoder decodes them."""
    data = replace(run.data, decoder=decoder)
    return DecodedImages(dataset.train.source, data, run.model.image_size, run.features.open_cache()).is_cached
