"""What in a photo spoke for its breed: Grad-CAM, laid over the photo.

A position of the maps is drawn where it lies in their grid, as the method has it. Keras' EfficientNets and MobileNets pad before a stride on the
right and below only, so that what a position saw lies about half a position (16 of 224 pixels) further right and down than its heat.

Source: Selvaraju et al. 2017, "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization".
"""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dogbreeds.core import files
from dogbreeds.core.errors import UserError
from dogbreeds.core.text import digest
from dogbreeds.inference.image_sources import Named
from dogbreeds.models.network import folded

if TYPE_CHECKING:
    from PIL import Image

    from dogbreeds.inference.classifier import Classifier

# Perceptually uniform; how much of a photo the greatest heat covers
_COLOURS, _STRENGTH = "inferno", 0.65
# Pixels of a picture's long side
_LONGEST, _SHORTEST = 1024, 320
# Pixels in a picture of the shortest width: the caption's height, the least it shrinks to, its margin
_LETTERS, _SMALLEST, _MARGIN = 18, 9, 6
# Letters of a photo's name that its picture keeps
_NAME = 40


def grad_cam(classifier: "Classifier") -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """A function from photos at the network's size to its logits, and to where each one's first breed was seen.

    Each feature map is weighted with the gradient of the breed's logit by it, averaged over positions. Maps are pooled by their mean, so that
    this gradient is the pooled feature's, divided by the number of positions: only the head has to be gone through backwards.

    Returns:
        [b, size, size, 3] uint8 -> [b, classes] logits, and heat [b, h, w] float32 in [0, 1], whose greatest value is 1 or, where nothing speaks
        for the breed, 0.
    """
    import tensorflow as tf

    before, head = classifier.ends
    maps = folded(before)

    @tf.function(reduce_retracing=True)
    # [b, h, w, c] -> [b, classes], [b, h, w]
    def seen(features):
        pooled = tf.reduce_mean(features, axis=(1, 2))
        with tf.GradientTape() as tape:
            tape.watch(pooled)
            logits = head(pooled, training=False)
            first = tf.gather(logits, tf.argmax(logits, axis=-1), batch_dims=1)
        positions = tf.cast(tf.shape(features)[1] * tf.shape(features)[2], tf.float32)
        # [b, c]
        weights = tape.gradient(first, pooled) / positions
        heat = tf.nn.relu(tf.einsum("bhwc,bc->bhw", features, weights))
        return logits, tf.math.divide_no_nan(heat, tf.reduce_max(heat, axis=(1, 2), keepdims=True))

    def run(photos: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        logits, heat = seen(tf.constant(maps(photos)))
        return logits.numpy(), heat.numpy()

    return run


def placed(heat: np.ndarray, height: int, width: int, how: str) -> np.ndarray:
    """Heat at a photo's size, bilinear, where the photo was when it became square.

    Args:
        heat: [h, w] float32 in [0, 1] of the square.
        height, width: of the photo.
        how: `stretch`, `pad` or `crop`, as in `resized`.

    Returns:
        [height, width] float32 in [0, 1]; 0 where the network saw nothing of the photo.
    """
    from PIL import Image

    def scaled(height: int, width: int) -> np.ndarray:
        return np.asarray(Image.fromarray(heat.astype(np.float32)).resize((width, height), Image.Resampling.BILINEAR))

    if how == "stretch":
        return scaled(height, width)
    side = max(height, width) if how == "pad" else min(height, width)
    top, left = abs(height - side) // 2, abs(width - side) // 2
    if how == "pad":
        return scaled(side, side)[top : top + height, left : left + width]
    whole = np.zeros((height, width), np.float32)
    whole[top : top + side, left : left + side] = scaled(side, side)
    return whole


def overlay(photo: np.ndarray, heat: np.ndarray, how: str, caption: str) -> "Image.Image":
    """A photo with heat laid over it and a line below.

    Args:
        photo: [h, w, 3] uint8; shown with 320 to 1,024 pixels on its long side.
        heat: [h', w'] float32 in [0, 1].
        how: the photo became square.
        caption: what is said below.
    """
    from matplotlib import colormaps
    from PIL import Image

    longest = max(photo.shape[:2])
    scale = np.clip(longest, _SHORTEST, _LONGEST) / longest
    height, width = (max(1, round(side * scale)) for side in photo.shape[:2])
    pixels = np.asarray(Image.fromarray(photo).resize((width, height), Image.Resampling.BICUBIC), np.float32)
    strength = placed(heat, height, width, how)
    coloured = 255 * colormaps[_COLOURS](strength)[..., :3]
    covered = _STRENGTH * strength[..., None]
    picture = Image.fromarray(np.round(pixels * (1 - covered) + coloured * covered).astype(np.uint8))
    return _captioned(picture, caption)


def _captioned(picture: "Image.Image", caption: str) -> "Image.Image":
    from matplotlib import get_data_path
    from PIL import Image, ImageDraw, ImageFont

    width = max(picture.width, _SHORTEST)
    letters, margin = (round(pixels * (width / _SHORTEST) ** 0.5) for pixels in (_LETTERS, _MARGIN))
    file = str(Path(get_data_path()) / "fonts/ttf/DejaVuSans.ttf")
    font = ImageFont.truetype(file, letters)
    needed, room = font.getlength(caption), width - 2 * margin
    if needed > room:
        font = ImageFont.truetype(file, max(_SMALLEST, int(letters * room / needed)))
    whole = Image.new("RGB", (width, picture.height + letters + 2 * margin), "white")
    whole.paste(picture, ((width - picture.width) // 2, 0))
    ImageDraw.Draw(whole).text(
        (margin, picture.height + margin + letters // 2), caption, fill="black", font=font, anchor="lm"
    )
    return whole


@dataclass(frozen=True)
class Overlays:
    """A folder of pictures, one a photo.

    Attributes:
        folder: made if it is not there.
        how: photos become square.
    """

    folder: Path
    how: str

    def prepare(self) -> None:
        """Makes the folder.

        Raises:
            UserError: where that cannot be.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            writable = os.access(self.folder, os.W_OK | os.X_OK)
        except OSError as error:
            raise _refused(self.folder, error.strerror) from error
        if not writable:
            raise _refused(self.folder, "Permission denied")

    def place(self, photo: Named) -> Path:
        """Where a photo's picture lies: in the folder, whatever the photo is called, and beside those of all other photos."""
        stem = re.sub(r"[^\w.-]", "_", os.path.splitext(os.path.basename(photo.name))[0]).strip("._")[:_NAME]
        return self.folder / f"{stem or 'photo'}-{digest(photo.key.encode('utf-8', 'surrogateescape'))[:10]}.jpg"

    def save(self, photo: Named, heat: np.ndarray, caption: str) -> Path:
        """Draws a photo's picture and writes it.

        Raises:
            Unreadable: where the photo cannot be read any more.
            UserError: where the picture cannot be written.
        """
        place, picture = self.place(photo), overlay(photo.pixels(), heat, self.how, caption)
        try:
            with files.aside(place) as written:
                picture.save(written, "JPEG", quality=90)
        except OSError as error:
            raise _refused(place, error.strerror) from error
        return place


def _refused(place: Path, why: str | None) -> UserError:
    return UserError(
        f"{place} cannot be written ({why}). Overlays need a folder that can be written. Type explain_dir=<folder>, for"
        " example."
    )
