"""Choice of a run's decoder where it is `auto`, so that images that are decoded already are used."""

import logging
from dataclasses import replace

from dogbreeds.core.spec import AUTO
from dogbreeds.data.dataset import Dataset
from dogbreeds.data.decoder import DECODERS, PILLOW, TENSORFLOW
from dogbreeds.experiments.parents import parent_params
from dogbreeds.experiments.run import Run
from dogbreeds.features.extraction import DecodedImages

log = logging.getLogger(__name__)

# What `auto` may be, in order of preference. Scaled decodes are used only where they were asked for.
_AUTOMATIC = (PILLOW, TENSORFLOW)


def candidates(run: Run) -> list[Run]:
    """Return the run with each decoder that it may have."""
    return [_with_decoder(run, decoder) for decoder in _AUTOMATIC] if run.data.decoder == AUTO else [run]


def choose(run: Run, dataset: Dataset) -> Run:
    """Return the run with the decoder of its parent, else of the cached training images, else with Pillow.

    Args:
        run: settings. A decoder that is not `auto` stays.
        dataset: opened dataset.
    """
    if run.data.decoder != AUTO:
        _log_other_images(run, dataset)
        return run
    # Its weights, which the parent has too, are not loaded yet.
    facts = {"data.fingerprint": dataset.fingerprint, "model.architecture": run.model.architecture}
    parent = parent_params(run, facts)
    found = parent["data.decoder"] if parent is not None else _decoder_of_cached_images(run, dataset)
    return _with_decoder(run, found or PILLOW)


def _with_decoder(run: Run, decoder: str) -> Run:
    return replace(run, data=replace(run.data, decoder=decoder))


def _decoder_of_cached_images(run: Run, dataset: Dataset) -> str | None:
    found = next((decoder for decoder in _AUTOMATIC if _is_cached(run, dataset, decoder)), None)
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
