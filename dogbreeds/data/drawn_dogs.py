"""Drawn dogs: the data set that ships with the package, so that the first attempt needs neither network nor GPU.

A breed is a fixed set of drawing parameters (coat, markings, ears, snout, legs, tail, build); a photo of it varies pose,
light, background and what stands in front. The backbone that ships beside it was pretrained on the same breeds in other
photos, as ImageNet's backbones were on Stanford Dogs' breeds; `models/pretrained/README.md` is its model card.
"""

import colorsys
import functools
import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

# Of the drawing: raise it when the same numbers would draw another dog
VERSION = 1
# Pixels a side
SIZE = 64
# Breeds that the backbone was pretrained on; an attempt uses the first ones of them
BREEDS = 240
# Drawn twice as large, then averaged down, for soft edges
_DRAWN = 2 * SIZE
_STREAMS = {"train": 0, "val": 1, "test": 2, "pretrain": 3, "pretrain_val": 4}

# Name: hue, saturation, value
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


@dataclass(frozen=True)
class Breed:
    """What all photos of one breed share. Lengths are fractions of the body's length."""

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
    """The breed with this number, the same for ever.

    Args:
        index: 0 to `BREEDS` - 1.
    """
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
    """A name that says what to look for, such as `017-golden-saddle-prick`."""
    chosen = breed(index)
    return f"{index:03d}-{chosen.coat}-{chosen.marking}-{chosen.ears}"


class _Canvas:
    """A picture in the dog's own frame: x towards its nose, y up, lengths in body lengths, turned and mirrored as posed."""

    def __init__(self, image: Image.Image, scale: float, angle: float, mirrored: bool, centre: tuple[float, float]):
        self._draw = ImageDraw.Draw(image)
        self._scale, self._mirror, self._centre = scale, -1.0 if mirrored else 1.0, centre
        self._cos, self._sin = math.cos(angle), math.sin(angle)

    def _place(self, points: np.ndarray) -> list[tuple[float, float]]:
        x = points[:, 0] * self._cos - points[:, 1] * self._sin
        y = points[:, 0] * self._sin + points[:, 1] * self._cos
        horizontal = self._centre[0] + self._mirror * self._scale * x
        vertical = self._centre[1] - self._scale * y
        return list(zip(horizontal.tolist(), vertical.tolist(), strict=True))

    def polygon(self, points, colour) -> None:
        self._draw.polygon(self._place(np.asarray(points, dtype=float)), fill=colour)

    def ellipse(self, x, y, rx, ry, colour, turn=0.0, roughness=0.0, rng=None) -> None:
        angles = np.linspace(0, 2 * np.pi, 28, endpoint=False)
        radius = np.ones_like(angles)
        if roughness:
            radius += roughness * rng.uniform(-1, 1.6, size=angles.shape)
        px, py = rx * radius * np.cos(angles), ry * radius * np.sin(angles)
        cos, sin = math.cos(turn), math.sin(turn)
        self.polygon(np.stack([x + px * cos - py * sin, y + px * sin + py * cos], axis=1), colour)

    def stroke(self, points, width, colour) -> None:
        placed = self._place(np.asarray(points, dtype=float))
        pixels = max(2, round(width * self._scale))
        self._draw.line(placed, fill=colour, width=pixels, joint="curve")
        for x, y in (placed[0], placed[-1]):
            radius = pixels / 2
            self._draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)


def _rgb(shade: tuple[float, float, float], light: float) -> tuple[int, int, int]:
    red, green, blue = colorsys.hsv_to_rgb(shade[0], shade[1], min(1.0, shade[2] * light))
    return round(255 * red), round(255 * green), round(255 * blue)


def _background(rng: np.random.Generator) -> Image.Image:
    """Sky or wall above, ground below, a few blurred things: small noise enlarged, so that it has no fixed texture."""
    top, bottom = rng.uniform(70, 225, size=(2, 1)) + rng.normal(0, 24, size=(2, 3))
    horizon = rng.uniform(0.35, 0.8)
    rows = (np.arange(16) / 16 > horizon)[:, None, None]
    coarse = np.where(rows, bottom, top) + rng.normal(0, 16, size=(16, 16, 3))
    small = Image.fromarray(np.clip(coarse, 0, 255).astype(np.uint8))
    image = small.resize((_DRAWN, _DRAWN), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(0, 4))):
        x, y = rng.uniform(0, _DRAWN, size=2)
        w, h = rng.uniform(6, 40, size=2)
        draw.rectangle((x, y, x + w, y + h), fill=tuple(rng.integers(30, 240, size=3).tolist()))
    return image


def _draw_dog(canvas: _Canvas, dog: Breed, rng: np.random.Generator) -> None:
    light = rng.uniform(0.85, 1.1)
    coat, second = _rgb(dog.coat_shade, light), _rgb(dog.second_shade, light)
    shadow = _rgb(dog.coat_shade, 0.72 * light)
    foot = second if dog.marking == "socked" else coat
    half, thick = 0.5, dog.body_height / 2
    stride = rng.uniform(-0.16, 0.16)
    swing = rng.uniform(-0.12, 0.12)

    root = (-half + 0.06, 0.3 * thick)
    length = dog.tail_length
    if dog.tail == "curled":
        turns = np.linspace(0, 1.6 * np.pi, 10)
        tail = [(root[0] - 0.3 * length * np.sin(t), root[1] + 0.45 * length * (1 - np.cos(t))) for t in turns]
        canvas.stroke(tail, 0.07, coat)
    elif dog.tail == "straight":
        canvas.stroke([root, (root[0] - length * 0.8, root[1] + length * (0.4 + swing))], 0.06, coat)
    elif dog.tail == "plumed":
        canvas.ellipse(root[0] - length * 0.4, root[1] + length * 0.35, length * 0.55, 0.12, second, turn=2.4 + swing)
    else:
        canvas.stroke([root, (root[0] - 0.07, root[1] + 0.05)], 0.08, coat)

    hip = -0.6 * thick
    ground = hip - dog.leg_length
    for x, step, colour in (
        (-0.36, -stride, shadow),
        (0.30, stride, shadow),
        (-0.30, stride, coat),
        (0.36, -stride, coat),
    ):
        knee = (x + 0.6 * step, hip - dog.leg_length / 2)
        paw = (x + step, ground)
        canvas.stroke([(x, hip + 0.05), knee, paw], dog.leg_width, colour)
        end = foot if colour == coat else (_rgb(dog.second_shade, 0.72 * light) if dog.marking == "socked" else shadow)
        canvas.stroke([((knee[0] + paw[0]) / 2, (knee[1] + paw[1]) / 2), paw], dog.leg_width, end)

    canvas.ellipse(0, 0, half, thick, coat, roughness=dog.roughness, rng=rng)
    if dog.marking == "saddle":
        canvas.ellipse(-0.06, 0.35 * thick, 0.72 * half, 0.62 * thick, second)
    elif dog.marking == "bib":
        canvas.ellipse(0.30, -0.25 * thick, 0.22, 0.75 * thick, second)
    elif dog.marking == "spotted":
        for _ in range(dog.spots):
            x, y = rng.uniform(-0.8, 0.8) * half, rng.uniform(-0.7, 0.7) * thick
            canvas.ellipse(x, y, dog.spot_size * rng.uniform(0.6, 1.2), dog.spot_size * rng.uniform(0.6, 1.2), second)

    angle = dog.neck_angle + rng.uniform(-0.2, 0.2)
    neck = 0.30
    head_x, head_y = 0.40 + neck * math.cos(angle), 0.35 * thick + neck * math.sin(angle)
    canvas.stroke([(0.36, 0.2 * thick), (head_x, head_y)], 0.62 * dog.head, coat)
    face = second if dog.marking == "masked" else coat
    skull = dog.head / 2
    nod = rng.uniform(-0.25, 0.15)
    nose_x, nose_y = (
        head_x + (skull + dog.snout_length) * math.cos(nod),
        head_y + (skull + dog.snout_length) * math.sin(nod),
    )
    if dog.ears == "prick":
        tip = skull * (1 + 1.2 * dog.ear_length)
        canvas.polygon(
            [(head_x - 0.8 * skull, head_y), (head_x - 0.35 * skull, head_y + tip), (head_x + 0.3 * skull, head_y)],
            shadow,
        )
    canvas.ellipse(head_x, head_y, skull, 0.92 * skull, coat, roughness=dog.roughness, rng=rng)
    canvas.stroke(
        [(head_x + 0.3 * skull, head_y - 0.2 * skull), (nose_x - 0.04, nose_y - 0.2 * skull)],
        dog.snout_height * dog.head * 0.7,
        face,
    )
    canvas.ellipse(nose_x, nose_y - 0.1 * skull, 0.045, 0.04, (20, 16, 16))
    canvas.ellipse(head_x + 0.35 * skull, head_y + 0.25 * skull, 0.04, 0.04, (15, 12, 10))
    if dog.ears == "drop":
        canvas.ellipse(
            head_x - 0.45 * skull,
            head_y - 0.45 * skull * dog.ear_length,
            0.33 * skull,
            0.85 * skull * dog.ear_length,
            shadow,
            turn=-0.2,
        )
    elif dog.ears == "round":
        canvas.ellipse(
            head_x - 0.5 * skull,
            head_y + 0.7 * skull,
            0.42 * skull * dog.ear_length,
            0.42 * skull * dog.ear_length,
            shadow,
        )


def draw(split: str, breed_index: int, photo: int) -> np.ndarray:
    """One photo.

    Args:
        split: a name of the streams (`train`, `val`, `test`, `pretrain`, `pretrain_val`); each draws others.
        breed_index: 0 to `BREEDS` - 1.
        photo: the photo's number within its split and breed.

    Returns:
        [SIZE, SIZE, 3] uint8 RGB.
    """
    rng = np.random.Generator(np.random.Philox(key=[1_000_000 * _STREAMS[split] + breed_index, photo]))
    image = _background(rng)
    canvas = _Canvas(
        image,
        scale=_DRAWN * rng.uniform(0.40, 0.56),
        angle=rng.normal(0, 0.12),
        mirrored=bool(rng.integers(2)),
        centre=(_DRAWN * rng.uniform(0.40, 0.60), _DRAWN * rng.uniform(0.44, 0.60)),
    )
    _draw_dog(canvas, breed(breed_index), rng)
    if rng.random() < 0.35:
        x, y = rng.uniform(0, _DRAWN, size=2)
        w, h = rng.uniform(8, 34, size=2)
        ImageDraw.Draw(image).rectangle((x, y, x + w, y + h), fill=tuple(rng.integers(20, 240, size=3).tolist()))
    pixels = np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BOX), dtype=np.float32)
    warmth = 1 + rng.normal(0, 0.06, size=3)
    exposed = (pixels - 128) * rng.uniform(0.75, 1.2) + 128 * rng.uniform(0.75, 1.2)
    noisy = exposed * warmth + rng.normal(0, 5, size=pixels.shape)
    return np.clip(np.rint(noisy), 0, 255).astype(np.uint8)
