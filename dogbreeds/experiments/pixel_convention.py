"""Resolves `model.pixels=auto`: the pixel convention that the weights themselves tell."""

import dataclasses
import logging

from dogbreeds.core.errors import UserError
from dogbreeds.data.dataset import Dataset
from dogbreeds.experiments.run import Run
from dogbreeds.models.preprocessing import AUTO, MODES
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
    backbone = run.model.build(run.seed)
    fit = measure_fit(backbone, dataset.train, run.preflight.images, run.data, run.features.open_cache())
    told = run.model.pixels if run.model.pixels != AUTO else told_convention(fit)
    if told is None:
        raise UserError(
            f"model.pixels=auto was given, and the weights of {run.model.architecture} do not tell their pixel"
            f" convention ({pixel_fit_line(fit, fit.best).removeprefix('pixels: ')}). It must be one of"
            f" {', '.join(MODES)}. Type model.pixels=raw, for example, as their author says."
        )
    log.info("%s takes %s pixels, as its weights tell", run.model.architecture, told)
    mode = told if run.preprocessing.mode == AUTO else run.preprocessing.mode
    return dataclasses.replace(
        run,
        model=dataclasses.replace(run.model, pixels=told),
        preprocessing=dataclasses.replace(run.preprocessing, mode=mode),
    )
