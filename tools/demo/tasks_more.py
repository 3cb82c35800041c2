"""Further tasks of the demo: reading, handwriting, boxes, several pictures, tiled pictures, many questions at once.

Importing this module registers them with tasks.py. Reading draws with Aileron, which Pillow ships, and with four
cuts of DejaVu, which matplotlib ships; the handwritten digits are those of the UCI collection in scikit-learn. Both
packages are imported when such a sample is first drawn.

Limits: texts are capitals and digits on one line; letter O occurs in words only, as it looks like the digit.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .drawing import GRIDS, PLACES, SHAPES, Box, Thing, paint, scene
from .tasks import DESCRIBE, Sample, article, ask_about, capital, describe_things, task

CODE = "ABCDEFGHIJKLMNPQRSTUVWXYZ0123456789"
CHARACTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
WORDS = tuple((Path(__file__).parent / "words.txt").read_text().split())
FURTHER = ("read", "handwritten", "point", "compare", "tiled")  # tasks of this module that are scored
READ = ("Read the text.", "What does it say?", "What text is this?")
INK = ((20, 20, 20), (150, 20, 20), (20, 40, 140), (20, 90, 40))
FONTS = ("", "DejaVuSans.ttf", "DejaVuSans-Bold.ttf", "DejaVuSerif.ttf", "DejaVuSansMono.ttf")  # "" is Pillow's own
# Sizes beyond the demo's budget of one view, and so cut into tiles: height, width.
TILED = ((256, 256), (128, 384), (384, 128))
FIRST_TEST_DIGIT = 1437  # of the 1,797 handwritten digits the last 360 are never trained on: other hands wrote them


_BICUBIC = Image.Resampling.BICUBIC


@functools.lru_cache(maxsize=256)
def font(name: str, size: int) -> ImageFont.FreeTypeFont:
    if not name:
        plain = ImageFont.load_default(float(size))
        assert isinstance(plain, ImageFont.FreeTypeFont)
        return plain
    import matplotlib

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size)


@functools.cache
def handwriting() -> tuple[np.ndarray, np.ndarray]:
    """(1797, 8, 8) uint8 of ink from 0 to 255, and the digits."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    return (digits.images * 255 / 16).round().astype(np.uint8), digits.target


def _text(rng: np.random.Generator, most: int) -> str:
    """A word, a number or a mixture of both, of 3 to 8 characters, or fewer where ``most`` is less."""
    kind = rng.random()
    if kind < 0.5 and most >= 3:
        return str(rng.choice([w for w in WORDS if len(w) <= most]))
    letters = CODE[-10:] if kind < 0.8 else CODE
    length = int(rng.integers(min(3, most), most + 1))
    return "".join(letters[i] for i in rng.integers(len(letters), size=length))


@task
def read(rng: np.random.Generator, size: tuple[int, int] | None, level: float) -> Sample:
    """One printed word or number in one of five cuts, sizes from 18 to 34 pixels as the width allows, light noise."""
    wide = [g for g in GRIDS if g[1] >= 128]
    height, width = size or (GRIDS[0] if rng.random() < 0.5 else wide[rng.integers(len(wide))])
    text = _text(rng, min(1 + round(7 * level), width // 15))
    name, points = FONTS[rng.integers(len(FONTS))], int(rng.integers(20, 35))
    cut = font(name, points)
    left, top, right, bottom = cut.getbbox(text)
    while right - left > width - 8:
        points -= 1
        cut = font(name, points)
        left, top, right, bottom = cut.getbbox(text)
    picture, _ = paint(rng, (height, width), ())
    x = rng.uniform(4, width - 4 - (right - left)) - left
    y = rng.uniform(4, height - 4 - (bottom - top)) - top
    ImageDraw.Draw(picture).text((float(x), float(y)), text, INK[rng.integers(len(INK))], cut)
    edges = [float(x + cut.getlength(text[:i])) for i in range(len(text) + 1)]
    glyphs = [(c, (edges[i], float(y + top), edges[i + 1], float(y + bottom))) for i, c in enumerate(text)]
    turns = ((READ[rng.integers(len(READ))], text),)
    return Sample("read", (picture,), turns, ((),), {"text": text, "glyphs": glyphs}, ((),))


def _digit(rng: np.random.Generator, size: tuple[int, int] | None, first: int, stop: int, lean: float = 0.0) -> Sample:
    height, width = size or GRIDS[rng.integers(len(GRIDS))]
    pictures, digits = handwriting()
    number = int(rng.integers(first, stop))
    side = int(rng.integers(56, min(height, width) - 3))
    ink = Image.fromarray(pictures[number]).resize((side, side), _BICUBIC)
    if lean:  # any matrix near the identity, about the middle
        a, b, c, d = np.eye(2).reshape(-1) + rng.uniform(-lean, lean, 4) * (0.6, 1, 1, 0.6)
        shifts = (side / 2 * (1 - a - b), side / 2 * (1 - c - d))
        ink = ink.transform(ink.size, Image.Transform.AFFINE, (a, b, shifts[0], c, d, shifts[1]), _BICUBIC)
    picture, _ = paint(rng, (height, width), ())
    x, y = int(rng.integers(width - side + 1)), int(rng.integers(height - side + 1))
    picture.paste(INK[rng.integers(len(INK))], (x, y), ink)
    answer = str(digits[number])
    turns = (("Which digit is this?", answer),)
    box = (float(x), float(y), float(x + side), float(y + side))
    return Sample("digit", (picture,), turns, ((),), {"digit": answer, "box": box, "number": number}, ((),))


@task
def digit(rng: np.random.Generator, size: tuple[int, int] | None, level: float) -> Sample:
    """One handwritten digit, among those of training, leaning as other hands might write it."""
    return _digit(rng, size, 0, FIRST_TEST_DIGIT, lean=0.25)


@task
def handwritten(rng: np.random.Generator, size: tuple[int, int] | None, level: float) -> Sample:
    """One handwritten digit, among those that training never sees, in any split."""
    return _digit(rng, size, FIRST_TEST_DIGIT, 1797)


def boxes(rng: np.random.Generator, things: tuple[Thing, ...], extents: tuple[Box, ...], size: tuple[int, int]):
    """(question, answer, boxes) for one label; in 15 of 100 cases nothing of that label is there.

    The answer tells coordinates in tens, as 10 of 1000 are about one pixel; the boxes are exact.
    """
    height, width = size
    kinds = [(o.shape, o.colour) for o in things]
    absent = rng.random() < 0.15
    shape, colour = kinds[rng.integers(len(kinds))]
    if absent:
        shape = next(s for s in SHAPES if s not in [k for k, _ in kinds])
    label = shape if rng.random() < 0.5 else f"{colour} {shape}"
    sides = (width, height, width, height)
    found = [
        [1000 * v / side for v, side in zip(extent, sides, strict=True)]
        for o, extent in zip(things, extents, strict=True)
        if label in (o.shape, f"{o.colour} {o.shape}")
    ]
    told = [{"image_id": 0, "bbox_2d": [10 * round(v / 10) for v in box], "label": label} for box in found]
    return f"Provide bounding boxes for the {label}.", json.dumps(told), found


@task
def point(rng: np.random.Generator, size: tuple[int, int] | None, level: float) -> Sample:
    """The boxes of a kind of object as JSON, by LFM2.5-VL-3B's recipe: image_id, bbox_2d in 0 to 1000, label; further
    turns ask for others."""
    height, width = size or GRIDS[rng.integers(len(GRIDS))]
    picture, things, extents = scene(rng, (height, width), level)
    question, answer, found = boxes(rng, things, extents, (height, width))
    turns = [(question, answer), *(boxes(rng, things, extents, (height, width))[:2] for _ in range(3))]
    return Sample("point", (picture,), tuple(dict.fromkeys(turns)), (things,), {"boxes": found}, (extents,), apart=True)


@task
def compare(rng: np.random.Generator, size: tuple[int, int] | None, level: float) -> Sample:
    """Two or three pictures; questions that exactly one of them answers, where its object is, and what one of them
    shows, in an order from which no answer can be guessed."""
    size = size or GRIDS[0]
    number = 3 if level > 0.5 and rng.random() < 0.5 else 2
    shown: list[tuple[Image.Image, tuple[Thing, ...], tuple[Box, ...]]] = []
    while len(shown) < number:
        picture, things, extents = scene(rng, size, 0.0)
        if all((o.shape, o.colour) != (p.shape, p.colour) for o in things for _, other, _ in shown for p in other):
            shown.append((picture, things, extents))
    which, where = [], []
    for right in rng.integers(number, size=3):
        one = shown[right][1][0]
        which.append((f"Which image shows {article(f'{one.colour} {one.shape}')}?", f"Media-{right + 1}."))
    for right in rng.integers(number, size=2):
        one = shown[right][1][0]
        where.append((f"Where is the {one.colour} {one.shape}?", capital(f"{PLACES[one.place]} of Media-{right + 1}")))
    what = [(f"What does Media-{i + 1} show?", describe_things(shown[i][1])) for i in rng.integers(number, size=2)]
    others = [*which[1:], *where, *what]
    turns = [which[0], *(others[i] for i in rng.permutation(len(others)))]
    pictures, kept, drawn = zip(*shown, strict=True)
    return Sample("compare", pictures, tuple(turns), kept, {"image": int(turns[0][1][-2]) - 1}, drawn, apart=True)


@task
def tiled(rng: np.random.Generator, size: tuple[int, int] | None, level: float) -> Sample:
    """Questions about a scene larger than one view, whose small objects only the tiles show clearly."""
    picture, things, extents = scene(rng, size or TILED[rng.integers(len(TILED))], level)
    asked = [ask_about(rng, things) for _ in range(6)]
    turns = tuple((question, answer) for _, question, answer in asked)
    return Sample("tiled", (picture,), turns, (things,), {"kind": asked[0][0]}, (extents,), apart=True)


@task
def quiz(rng: np.random.Generator, size: tuple[int, int] | None, level: float) -> Sample:
    """Many questions about one scene, each to be answered from the picture alone: what training learns most from."""
    height, width = size or GRIDS[rng.integers(len(GRIDS))]
    picture, things, extents = scene(rng, (height, width), level)
    turns = [ask_about(rng, things)[1:] for _ in range(8)]
    turns.append((DESCRIBE[rng.integers(len(DESCRIBE))], describe_things(things)))
    if rng.random() < 0.6:
        turns.append(boxes(rng, things, extents, (height, width))[:2])
    turns = [turns[i] for i in rng.permutation(len(turns))]
    return Sample("quiz", (picture,), tuple(dict.fromkeys(turns)), (things,), extents=(extents,), apart=True)
