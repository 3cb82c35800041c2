"""A model in memory to a folder, in MLX's layout or in the one that transformers loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..adapters.layers import LoRALinear
from ..backends.thread_state import computing
from ..errors import OptionError
from ..weights.save import save_model
from .generation_config import as_dict


@computing
def save(model: Any, folder: Path, *, hf: bool = False) -> None:
    """Writes weights, config.json and generation_config.json in place of older ones.

    Args:
        model: a whole model.
        folder: made if it is not there.
        hf: as transformers names and turns them; see `save_pretrained`.

    Raises:
        OutputError, NotFiniteError, OptionError
    """
    if hf and model.config.quantization:
        raise OptionError("transformers cannot load quantised weights of MLX; load a dense checkpoint, or leave hf out")
    if any(isinstance(module, LoRALinear) for module in model.modules()):
        raise OptionError("the model is quantised with an adapter beside it; `mlx_lfm2vl.fuse` writes both as one")
    save_model(model, folder, model.config.to_dict(), as_dict(model.generation_config), hf)
