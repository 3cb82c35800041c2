"""Safetensors on disk: which files a folder has, what their headers say, and writing them.

A header is checked against its file before any tensor is read, so that a truncated or lying file is a clear error
rather than a crash later. Index files are not trusted: published ones name shards that are not there.
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path

from ..errors import WeightsError

MAX_HEADER = 100_000_000  # bytes; the bound of the safetensors library
ITEM_BITS = {
    **{"BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8},
    **{"I16": 16, "U16": 16, "F16": 16, "BF16": 16},
    **{"I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64, "C64": 64},
}


@dataclass(frozen=True)
class TensorInfo:
    """What a header says of a tensor: its file, its safetensors dtype (`BF16` ...) and its shape."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    nbytes: int


def weight_files(folder: Path) -> list[Path]:
    """The `*.safetensors` of a folder, in order of name. Raises `WeightsError` if there is none."""
    files = sorted(path for path in folder.glob("*.safetensors") if not path.name.startswith("."))
    if not files:
        others = sorted(p.name for pattern in ("*.bin", "*.pt", "*.pth", "*.gguf") for p in folder.glob(pattern))
        hint = f" (it has {', '.join(others)}, which is not read)" if others else ""
        raise WeightsError(f"{folder}: has no .safetensors file{hint}")
    return files


def read_headers(files: list[Path]) -> dict[str, TensorInfo]:
    """All tensors of the files by name. Raises `WeightsError` for a damaged file or a name that stands twice."""
    tensors: dict[str, TensorInfo] = {}
    for file in files:
        for name, info in read_header(file).items():
            if name in tensors:
                raise WeightsError(f"{file}: holds {name}, which {tensors[name].file.name} holds too")
            tensors[name] = info
    return tensors


def read_header(file: Path) -> dict[str, TensorInfo]:
    """One file's tensors. Checked: header, dtypes, shapes that fit their bytes, offsets in the file, no overlap."""
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            head = stream.read(8)
            length = struct.unpack("<Q", head)[0] if len(head) == 8 else -1
            if not 2 <= length <= min(MAX_HEADER, size - 8):
                raise WeightsError(f"{file}: is truncated or not a safetensors file ({size} bytes)")
            header = json.loads(stream.read(length))
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, WeightsError):
            raise
        raise WeightsError(f"{file}: its safetensors header cannot be read ({error})") from None
    if not isinstance(header, dict):
        raise WeightsError(f"{file}: its safetensors header is not an object")
    header.pop("__metadata__", None)
    tensors = {name: _tensor(file, name, entry, size - 8 - length) for name, entry in header.items()}
    end = 0
    for begin, stop, name in sorted((e["data_offsets"][0], e["data_offsets"][1], n) for n, e in header.items()):
        if begin < end:
            raise WeightsError(f"{file}: tensor {name} overlaps another")
        end = stop
    return tensors


def _tensor(file: Path, name: str, entry: object, available: int) -> TensorInfo:
    def natural(value: object) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and value >= 0

    if not isinstance(entry, dict):
        raise WeightsError(f"{file}: tensor {name} has a damaged header entry")
    shape, offsets, dtype = entry.get("shape"), entry.get("data_offsets"), entry.get("dtype")
    if not isinstance(shape, list) or not all(map(natural, shape)) or dtype not in ITEM_BITS:
        raise WeightsError(f"{file}: tensor {name} has shape {shape!r} and dtype {dtype!r}")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(natural, offsets)):
        raise WeightsError(f"{file}: tensor {name} has data_offsets {offsets!r}")
    begin, end = offsets
    nbytes = math.prod(shape) * ITEM_BITS[dtype] // 8
    if end - begin != nbytes:
        raise WeightsError(f"{file}: tensor {name} of shape {shape} and dtype {dtype} cannot take {end - begin} bytes")
    if end > available:
        raise WeightsError(
            f"{file}: is truncated; tensor {name} ends {end - available} bytes behind the end of the file"
        )
    return TensorInfo(file, dtype, tuple(shape), nbytes)
