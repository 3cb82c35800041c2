"""Samples of the demo's tasks as batches of tensors, with labels for the answers and for every patch.

Contract: batch number ``step`` is a function of ``step``, so a resumed training sees what an uninterrupted one would.
Pixels are those of the reference's image processor: patches row by row, each as (y, x, channel), as uint8 here.

Limits: one picture a sample, all of a batch of one size, none beyond the budget of one view.
"""

from __future__ import annotations

import functools

import demo_files
import demo_tasks
import numpy as np
import torch
from tokenizers import Tokenizer

PATCH = demo_files.VISION_CONFIG["patch_size"]
CELL = 4  # pixels; the finest dense label says how much of each such square is covered by objects
IGNORED = -100
# Share of the batches of each task, and how many samples a batch of it holds (rows of alike length cost alike).
MIX = {"chat": 0.55, "count": 0.45}
BATCH = {"chat": 20, "count": 32}
WARM_STEPS, WARM_BATCH = 480, 64  # first the tower alone, taught by dense labels: a quarter of the cost of a picture
EASY_STEPS = 300  # over these steps after that, scenes grow from mostly one object to up to three


@functools.cache
def tokenizer() -> Tokenizer:
    return demo_files.tokenizer()


@functools.lru_cache(maxsize=100_000)
def encode(text: str) -> tuple[int, ...]:
    return tuple(tokenizer().encode(text, add_special_tokens=False).ids)


def encode_sample(sample: demo_tasks.Sample) -> tuple[list[int], list[int]]:
    """Token ids of the whole conversation, and the labels: ids where the assistant speaks, -100 elsewhere."""
    newline = encode("\n")
    ids: list[int] = [demo_files.BOS]
    labels: list[int] = [IGNORED]
    for index, (question, answer) in enumerate(sample.turns):
        head = [demo_files.IM_START, *encode("user"), *newline]
        for picture in sample.images if index == 0 else ():
            tokens = (picture.width // (2 * PATCH)) * (picture.height // (2 * PATCH))
            head += [demo_files.IMAGE_START, *[demo_files.IMAGE] * tokens, demo_files.IMAGE_END]
        head += [*encode(question), demo_files.IM_END, *newline, demo_files.IM_START, *encode("assistant"), *newline]
        said = [*encode(answer), demo_files.IM_END]
        ids += [*head, *said, *newline]
        labels += [IGNORED] * len(head) + said + [IGNORED] * len(newline)
    return ids, labels


def patchify(picture: np.ndarray) -> np.ndarray:
    """(height, width, 3) uint8 -> (patches, 768) uint8, patches row by row, each as (y, x, channel)."""
    rows, cols = picture.shape[0] // PATCH, picture.shape[1] // PATCH
    return picture.reshape(rows, PATCH, cols, PATCH, 3).swapaxes(1, 2).reshape(rows * cols, -1)


def coverage(picture: np.ndarray) -> np.ndarray:
    """How much of each cell of each patch is no background: (height, width, 3) uint8 -> (patches, 16) float32."""
    distance = abs(picture.astype(np.int16) - np.median(picture[::5, ::5], axis=(0, 1)).astype(np.int16)).max(-1)
    height, width = distance.shape
    cells = (distance > 45).reshape(height // CELL, CELL, width // CELL, CELL).mean((1, 3), dtype=np.float32)
    side = PATCH // CELL
    return cells.reshape(height // PATCH, side, width // PATCH, side).swapaxes(1, 2).reshape(-1, side * side)


def patch_labels(things: tuple[demo_tasks.Thing, ...], rows: int, cols: int) -> tuple[np.ndarray, np.ndarray]:
    """What each patch shows: (patches, 4) indices of shape, colour, size and place, 0 where there is no object, and
    (patches, 2) float32, the way from the patch's middle to the object's in patches.
    """
    y, x = np.mgrid[:rows, :cols] * PATCH + PATCH / 2
    out = np.zeros((rows, cols, 4), np.int64)
    way = np.zeros((rows, cols, 2), np.float32)
    best = np.full((rows, cols), np.inf)
    for o in things:
        distance = np.hypot(x - o.x, y - o.y) - o.radius
        here = (distance < np.minimum(best, 3.0)) | ((abs(x - o.x) <= PATCH / 2) & (abs(y - o.y) <= PATCH / 2))
        best = np.where(here, distance, best)
        out[here] = (
            demo_tasks.SHAPES.index(o.shape) + 1,
            list(demo_tasks.COLOURS).index(o.colour) + 1,
            list(demo_tasks.SIZES).index(o.size) + 1,
            3 * int(3 * o.y / (rows * PATCH)) + int(3 * o.x / (cols * PATCH)) + 1,
        )
        way[here] = np.stack([o.x - x, o.y - y], -1)[here] / PATCH
    return out.reshape(-1, 4), way.reshape(-1, 2)


def collate(samples: list[demo_tasks.Sample]) -> dict[str, torch.Tensor | tuple[int, int]]:
    """Samples with one picture each, all of one size, as a right-padded batch."""
    rows = [encode_sample(s) for s in samples]
    length = max(len(ids) for ids, _ in rows)
    ids = np.full((len(rows), length), demo_files.PAD)
    labels = np.full((len(rows), length), IGNORED)
    for i, (row, said) in enumerate(rows):
        ids[i, : len(row)], labels[i, : len(row)] = row, said
    pictures = [np.asarray(s.images[0]) for s in samples]
    grid = (pictures[0].shape[0] // PATCH, pictures[0].shape[1] // PATCH)
    named, ways = zip(*(patch_labels(s.things[0], *grid) for s in samples), strict=True)
    return {
        "ids": torch.from_numpy(ids),
        "labels": torch.from_numpy(labels),
        "patches": torch.from_numpy(np.stack([patchify(p) for p in pictures])),
        "named": torch.from_numpy(np.stack(named)),
        "ways": torch.from_numpy(np.stack(ways)),
        "covered": torch.from_numpy(np.stack([coverage(p) for p in pictures])),
        "grid": grid,
    }


class Batches(torch.utils.data.IterableDataset):
    """The endless row of training batches from a given step on; batch and step belong together."""

    def __init__(self, step: int, scale: int = 1):
        self.step, self.scale = step, scale

    def __iter__(self):
        step = self.step
        while True:
            rng = np.random.default_rng([7, step])
            task = str(rng.choice(list(MIX), p=list(MIX.values())))
            square = rng.random() < 0.7
            size = demo_tasks.GRIDS[0] if square else demo_tasks.GRIDS[rng.integers(1, len(demo_tasks.GRIDS))]
            warm = step < WARM_STEPS
            level = 1.0 if warm else min(1.0, (step - WARM_STEPS) / EASY_STEPS)
            number = (WARM_BATCH if warm else BATCH[task]) * self.scale
            yield collate([demo_tasks.make(task, "train", step * 1000 + i, size, level) for i in range(number)])
            step += 1


def to_device(batch: dict, device: torch.device) -> dict:
    return {k: v.to(device, non_blocking=True) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
