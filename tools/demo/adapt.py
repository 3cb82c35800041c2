"""Teaches the demo three things of which it learned nothing, by an adapter, and measures them and what it knew before.

    python -m tools.demo.adapt FOLDER             # goes on where it was stopped
    python -m tools.demo.adapt FOLDER --draw      # writes the rows only

FOLDER gets train.jsonl, keep.jsonl with rows of the old tasks, which are to be answered as before, rows.jsonl with
held-out rows of all tasks, samples.png with some of the new ones, the adapter, and the answers of the demo without and
with it. Prints the table of `mlx-lfm2vl evaluate` and the time of the training. On Linux MLX gets the system's OpenBLAS
for it, if that is there (Debian: libopenblas0): without it a step takes several times as long.
"""

from __future__ import annotations

import argparse
import itertools
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from ctypes.util import find_library
from pathlib import Path

import numpy as np
from PIL import Image

from . import tasks
from .rows import SCORED, Row, row, scored, write_rows
from .tasks_new import NEW

# Rows to train on: of the new tasks, and of those that are to stay as they are.
NEW_ROWS = {"word": 750, "shape": 780, "letter": 850}
OLD_ROWS = {
    **{"describe": 450, "ask": 850, "quiz": 600, "chat": 1200, "count": 800, "read": 1800, "digit": 500, "point": 600},
    **{"compare": 170, "tiled": 900},
}
ALIKE = ("What colo", "What shape")  # questions that the new rows ask too
FIRST = 50_000_000  # seed of the first sample, by none of which the demo was trained
NEW_HELD_OUT, HELD_OUT = 200, 500  # rows of each task
ACROSS, SIDE, GAP = 6, 112, 8  # of samples.png: samples a row, and pixels
TRAINING = (
    *("--dtype", "float32", "--rank", "16", "--alpha", "32", "--learning-rate", "1.5e-3", "--iters", "780"),
    *("--modules", "language_model.model.layers.*", "--modules", "vision_tower.*"),
    *("--batch-size", "8", "--grad-accumulation-steps", "2", "--keep-weight", "4"),
)


def training_rows(numbers: Mapping[str, int]) -> Iterator[tuple[tasks.Sample, Row]]:
    """So many samples of each task, and of each the turn to learn: by chance, of a new task mostly the scored one, of a
    quiz one that is asked as those of the new tasks are, of a chat the last."""
    for name, number in numbers.items():
        for seed in range(FIRST, FIRST + number):
            sample, rng = tasks.make(name, "train", seed), np.random.default_rng(seed)
            turn = int(rng.integers(len(sample.turns)))
            if name == "chat":
                turn = len(sample.turns) - 1
            elif name in NEW and rng.random() < 0.6:
                turn = 0
            elif name == "quiz":
                alike = [number for number, (asked, _) in enumerate(sample.turns) if asked.startswith(ALIKE)]
                turn = int(rng.choice(alike or [turn]))
            yield sample, row(sample, turn)


def draw_samples(file: Path) -> None:
    """Held-out samples of the new tasks, a row each."""
    sheet = Image.new("RGB", (ACROSS * (SIDE + GAP) - GAP, len(NEW) * (SIDE + GAP) - GAP), "white")
    for down, name in enumerate(NEW):
        for across in range(ACROSS):
            (picture,) = tasks.make(name, "test", FIRST + across, (SIDE, SIDE), 0.0).images
            sheet.paste(picture, (across * (SIDE + GAP), down * (SIDE + GAP)))
    sheet.quantize(128).save(file, optimize=True)


def run(*words: object, **variables: str) -> None:
    """Runs the program, with further variables of the environment, and shows what it says."""
    subprocess.run([sys.executable, "-m", "mlx_lfm2vl", *map(str, words)], check=True, env={**os.environ, **variables})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--draw", action="store_true", help="write the rows only")
    parser.add_argument("-n", type=int, default=HELD_OUT, help="held-out pictures of each old task")
    args = parser.parse_args()
    held_out = args.folder / "rows.jsonl"
    write_rows(args.folder / "train.jsonl", training_rows(NEW_ROWS))
    write_rows(args.folder / "keep.jsonl", training_rows(OLD_ROWS))
    numbers = {**dict.fromkeys(NEW, NEW_HELD_OUT), **dict.fromkeys(SCORED, args.n)}
    write_rows(held_out, itertools.chain.from_iterable(scored(task, number) for task, number in numbers.items()))
    draw_samples(args.folder / "samples.png")
    if args.draw:
        return
    adapter = args.folder / "adapter"
    blas, begun = find_library("openblas"), time.monotonic()
    preload = {"LD_PRELOAD": blas} if blas else {}
    run("lora", "--model", "demo", "--data", args.folder, "--output", adapter, *TRAINING, **preload)
    used, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic() - begun
    run("evaluate", "demo", "--adapter", adapter, "--task", held_out, "--output", args.folder / "answers")
    print(f"\nThe training took {wall:.0f} s, and {used.ru_utime + used.ru_stime:.0f} s of CPU time.")


if __name__ == "__main__":
    main()
