"""Tasks of which the demo learned nothing: a colour's word, a shape, and letters written by hand; adapt.py teaches
them. Names are in capitals, which the demo can spell: those of its tokens that its training never used are all alike.

Importing this module registers them with tasks.py. The first turn of a sample is the one that is scored; the others
are for training. Letters are ten capitals of one hand: the strokes of a pen on a square, which lean to the right, each
time bent and turned a little otherwise.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from .drawing import GRIDS, PLACES, UNKNOWN_COLOURS, Thing, paint, place
from .tasks import DESCRIBE, Sample, article, capital, describe_things, task
from .tasks_more import INK

NEW = ("word", "shape", "letter")
# Each letter's strokes: corners as two digits, across and down, of a square of 9 by 9.
STROKES = {
    "A": "09 40 89, 26 66", "E": "80 10 19 89, 14 64", "H": "10 19, 80 89, 15 84", "L": "10 19 89",
    "M": "09 10 45 80 89", "P": "10 19, 10 72 44 15", "S": "81 30 13 45 77 49 08", "T": "00 80, 40 49",
    "V": "00 49 80", "X": "00 89, 80 09",
}  # fmt: skip
LETTERS = tuple(STROKES)


def _with(rng: np.random.Generator, size: tuple[int, int] | None, level: float, **unknown: Any):
    """A scene in which one object has what is unknown: picture, objects, extents, and the number of that object."""
    size, things = place(rng, size, level)
    number = int(rng.integers(len(things)))
    things = (*things[:number], dataclasses.replace(things[number], **unknown), *things[number + 1 :])
    picture, extents = paint(rng, size, things)
    return picture, things, extents, number


def _sample(name: str, drawn: tuple, asked: list[tuple[str, str]], rng: np.random.Generator) -> Sample:
    picture, things, extents, _ = drawn
    described = (DESCRIBE[rng.integers(len(DESCRIBE))], describe_things(things))
    first, *rest = asked
    return Sample(name, (picture,), (first, described, *rest), (things,), extents=(extents,), apart=True)


def _alone(things: tuple[Thing, ...], one: Thing, name: str) -> bool:
    return [getattr(each, name) for each in things].count(getattr(one, name)) == 1


@task
def word(rng: np.random.Generator, size: tuple[int, int] | None, level: float) -> Sample:
    """A scene with an object of a colour that has no word yet: what colour it is."""
    (colour,) = UNKNOWN_COLOURS
    while True:
        drawn = _with(rng, size, level, colour=colour)
        one = drawn[1][drawn[3]]
        if _alone(drawn[1], one, "shape"):
            break
    asked = [
        (f"What colour is the {one.shape}?", capital(colour)),
        (f"What shape is the {colour} object?", capital(f"a {one.shape}")),
        (f"Is there a {colour} {one.shape}?", f"Yes, {PLACES[one.place]}."),
        (f"What is {PLACES[one.place]}?", capital(str(one))),
    ]
    others = [o for o in drawn[1] if o is not one and _alone(drawn[1], o, "shape")]
    asked += [(f"What colour is the {o.shape}?", capital(o.colour)) for o in others]
    return _sample("word", drawn, asked, rng)


@task
def shape(rng: np.random.Generator, size: tuple[int, int] | None, level: float) -> Sample:
    """A scene with an object of a new shape: what shape it is."""
    while True:
        drawn = _with(rng, size, level, shape="HEART")
        one = drawn[1][drawn[3]]
        if _alone(drawn[1], one, "colour"):
            break
    asked = [
        (f"What shape is the {one.colour} object?", "A HEART."),
        ("What colour is the HEART?", capital(one.colour)),
        ("Where is the HEART?", capital(PLACES[one.place])),
        (f"Is there a {one.colour} HEART?", f"Yes, {PLACES[one.place]}."),
        (f"What is {PLACES[one.place]}?", capital(str(one))),
    ]
    others = [o for o in drawn[1] if o is not one and _alone(drawn[1], o, "colour")]
    asked += [(f"What shape is the {o.colour} object?", capital(article(o.shape))) for o in others]
    return _sample("shape", drawn, asked, rng)


@task
def letter(rng: np.random.Generator, size: tuple[int, int] | None, level: float) -> Sample:
    """One letter written by hand."""
    height, width = size or GRIDS[rng.integers(len(GRIDS))]
    answer = LETTERS[rng.integers(len(LETTERS))]
    side = int(rng.integers(60, min(height, width) - 7))
    zoom = 4
    turn, slant = rng.uniform(-0.1, 0.1), rng.uniform(-0.25, -0.1)
    matrix = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) @ [[1, slant], [0, 1]]
    matrix = matrix * rng.uniform(0.85, 1.0, 2)[:, None]
    ink = Image.new("L", (side * zoom, side * zoom))
    pen, thick = ImageDraw.Draw(ink), rng.uniform(0.07, 0.09) * side * zoom
    for stroke in STROKES[answer].split(", "):
        corners = np.array([[int(c) for c in corner] for corner in stroke.split()]) / 9 - [4 / 9, 0.5]
        bent = (corners + rng.normal(0, 0.025, corners.shape)) @ matrix.T * 0.8
        line = [tuple(p) for p in (smooth(bent) + 0.5) * side * zoom]
        pen.line(line, fill=255, width=round(thick), joint="curve")
        for x, y in (line[0], line[-1]):
            pen.ellipse((x - thick / 2, y - thick / 2, x + thick / 2, y + thick / 2), fill=255)
    picture, _ = paint(rng, (height, width), ())
    x, y = int(rng.integers(width - side + 1)), int(rng.integers(height - side + 1))
    picture.paste(INK[rng.integers(len(INK))], (x, y), ink.reduce(zoom))
    return Sample("letter", (picture,), (("Which letter is this?", answer),), ((),), {"letter": answer}, ((),))


def smooth(corners: np.ndarray) -> np.ndarray:
    """(n, 2) -> (m, 2): a curve through all corners (Catmull and Rom, 1974)."""
    around = np.concatenate([2 * corners[:1] - corners[1:2], corners, 2 * corners[-1:] - corners[-2:-1]])
    t = np.linspace(0, 1, 12, endpoint=False)[:, None]
    parts = [
        b + t / 2 * (c - a) + t**2 * (a - 2.5 * b + 2 * c - d / 2) + t**3 * (1.5 * (b - c) + (d - a) / 2)
        for a, b, c, d in zip(around, around[1:], around[2:], around[3:], strict=False)
    ]
    return np.concatenate([*parts, corners[-1:]])
