"""What can be known before anything is spent: whether the pixels are those that the backbone remembers, and whether the data can be trusted.

Error rates of the check of the pixels: `make faults`.
"""

import logging
import math
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dogbreeds.core.errors import UserError
from dogbreeds.core.spec import Spec, integer, number, one_of
from dogbreeds.data.dataset import Data, Dataset, Source
from dogbreeds.data.image import Unreadable
from dogbreeds.features.cache import FeatureCache
from dogbreeds.models.preprocessing import MODES, RANGES
from dogbreeds.training.batchnorm_statistics import (
    LAYERS,
    PixelFit,
    amount,
    batchnorms,
    divergences,
    has_seen_training,
    lost_spread,
)

if TYPE_CHECKING:
    from dogbreeds.models.model import Backbone

log = logging.getLogger(__name__)

# Chosen on one half of the seeds of `make faults`; its report is of the other half.
# Below this a convention fits, whichever fits best
_MISMATCH_NATS = 0.05
# A clear mismatch is this many times as far from memory as the convention that fits best
_MISMATCH_RATIO = 3.0
# Farther than this, not even the best convention fits
_STRANGE_NATS = 2.0
# A clear mismatch, where there is no BatchNorm, leaves this much of the variance between photos
_SPREAD_RATIO = 0.1
# Of ln(classes), for a new head
_INITIAL_LOSS = (0.5, 1.5)


@dataclass(frozen=True)
class Finding:
    """Something that a check found.

    Attributes:
        check: `pixels`, `duplicates`, `labels` or `initial_loss`.
        clear: whether there is no doubt, so that training on would waste time.
        said: what was received, what is allowed, what to type.
    """

    check: str
    clear: bool
    said: str


@dataclass(frozen=True, kw_only=True)
class Preflight(Spec):
    """What happens on a clear mismatch: `stop` refuses, `warn` trains on and tags the run, `none` checks nothing."""

    group = "preflight"
    action: str = one_of("stop", "warn", "none")
    photos: int = integer(at_least=8, example=64)
    max_duplicate_fraction: float = number(at_least=0, at_most=1, example=0.01)

    def report(self, findings: Sequence[Finding]) -> None:
        """Says what was found.

        Raises:
            UserError: on a clear finding, with `stop`.
        """
        for finding in findings:
            if finding.clear and self.action == "stop":
                raise UserError(finding.said)
            log.warning("preflight: %s", finding.said)

    def check_data(self, dataset: Dataset) -> list[Finding]:
        """Labels in range, every class to train on, and no photo of train among those that are measured on.

        The head's width is the number of class names by construction, and so the number of labels once these are in range.
        """
        if self.action == "none":
            return []
        return [*_labels(dataset), *_duplicates(dataset, self.max_duplicate_fraction)]

    def fit(self, backbone: "Backbone", dataset: Dataset, data: Data, store: FeatureCache) -> PixelFit | None:
        """How well each pixel convention fits the backbone, measured on training photos; kept, since it depends on nothing else.

        Returns:
            None with `preflight=none`.

        Raises:
            UserError: where no photo can be read.
        """
        if self.action == "none":
            return None
        layers = batchnorms(backbone.network)
        remembers = any(has_seen_training(layer) for layer, _ in layers)
        split = dataset.train
        rows = split.rows[np.unique(np.linspace(0, len(split.rows) - 1, self.photos).astype(int))]
        size = backbone.network.input.shape[1]
        identity = {
            "photos": split.source.fingerprint,
            "rows": rows.tolist(),
            "size": size,
            "resize": data.resize,
            "backbone": backbone.fingerprint,
            "layers": LAYERS,
        }

        def produce(kept: np.ndarray, start: int, notes: dict[str, Any]) -> Generator[int, None, None]:
            decoded = list(_decoded(split.source, rows, size, data))
            if not decoded:
                raise UserError(
                    f"None of {len(rows)} photos of train can be read. The preflight looks at some. Mend the files, or"
                    " name another data.root."
                )
            photos = np.stack(decoded)
            kept[:] = (
                divergences(backbone.network, layers, photos) if remembers else lost_spread(backbone.network, photos)
            )
            yield len(kept)

        found = store.array("preflight", identity, (len(MODES),), "float64", produce).rows
        return PixelFit(remembers, dict(zip(MODES, found.tolist(), strict=True)))


def judge(fit: PixelFit, mode: str, native: str) -> list[Finding]:
    """What the fit says of the chosen convention.

    Args:
        fit: measured.
        mode: the convention that was chosen.
        native: the one that the model's config names.
    """
    if not fit.remembers:
        return _judge_spread(fit, mode, native)
    best, chosen = fit.best, fit.distances[mode]
    if chosen > max(_MISMATCH_NATS, _MISMATCH_RATIO * fit.distances[best]):
        return _mismatch(
            f"preprocessing.mode was {mode}, and the backbone's BatchNorm layers remember {best} pixels: {mode} is"
            f" {amount(chosen)} nats from what they were trained on, {best} {amount(fit.distances[best])}. The"
            " convention must be the one of pretraining.",
            fit,
            native,
        )
    if chosen > _STRANGE_NATS:
        return [
            Finding(
                "pixels",
                False,
                f"No pixel convention fits what the backbone's BatchNorm layers remember ({fit}, in nats). The photos"
                " are unlike those of pretraining, or the weights are not those of this backbone. Look at some photos,"
                " and at model.weights.",
            )
        ]
    return []


def _mismatch(why: str, fit: PixelFit, native: str) -> list[Finding]:
    """A clear finding about pixels: why, and the convention to type."""
    fix = "native" if fit.best == native else fit.best
    return [Finding("pixels", True, f"{why} Type preprocessing={fix}, or preflight=warn to train on all the same.")]


def _judge_spread(fit: PixelFit, mode: str, native: str) -> list[Finding]:
    lost = fit.distances[mode]
    if mode != native and lost > 1 - _SPREAD_RATIO:
        return _mismatch(
            f"preprocessing.mode was {mode}, and with it the backbone's output hardly differs from photo to photo"
            f" ({100 * (1 - lost):.1f} % of the variance that {fit.best} pixels give). There is no BatchNorm that"
            " remembers its pixels, but this cannot be learned from.",
            fit,
            native,
        )
    if mode != native:
        return [
            Finding(
                "pixels",
                False,
                f"preprocessing.mode was {mode}, {RANGES[mode]}, and the model's config names {native} pixels,"
                f" {RANGES[native]}. The backbone has no BatchNorm that remembers its pixels, so that it cannot tell"
                " which is right. Type preprocessing=native, unless you know better.",
            )
        ]
    return []


def said(fit: PixelFit, mode: str) -> str:
    """The fit in a line, for people."""
    if fit.remembers:
        return f"pixels: {mode} is {amount(fit.distances[mode])} nats from what BatchNorm remembers ({fit})"
    kept = ", ".join(
        f"{name} {100 * (1 - lost):.0f} %" for name, lost in sorted(fit.distances.items(), key=lambda item: item[1])
    )
    return f"pixels: no trained BatchNorm that could tell; variance between photos that each convention keeps: {kept}"


def initial_loss(loss: float, classes: int, new_head: bool) -> list[Finding]:
    """Whether the loss before the first step is what an unbiased guess gives, or less where the head has learned already.

    Args:
        loss: mean cross-entropy in nats.
        classes: how many.
        new_head: whether the head's weights are new.
    """
    chance = math.log(classes)
    low, high = _INITIAL_LOSS
    if math.isfinite(loss) and loss <= high * chance and (not new_head or loss >= low * chance):
        return []
    expected = (
        f"about ln({classes}) = {chance:.2f} with a new head"
        if new_head
        else f"below ln({classes}) = {chance:.2f}, since its head has learned"
    )
    return [
        Finding(
            "initial_loss",
            False,
            f"The loss before the first step is {loss:.2f}. It should be {expected}. Features that are far too large or"
            " labels that leak give such a loss: look at preprocessing and data.",
        )
    ]


# --- the data ---------------------------------------------------------------------------------------------------------


def _labels(dataset: Dataset) -> list[Finding]:
    classes = len(dataset.class_names)
    for name, split in dataset.splits.items():
        labels = split.labels
        if len(labels) and (labels.min() < 0 or labels.max() >= classes):
            bad = labels[(labels < 0) | (labels >= classes)][0]
            text = (
                f"{name} has a photo with the label {bad}. Labels must be 0 to {classes - 1}, one for each class name."
                " Mend the data set."
            )
            return [Finding("labels", True, text)]
    absent = np.setdiff1d(np.arange(classes), dataset.train.labels)
    if len(absent):
        names = ", ".join(dataset.class_names[label] for label in absent[:3])
        text = (
            f"{len(absent)} of {classes} classes have no photo to train on ({names}). Every class needs one. Add"
            " photos, or remove the class."
        )
        return [Finding("labels", True, text)]
    return []


def _duplicates(dataset: Dataset, allowed: float) -> list[Finding]:
    """Photos with the very same bytes in two splits."""
    findings = []
    contents = {name: [split.source.digests[row] for row in split.rows] for name, split in dataset.splits.items()}
    for first, second in (("train", "val"), ("train", "test"), ("val", "test")):
        before = {content: index for index, content in enumerate(contents.get(first, []))}
        shared = [
            (index, before[content]) for index, content in enumerate(contents.get(second, [])) if content in before
        ]
        if not shared:
            continue
        one, other = (
            dataset.splits[name].source.ids[dataset.splits[name].rows[index]]
            for name, index in zip((second, first), shared[0], strict=True)
        )
        share = len(shared) / len(dataset.splits[second].rows)
        findings.append(
            Finding(
                "duplicates",
                share > allowed,
                f"{len(shared)} of {len(dataset.splits[second].rows):,} photos of {second} are in {first} too, such as"
                f" {one} = {other}. preflight.max_duplicate_fraction allows {allowed:g} of them, since they flatter the"
                " result. Remove them from one of the two, or type preflight=warn.",
            )
        )
    return findings


def _decoded(source: Source, rows: np.ndarray, size: int, data: Data) -> Iterator[np.ndarray]:
    from dogbreeds.data.resize import resizer

    resize, wanted = resizer(size, data.resize), set(rows.tolist())
    for row, photo in enumerate(source.read()):
        if row in wanted:
            try:
                yield resize(photo())
            except Unreadable:
                if data.on_corrupt == "stop":
                    raise
