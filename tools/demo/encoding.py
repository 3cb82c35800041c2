"""A demo sample as the model sees it: token ids with labels, the views of its pictures, and what each patch shows.

Contract: the ids are those that the demo folder's template and processor make of `Sample.messages()`, and the views
those that they cut (tests/test_demo_encoding.py); pixels are patches row by row, each as (y, x, channel), uint8 here.
NumPy only.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from PIL import Image
from tokenizers import Tokenizer

from mlx_lfm2vl.config import ProcessorConfig
from mlx_lfm2vl.processing import geometry
from mlx_lfm2vl.processing.resize import resize

from . import files, vocabulary
from .drawing import COLOURS, SHAPES, SIZES
from .tasks import Sample
from .tasks_more import CHARACTERS

PATCH = files.VISION_CONFIG["patch_size"]
CELL = 4  # pixels; the finest dense label says how much of each such square is covered by ink
IGNORED = -100
PROCESSOR = ProcessorConfig.from_dicts(processor=files.IMAGE_PROCESSOR).image


@functools.cache
def tokenizer() -> Tokenizer:
    return vocabulary.tokenizer()


@functools.lru_cache(maxsize=100_000)
def encode(text: str) -> tuple[int, ...]:
    return tuple(tokenizer().encode(text, add_special_tokens=False).ids)


@dataclass(frozen=True)
class Encoded:
    """``ids`` of a whole conversation; ``labels``: the ids where the assistant speaks, -100 elsewhere; ``turns``: the
    number of each token's turn, the pictures and what stands before them being turn 0.
    """

    ids: list[int]
    labels: list[int]
    turns: list[int]


def encode_sample(sample: Sample) -> Encoded:
    newline, user, assistant = encode("\n"), encode("user"), encode("assistant")
    ids: list[int] = [vocabulary.BOS, vocabulary.IM_START, *user, *newline]
    for number, picture in enumerate(sample.images, start=1):
        ids += [*encode(f"Media-{number}: ")] if len(sample.images) > 1 else []
        ids += picture_ids(geometry.plan(picture.height, picture.width, PROCESSOR))
    labels, turns = [IGNORED] * len(ids), [0] * len(ids)
    for number, (question, answer) in enumerate(sample.turns, start=1):
        head = [vocabulary.IM_START, *user, *newline] if number > 1 else []
        head += [*encode(question), vocabulary.IM_END, *newline, vocabulary.IM_START, *assistant, *newline]
        said = [*encode(answer), vocabulary.IM_END]
        ids += [*head, *said, *newline]
        labels += [IGNORED] * len(head) + said + [IGNORED] * len(newline)
        turns += [number] * (len(ids) - len(turns))
    return Encoded(ids, labels, turns)


def picture_ids(plan: geometry.ViewPlan) -> list[int]:
    """What stands for a picture in the text: each view's image tokens, tiles and thumbnail after their markers."""
    if not plan.tiled:
        views = [vocabulary.IMAGE] * plan.tokens
    else:
        views = []
        for tile in range(plan.rows * plan.cols):
            row, col = divmod(tile, plan.cols)
            views += [encode(f"<|img_row_{row + 1}_col_{col + 1}|>")[0], *[vocabulary.IMAGE] * plan.tokens_per_tile]
        views += [encode("<|img_thumbnail|>")[0], *[vocabulary.IMAGE] * plan.tokens_for_image]
    return [vocabulary.IMAGE_START, *views, vocabulary.IMAGE_END]


def views(picture: np.ndarray) -> list[np.ndarray]:
    """The views of a picture, (height, width, 3) uint8 each: itself, or its tiles and its thumbnail.

    Raises ValueError for a picture that the processor would resize before it cuts it: none is drawn.
    """
    height, width = picture.shape[:2]
    plan = geometry.plan(height, width, PROCESSOR)
    if not plan.tiled:
        if (plan.height, plan.width) != (height, width):
            raise ValueError(f"a picture of {width}x{height} does not keep its size")
        return [picture]
    side = plan.tile_size
    if (plan.rows * side, plan.cols * side) != (height, width):
        raise ValueError(f"a picture of {width}x{height} is not cut into whole tiles")
    tiles = picture.reshape(plan.rows, side, plan.cols, side, 3).swapaxes(1, 2).reshape(-1, side, side, 3)
    return [*tiles, *resize(Image.fromarray(picture), [(plan.height, plan.width)], PROCESSOR.resample)]


def patchify(picture: np.ndarray) -> np.ndarray:
    """(height, width, 3) uint8 -> (patches, 768) uint8, patches row by row, each as (y, x, channel)."""
    rows, cols = picture.shape[0] // PATCH, picture.shape[1] // PATCH
    return picture.reshape(rows, PATCH, cols, PATCH, 3).swapaxes(1, 2).reshape(rows * cols, -1)


# --- what each patch shows: labels that teach the tower directly

# Classes of each kind, class 0 being "none": an object's shape, colour, size and place; the printed characters under
# the left and the right half of the patch's middle line; the handwritten digit.
KINDS = (len(SHAPES), len(COLOURS), len(SIZES), 9, len(CHARACTERS), len(CHARACTERS), 10)


def patch_labels(sample: Sample, picture: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Of one picture that is a single view: (patches, 7) class indices; (patches, 6) float32, the way from the patch's
    middle to the object's and to the left, top, right and bottom of its ink, in patches; (patches, 4) int64, where
    those four edges lie, as indices into `vocabulary.COORDINATES`; (patches, 16) float32, the share of each cell that
    is no background.
    """
    pixels = np.asarray(sample.images[picture])
    rows, cols = pixels.shape[0] // PATCH, pixels.shape[1] // PATCH
    y, x = np.mgrid[:rows, :cols] * PATCH + PATCH / 2
    named = np.zeros((rows, cols, len(KINDS)), np.int64)
    ways = np.zeros((rows, cols, 6), np.float32)
    edges = np.zeros((rows, cols, 4), np.int64)
    best = np.full((rows, cols), np.inf)
    for o, (left, top, right, bottom) in zip(sample.things[picture], sample.extents[picture], strict=True):
        distance = np.hypot(x - o.x, y - o.y) - o.radius
        here = (distance < np.minimum(best, 3.0)) | ((abs(x - o.x) <= PATCH / 2) & (abs(y - o.y) <= PATCH / 2))
        best = np.where(here, distance, best)
        named[here, :4] = (
            SHAPES.index(o.shape) + 1,
            list(COLOURS).index(o.colour) + 1,
            list(SIZES).index(o.size) + 1,
            3 * int(3 * o.y / (rows * PATCH)) + int(3 * o.x / (cols * PATCH)) + 1,
        )
        sides = (cols, rows, cols, rows)
        edges[here] = [round(100 * v / (PATCH * n)) for v, n in zip((left, top, right, bottom), sides, strict=True)]
        ways[here] = (np.stack([o.x - x, o.y - y, left - x, top - y, right - x, bottom - y], -1) / PATCH)[here]
    for character, (left, top, right, bottom) in sample.facts.get("glyphs", ()):
        beside = (y > top - 4) & (y < bottom + 4)
        for kind, shift in ((4, -PATCH / 4), (5, PATCH / 4)):
            named[beside & (x + shift >= left) & (x + shift < right), kind] = CHARACTERS.index(character) + 1
    if "box" in sample.facts:
        left, top, right, bottom = sample.facts["box"]
        named[(x > left) & (x < right) & (y > top) & (y < bottom), 6] = int(sample.facts["digit"]) + 1
    return named.reshape(-1, len(KINDS)), ways.reshape(-1, 6), edges.reshape(-1, 4), coverage(pixels)


def coverage(picture: np.ndarray) -> np.ndarray:
    """How much of each cell of each patch is no background: (height, width, 3) uint8 -> (patches, 16) float32."""
    distance = abs(picture.astype(np.int16) - np.median(picture[::5, ::5], axis=(0, 1)).astype(np.int16)).max(-1)
    height, width = distance.shape
    cells = (distance > 45).reshape(height // CELL, CELL, width // CELL, CELL).mean((1, 3), dtype=np.float32)
    side = PATCH // CELL
    return cells.reshape(height // PATCH, side, width // PATCH, side).swapaxes(1, 2).reshape(-1, side * side)
