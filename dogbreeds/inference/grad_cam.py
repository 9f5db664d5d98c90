"""Grad-CAM: heat maps of the image regions that raised the predicted class's logit, and overlays of them on the images.

Heat is drawn where a feature map's position lies in its grid, as in the paper. Keras' EfficientNets and MobileNets pad
on the right and bottom only before a stride, so a position's receptive field lies about half a position (16 of 224
pixels) further right and down than its heat.

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
from dogbreeds.inference.image_sources import NamedImage
from dogbreeds.models.network import compile_inference

if TYPE_CHECKING:
    from PIL import Image

    from dogbreeds.inference.classifier import Classifier

# A perceptually uniform Matplotlib colour map.
_COLOUR_MAP = "inferno"
# Opacity of the overlay where heat is 1.
_MAX_OPACITY = 0.65
# Bounds, in pixels, on the long side of an overlay.
_MAX_SIDE = 1024
_MIN_SIDE = 320
# Caption of the narrowest overlay, in pixels: letter height, least letter height after shrinking, margin.
_LETTER_HEIGHT = 18
_MIN_LETTER_HEIGHT = 9
_MARGIN = 6
# Longest part of an image's name in the file name of its overlay, in characters.
_MAX_STEM = 40


def grad_cam(classifier: "Classifier") -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Build a function that computes logits, and Grad-CAM of the most probable class.

    Each feature map is weighted by the gradient of the class's logit with respect to it, averaged over positions.
    Feature maps are pooled by their mean, so this gradient is that of the pooled feature divided by the number of
    positions, and only the head is differentiated.

    Args:
        classifier: the network.

    Returns:
        A function from [b, size, size, 3] uint8 to [b, classes] logits and heat [b, h, w] float32 in [0, 1]. The
        largest heat of an image is 1, or 0 if no position raises the class's logit.
    """
    import tensorflow as tf

    maps_model, head = classifier.maps_and_head
    feature_maps = compile_inference(maps_model)

    @tf.function(reduce_retracing=True)
    def logits_and_heat(maps):
        """Map feature maps [b, h, w, c] to logits [b, classes] and heat [b, h, w]."""
        pooled = tf.reduce_mean(maps, axis=(1, 2))
        with tf.GradientTape() as tape:
            tape.watch(pooled)
            logits = head(pooled, training=False)
            top_logit = tf.gather(logits, tf.argmax(logits, axis=-1), batch_dims=1)
        positions = tf.cast(tf.shape(maps)[1] * tf.shape(maps)[2], tf.float32)
        # [b, c]
        weights = tape.gradient(top_logit, pooled) / positions
        heat = tf.nn.relu(tf.einsum("bhwc,bc->bhw", maps, weights))
        return logits, tf.math.divide_no_nan(heat, tf.reduce_max(heat, axis=(1, 2), keepdims=True))

    def run(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        logits, heat = logits_and_heat(tf.constant(feature_maps(images)))
        return logits.numpy(), heat.numpy()

    return run


def heat_on_image(heat: np.ndarray, height: int, width: int, resize: str) -> np.ndarray:
    """Resize heat to an image's size, bilinearly, undoing how the image was made square.

    Args:
        heat: [h, w] float32 in [0, 1], of the square.
        height, width: of the image.
        resize: `stretch`, `pad` or `crop`, as in `resize_images`.

    Returns:
        [height, width] float32 in [0, 1]; 0 where the image was cropped away.
    """
    from PIL import Image

    def scaled(height: int, width: int) -> np.ndarray:
        return np.asarray(Image.fromarray(heat.astype(np.float32)).resize((width, height), Image.Resampling.BILINEAR))

    if resize == "stretch":
        return scaled(height, width)
    side = max(height, width) if resize == "pad" else min(height, width)
    top = abs(height - side) // 2
    left = abs(width - side) // 2
    if resize == "pad":
        return scaled(side, side)[top : top + height, left : left + width]
    full = np.zeros((height, width), np.float32)
    full[top : top + side, left : left + side] = scaled(side, side)
    return full


def draw_overlay(image: np.ndarray, heat: np.ndarray, resize: str, caption: str) -> "Image.Image":
    """Draw heat over an image, with a caption below.

    Args:
        image: [h, w, 3] uint8; drawn with 320 to 1,024 pixels on its long side.
        heat: [h', w'] float32 in [0, 1].
        resize: how the image was made square.
        caption: one line of text.
    """
    from matplotlib import colormaps
    from PIL import Image

    longest = max(image.shape[:2])
    scale = np.clip(longest, _MIN_SIDE, _MAX_SIDE) / longest
    height, width = (max(1, round(side * scale)) for side in image.shape[:2])
    pixels = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC), np.float32)
    strength = heat_on_image(heat, height, width, resize)
    coloured = 255 * colormaps[_COLOUR_MAP](strength)[..., :3]
    opacity = _MAX_OPACITY * strength[..., None]
    picture = Image.fromarray(np.round(pixels * (1 - opacity) + coloured * opacity).astype(np.uint8))
    return _captioned(picture, caption)


def _captioned(picture: "Image.Image", caption: str) -> "Image.Image":
    from matplotlib import get_data_path
    from PIL import Image, ImageDraw, ImageFont

    width = max(picture.width, _MIN_SIDE)
    letter_height, margin = (round(pixels * (width / _MIN_SIDE) ** 0.5) for pixels in (_LETTER_HEIGHT, _MARGIN))
    file = str(Path(get_data_path()) / "fonts/ttf/DejaVuSans.ttf")
    font = ImageFont.truetype(file, letter_height)
    needed = font.getlength(caption)
    available = width - 2 * margin
    if needed > available:
        font = ImageFont.truetype(file, max(_MIN_LETTER_HEIGHT, int(letter_height * available / needed)))
    canvas = Image.new("RGB", (width, picture.height + letter_height + 2 * margin), "white")
    canvas.paste(picture, ((width - picture.width) // 2, 0))
    ImageDraw.Draw(canvas).text(
        (margin, picture.height + margin + letter_height // 2), caption, fill="black", font=font, anchor="lm"
    )
    return canvas


@dataclass(frozen=True)
class OverlayWriter:
    """Writes one overlay per image into a folder.

    Attributes:
        folder: created by `prepare` if it does not exist.
        resize: how images are made square.
    """

    folder: Path
    resize: str

    def prepare(self) -> None:
        """Create the folder.

        Raises:
            UserError: it cannot be created, or is not writable.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            writable = os.access(self.folder, os.W_OK | os.X_OK)
        except OSError as error:
            raise _not_writable(self.folder, error.strerror) from error
        if not writable:
            raise _not_writable(self.folder, "Permission denied")

    def path(self, image: NamedImage) -> Path:
        """Return the path of an image's overlay: always inside the folder, and different for different images."""
        stem = re.sub(r"[^\w.-]", "_", os.path.splitext(os.path.basename(image.name))[0]).strip("._")[:_MAX_STEM]
        return self.folder / f"{stem or 'photo'}-{digest(image.key.encode('utf-8', 'surrogateescape'))[:10]}.jpg"

    def save(self, image: NamedImage, heat: np.ndarray, caption: str) -> Path:
        """Draw an image's overlay and write it atomically.

        Args:
            image: read again from its file.
            heat: [h, w] float32 in [0, 1].
            caption: one line of text.

        Returns:
            The path of the overlay.

        Raises:
            UnreadableImageError: the image can no longer be read.
            UserError: the overlay cannot be written.
        """
        path = self.path(image)
        picture = draw_overlay(image.pixels(), heat, self.resize, caption)
        try:
            with files.atomic_write(path) as temporary:
                picture.save(temporary, "JPEG", quality=90)
        except OSError as error:
            raise _not_writable(path, error.strerror) from error
        return path


def _not_writable(path: Path, reason: str | None) -> UserError:
    return UserError(
        f"{path} cannot be written ({reason}). explain_dir must be a writable folder. Type explain_dir=<folder>, for"
        " example."
    )
