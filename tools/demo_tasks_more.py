"""Further tasks of the demo model: reading, boxes, several pictures, tiles. Importing this module registers them.

Same contract as demo_tasks. The bundled weights were not trained on these yet; they are here so that a longer training
can take them in without a change to tokenizer, template or model shape.

Limits: `read` has the one font that ships with Pillow (Aileron), in capitals and digits.
"""

from __future__ import annotations

import json

import numpy as np
from demo_tasks import GRIDS, SHAPES, Sample, Thing, article, ask_about, paint, scene, task
from PIL import Image, ImageDraw, ImageFont

LETTERS = "ABCDEFGHIJKLMNPQRSTUVWXYZ0123456789"  # without O, which looks like 0
READ = ("Read the text.", "What does it say?", "What text is this?")
INK = ((20, 20, 20), (150, 20, 20), (20, 40, 140), (20, 90, 40))
# Sizes beyond the demo's budget of one view, and so cut into tiles: height, width.
TILED = ((256, 256), (128, 384), (384, 128))


@task
def read(rng: np.random.Generator, size: tuple[int, int] | None, level: float) -> Sample:
    """One to eight printed capitals and digits on a pale background."""
    height, width = size or GRIDS[rng.integers(len(GRIDS))]
    number = int(rng.integers(1, 1 + min(1 + round(7 * level), width // 15)))
    text = "".join(LETTERS[i] for i in rng.integers(len(LETTERS), size=number))
    font = ImageFont.load_default(float(rng.uniform(20, 34)))
    left, top, right, bottom = font.getbbox(text)
    if right - left > width - 10:
        font = ImageFont.load_default(font.size * (width - 12) / (right - left))
        left, top, right, bottom = font.getbbox(text)
    picture, _ = paint(rng, (height, width), ())
    x = rng.uniform(4, width - 4 - (right - left)) - left
    y = rng.uniform(4, height - 4 - (bottom - top)) - top
    ImageDraw.Draw(picture).text((float(x), float(y)), text, INK[rng.integers(len(INK))], font)
    return Sample("read", (picture,), ((READ[rng.integers(len(READ))], text),), ((),), {"text": text})


@task
def point(rng: np.random.Generator, size: tuple[int, int] | None, level: float) -> Sample:
    """The boxes of a kind of object as JSON, by LFM2.5-VL-3B's recipe: image_id, bbox_2d in 0 to 1000, label."""
    height, width = size or GRIDS[rng.integers(len(GRIDS))]
    _, things = scene(rng, (height, width), level)
    picture, extents = paint(rng, (height, width), things)
    kinds = [(o.shape, o.colour) for o in things]
    absent = rng.random() < 0.15
    shape, colour = kinds[rng.integers(len(kinds))]
    if absent:
        shape = next(s for s in SHAPES if s not in [k for k, _ in kinds])
    label = shape if rng.random() < 0.5 else f"{colour} {shape}"
    found = []
    for o, extent in zip(things, extents, strict=True):
        if label in (o.shape, f"{o.colour} {o.shape}"):
            sides = (width, height, width, height)
            box = [round(1000 * v / side) for v, side in zip(extent, sides, strict=True)]
            found.append({"image_id": 0, "bbox_2d": box, "label": label})
    turns = ((f"Provide bounding boxes for the {label}.", json.dumps(found)),)
    return Sample("point", (picture,), turns, (things,), {"boxes": found})


@task
def compare(rng: np.random.Generator, size: tuple[int, int] | None, level: float) -> Sample:
    """Two or three pictures, each of one object; exactly one of them shows what is asked for."""
    size = size or GRIDS[0]
    number = 3 if level > 0.5 and rng.random() < 0.5 else 2
    shown: list[tuple[Image.Image, tuple[Thing, ...]]] = []
    while len(shown) < number:
        picture, things = scene(rng, size, 0.0)
        if all((o.shape, o.colour) != (p.shape, p.colour) for o in things for _, other in shown for p in other):
            shown.append((picture, things))
    right = int(rng.integers(number))
    one = shown[right][1][0]
    question = f"Which image shows {article(f'{one.colour} {one.shape}')}?"
    turns = ((question, f"Media-{right + 1}."),)
    return Sample("compare", tuple(p for p, _ in shown), turns, tuple(t for _, t in shown), {"image": right})


@task
def tiled(rng: np.random.Generator, size: tuple[int, int] | None, level: float) -> Sample:
    """A question about a scene larger than one view, whose small objects only the tiles show clearly."""
    picture, things = scene(rng, size or TILED[rng.integers(len(TILED))], level)
    kind, question, answer = ask_about(rng, things)
    return Sample("tiled", (picture,), ((question, answer),), (things,), {"kind": kind})
