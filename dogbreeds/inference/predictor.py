"""From photos that have names to answers: decoded ahead of the network, a batch at a time, in bounded memory."""

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
from dogbreeds.data.class_names import spoken
from dogbreeds.data.image import Unreadable
from dogbreeds.evaluation.metrics import probabilities
from dogbreeds.inference.image_sources import Named
from dogbreeds.inference.predictions import Prediction

if TYPE_CHECKING:
    from dogbreeds.inference.classifier import Classifier
    from dogbreeds.inference.grad_cam import Overlays

# Batches that are decoded while the network is busy with one
_AHEAD = 2

Network = Callable[[np.ndarray], tuple[np.ndarray, "np.ndarray | None"]]


def network(classifier: "Classifier", explained: bool) -> Network:
    """A function from [b, size, size, 3] uint8 to [b, classes] logits and, where photos are explained, to heat [b, h, w]; compiled by now."""
    if explained:
        from dogbreeds.inference.grad_cam import grad_cam

        return grad_cam(classifier)
    logits = classifier.logits
    return lambda pixels: (logits(pixels), None)


@dataclass(frozen=True)
class _Opened:
    """A photo at the network's size, [size, size, 3] uint8, or why there is none."""

    photo: Named
    pixels: np.ndarray | None
    error: str = ""


def answers(
    classifier: "Classifier",
    run: Network,
    photos: Iterable[Named],
    batch: int,
    top: int,
    overlays: "Overlays | None" = None,
) -> Generator[Prediction, None, None]:
    """What a network says of photos, in their order. Those of a few batches are in memory at a time, however many there are.

    Args:
        classifier: what knows the network's size and breeds.
        run: it, as `network` gives it.
        photos: decoded and resized by threads while the network is busy with those before.
        batch: photos at a time.
        top: breeds a photo.
        overlays: where pictures go, if they are wanted.

    Raises:
        UserError: where the network's answers are not numbers.
    """
    resize = classifier.resizer

    def opened(photo: Named) -> _Opened:
        try:
            return _Opened(photo, resize(photo.pixels()))
        except Unreadable as error:
            return _Opened(photo, None, error.plain)

    with contextlib.closing(prefetch.mapped(opened, photos, (_AHEAD + 1) * batch)) as ready:
        while some := list(itertools.islice(ready, batch)):
            told = _told(classifier.class_names, run, some, top)
            if overlays is None:
                yield from (answer for answer, _ in told)
                continue
            draw = functools.partial(_explained, overlays)
            with contextlib.closing(
                prefetch.mapped(draw, zip(some, told, strict=True), 2 * (os.cpu_count() or 1))
            ) as drawn:
                yield from drawn


def _told(
    class_names: Sequence[str], run: Network, batch: Sequence[_Opened], top: int
) -> list[tuple[Prediction, np.ndarray | None]]:
    """The answer to each photo of a batch, and its heat if there is any."""
    pixels = [one.pixels for one in batch if one.pixels is not None]
    logits, heat = run(np.stack(pixels)) if pixels else (np.empty((0, len(class_names))), None)
    if not np.isfinite(logits).all():
        raise UserError(
            "The network's answers are not numbers: its training diverged. A network must give probabilities. Type"
            " run=best, for example."
        )
    rows = zip(probabilities(logits), heat if heat is not None else [None] * len(pixels), strict=True)
    told: list[tuple[Prediction, np.ndarray | None]] = []
    for one in batch:
        if one.pixels is None:
            told.append((Prediction(one.photo.name, error=one.error), None))
            continue
        shares, seen = next(rows)
        best = np.argsort(-shares, kind="stable")[:top]
        told.append(
            (Prediction(one.photo.name, tuple((class_names[index], float(shares[index])) for index in best)), seen)
        )
    return told


def _explained(overlays: "Overlays", both: tuple[_Opened, tuple[Prediction, np.ndarray | None]]) -> Prediction:
    """An answer with its picture. The photo is opened once more: none is kept in memory at its own size."""
    one, (answer, heat) = both
    if heat is None:
        return answer
    breed, probability = answer.top[0]
    try:
        picture = overlays.save(one.photo, heat, f"{spoken(breed)}  {100 * probability:.1f} %")
    except Unreadable as error:
        return Prediction(answer.photo, error=error.plain)
    return dataclasses.replace(answer, explained=str(picture))
