"""Drawings of synthetic dogs, so that a first run needs neither network nor GPU.

A breed, which is one class, is a fixed set of drawing parameters: coat, markings, ears, snout, legs, tail and build.
Images of it vary in pose, light, background and occlusion. The backbone that ships with the package was pretrained on
other images of the same breeds, like ImageNet's backbones on the breeds of Stanford Dogs. Its model card is
`models/pretrained/README.md`.
"""

import colorsys
import functools
import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

# Part of the fingerprint of the images. Increase it with any change that alters the pixels.
VERSION = 1
# Pixels a side.
SIZE = 64
# Number of breeds that the backbone was pretrained on. A data set uses the first of them.
NUM_BREEDS = 240
# Images are drawn at twice the size and averaged down, which softens the edges.
_CANVAS_SIZE = 2 * SIZE
# Number of each split's random stream.
_STREAMS = {"train": 0, "val": 1, "test": 2, "pretrain": 3, "pretrain_val": 4}

# Hue, saturation and value of each coat, in [0, 1].
_COATS = {
    "white": (0.10, 0.06, 0.95),
    "cream": (0.11, 0.28, 0.92),
    "golden": (0.10, 0.55, 0.82),
    "red": (0.05, 0.68, 0.66),
    "chocolate": (0.05, 0.55, 0.38),
    "grey": (0.60, 0.08, 0.56),
    "blue": (0.60, 0.25, 0.42),
    "black": (0.60, 0.10, 0.14),
}
_MARKINGS = ("plain", "saddle", "bib", "spotted", "masked", "socked")
_EARS = ("prick", "drop", "round")
_TAILS = ("straight", "curled", "docked", "plumed")
# Corners of the polygon that is drawn for an ellipse of radius 1.
_ELLIPSE_ANGLES = np.linspace(0, 2 * np.pi, 28, endpoint=False)
_ELLIPSE_COS, _ELLIPSE_SIN = np.cos(_ELLIPSE_ANGLES), np.sin(_ELLIPSE_ANGLES)


@dataclass(frozen=True)
class Breed:
    """Drawing parameters that all images of one breed share. Lengths are fractions of the body's length."""

    coat: str
    coat_shade: tuple[float, float, float]
    second_shade: tuple[float, float, float]
    marking: str
    ears: str
    tail: str
    body_height: float
    leg_length: float
    leg_width: float
    neck_angle: float
    head: float
    snout_length: float
    snout_height: float
    ear_length: float
    tail_length: float
    spots: int
    spot_size: float
    roughness: float


def _shade(name: str, rng: np.random.Generator) -> tuple[float, float, float]:
    hue, saturation, value = _COATS[name]
    return (
        (hue + rng.uniform(-0.015, 0.015)) % 1.0,
        float(np.clip(saturation + rng.uniform(-0.07, 0.07), 0, 1)),
        float(np.clip(value + rng.uniform(-0.07, 0.07), 0.08, 1)),
    )


@functools.cache
def breed(index: int) -> Breed:
    """Return the drawing parameters of a breed. They depend on its index alone.

    Args:
        index: 0 to `NUM_BREEDS` - 1.
    """
    # The order of the draws must not change, because it decides the pixels.
    rng = np.random.Generator(np.random.Philox(key=[2025, index]))
    names = list(_COATS)
    first, second = rng.choice(len(names), size=2, replace=False)
    return Breed(
        coat=names[first],
        coat_shade=_shade(names[first], rng),
        second_shade=_shade(names[second], rng),
        marking=str(rng.choice(_MARKINGS)),
        ears=str(rng.choice(_EARS)),
        tail=str(rng.choice(_TAILS)),
        body_height=rng.uniform(0.30, 0.62),
        leg_length=rng.uniform(0.18, 0.62),
        leg_width=rng.uniform(0.07, 0.17),
        neck_angle=rng.uniform(0.35, 1.15),
        head=rng.uniform(0.24, 0.40),
        snout_length=rng.uniform(0.10, 0.42),
        snout_height=rng.uniform(0.40, 0.75),
        ear_length=rng.uniform(0.5, 1.25),
        tail_length=rng.uniform(0.25, 0.6),
        spots=int(rng.integers(4, 14)),
        spot_size=rng.uniform(0.05, 0.13),
        roughness=float(rng.choice([0.0, 0.0, 0.04, 0.08])),
    )


def breed_name(index: int) -> str:
    """Return the class name of a breed, which lists its features, such as `017-golden-saddle-prick`."""
    dog = breed(index)
    return f"{index:03d}-{dog.coat}-{dog.marking}-{dog.ears}"


class _Canvas:
    """Drawing surface in the dog's coordinates: x towards its nose, y up, in body lengths, rotated and mirrored."""

    def __init__(self, image: Image.Image, scale: float, angle: float, mirrored: bool, centre: tuple[float, float]):
        self._draw = ImageDraw.Draw(image)
        self._scale = scale
        self._mirror = -1.0 if mirrored else 1.0
        self._centre = centre
        self._cos, self._sin = math.cos(angle), math.sin(angle)

    def _to_pixels(self, x, y):
        """Map coordinates to pixels; numbers or arrays give the same bits."""
        horizontal = x * self._cos - y * self._sin
        vertical = x * self._sin + y * self._cos
        return (
            self._centre[0] + self._mirror * self._scale * horizontal,
            self._centre[1] - self._scale * vertical,
        )

    def polygon(self, points, colour) -> None:
        self._draw.polygon([self._to_pixels(x, y) for x, y in points], fill=colour)

    def ellipse(self, x, y, rx, ry, colour, turn=0.0, roughness=0.0, rng=None) -> None:
        if roughness:
            radius = 1 + roughness * rng.uniform(-1, 1.6, size=_ELLIPSE_COS.shape)
            rx, ry = rx * radius, ry * radius
        px, py = rx * _ELLIPSE_COS, ry * _ELLIPSE_SIN
        cos, sin = math.cos(turn), math.sin(turn)
        horizontal, vertical = self._to_pixels(x + px * cos - py * sin, y + px * sin + py * cos)
        self._draw.polygon(list(zip(horizontal.tolist(), vertical.tolist(), strict=True)), fill=colour)

    def stroke(self, points, width, colour) -> None:
        line = [self._to_pixels(x, y) for x, y in points]
        line_width = max(2, round(width * self._scale))
        self._draw.line(line, fill=colour, width=line_width, joint="curve")
        for x, y in (line[0], line[-1]):
            radius = line_width / 2
            self._draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)


def _rgb(shade: tuple[float, float, float], light: float) -> tuple[int, int, int]:
    red, green, blue = colorsys.hsv_to_rgb(shade[0], shade[1], min(1.0, shade[2] * light))
    return round(255 * red), round(255 * green), round(255 * blue)


def _background(rng: np.random.Generator) -> Image.Image:
    """Draw sky or wall above, ground below, and a few objects. Enlarged noise gives it no fixed texture."""
    top, bottom = rng.uniform(70, 225, size=(2, 1)) + rng.normal(0, 24, size=(2, 3))
    horizon = rng.uniform(0.35, 0.8)
    rows = (np.arange(16) / 16 > horizon)[:, None, None]
    coarse = np.where(rows, bottom, top) + rng.normal(0, 16, size=(16, 16, 3))
    small = Image.fromarray(np.clip(coarse, 0, 255).astype(np.uint8))
    image = small.resize((_CANVAS_SIZE, _CANVAS_SIZE), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(0, 4))):
        x, y = rng.uniform(0, _CANVAS_SIZE, size=2)
        w, h = rng.uniform(6, 40, size=2)
        draw.rectangle((x, y, x + w, y + h), fill=tuple(rng.integers(30, 240, size=3).tolist()))
    return image


class _Colours(NamedTuple):
    """RGB colours of a dog in the light of one image."""

    coat: tuple[int, int, int]
    second: tuple[int, int, int]
    shadow: tuple[int, int, int]
    second_shadow: tuple[int, int, int]


def _colours(dog: Breed, light: float) -> _Colours:
    return _Colours(
        coat=_rgb(dog.coat_shade, light),
        second=_rgb(dog.second_shade, light),
        shadow=_rgb(dog.coat_shade, 0.72 * light),
        second_shadow=_rgb(dog.second_shade, 0.72 * light),
    )


def _draw_dog(canvas: _Canvas, dog: Breed, rng: np.random.Generator) -> None:
    # The order of the draws must not change, because it decides the pixels.
    colours = _colours(dog, light=rng.uniform(0.85, 1.1))
    stride = rng.uniform(-0.16, 0.16)
    swing = rng.uniform(-0.12, 0.12)
    _draw_tail(canvas, dog, colours, swing)
    _draw_legs(canvas, dog, colours, stride)
    _draw_body(canvas, dog, colours, rng)
    _draw_head(canvas, dog, colours, rng)


# Half of the body's length.
_HALF = 0.5


def _draw_tail(canvas: _Canvas, dog: Breed, colours: _Colours, swing: float) -> None:
    x = -_HALF + 0.06
    y = 0.3 * dog.body_height / 2
    length = dog.tail_length
    if dog.tail == "curled":
        turns = np.linspace(0, 1.6 * np.pi, 10)
        curl = [(x - 0.3 * length * np.sin(t), y + 0.45 * length * (1 - np.cos(t))) for t in turns]
        canvas.stroke(curl, 0.07, colours.coat)
    elif dog.tail == "straight":
        canvas.stroke([(x, y), (x - length * 0.8, y + length * (0.4 + swing))], 0.06, colours.coat)
    elif dog.tail == "plumed":
        canvas.ellipse(x - length * 0.4, y + length * 0.35, length * 0.55, 0.12, colours.second, turn=2.4 + swing)
    else:
        canvas.stroke([(x, y), (x - 0.07, y + 0.05)], 0.08, colours.coat)


def _draw_legs(canvas: _Canvas, dog: Breed, colours: _Colours, stride: float) -> None:
    hip = -0.6 * dog.body_height / 2
    ground = hip - dog.leg_length
    has_socks = dog.marking == "socked"
    near_foot = colours.second if has_socks else colours.coat
    far_foot = colours.second_shadow if has_socks else colours.shadow
    for x, step, colour in (
        (-0.36, -stride, colours.shadow),
        (0.30, stride, colours.shadow),
        (-0.30, stride, colours.coat),
        (0.36, -stride, colours.coat),
    ):
        knee = (x + 0.6 * step, hip - dog.leg_length / 2)
        paw = (x + step, ground)
        canvas.stroke([(x, hip + 0.05), knee, paw], dog.leg_width, colour)
        foot = near_foot if colour == colours.coat else far_foot
        canvas.stroke([((knee[0] + paw[0]) / 2, (knee[1] + paw[1]) / 2), paw], dog.leg_width, foot)


def _draw_body(canvas: _Canvas, dog: Breed, colours: _Colours, rng: np.random.Generator) -> None:
    thick = dog.body_height / 2
    canvas.ellipse(0, 0, _HALF, thick, colours.coat, roughness=dog.roughness, rng=rng)
    if dog.marking == "saddle":
        canvas.ellipse(-0.06, 0.35 * thick, 0.72 * _HALF, 0.62 * thick, colours.second)
    elif dog.marking == "bib":
        canvas.ellipse(0.30, -0.25 * thick, 0.22, 0.75 * thick, colours.second)
    elif dog.marking == "spotted":
        for _ in range(dog.spots):
            x = rng.uniform(-0.8, 0.8) * _HALF
            y = rng.uniform(-0.7, 0.7) * thick
            rx = dog.spot_size * rng.uniform(0.6, 1.2)
            ry = dog.spot_size * rng.uniform(0.6, 1.2)
            canvas.ellipse(x, y, rx, ry, colours.second)


def _draw_head(canvas: _Canvas, dog: Breed, colours: _Colours, rng: np.random.Generator) -> None:
    """Draw neck, head, snout and ears."""
    thick = dog.body_height / 2
    angle = dog.neck_angle + rng.uniform(-0.2, 0.2)
    neck = 0.30
    x = 0.40 + neck * math.cos(angle)
    y = 0.35 * thick + neck * math.sin(angle)
    canvas.stroke([(0.36, 0.2 * thick), (x, y)], 0.62 * dog.head, colours.coat)
    face = colours.second if dog.marking == "masked" else colours.coat
    skull = dog.head / 2
    nod = rng.uniform(-0.25, 0.15)
    nose_x = x + (skull + dog.snout_length) * math.cos(nod)
    nose_y = y + (skull + dog.snout_length) * math.sin(nod)
    # Prick ears are behind the skull.
    if dog.ears == "prick":
        tip = skull * (1 + 1.2 * dog.ear_length)
        canvas.polygon([(x - 0.8 * skull, y), (x - 0.35 * skull, y + tip), (x + 0.3 * skull, y)], colours.shadow)
    canvas.ellipse(x, y, skull, 0.92 * skull, colours.coat, roughness=dog.roughness, rng=rng)
    snout = [(x + 0.3 * skull, y - 0.2 * skull), (nose_x - 0.04, nose_y - 0.2 * skull)]
    canvas.stroke(snout, dog.snout_height * dog.head * 0.7, face)
    canvas.ellipse(nose_x, nose_y - 0.1 * skull, 0.045, 0.04, (20, 16, 16))
    # The eye.
    canvas.ellipse(x + 0.35 * skull, y + 0.25 * skull, 0.04, 0.04, (15, 12, 10))
    if dog.ears == "drop":
        canvas.ellipse(
            x - 0.45 * skull,
            y - 0.45 * skull * dog.ear_length,
            0.33 * skull,
            0.85 * skull * dog.ear_length,
            colours.shadow,
            turn=-0.2,
        )
    elif dog.ears == "round":
        radius = 0.42 * skull * dog.ear_length
        canvas.ellipse(x - 0.5 * skull, y + 0.7 * skull, radius, radius, colours.shadow)


def draw(split: str, breed_index: int, number: int) -> np.ndarray:
    """Draw one image. Its pixels depend on the arguments alone.

    Args:
        split: `train`, `val`, `test`, `pretrain` or `pretrain_val`. Their images differ.
        breed_index: 0 to `NUM_BREEDS` - 1.
        number: number of the image within its split and breed, from 0.

    Returns:
        [SIZE, SIZE, 3] uint8 RGB.
    """
    rng = np.random.Generator(np.random.Philox(key=[1_000_000 * _STREAMS[split] + breed_index, number]))
    image = _background(rng)
    canvas = _Canvas(
        image,
        scale=_CANVAS_SIZE * rng.uniform(0.40, 0.56),
        angle=rng.normal(0, 0.12),
        mirrored=bool(rng.integers(2)),
        centre=(_CANVAS_SIZE * rng.uniform(0.40, 0.60), _CANVAS_SIZE * rng.uniform(0.44, 0.60)),
    )
    _draw_dog(canvas, breed(breed_index), rng)
    # Something stands in front of some dogs.
    if rng.random() < 0.35:
        x, y = rng.uniform(0, _CANVAS_SIZE, size=2)
        w, h = rng.uniform(8, 34, size=2)
        ImageDraw.Draw(image).rectangle((x, y, x + w, y + h), fill=tuple(rng.integers(20, 240, size=3).tolist()))
    pixels = np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BOX), dtype=np.float32)
    warmth = 1 + rng.normal(0, 0.06, size=3)
    exposed = (pixels - 128) * rng.uniform(0.75, 1.2) + 128 * rng.uniform(0.75, 1.2)
    noisy = exposed * warmth + rng.normal(0, 5, size=pixels.shape)
    return np.clip(np.rint(noisy), 0, 255).astype(np.uint8)
