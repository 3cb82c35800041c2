"""Draws the scenes of the demo model: flat shapes of eight colours and two sizes on a pale background.

Contract: all chance comes from the generator that is passed in. Pillow and NumPy only.

Limits: shapes are upright up to a few degrees and at least one 16-pixel patch wide.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
COLOURS = {
    "red": (214, 40, 40),
    "orange": (245, 135, 20),
    "yellow": (238, 206, 30),
    "green": (40, 150, 60),
    "blue": (35, 85, 205),
    "purple": (125, 45, 160),
    "pink": (245, 130, 180),
    "black": (25, 25, 25),
}
UNKNOWN_COLOURS = {"BROWN": (122, 72, 35)}  # which the demo never saw: adapt.py teaches them
SIZES = {"small": (10.5, 13.0), "large": (19.5, 23.0)}  # radius, pixels
BACKGROUNDS = ((246, 246, 246), (226, 226, 226), (240, 234, 220), (222, 232, 242), (224, 238, 224))
PLACES = (
    "at the top left",
    "at the top",
    "at the top right",
    "at the left",
    "in the centre",
    "at the right",
    "at the bottom left",
    "at the bottom",
    "at the bottom right",
)
GRIDS = ((128, 128), (96, 160), (160, 96), (96, 128), (128, 96), (96, 96))  # height, width of training pictures


@dataclass(frozen=True)
class Thing:
    """One drawn object: centre and radius in pixels; ``place`` is the index of its ninth of a scene, row by row."""

    shape: str
    colour: str
    size: str
    x: float
    y: float
    radius: float
    place: int = -1

    @property
    def box(self) -> tuple[float, float, float, float]:
        """(left, top, right, bottom) in pixels, of the circle that holds the object."""
        return (self.x - self.radius, self.y - self.radius, self.x + self.radius, self.y + self.radius)

    def __str__(self) -> str:
        return f"a {self.size} {self.colour} {self.shape}"


def _outline(shape: str, scale: float, turn: float) -> list[tuple[float, float]]:
    """Corners of a polygon of radius ``scale`` about the origin, turned by ``turn`` radians."""
    if shape == "square":
        polar = [(0.98, math.pi / 4 + k * math.pi / 2) for k in range(4)]
    elif shape == "triangle":
        polar = [(1.0, -math.pi / 2 + k * 2 * math.pi / 3) for k in range(3)]
    elif shape == "star":
        polar = [(1.0 if k % 2 == 0 else 0.42, -math.pi / 2 + k * math.pi / 5) for k in range(10)]
    elif shape == "HEART":  # which the demo never saw: adapt.py teaches it
        polar = [(math.hypot(x, y), math.atan2(y, x)) for x, y in map(_heart, range(0, 360, 6))]
    else:  # a cross: twelve corners of two crossing bars
        a, b = 0.33, 0.94
        arm = [(-a, -b), (a, -b), (a, -a)]
        corners = [(s * u, s * v) for s in (1, -1) for u, v in (*arm, *((-y, x) for x, y in arm))]
        polar = [(math.hypot(x, y), math.atan2(y, x)) for x, y in corners]
    return [(scale * r * math.cos(t + turn), scale * r * math.sin(t + turn)) for r, t in polar]


def _heart(angle: int) -> tuple[float, float]:
    t = math.radians(angle)
    across = math.sin(t) ** 3
    down = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
    return 0.9 * across, -down / 17 - 0.08


Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels


def _draw(picture: Image.Image, thing: Thing, tint: tuple[int, int, int], turn: float) -> Box:
    """Draws one object with smooth edges: a mask of its box at four times the size, scaled down. Gives its extent."""
    zoom = 4
    left, top = math.floor(thing.x - thing.radius) - 1, math.floor(thing.y - thing.radius) - 1
    side = math.ceil(2 * thing.radius) + 3
    mask = Image.new("L", (side * zoom, side * zoom))
    pen = ImageDraw.Draw(mask)
    cx, cy, r = (thing.x - left) * zoom, (thing.y - top) * zoom, thing.radius * zoom
    if thing.shape in ("circle", "ring"):
        pen.ellipse((cx - 0.96 * r, cy - 0.96 * r, cx + 0.96 * r, cy + 0.96 * r), fill=255)
        if thing.shape == "ring":
            pen.ellipse((cx - 0.56 * r, cy - 0.56 * r, cx + 0.56 * r, cy + 0.56 * r), fill=0)
    else:
        pen.polygon([(cx + x, cy + y) for x, y in _outline(thing.shape, r, turn)], fill=255)
    picture.paste(tint, (left, top), mask.reduce(zoom))
    extent = mask.getbbox()
    assert extent is not None
    x0, y0, x1, y1 = (v / zoom for v in extent)
    return x0 + left, y0 + top, x1 + left, y1 + top


def paint(
    rng: np.random.Generator, size: tuple[int, int], things: tuple[Thing, ...]
) -> tuple[Image.Image, tuple[Box, ...]]:
    """The picture of some objects, on a pale background with a faint slope of light and faint noise; their extents."""
    height, width = size
    base = np.array(BACKGROUNDS[rng.integers(len(BACKGROUNDS))]) + rng.integers(-6, 7, 3)
    picture = Image.new("RGB", (width, height), tuple(int(v) for v in base))
    extents = []
    for thing in things:
        tint = np.clip(np.array((COLOURS | UNKNOWN_COLOURS)[thing.colour]) + rng.integers(-12, 13, 3), 0, 255)
        red, green, blue = (int(v) for v in tint)
        extents.append(_draw(picture, thing, (red, green, blue), float(rng.uniform(-0.12, 0.12))))
    slope = np.linspace(-1, 1, height)[:, None] * rng.uniform(-6, 6) + np.linspace(-1, 1, width)[None] * rng.uniform(
        -6, 6
    )
    noise = rng.integers(-5, 6, (height, width, 3), dtype=np.int8) + slope[..., None].astype(np.int8)
    pixels = np.clip(np.asarray(picture, dtype=np.int16) + noise, 0, 255).astype(np.uint8)
    return Image.fromarray(pixels), tuple(extents)


# --- scenes of one to three objects, each in its own ninth of the picture


def scene(
    rng: np.random.Generator, size: tuple[int, int] | None, level: float
) -> tuple[Image.Image, tuple[Thing, ...], tuple[Box, ...]]:
    """A picture of one to three objects, each in its own ninth, in reading order, with their extents."""
    size, things = place(rng, size, level)
    picture, extents = paint(rng, size, things)
    return picture, things, extents


def place(
    rng: np.random.Generator, size: tuple[int, int] | None, level: float
) -> tuple[tuple[int, int], tuple[Thing, ...]]:
    """The (height, width) of a scene and its objects, not drawn."""
    height, width = size or (GRIDS[0] if rng.random() < 0.7 else GRIDS[rng.integers(len(GRIDS))])
    weights = np.array([0.8, 0.2, 0.0]) * (1 - level) + np.array([0.2, 0.35, 0.45]) * level
    count = int(rng.choice(3, p=weights)) + 1
    things: list[Thing] = []
    while len(things) < count:
        ninth = int(rng.integers(9))
        kind = "small" if rng.random() < 0.5 else "large"
        radius = float(rng.uniform(*SIZES[kind]))
        row, col = divmod(ninth, 3)
        y, x = (_within_third(rng, third, length, radius) for third, length in ((row, height), (col, width)))
        clear = all(math.hypot(x - o.x, y - o.y) > radius + o.radius + 3 for o in things)
        if clear and all(o.place != ninth for o in things):
            shape, colour = SHAPES[rng.integers(len(SHAPES))], list(COLOURS)[rng.integers(len(COLOURS))]
            things.append(Thing(shape, colour, kind, x, y, radius, ninth))
    things.sort(key=lambda o: o.place)
    return (height, width), tuple(things)


def _within_third(rng: np.random.Generator, third: int, length: int, radius: float) -> float:
    """A centre well inside one third of a side, the object wholly inside the picture."""
    margin = 4.0
    low = max(third * length / 3 + margin, radius + 2)
    high = min((third + 1) * length / 3 - margin, length - radius - 2)
    return float(rng.uniform(low, max(low, high)))
