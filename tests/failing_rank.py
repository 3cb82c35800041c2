"""The program, in which one rank has an error of its own: `failing_rank.py RANK WHERE WORD ...`."""

import itertools
import os
import sys
from typing import NoReturn

from mlx_lfm2vl.cli import main
from mlx_lfm2vl.generation.scheduler import Scheduler
from mlx_lfm2vl.models.lfm2 import Lfm2DecoderLayer

# A layer amid an answer, where memory may run out; a step outside of its layers; and between two steps.
PLACES = {
    "layer": (Lfm2DecoderLayer, "__call__", 40),
    "step": (Scheduler, "_begin_waiting", 3),
    "prompt": (Scheduler, "add", 1),
}


def fail(owner: type, name: str, call: int) -> None:
    """Lets the call of this number fail, as MLX does."""
    method, calls = getattr(owner, name), itertools.count(1)

    def failing(*arguments: object, **named: object) -> object:
        return method(*arguments, **named) if next(calls) != call else no_memory()

    setattr(owner, name, failing)


def no_memory() -> NoReturn:
    raise RuntimeError("[metal::malloc] no memory")


if __name__ == "__main__":
    rank, where, *words = sys.argv[1:]
    if os.environ["MLX_RANK"] == rank:
        fail(*PLACES[where])
    sys.exit(main(words))
