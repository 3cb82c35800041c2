"""Tensors to a folder in the layout that MLX programs read: shards, a true index, JSON files.

Tensors are computed, written and freed one by one. So writing takes the memory of the largest tensor, whatever the
model's size. The writers of MLX and of the safetensors library need all tensors of a file in memory at once.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..backends.thread_state import computing
from ..config import CausalLMConfig
from ..config.files import writing
from ..errors import WeightsError
from .atomic_folder import beside, check_space
from .files import DTYPES
from .finite import check_finite
from .names import from_module, is_conv_kernel, parameters, turned

SHARD_BYTES = 5 * 10**9
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
Progress = Callable[[int, int], None]  # bytes written, bytes in all
Check = Callable[[str, mx.array], None]  # the tensor's name and the tensor, evaluated


def save_weights(
    model: nn.Module, folder: Path, *, hf: bool = False, shard_bytes: int = SHARD_BYTES, check: Check | None = None
) -> None:
    """Writes the parameters of a whole model, which keeps them, as `write_tensors` does: in MLX's layout, or with `hf`
    as transformers names and turns them."""
    tensors, text_only = {}, isinstance(model.config, CausalLMConfig)
    for name, array in parameters(model).items():
        made = turned(array) if hf and is_conv_kernel(name) else array
        tensors[from_module(name, "hub" if hf else "mlx", text_only)] = made
    write_tensors(tensors, folder, shard_bytes=shard_bytes, file_format="pt" if hf else "mlx", check=check)


@computing
def write_tensors(
    tensors: dict[str, mx.array],
    folder: Path,
    *,
    shard_bytes: int = SHARD_BYTES,
    file_format: str = "mlx",
    check: Check | None = None,
    progress: Progress | None = None,
) -> None:
    """Writes `model*.safetensors` with `model.safetensors.index.json`. Empties `tensors` as it goes.

    `file_format` is the metadata by which readers know the orientation of kernels: `mlx`, or `pt` for torch's. `check`
    sees each tensor before it is written, and raises if it must not be. Raises `OutputError` before the first byte if
    the disk has no room, and `OSError` if it refuses one.
    """
    shards = list(_shards(tensors, shard_bytes))
    total = sum(array.nbytes for array in tensors.values())
    check_space(folder.parent, total)  # the folder itself has a hidden name
    index: dict[str, str] = {}
    done = 0
    for number, shard in enumerate(shards, start=1):
        file = "model.safetensors" if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        for written in _write_shard(tensors, shard, folder / file, file_format, check):
            done += written
            if progress is not None:
                progress(done, total)
        index.update(dict.fromkeys(shard, file))
    write_json(
        folder / "model.safetensors.index.json",
        {"metadata": {"total_size": total}, "weight_map": dict(sorted(index.items()))},
    )


def _shards(tensors: Mapping[str, mx.array], limit: int) -> Iterator[list[str]]:
    shard: list[str] = []
    size = 0
    for name, array in tensors.items():
        if shard and size + array.nbytes > limit:
            yield shard
            shard, size = [], 0
        shard.append(name)
        size += array.nbytes
    yield shard


def _write_shard(
    tensors: dict[str, mx.array], names: list[str], file: Path, file_format: str, check: Check | None
) -> Iterator[int]:
    """One safetensors file; yields the bytes of each tensor when it is written.

    In the file wider types come first, so that every tensor lies aligned; the order of the work is that of `names`,
    in which what is computed together stands together.
    """
    header: dict[str, Any] = {"__metadata__": {"format": file_format}}
    offset = 0
    for name in sorted(names, key=lambda name: -tensors[name].dtype.size):
        array = tensors[name]
        if array.dtype not in DTYPE_NAMES:
            raise WeightsError(f"{file}: tensor {name} has dtype {array.dtype}, which is not written")
        end = offset + array.nbytes
        header[name] = {
            "dtype": DTYPE_NAMES[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        start = stream.tell()
        for name in names:
            array = mx.contiguous(tensors.pop(name))
            mx.eval(array)
            if check is not None:
                check(name, array)
            stream.seek(start + header[name]["data_offsets"][0])
            stream.write(np.array(array.view(mx.uint16) if array.dtype == mx.bfloat16 else array, copy=False).data)
            size = array.nbytes
            del array
            mx.clear_cache()
            yield size


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def save_model(
    model: nn.Module,
    folder: Path,
    config: Mapping[str, Any],
    generation_config: Mapping[str, Any],
    hf: bool = False,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes a whole model into a folder that may hold other files, in place of an older model.

    `hf` and `shard_bytes` as for `save_weights`.

    Older weights are removed once all new files are written and before the first takes its name, so that a process that
    ends there leaves a folder that lacks weights, never one that mixes two models. Raises `OutputError`, and
    `NotFiniteError` for weights of NaN or infinity.
    """
    with writing(folder) as target, beside(target / "model") as part:
        save_weights(model, part, hf=hf, shard_bytes=shard_bytes, check=_check_finite)
        write_json(part / "config.json", config)
        write_json(part / "generation_config.json", generation_config)
        for old in target.glob("model*.safetensors"):
            old.unlink()
        for file in sorted(part.iterdir()):
            file.replace(target / file.name)


def _check_finite(name: str, array: mx.array) -> None:
    check_finite(name, array, "" if array.dtype == mx.float16 else "nothing was written")
