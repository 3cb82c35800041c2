"""`set_seed`, and the random numbers that a call of `generate` begins with."""

from __future__ import annotations

import random
import sys
from typing import Any

import numpy as np

from ..backends.thread_state import computing
from .generation_config import count

_answers: np.random.Generator | None = None  # the numbers that answers begin with after `set_seed`


@computing
def set_seed(seed: Any, deterministic: bool = False) -> None:
    """Makes what follows in this thread repeatable: sampling by `model.generate`, and the random numbers of Python,
    NumPy, MLX, and torch where that is imported.

    Args:
        seed: from 0 to 2^32 - 1.
        deterministic: without effect.

    Raises:
        OptionError
    """
    import mlx.core as mx

    global _answers
    seed = count("seed", seed, 2**32 - 1)
    random.seed(seed)
    np.random.seed(seed)
    mx.random.seed(seed)
    if (torch := sys.modules.get("torch")) is not None:
        torch.manual_seed(seed)
    _answers = np.random.default_rng(seed)


def seed_of_call(seed: int | None) -> np.random.SeedSequence:
    """The beginning of the random numbers of a call: of its own seed, else of `set_seed`, else of the system."""
    if seed is None and _answers is not None:
        seed = int(_answers.integers(2**63))
    return np.random.SeedSequence(seed)
