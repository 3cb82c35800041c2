"""A model in memory to a folder, in MLX's layout or in the one that transformers loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..config.files import writing
from ..errors import OptionError
from ..weights.atomic_folder import beside
from ..weights.names import from_module, is_conv_kernel, parameters
from ..weights.save import save_model, write_json, write_tensors
from .generation_config import as_dict


def save(model: Any, folder: Path, *, hf: bool = False) -> None:
    """Writes weights, config.json and generation_config.json in place of older ones.

    Args:
        model: a whole model.
        folder: made if it is not there.
        hf: as transformers names and turns them; see `save_pretrained`.

    Raises:
        OutputError, OptionError
    """
    config, generation = model.config.to_dict(), as_dict(model.generation_config)
    if not hf:
        save_model(model, folder, config, generation)
        return
    if model.config.quantization:
        raise OptionError("transformers cannot load quantised weights of MLX; load a dense checkpoint, or leave hf out")
    tensors = {}
    for name, array in parameters(model).items():
        tensors[from_module(name, "hub")] = array.transpose(0, 2, 1) if is_conv_kernel(name) else array
    with writing(folder) as target, beside(target / "model") as part:
        write_tensors(tensors, part, file_format="pt")
        write_json(part / "config.json", config)
        write_json(part / "generation_config.json", generation)
        for old in target.glob("model*.safetensors"):
            old.unlink()
        for file in sorted(part.iterdir()):
            file.replace(target / file.name)
