"""Safetensors files: what the header check lets through, MLX reads to the last byte."""

from __future__ import annotations

import functools
import json
import random
import struct
from pathlib import Path

import mlx.core as mx
import numpy as np

from mlx_lfm2vl.errors import WeightsError
from mlx_lfm2vl.weights.files import read_header

from .folders import DEMO, GOLDEN, FolderEntrance, change_json, place


def _file(header: dict, size: int) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(range(256)) * (size // 256) + bytes(size % 256)


def _small(file: Path) -> bytes:
    """A real file's header with its first names, its tensors cut to a few numbers."""
    data = file.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header, size = {}, 0
    for name, entry in list(json.loads(data[8 : 8 + length]).items())[:40]:
        if name == "__metadata__":
            header[name] = entry
            continue
        shape = [min(axis, 2) for axis in entry["shape"]]
        end = size + int(np.prod(shape)) * {"F32": 4, "BF16": 2, "F16": 2, "U32": 4}[entry["dtype"]]
        header[name] = {"dtype": entry["dtype"], "shape": shape, "data_offsets": [size, end]}
        size = end
    return _file(header, size)


@functools.cache
def seeds() -> dict[str, bytes]:
    files = {folder.name: folder / "model.safetensors" for folder in (DEMO, GOLDEN / "gen2", GOLDEN / "untied")}
    made = {name: _small(file) for name, file in files.items()}
    for dtype, bits in (("F16", 16), ("U8", 8), ("I64", 64), ("BOOL", 8), ("F8_E4M3", 8)):
        size = 6 * bits // 8
        made[dtype] = _file({"a": {"dtype": dtype, "shape": [3, 2], "data_offsets": [0, size]}}, size)
    return made


def change(data: bytes, rng: random.Random) -> bytes:
    """Another header, of its true length, before the same numbers."""
    (length,) = struct.unpack("<Q", data[:8])
    text = change_json(data[8 : 8 + length], rng)
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def run(data: bytes) -> int:
    file = place("weights", "model.safetensors", data) / "model.safetensors"
    try:
        tensors = read_header(file)
        try:
            loaded = mx.load(str(file))
        except RuntimeError as error:  # as the loader takes it: a type that MLX does not read
            raise WeightsError("MLX does not read it") from error
    except WeightsError as error:
        text = str(error)
        assert text.isprintable() and len(text) < 1500, text
        raise
    assert isinstance(loaded, dict) and set(tensors) == set(loaded)
    for name, array in loaded.items():
        assert tuple(array.shape) == tensors[name].shape and array.nbytes == tensors[name].nbytes
        mx.eval(array)
    return len(loaded)


ENTRANCE = FolderEntrance("weights", seeds, run, (WeightsError,), change=change)
