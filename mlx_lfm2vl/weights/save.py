"""A model in memory to a folder in MLX's layout: shards, a true index, config.json.

The names and the record of quantisation are those that mlx-vlm and mlx-lm read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from .names import from_module, parameters

SHARD_BYTES = 5 * 10**9


def save_weights(model: nn.Module, folder: Path, *, shard_bytes: int = SHARD_BYTES) -> None:
    """Writes the parameters of a whole model as `model*.safetensors` with `model.safetensors.index.json`."""
    tensors = [(from_module(name, "mlx"), array) for name, array in parameters(model).items()]
    shards = list(_shards(tensors, shard_bytes))
    index: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = "model.safetensors" if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        mx.save_safetensors(str(folder / file), shard, metadata={"format": "mlx"})
        index.update(dict.fromkeys(shard, file))
    total = sum(array.nbytes for _, array in tensors)
    write_json(
        folder / "model.safetensors.index.json",
        {"metadata": {"total_size": total}, "weight_map": dict(sorted(index.items()))},
    )


def _shards(tensors: list[tuple[str, mx.array]], limit: int) -> Iterator[dict[str, mx.array]]:
    shard: dict[str, mx.array] = {}
    size = 0
    for name, array in tensors:
        if shard and size + array.nbytes > limit:
            yield shard
            shard, size = {}, 0
        shard[name] = array
        size += array.nbytes
    yield shard


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
