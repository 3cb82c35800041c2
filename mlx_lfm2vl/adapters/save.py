"""An adapter to a folder of PEFT, which transformers loads too."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..backends.thread_state import computing
from ..config.files import writing
from ..model_folder import ADAPTER_CONFIG
from ..weights.names import is_conv_kernel
from ..weights.save import write_json
from .adapter import Adapter
from .read import PEFT_WEIGHTS, PREFIX


@computing
def save_adapter(adapter: Adapter, folder: str | os.PathLike[str], *, dropout: float = 0.0) -> None:
    """Writes adapter_model.safetensors and adapter_config.json, each in place of an older one, the weights first.

    Args:
        adapter: LoRA or DoRA, in all of its layers.
        folder: made if it is not there.
        dropout: that of the training, for the record.

    Raises:
        OutputError
    """
    tensors = {}
    for path, own in adapter.layers.items():
        tensors[f"{PREFIX}{path}.lora_A.weight"] = own.a.T
        tensors[f"{PREFIX}{path}.lora_B.weight"] = own.b.T
        if own.magnitude is not None:
            tensors[f"{PREFIX}{path}.lora_magnitude_vector"] = own.magnitude
    for name, array in adapter.saved.items():
        tensors[PREFIX + name] = array.transpose(0, 2, 1) if is_conv_kernel(name) else array
    with writing(folder) as place:
        replace_tensors(place / PEFT_WEIGHTS, tensors, {"format": "pt"})
        part = place / f".{ADAPTER_CONFIG}.part"
        write_json(part, peft_config(adapter, dropout))
        part.replace(place / ADAPTER_CONFIG)


def replace_tensors(file: Path, tensors: Mapping[str, mx.array], metadata: Mapping[str, str]) -> None:
    """Writes a safetensors file that appears whole or not at all, in place of an older one."""
    part = file.with_name(f".{file.stem}.part.safetensors")
    mx.save_safetensors(str(part), {name: mx.contiguous(array) for name, array in tensors.items()}, dict(metadata))
    with part.open("rb") as stream:
        os.fsync(stream.fileno())
    part.replace(file)


def peft_config(adapter: Adapter, dropout: float) -> dict[str, Any]:
    """adapter_config.json: the first layer's rank and alpha, and those of layers that differ."""
    ranks = {path: own.a.shape[1] for path, own in adapter.layers.items()}
    alphas = {path: ranks[path] * own.scale for path, own in adapter.layers.items()}
    rank, alpha = next(iter(ranks.values()), 8), next(iter(alphas.values()), 8.0)
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": adapter.base,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {path: own for path, own in ranks.items() if own != rank},
        "alpha_pattern": {path: own for path, own in alphas.items() if own != alpha},
        "lora_dropout": dropout,
        "use_dora": any(own.magnitude is not None for own in adapter.layers.values()),
        "use_rslora": False,
        "fan_in_fan_out": False,
        "bias": "none",
        "init_lora_weights": True,
        "target_modules": sorted(adapter.layers),
        "modules_to_save": sorted({name.rpartition(".")[0] for name in adapter.saved}) or None,
    }
