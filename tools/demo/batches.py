"""Samples of the demo's tasks as batches of tensors, and the row of batches that the demo is trained on.

Contract: batch number ``step`` is a function of ``step``, so a resumed training sees what an uninterrupted one would.
A batch holds one task and one size of picture; pictures that are cut bring views of two sizes, kept by grid.
"""

from __future__ import annotations

import numpy as np
import torch

from . import tasks, tasks_more, vocabulary
from .drawing import GRIDS
from .encoding import IGNORED, encode_sample, patch_labels, patchify, views

# Share of the batches of each task, and how many samples a batch of it holds (a batch of each costs about alike).
MIX = {
    "quiz": 0.18,
    "chat": 0.02,
    "count": 0.34,
    "read": 0.26,
    "digit": 0.03,
    "point": 0.06,
    "compare": 0.07,
    "tiled": 0.04,
}
BATCH = {"quiz": 12, "chat": 18, "count": 28, "read": 36, "digit": 32, "point": 14, "compare": 10, "tiled": 6}
# How much an answer's token counts. Which picture is meant is one token of many in answers about several pictures, the
# others being easy: its gradients would drown in those of the other tasks.
WEIGHT = {"compare": 6.0, "point": 2.0}
# First the tower alone, taught by dense labels: a quarter of the cost of a picture.
WARM_STEPS, WARM_BATCH, WARM_TASKS = 480, 56, ("describe", "count", "read", "read", "digit")
EASY_STEPS = 1200  # over these steps after that, scenes and texts grow from mostly one object or letter to all of them


def collate(samples: list[tasks.Sample]) -> dict:
    """A right-padded batch.

    ``ids``, ``labels``, ``turns``: (samples, length). ``apart``: whether each turn is to see only the pictures and
    itself. ``patches``: grid -> (views, patches, 768) uint8; ``views``: (grid, index there) of each view in the order
    of the text. ``pictures``: the number of the picture that each image token belongs to, of all of them in a row.
    ``named``, ``ways``, ``edges``, ``covered``: the dense labels, (views, patches, ...), unless pictures are cut.
    """
    rows = [encode_sample(s) for s in samples]
    length = max(len(row.ids) for row in rows)
    ids = np.full((len(rows), length), vocabulary.PAD)
    labels = np.full((len(rows), length), IGNORED)
    turns = np.full((len(rows), length), -1)
    for i, row in enumerate(rows):
        here = slice(0, len(row.ids))
        ids[i, here], labels[i, here], turns[i, here] = row.ids, row.labels, row.turns
    patches: dict[tuple[int, int], list[np.ndarray]] = {}
    order = []
    cut = False
    for picture in (np.asarray(p) for s in samples for p in s.images):
        seen = views(picture)
        cut = cut or len(seen) > 1
        for view in seen:
            grid = (view.shape[0] // 16, view.shape[1] // 16)
            order.append((grid, len(patches.setdefault(grid, []))))
            patches[grid].append(patchify(view))
    batch = {
        "ids": torch.from_numpy(ids),
        "labels": torch.from_numpy(labels),
        "turns": torch.from_numpy(turns),
        "task": samples[0].task,
        "apart": samples[0].apart,
        "patches": {grid: torch.from_numpy(np.stack(several)) for grid, several in patches.items()},
        "views": order,
        "pictures": torch.from_numpy((ids == vocabulary.IMAGE_START).cumsum(1)[ids == vocabulary.IMAGE] - 1),
    }
    if not cut:
        dense = [patch_labels(s, i) for s in samples for i in range(len(s.images))]
        for name, parts in zip(("named", "ways", "edges", "covered"), zip(*dense, strict=True), strict=True):
            batch[name] = torch.from_numpy(np.stack(parts))
    return batch


class Batches(torch.utils.data.IterableDataset):
    """The endless row of training batches from a given step on; batch and step belong together."""

    def __init__(self, step: int, scale: int = 1):
        self.step, self.scale = step, scale

    def __iter__(self):
        torch.set_num_threads(1)
        step = self.step
        while True:
            rng = np.random.default_rng([7, step])
            warm = step < WARM_STEPS
            task = str(rng.choice(WARM_TASKS) if warm else rng.choice(list(MIX), p=list(MIX.values())))
            sizes = [g for g in GRIDS if g[1] >= 128] if task == "read" else GRIDS
            size = GRIDS[0] if rng.random() < 0.6 else sizes[rng.integers(len(sizes))]
            if task == "tiled":
                size = tasks_more.TILED[rng.integers(len(tasks_more.TILED))]
            level = 1.0 if warm else min(1.0, (step - WARM_STEPS) / EASY_STEPS)
            number = (WARM_BATCH if warm else BATCH[task]) * self.scale
            yield collate([tasks.make(task, "train", step * 1000 + i, size, level) for i in range(number)])
            step += 1


def to_device(batch: dict, device: torch.device) -> dict:
    def moved(value):
        if isinstance(value, dict):
            return {k: moved(v) for k, v in value.items()}
        return value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value

    return moved(batch)
