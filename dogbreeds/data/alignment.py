"""Alignment of pairs of images: whether one shows the other, resized, cropped, mirrored or re-encoded.

Windows of each image are compared with the whole of the other, on a coarse grid; the best one is refined by
Gauss-Newton steps (Lucas and Kanade 1981), and what both show is correlated. Many pairs are aligned at once.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

# Pixels a side of the greyscale images that are compared, and of those that are searched.
SIZE = 64
_COARSE, _TEMPLATE = 12, 24
# Sides of the windows that are searched, as shares of the image's.
_WINDOWS = (1.0, 0.9, 0.8, 0.7, 0.6)
# Distance of neighbouring windows, as a share of the image's side.
_STEP = 0.1
# Correlation of the best window from which it is refined.
_MIN_COARSE = 0.65
_STEPS = 12
# Damping of the steps, as a share of the normal matrix's diagonal.
_DAMPING = 1e-3
# Share of the smaller image that must be within the larger one.
_MIN_OVERLAP = 0.5
# Standard deviation, in pixels, of what is subtracted for the correlation of details.
_DETAIL = 3.0
_PAIRS_AT_ONCE = 512
_IMAGES_AT_ONCE = 256
_TINY = 1e-6


@dataclass(frozen=True)
class Alignments:
    """How well pairs of images can be aligned.

    Attributes:
        correlations: [p] of the luminance that both show, in [-1, 1]; 0 for pairs that cannot be aligned.
        details: [p] the same without what varies slowly, so that equal backgrounds alone count little.
        mirrored: [p] bool, whether one is mirrored.
        shares: [p] side of what one shows as a share of the other's: 1 for whole copies, less for crops.
    """

    correlations: np.ndarray
    details: np.ndarray
    mirrored: np.ndarray
    shares: np.ndarray


class Pixels(Protocol):
    """Images that are read one by one."""

    def __getitem__(self, image: int, /) -> np.ndarray:
        """Return an image, [h, w, 3] uint8 RGB."""


def grey_images(pixels: Pixels | np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return small greyscale images, [n, SIZE, SIZE] float32.

    Args:
        pixels: images, or [m, h, w, 3] uint8.
        rows: [n] rows of `pixels`, ascending.
    """
    from PIL import Image

    grey = np.empty((len(rows), SIZE, SIZE), np.float32)
    for number, row in enumerate(rows):
        image = Image.fromarray(np.asarray(pixels[row])).convert("L")
        grey[number] = np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BOX))
    return grey


def align(images: np.ndarray, pairs: np.ndarray) -> Alignments:
    """Align pairs of images.

    Args:
        images: [n, SIZE, SIZE] float32.
        pairs: [p, 2] indices of images.
    """
    windows = _windows()
    of_windows = np.empty((len(images), len(windows), _COARSE**2), np.float16)
    for first in range(0, len(images), _IMAGES_AT_ONCE):
        part = images[first : first + _IMAGES_AT_ONCE]
        of_windows[first : first + len(part)] = _normalised(
            _resample(part, windows).reshape(len(part), len(windows), -1)
        )
    parts = [
        _align(images, of_windows, windows, pairs[first : first + _PAIRS_AT_ONCE])
        for first in range(0, len(pairs), _PAIRS_AT_ONCE)
    ]
    if not parts:
        return Alignments(np.zeros(0), np.zeros(0), np.zeros(0, bool), np.zeros(0))
    return Alignments(*(np.concatenate(each) for each in zip(*parts, strict=True)))


def _align(
    images: np.ndarray, of_windows: np.ndarray, windows: np.ndarray, pairs: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Align pairs; return the attributes of `Alignments`.

    Args:
        images: [n, SIZE, SIZE] float32.
        of_windows: [n, w, k] float16, the windows of each image at the coarse size, normalised.
        windows: [w, 4], as `_windows` returns them.
        pairs: [p, 2] indices of images.
    """
    coarse = of_windows[pairs].astype(np.float32)
    options = []
    for outer, inner in ((0, 1), (1, 0)):
        whole = coarse[:, inner, 0]
        for template in (whole, whole.reshape(-1, _COARSE, _COARSE)[..., ::-1].reshape(whole.shape)):
            options.append((coarse[:, outer] @ template[..., None])[..., 0])
    scores = np.concatenate(options, 1)
    best = scores.argmax(1)
    option, window = np.divmod(best, len(windows))
    mirrored = option % 2 == 1
    swapped = (option >= 2).astype(int)
    correlations, details, shares = (np.zeros(len(pairs)) for _ in range(3))
    found = np.flatnonzero(scores[np.arange(len(pairs)), best] >= _MIN_COARSE)
    if len(found):
        outer, inner = images[pairs[found, swapped[found]]], images[pairs[found, 1 - swapped[found]]]
        inner = np.where(mirrored[found, None, None], inner[..., ::-1], inner)
        refined = _refine(outer, inner, windows[window[found]])
        correlations[found], details[found], shares[found] = refined
    return correlations, details, mirrored, shares


def _windows() -> np.ndarray:
    """Return the windows that are searched, [w, 4]: side in x and y, left, top, as shares; the first is the whole."""
    return np.array(
        [
            (side, side, left, top)
            for side in _WINDOWS
            for left in np.linspace(0, 1 - side, 1 + round((1 - side) / _STEP))
            for top in np.linspace(0, 1 - side, 1 + round((1 - side) / _STEP))
        ]
    )


def _resample(images: np.ndarray, windows: np.ndarray) -> np.ndarray:
    """Return windows of images at the coarse size: [p, w, _COARSE, _COARSE] float32."""
    images = images.reshape(len(images), SIZE // 2, 2, SIZE // 2, 2).mean((2, 4))
    across = np.stack([_averaging(side, start) for side, _, start, _ in windows])
    down = np.stack([_averaging(side, start) for _, side, _, start in windows])
    # Sides and places repeat, so each strip is averaged once.
    strips, of_window = np.unique(down.reshape(len(down), -1), axis=0, return_inverse=True)
    averaged = np.einsum("siy,pyx->psix", strips.reshape(-1, _COARSE, images.shape[1]), images, optimize=True)
    return np.stack([averaged[:, of_window[w]] @ across[w].T for w in range(len(windows))], 1)


def _averaging(side: float, start: float) -> np.ndarray:
    """Return the matrix that averages `_COARSE` equal parts of a window along one axis, [_COARSE, SIZE / 2] float32."""
    edges = (start + side * np.arange(_COARSE + 1) / _COARSE) * (SIZE // 2)
    pixels = np.arange(SIZE // 2)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return (np.maximum(overlap, 0) / np.diff(edges)[:, None]).astype(np.float32)


def _normalised(values: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Scale the last axis to mean 0 and length 1, over the values with weight."""
    weights = np.ones(1, np.float32) if weights is None else weights
    total = np.broadcast_to(weights, values.shape).sum(-1, keepdims=True)
    centred = (values - (values * weights).sum(-1, keepdims=True) / np.maximum(total, 1)) * weights
    return centred / (np.linalg.norm(centred, axis=-1, keepdims=True) + _TINY)


def _refine(outer: np.ndarray, inner: np.ndarray, windows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Refine windows of `outer` until they show what `inner` does; return correlations, details, and shares."""
    from scipy.ndimage import gaussian_filter1d

    def blurred(images: np.ndarray, deviation: float) -> np.ndarray:
        return gaussian_filter1d(gaussian_filter1d(images, deviation, axis=1), deviation, axis=2)

    centres = (np.arange(_TEMPLATE) + 0.5) / _TEMPLATE
    v, u = (axis.ravel() for axis in np.meshgrid(centres, centres, indexing="ij"))
    whole = np.broadcast_to(np.array([1.0, 1.0, 0.0, 0.0]), windows.shape)
    for deviation in (2.0, 1.0):
        smooth = blurred(outer, deviation)
        template = _normalised(_sample(blurred(inner, deviation), whole, u, v)[0])
        slope_y, slope_x = np.gradient(smooth, axis=(1, 2))
        for _ in range(_STEPS // 2):
            values, inside = _sample(smooth, windows, u, v)
            centred = (values - values.mean(-1, keepdims=True)) * inside
            scale = np.linalg.norm(centred, axis=-1, keepdims=True) + _TINY
            x, y = (_sample(slope, windows, u, v)[0] * SIZE * inside / scale for slope in (slope_x, slope_y))
            steepest = np.stack([x * u, y * v, x, y], -1)
            steepest -= steepest.mean(1, keepdims=True)
            error = template * inside - centred / scale
            normal = np.einsum("pki,pkj->pij", steepest, steepest)
            diagonal = np.einsum("pii->pi", normal)
            damped = normal + np.eye(4) * (_DAMPING * diagonal[:, None] + _TINY)
            step = np.linalg.solve(damped, np.einsum("pki,pk->pi", steepest, error)[..., None])[..., 0]
            windows = windows + np.clip(step, -0.1, 0.1)
    centres = (np.arange(SIZE) + 0.5) / SIZE
    v, u = (axis.ravel() for axis in np.meshgrid(centres, centres, indexing="ij"))

    def correlate(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        values, inside = _sample(first, windows, u, v)
        own = second.reshape(len(second), -1)
        return (_normalised(values, inside) * _normalised(own, inside)).sum(-1), inside.mean(-1)

    # What a small copy lacks is not compared.
    outer, inner = blurred(outer, 0.7), blurred(inner, 0.7)
    correlations, overlap = correlate(outer, inner)
    details, _ = correlate(outer - blurred(outer, _DETAIL), inner - blurred(inner, _DETAIL))
    sides = windows[:, :2].mean(1)
    plausible = (overlap >= _MIN_OVERLAP) & (windows[:, :2].min(1) > 0.3) & (windows[:, :2].max(1) < 1.6)
    return correlations * plausible, details * plausible, sides


def _sample(images: np.ndarray, windows: np.ndarray, u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Read images at points of windows, bilinearly.

    Args:
        images: [p, SIZE, SIZE].
        windows: [p, 4]: side in x and y, left, top.
        u, v: [k] points in the window, in [0, 1].

    Returns:
        [p, k] values, and whether each point is within the image.
    """
    x = (windows[:, 2:3] + windows[:, 0:1] * u) * SIZE - 0.5
    y = (windows[:, 3:4] + windows[:, 1:2] * v) * SIZE - 0.5
    inside = (x > -1) & (x < SIZE) & (y > -1) & (y < SIZE)
    x, y = np.clip(x, 0, SIZE - 1), np.clip(y, 0, SIZE - 1)
    left, top = np.minimum(x.astype(int), SIZE - 2), np.minimum(y.astype(int), SIZE - 2)
    right_part, lower_part = (x - left).astype(np.float32), (y - top).astype(np.float32)
    flat = images.reshape(len(images), -1)
    corner = top * SIZE + left

    def read(offset: int) -> np.ndarray:
        return np.take_along_axis(flat, corner + offset, axis=1)

    upper = read(0) * (1 - right_part) + read(1) * right_part
    lower = read(SIZE) * (1 - right_part) + read(SIZE + 1) * right_part
    return upper * (1 - lower_part) + lower * lower_part, inside.astype(np.float32)
