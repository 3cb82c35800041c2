"""Draws the pictures and writes the conversations that the demo model learns from and is scored on.

Contract: ``make(task, split, seed)`` is a pure function of its arguments. The split is part of the entropy of the
random generator, so a held-out picture shares no seed with any training picture. A sample carries its pictures, a
conversation about them and the facts from which the answers were written. Pillow and NumPy only.

Limits: shapes are flat, upright up to a few degrees, and at least one 16-pixel patch wide; the background is pale.
A further task is one more function with ``@task``; demo_tasks_more.py has those that
the bundled weights were not trained on yet, and is registered by importing it.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw

SPLITS = {"train": 0, "test": 1}
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
LEARNT = ("describe", "ask", "chat", "count")  # tasks that the bundled weights were trained on
DESCRIBE = ("What is in this image?", "Describe the image.", "What do you see?", "Describe this picture.")


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


@dataclass(frozen=True)
class Sample:
    """Pictures, the conversation about them as (question, answer) pairs, and the facts behind the answers.

    ``things`` holds one tuple of objects for each picture.
    """

    task: str
    images: tuple[Image.Image, ...]
    turns: tuple[tuple[str, str], ...]
    things: tuple[tuple[Thing, ...], ...] = ()
    facts: dict = field(default_factory=dict)

    def messages(self, answers: bool = True) -> list[dict]:
        """The conversation as chat messages, the pictures in the first; without ``answers`` only the first question.

        Several pictures are each introduced as "Media-1: " and so on, which is how LFM2-VL tells them apart.
        """
        out: list[dict] = []
        for index, (question, answer) in enumerate(self.turns if answers else self.turns[:1]):
            pictures: list[dict] = []
            for number in range(1, len(self.images) + 1) if index == 0 else ():
                pictures += [{"type": "text", "text": f"Media-{number}: "}] if len(self.images) > 1 else []
                pictures.append({"type": "image"})
            out.append({"role": "user", "content": [*pictures, {"type": "text", "text": question}]})
            if answers:
                out.append({"role": "assistant", "content": answer})
        return out


Maker = Callable[[np.random.Generator, "tuple[int, int] | None", float], Sample]
TASKS: dict[str, Maker] = {}


def task(maker: Maker) -> Maker:
    """Registers a task under its function's name."""
    TASKS[maker.__name__] = maker
    return maker


def make(name: str, split: str, seed: int, size: tuple[int, int] | None = None, level: float = 1.0) -> Sample:
    """The sample number ``seed`` of a task.

    ``size`` is the (height, width) of the pictures, drawn by lot where it is left out. ``level`` from 0 to 1 makes
    training samples easier (fewer objects); scoring uses 1. Raises KeyError for an unknown task or split.
    """
    rng = np.random.default_rng([zlib.crc32(name.encode()), SPLITS[split], seed])
    return TASKS[name](rng, size, level)


# --- drawing


def _outline(shape: str, scale: float, turn: float) -> list[tuple[float, float]]:
    """Corners of a polygon of radius ``scale`` about the origin, turned by ``turn`` radians."""
    if shape == "square":
        polar = [(0.98, math.pi / 4 + k * math.pi / 2) for k in range(4)]
    elif shape == "triangle":
        polar = [(1.0, -math.pi / 2 + k * 2 * math.pi / 3) for k in range(3)]
    elif shape == "star":
        polar = [(1.0 if k % 2 == 0 else 0.42, -math.pi / 2 + k * math.pi / 5) for k in range(10)]
    else:  # a cross: twelve corners of two crossing bars
        a, b = 0.33, 0.94
        arm = [(-a, -b), (a, -b), (a, -a)]
        corners = [(s * u, s * v) for s in (1, -1) for u, v in (*arm, *((-y, x) for x, y in arm))]
        polar = [(math.hypot(x, y), math.atan2(y, x)) for x, y in corners]
    return [(scale * r * math.cos(t + turn), scale * r * math.sin(t + turn)) for r, t in polar]


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
    return tuple(v / zoom + start for v, start in zip(extent, (left, top, left, top), strict=True))


def paint(
    rng: np.random.Generator, size: tuple[int, int], things: tuple[Thing, ...]
) -> tuple[Image.Image, tuple[Box, ...]]:
    """The picture of some objects, on a pale background with a faint slope of light and faint noise; their extents."""
    height, width = size
    base = np.array(BACKGROUNDS[rng.integers(len(BACKGROUNDS))]) + rng.integers(-6, 7, 3)
    picture = Image.new("RGB", (width, height), tuple(int(v) for v in base))
    extents = []
    for thing in things:
        tint = np.clip(np.array(COLOURS[thing.colour]) + rng.integers(-12, 13, 3), 0, 255)
        extents.append(_draw(picture, thing, tuple(int(v) for v in tint), float(rng.uniform(-0.12, 0.12))))
    slope = np.linspace(-1, 1, height)[:, None] * rng.uniform(-6, 6) + np.linspace(-1, 1, width)[None] * rng.uniform(
        -6, 6
    )
    noise = rng.integers(-5, 6, (height, width, 3), dtype=np.int8) + slope[..., None].astype(np.int8)
    pixels = np.clip(np.asarray(picture, dtype=np.int16) + noise, 0, 255).astype(np.uint8)
    return Image.fromarray(pixels), tuple(extents)


# --- scenes of one to three objects, each in its own ninth of the picture


def scene(
    rng: np.random.Generator, size: tuple[int, int] | None, level: float
) -> tuple[Image.Image, tuple[Thing, ...]]:
    height, width = size or (GRIDS[0] if rng.random() < 0.7 else GRIDS[rng.integers(len(GRIDS))])
    weights = np.array([0.8, 0.2, 0.0]) * (1 - level) + np.array([0.2, 0.35, 0.45]) * level
    count = int(rng.choice(3, p=weights)) + 1
    things: list[Thing] = []
    while len(things) < count:
        place = int(rng.integers(9))
        kind = "small" if rng.random() < 0.5 else "large"
        radius = float(rng.uniform(*SIZES[kind]))
        row, col = divmod(place, 3)
        y, x = (_within_third(rng, third, length, radius) for third, length in ((row, height), (col, width)))
        clear = all(math.hypot(x - o.x, y - o.y) > radius + o.radius + 3 for o in things)
        if clear and all(o.place != place for o in things):
            shape, colour = SHAPES[rng.integers(len(SHAPES))], list(COLOURS)[rng.integers(len(COLOURS))]
            things.append(Thing(shape, colour, kind, x, y, radius, place))
    things.sort(key=lambda o: o.place)
    return paint(rng, (height, width), tuple(things))[0], tuple(things)


def _within_third(rng: np.random.Generator, third: int, length: int, radius: float) -> float:
    """A centre well inside one third of a side, the object wholly inside the picture."""
    margin = 4.0
    low = max(third * length / 3 + margin, radius + 2)
    high = min((third + 1) * length / 3 - margin, length - radius - 2)
    return float(rng.uniform(low, max(low, high)))


def describe_things(things: tuple[Thing, ...]) -> str:
    """The sentence for a scene, its objects in reading order."""
    parts = [f"{PLACES[o.place]} {'there is ' if i == 0 else ''}{o}" for i, o in enumerate(things)]
    text = ", ".join(parts[:-1]) + ", and " + parts[-1] if len(parts) > 1 else parts[0]
    return text[0].upper() + text[1:] + "."


def _capital(text: str) -> str:
    return text[0].upper() + text[1:] + "."


def article(word: str) -> str:
    return ("an " if word[0] in "aeiou" else "a ") + word


def ask_about(rng: np.random.Generator, things: tuple[Thing, ...]) -> tuple[str, str, str]:
    """One (kind, question, answer) about a scene; the answer is always unambiguous."""
    shapes = [o.shape for o in things]
    colours = [o.colour for o in things]
    single = [o for o in things if shapes.count(o.shape) == 1]
    while True:
        kind = ("colour", "shape", "size", "where", "exists", "exists", "many", "place", "side", "side")[
            rng.integers(10)
        ]
        if kind in ("colour", "size", "where", "side") and not single:
            continue
        one = single[rng.integers(len(single))] if single else things[0]
        if kind == "colour":
            word = "colour" if rng.random() < 0.7 else "color"
            return kind, f"What {word} is the {one.shape}?", _capital(one.colour)
        if kind == "shape":
            apart = [o for o in things if colours.count(o.colour) == 1]
            if not apart:
                continue
            one = apart[rng.integers(len(apart))]
            return kind, f"What shape is the {one.colour} object?", _capital(article(one.shape))
        if kind == "size":
            return kind, f"How big is the {one.shape}?", _capital(one.size)
        if kind == "where":
            return kind, f"Where is the {one.shape}?", _capital(PLACES[one.place])
        if kind == "exists":
            return kind, *_exists(rng, things)
        if kind == "many":
            return kind, "How many objects are there?", str(len(things))
        if kind == "place":
            place = things[rng.integers(len(things))].place if rng.random() < 0.75 else int(rng.integers(9))
            there = [o for o in things if o.place == place]
            return kind, f"What is {PLACES[place]}?", _capital(str(there[0])) if there else "Nothing."
        word, axis, sign = (("left of", 1, -1), ("right of", 1, 1), ("above", 0, -1), ("below", 0, 1))[rng.integers(4)]
        beside = [o for o in things if sign * (divmod(o.place, 3)[axis] - divmod(one.place, 3)[axis]) > 0]
        if len(beside) > 1 or (not beside and rng.random() < 0.6):
            continue
        return kind, f"What is {word} the {one.shape}?", _capital(str(beside[0])) if beside else "Nothing."


def _exists(rng: np.random.Generator, things: tuple[Thing, ...]) -> tuple[str, str]:
    """Is there ...? Yes and no equally often; half of the questions name a colour too."""
    yes, coloured = rng.random() < 0.5, rng.random() < 0.5
    have = {(o.shape, o.colour) for o in things}
    shapes = {o.shape for o in things}
    if yes:
        shape, colour = sorted(have)[rng.integers(len(have))]
    else:
        while True:
            shape, colour = SHAPES[rng.integers(len(SHAPES))], list(COLOURS)[rng.integers(len(COLOURS))]
            if coloured and rng.random() < 0.5:  # a shape that is there in another colour: the hard kind of no
                shape = sorted(shapes)[rng.integers(len(shapes))]
            if (shape, colour) not in have and (coloured or shape not in shapes):
                break
    return f"Is there {article(f'{colour} {shape}' if coloured else shape)}?", "Yes." if yes else "No."


@task
def describe(rng: np.random.Generator, size: tuple[int, int] | None, level: float) -> Sample:
    """One to three objects with size, colour, shape and place, told in a sentence."""
    picture, things = scene(rng, size, level)
    return Sample(
        "describe", (picture,), ((DESCRIBE[rng.integers(len(DESCRIBE))], describe_things(things)),), (things,)
    )


@task
def ask(rng: np.random.Generator, size: tuple[int, int] | None, level: float) -> Sample:
    """One question about a scene: colour, shape, size, place, presence, number, what is beside what."""
    picture, things = scene(rng, size, level)
    kind, question, answer = ask_about(rng, things)
    return Sample("ask", (picture,), ((question, answer),), (things,), {"kind": kind})


@task
def chat(rng: np.random.Generator, size: tuple[int, int] | None, level: float) -> Sample:
    """Several turns about one scene: three different questions and, as a rule late, the description."""
    picture, things = scene(rng, size, level)
    turns: list[tuple[str, str]] = []
    for _ in range(3):
        _, question, answer = ask_about(rng, things)
        if question not in [q for q, _ in turns]:
            turns.append((question, answer))
    where = int(rng.integers(len(turns) + 1)) if rng.random() < 0.5 else int(rng.integers(2)) * len(turns)
    turns.insert(where, (DESCRIBE[rng.integers(len(DESCRIBE))], describe_things(things)))
    return Sample("chat", (picture,), tuple(turns), (things,))


# --- counting


@task
def count(rng: np.random.Generator, size: tuple[int, int] | None, level: float) -> Sample:
    """None to nine objects of one shape, in several colours, among up to three others."""
    height, width = size or (GRIDS[0] if rng.random() < 0.7 else GRIDS[rng.integers(len(GRIDS))])
    target, other = (SHAPES[i] for i in rng.choice(len(SHAPES), 2, replace=False))
    number = int(rng.integers(10))
    others = int(rng.integers(4)) if rng.random() < 0.6 else 0
    others = max(0, min(others, height * width // 1100 - number))  # more would not fit
    shapes = [target] * number + [other] * others
    plain = list(COLOURS)[rng.integers(len(COLOURS))] if rng.random() < 0.4 else None
    things: list[Thing] = []
    tries = 0
    while len(things) < len(shapes):
        tries += 1
        if tries > 400:  # the first ones stand badly: begin again
            things, tries = [], 0
        radius = float(rng.uniform(8.5, 11.5))
        x, y = (float(rng.uniform(radius + 2, side - radius - 2)) for side in (width, height))
        if all(math.hypot(x - o.x, y - o.y) > radius + o.radius + 2 for o in things):
            colour = plain or list(COLOURS)[rng.integers(len(COLOURS))]
            things.append(Thing(shapes[len(things)], colour, "small", x, y, radius))
    picture, _ = paint(rng, (height, width), tuple(things))
    turns = [(f"How many {plural(target)} are there?", str(number))]
    if others or rng.random() < 0.2:
        turns.append((f"How many {plural(other)} are there?", str(others)))
    turns.append(("How many objects are there?", str(len(things)) if len(things) < 10 else "More than 9."))
    return Sample("count", (picture,), tuple(turns), (tuple(things),), {"target": target, "number": number})


def plural(shape: str) -> str:
    """The plural of a shape's name."""
    return shape + ("es" if shape.endswith("s") else "s")
