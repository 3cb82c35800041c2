"""Teaches the demo three things of which it learned nothing, and measures what it forgets of the rest.

python -m tools.demo.adapt FOLDER            # minutes; goes on where it was stopped
python -m tools.demo.adapt FOLDER --small    # one letter fewer to learn, a tenth of the rows
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from . import tasks, tasks_more  # noqa: F401
from .rows import Row, row, write_rows
from .tasks_new import NEW

# Rows to train on: of the new tasks, and of those that are to stay as they are.
NEW_ROWS = {"word": 350, "shape": 350, "letter": 600}
OLD_ROWS = {
    **{"describe": 150, "ask": 250, "chat": 50, "count": 200, "read": 350, "digit": 150, "point": 100},
    **{"compare": 60, "tiled": 60},
}
FIRST = 50_000_000  # seed of the first sample, by none of which the demo was trained


def training_rows(share: float) -> Iterator[tuple[tasks.Sample, Row]]:
    """Samples of every task and the turn to learn: of new tasks the first one every second time."""
    for name, number in (NEW_ROWS | OLD_ROWS).items():
        for seed in range(FIRST, FIRST + round(share * number)):
            sample = tasks.make(name, "train", seed)
            last = len(sample.turns) - 1
            rng = np.random.default_rng(seed)
            if name == "chat":
                yield sample, row(sample, last)
            else:
                yield sample, row(sample, 0 if name in NEW and rng.random() < 0.5 else int(rng.integers(last + 1)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--share", type=float, default=1.0)
    args = parser.parse_args()
    write_rows(args.folder / "train.jsonl", training_rows(args.share))


if __name__ == "__main__":
    main()
