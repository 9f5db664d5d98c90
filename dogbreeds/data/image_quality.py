"""Quality of images: dark, bright, flat, blurred, tiny or odd-shaped ones."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from dogbreeds.data.image import EncodedImage, ImageLoader, UnreadableImageError, open_image

# Mean luminance below which an image is dark, and above which it is bright, of 255.
_DARK, _BRIGHT = 30.0, 235.0
# Standard deviation of the luminance below which an image shows nothing.
_FLAT = 8.0
# Sharpness below which an image is blurred, as a share of the median image's.
_BLURRED = 0.02
# Shorter side in pixels below which an image is tiny, as a share of the network's; and the longest shape.
_TINY, _LONG = 0.4, 3.0


def image_sizes(loaders: Sequence[ImageLoader]) -> np.ndarray:
    """Return width and height of images as their headers declare them, [n, 2] int; 0 where they are unknown."""

    def size(loader: ImageLoader) -> tuple[int, int]:
        if not isinstance(loader, EncodedImage):
            return 0, 0
        try:
            with open_image(loader.read(), loader.name) as image:
                return image.size
        except UnreadableImageError:
            return 0, 0

    with ThreadPoolExecutor() as pool:
        return np.array(list(pool.map(size, loaders)), int).reshape(-1, 2)


def quality_findings(grey: np.ndarray, sizes: np.ndarray, image_size: int) -> list[tuple[int, float, str]]:
    """Find images of low quality.

    Args:
        grey: [n, s, s] float32 greyscale images in [0, 255].
        sizes: [n, 2] width and height of the files; 0 if unknown.
        image_size: side of the network's images.

    Returns:
        Index, score in [0, 1] and problem of each, the worst first.
    """
    flat = grey.reshape(len(grey), -1)
    means, deviations = flat.mean(axis=1), flat.std(axis=1)
    laplacian = (
        4 * grey[:, 1:-1, 1:-1] - grey[:, :-2, 1:-1] - grey[:, 2:, 1:-1] - grey[:, 1:-1, :-2] - grey[:, 1:-1, 2:]
    )
    # Relative to contrast, so that a dark image is not blurred for that.
    sharpness = laplacian.reshape(len(grey), -1).var(axis=1) / np.maximum(deviations**2, 1.0)
    usual = float(np.median(sharpness)) if len(sharpness) else 0.0
    found = []
    for image, (mean, deviation, sharp) in enumerate(zip(means, deviations, sharpness, strict=True)):
        width, height = map(int, sizes[image])
        short, long = min(width, height), max(width, height)
        if mean < _DARK:
            found.append((image, 1 - mean / (2 * _DARK), f"dark: mean {mean:.0f} of 255"))
        elif deviation < _FLAT:
            found.append((image, 1 - deviation / (2 * _FLAT), "shows nothing"))
        elif mean > _BRIGHT:
            found.append((image, 0.5 + (mean - _BRIGHT) / (2 * (255 - _BRIGHT)), f"bright: mean {mean:.0f} of 255"))
        elif sharp < _BLURRED * usual:
            found.append((image, 1 - sharp / (2 * _BLURRED * usual), "blurred"))
        if short and short < _TINY * image_size:
            found.append((image, 1 - short / (2 * _TINY * image_size), f"tiny: {width} × {height} pixels"))
        elif short and long > _LONG * short:
            found.append((image, min(1.0, 0.5 * long / (_LONG * short)), f"odd shape: {width} × {height} pixels"))
    return sorted(((image, float(score), text) for image, score, text in found), key=lambda each: -each[1])
