"""Resolves `model.pixels=auto`: the pixel convention that the weights themselves tell."""

import dataclasses
import logging

from dogbreeds.core.errors import UserError
from dogbreeds.core.spec import AUTO
from dogbreeds.data.dataset import Dataset
from dogbreeds.experiments.run import Run
from dogbreeds.models.preprocessing import MODES
from dogbreeds.training.pixel_fit import measure_fit
from dogbreeds.training.preflight import pixel_fit_line, told_convention

log = logging.getLogger(__name__)


def with_pixels(run: Run, dataset: Dataset) -> Run:
    """Return the run with the pixel convention that fits its backbone's weights, where it is `auto`.

    Args:
        run: settings.
        dataset: some of its training images are shown to the backbone in each convention.

    Raises:
        UserError: if the weights do not tell.
    """
    if AUTO not in (run.model.pixels, run.preprocessing.mode):
        return run
    pixels = run.model.pixels if run.model.pixels != AUTO else _told_pixels(run, dataset)
    mode = pixels if run.preprocessing.mode == AUTO else run.preprocessing.mode
    return dataclasses.replace(
        run,
        model=dataclasses.replace(run.model, pixels=pixels),
        preprocessing=dataclasses.replace(run.preprocessing, mode=mode),
    )


def _told_pixels(run: Run, dataset: Dataset) -> str:
    """Return the pixel convention that fits the weights; raise `UserError` if they do not tell."""
    backbone = run.model.build(run.seed)
    fit = measure_fit(backbone, dataset.train, run.preflight.images, run.data, run.features.open_cache())
    told = told_convention(fit)
    if told is None:
        raise UserError(
            f"model.pixels=auto was given, and the weights of {run.model.architecture} do not tell their pixel"
            f" convention ({pixel_fit_line(fit, fit.best).removeprefix('pixels: ')}). It must be one of"
            f" {', '.join(MODES)}. Type model.pixels=raw, for example, as their author says."
        )
    log.info("%s takes %s pixels, as its weights tell", run.model.architecture, told)
    return told
