"""Predictor: decodes images ahead of the network and predicts them batch by batch, in bounded memory."""

import contextlib
import dataclasses
import functools
import itertools
import os
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dogbreeds.core import prefetch
from dogbreeds.core.errors import UserError
from dogbreeds.data.class_names import display_name
from dogbreeds.data.image import UnreadableImageError
from dogbreeds.evaluation.metrics import probabilities
from dogbreeds.inference.image_sources import NamedImage
from dogbreeds.inference.predictions import Prediction

if TYPE_CHECKING:
    from dogbreeds.inference.classifier import Classifier
    from dogbreeds.inference.grad_cam import OverlayWriter

# Batches that are decoded while the network computes another.
_PREFETCH_BATCHES = 2

# From [b, size, size, 3] uint8 to [b, classes] logits and, with Grad-CAM, heat [b, h, w].
InferenceFunction = Callable[[np.ndarray], tuple[np.ndarray, "np.ndarray | None"]]


def inference_function(classifier: "Classifier", explain: bool) -> InferenceFunction:
    """Compile a network for prediction.

    Args:
        classifier: the network.
        explain: whether the function also computes Grad-CAM.
    """
    if explain:
        from dogbreeds.inference.grad_cam import grad_cam

        return grad_cam(classifier)
    logits = classifier.logits
    return lambda images: (logits(images), None)


@dataclass(frozen=True)
class _DecodedImage:
    """An image at the network's size, [size, size, 3] uint8, or None and the decoding error."""

    image: NamedImage
    pixels: np.ndarray | None
    error: str = ""


@dataclass(frozen=True)
class _Predicted:
    """An image's prediction, and its heat [h, w] if Grad-CAM was computed."""

    prediction: Prediction
    heat: np.ndarray | None = None


def predict_images(
    classifier: "Classifier",
    infer: InferenceFunction,
    images: Iterable[NamedImage],
    batch_size: int,
    top: int,
    overlays: "OverlayWriter | None" = None,
) -> Generator[Prediction, None, None]:
    """Predict images, in order. A few batches are in memory at a time, however many images there are.

    Args:
        classifier: the network, for its decoder and class names.
        infer: as returned by `inference_function`.
        images: decoded and resized by threads while the network computes earlier ones.
        batch_size: images per batch.
        top: classes per prediction.
        overlays: writes Grad-CAM overlays; None for none.

    Yields:
        One prediction per image; one with an error for an image that cannot be read.

    Raises:
        UserError: the logits are not finite.
    """
    decode_to_size = classifier.decode

    def decode(image: NamedImage) -> _DecodedImage:
        try:
            return _DecodedImage(image, decode_to_size(image.pixels))
        except UnreadableImageError as error:
            return _DecodedImage(image, None, error.message_without_skip)

    with contextlib.closing(prefetch.map_ahead(decode, images, (_PREFETCH_BATCHES + 1) * batch_size)) as decoded:
        while batch := list(itertools.islice(decoded, batch_size)):
            predicted = _predict_batch(classifier.class_names, infer, batch, top)
            if overlays is None:
                yield from (each.prediction for each in predicted)
                continue
            draw = functools.partial(_with_overlay, overlays)
            pairs = zip(batch, predicted, strict=True)
            with contextlib.closing(prefetch.map_ahead(draw, pairs, 2 * (os.cpu_count() or 1))) as drawn:
                yield from drawn


def _predict_batch(
    class_names: Sequence[str], infer: InferenceFunction, batch: Sequence[_DecodedImage], top: int
) -> list[_Predicted]:
    pixels = [each.pixels for each in batch if each.pixels is not None]
    logits, heat = infer(np.stack(pixels)) if pixels else (np.empty((0, len(class_names))), None)
    if not np.isfinite(logits).all():
        raise UserError(
            "The network's outputs are not finite numbers: its training diverged. Only a network with finite outputs"
            " can predict. Type run=best, for example."
        )
    rows = zip(probabilities(logits), heat if heat is not None else [None] * len(pixels), strict=True)
    predicted: list[_Predicted] = []
    for each in batch:
        if each.pixels is None:
            predicted.append(_Predicted(Prediction(each.image.name, error=each.error)))
            continue
        image_probabilities, image_heat = next(rows)
        best = np.argsort(-image_probabilities, kind="stable")[:top]
        top_classes = tuple((class_names[index], float(image_probabilities[index])) for index in best)
        predicted.append(_Predicted(Prediction(each.image.name, top_classes), image_heat))
    return predicted


def _with_overlay(overlays: "OverlayWriter", pair: tuple[_DecodedImage, _Predicted]) -> Prediction:
    """Draw the overlay of a prediction. Reads the image again, because its original pixels are not held in memory."""
    decoded, predicted = pair
    prediction = predicted.prediction
    if predicted.heat is None:
        return prediction
    name, probability = prediction.top[0]
    try:
        path = overlays.save(decoded.image, predicted.heat, f"{display_name(name)}  {100 * probability:.1f} %")
    except UnreadableImageError as error:
        return Prediction(prediction.image, error=error.message_without_skip)
    return dataclasses.replace(prediction, overlay=str(path))
