"""Draws the pictures and writes the conversations that the demo model learns from and is scored on.

Contract: ``make(task, split, seed)`` is a pure function of its arguments. The split is part of the entropy of the
random generator, so a held-out picture shares no seed with any training picture. A sample carries its pictures, a
conversation about them and the facts from which the answers were written. Pillow and NumPy only.

Limits: shapes are flat, upright up to a few degrees, and at least one 16-pixel patch wide; the background is pale.
A further task is one more function with ``@task``; tasks_more.py has the others, and importing it registers them.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from .drawing import COLOURS, GRIDS, PLACES, SHAPES, SIZES, Box, Thing, paint, scene

__all__ = ["COLOURS", "GRIDS", "PLACES", "SHAPES", "SIZES", "Box", "Sample", "Thing", "make", "paint", "scene"]

SPLITS = {"train": 0, "test": 1, "validate": 2}
BASIC = ("describe", "ask", "chat", "count")  # the tasks of this module
DESCRIBE = ("What is in this image?", "Describe the image.", "What do you see?", "Describe this picture.")


@dataclass(frozen=True)
class Sample:
    """Pictures, the conversation about them as (question, answer) pairs, and the facts behind the answers.

    ``things`` and ``extents`` hold one tuple for each picture: its objects, and the boxes of their ink in pixels.
    ``apart`` says that no answer depends on the turns before it.
    """

    task: str
    images: tuple[Image.Image, ...]
    turns: tuple[tuple[str, str], ...]
    things: tuple[tuple[Thing, ...], ...] = ()
    facts: dict = field(default_factory=dict)
    extents: tuple[tuple[Box, ...], ...] = ()
    apart: bool = False

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


def describe_things(things: tuple[Thing, ...]) -> str:
    """The sentence for a scene, its objects in reading order."""
    parts = [f"{PLACES[o.place]} {'there is ' if i == 0 else ''}{o}" for i, o in enumerate(things)]
    text = ", ".join(parts[:-1]) + ", and " + parts[-1] if len(parts) > 1 else parts[0]
    return text[0].upper() + text[1:] + "."


def capital(text: str) -> str:
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
            return kind, f"What {word} is the {one.shape}?", capital(one.colour)
        if kind == "shape":
            apart = [o for o in things if colours.count(o.colour) == 1]
            if not apart:
                continue
            one = apart[rng.integers(len(apart))]
            return kind, f"What shape is the {one.colour} object?", capital(article(one.shape))
        if kind == "size":
            return kind, f"How big is the {one.shape}?", capital(one.size)
        if kind == "where":
            return kind, f"Where is the {one.shape}?", capital(PLACES[one.place])
        if kind == "exists":
            return kind, *_exists(rng, things)
        if kind == "many":
            return kind, "How many objects are there?", str(len(things))
        if kind == "place":
            place = things[rng.integers(len(things))].place if rng.random() < 0.75 else int(rng.integers(9))
            there = [o for o in things if o.place == place]
            return kind, f"What is {PLACES[place]}?", capital(str(there[0])) if there else "Nothing."
        word, axis, sign = (("left of", 1, -1), ("right of", 1, 1), ("above", 0, -1), ("below", 0, 1))[rng.integers(4)]
        beside = [o for o in things if sign * (divmod(o.place, 3)[axis] - divmod(one.place, 3)[axis]) > 0]
        if len(beside) > 1 or (not beside and rng.random() < 0.6):
            continue
        return kind, f"What is {word} the {one.shape}?", capital(str(beside[0])) if beside else "Nothing."


def _exists(rng: np.random.Generator, things: tuple[Thing, ...]) -> tuple[str, str]:
    """Is there ...? Yes (and where the first one is) and no equally often; half of the questions name a colour too."""
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
    question = f"Is there {article(f'{colour} {shape}' if coloured else shape)}?"
    found = [o for o in things if o.shape == shape and (o.colour == colour or not coloured)]
    return question, f"Yes, {PLACES[found[0].place]}." if found else "No."


@task
def describe(rng: np.random.Generator, size: tuple[int, int] | None, level: float) -> Sample:
    """One to three objects with size, colour, shape and place, told in a sentence."""
    picture, things, extents = scene(rng, size, level)
    turns = ((DESCRIBE[rng.integers(len(DESCRIBE))], describe_things(things)),)
    return Sample("describe", (picture,), turns, (things,), extents=(extents,))


@task
def ask(rng: np.random.Generator, size: tuple[int, int] | None, level: float) -> Sample:
    """One question about a scene: colour, shape, size, place, presence, number, what is beside what."""
    picture, things, extents = scene(rng, size, level)
    kind, question, answer = ask_about(rng, things)
    return Sample("ask", (picture,), ((question, answer),), (things,), {"kind": kind}, (extents,))


@task
def chat(rng: np.random.Generator, size: tuple[int, int] | None, level: float) -> Sample:
    """Several turns about one scene: three different questions and, as a rule late, the description."""
    picture, things, extents = scene(rng, size, level)
    turns: list[tuple[str, str]] = []
    for _ in range(3):
        _, question, answer = ask_about(rng, things)
        if question not in [q for q, _ in turns]:
            turns.append((question, answer))
    where = int(rng.integers(len(turns) + 1)) if rng.random() < 0.5 else int(rng.integers(2)) * len(turns)
    turns.insert(where, (DESCRIBE[rng.integers(len(DESCRIBE))], describe_things(things)))
    return Sample("chat", (picture,), tuple(turns), (things,), extents=(extents,))


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
    picture, extents = paint(rng, (height, width), tuple(things))
    turns = [(f"How many {plural(target)} are there?", str(number))]
    if others or rng.random() < 0.2:
        turns.append((f"How many {plural(other)} are there?", str(others)))
    turns.append(("How many objects are there?", str(len(things)) if len(things) < 10 else "More than 9."))
    facts = {"target": target, "number": number}
    return Sample("count", (picture,), tuple(turns), (tuple(things),), facts, (extents,))


def plural(shape: str) -> str:
    """The plural of a shape's name."""
    return shape + ("es" if shape.endswith("s") else "s")
