"""A model in memory to a folder, in MLX's layout or in the one that transformers loads."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ..adapters.layers import LoRALinear
from ..backends.thread_state import computing
from ..errors import OptionError
from ..weights.save import SHARD_BYTES, save_model
from .generation_config import as_dict

_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def shard_bytes(size: int | str) -> int:
    """The bytes that transformers' `max_shard_size` says, a number or a text such as "5GB". Raises `OptionError`."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]I?B)", str(size).strip().upper())
    made = int(float(found[1]) * _UNITS[found[2]]) if found else size
    if isinstance(made, bool) or not isinstance(made, int) or made < 1:
        raise OptionError(f"max_shard_size is {size!r}, expected bytes, or a text such as '5GB' or '200MB'")
    return made


@computing
def save(model: Any, folder: Path, *, hf: bool = False, size: int = SHARD_BYTES) -> None:
    """Writes weights, config.json and generation_config.json in place of older ones.

    Args:
        model: a whole model.
        folder: made if it is not there.
        hf: as transformers names and turns them; see `save_pretrained`.
        size: the bytes of a file of weights.

    Raises:
        OutputError, NotFiniteError, OptionError
    """
    if hf and model.config.quantization:
        raise OptionError("transformers cannot load quantised weights of MLX; load a dense checkpoint, or leave hf out")
    if any(isinstance(module, LoRALinear) for module in model.modules()):
        raise OptionError("the model is quantised with an adapter beside it; `mlx_lfm2vl.fuse` writes both as one")
    save_model(model, folder, model.config.to_dict(), as_dict(model.generation_config), hf, size)
