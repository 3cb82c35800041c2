"""Safetensors on disk: which files a folder has, and what their headers say.

A header is checked against its file before any tensor is read, so that a truncated or lying file is a clear error
rather than a crash later: as the safetensors library does (tensors lie side by side from the first byte to the last,
of the bytes that dtype and shape need), and no name twice. Index files are not trusted: published ones name shards
that are not there.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..backends.memory import allocations
from ..config import parse_json, shown
from ..config.files import AGAIN, open_regular
from ..errors import WeightsError, first_line

MAX_HEADER = 16 * 2**20  # bytes; those of these models have 0.1 MB
MAX_NAME = 512  # characters of a tensor's name
MAX_AXES, MAX_AXIS = 8, 2**31 - 1  # MLX's shapes are int32
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


def state(files: Iterable[Path]) -> tuple[tuple[int, ...], ...]:
    """What tells whether files were written to or replaced: their inodes, sizes and times. Raises `WeightsError`."""
    found = []
    for file in files:
        try:
            now = file.stat()
        except OSError as error:
            raise WeightsError(f"{file}: cannot be read ({error.strerror or error}); {AGAIN}") from None
        found.append((now.st_dev, now.st_ino, now.st_size, now.st_mtime_ns))
    return tuple(found)


def read_headers(files: list[Path]) -> dict[str, TensorInfo]:
    """All tensors of the files by name. Raises `WeightsError` for a damaged file or a name that stands twice."""
    tensors: dict[str, TensorInfo] = {}
    for file in files:
        for name, info in read_header(file).items():
            if name in tensors:
                other = tensors[name].file.name
                raise WeightsError(f"{file}: holds {name}, which {other} holds too; remove the file that is left over")
            tensors[name] = info
    return tensors


def read_header(file: Path) -> dict[str, TensorInfo]:
    """One file's tensors. Checked: header, names, dtypes, shapes that fit their bytes, offsets, no overlap, no gap."""
    try:
        with os.fdopen(open_regular(file), "rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            head = stream.read(8)
            length = struct.unpack("<Q", head)[0] if len(head) == 8 else -1
            if not 2 <= length <= size - 8:
                raise WeightsError(f"{file}: is truncated or not a safetensors file ({size} bytes); {AGAIN}")
            if length > MAX_HEADER:
                raise WeightsError(f"{file}: has a header of {length:,} bytes, no model needs {MAX_HEADER:,}; {AGAIN}")
            header = parse_json(stream.read(length).decode("utf-8"))
    except (OSError, ValueError) as error:
        if isinstance(error, WeightsError):
            raise
        reason = error.strerror or error if isinstance(error, OSError) else error
        raise WeightsError(f"{file}: its safetensors header cannot be read ({reason}); {AGAIN}") from None
    if not isinstance(header, dict):
        raise WeightsError(f"{file}: its safetensors header is not an object; {AGAIN}")
    header.pop("__metadata__", None)
    available = size - 8 - length
    tensors = {name: _tensor(file, name, entry, available) for name, entry in header.items()}
    end = 0
    for begin, stop, name in sorted((e["data_offsets"][0], e["data_offsets"][1], n) for n, e in header.items()):
        if begin != end:
            fault = "overlaps another" if begin < end else f"begins {begin - end} bytes behind the one before it"
            raise WeightsError(f"{file}: tensor {name} {fault}; {AGAIN}")
        end = stop
    if end != available:
        raise WeightsError(f"{file}: holds {available - end} bytes that belong to no tensor; {AGAIN}")
    return tensors


def _tensor(file: Path, name: str, entry: Any, available: int) -> TensorInfo:
    def natural(value: object) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and value >= 0

    if len(name) > MAX_NAME or not name.isprintable():
        raise WeightsError(f"{file}: has a tensor called {shown(name)}, which is no name; {AGAIN}")
    if not isinstance(entry, dict):
        raise WeightsError(f"{file}: tensor {name} has a damaged header entry; {AGAIN}")
    shape, offsets, dtype = entry.get("shape"), entry.get("data_offsets"), entry.get("dtype")
    if not isinstance(dtype, str) or dtype not in ITEM_BITS:
        raise WeightsError(f"{file}: tensor {name} has dtype {shown(dtype)}, which is not known; {AGAIN}")
    if not isinstance(shape, list) or len(shape) > MAX_AXES or not all(natural(n) and n <= MAX_AXIS for n in shape):
        raise WeightsError(f"{file}: tensor {name} has shape {shown(shape)}, which is none; {AGAIN}")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(natural, offsets)):
        raise WeightsError(f"{file}: tensor {name} has data_offsets {shown(offsets)}, expected begin and end; {AGAIN}")
    begin, end = offsets
    nbytes = math.prod(shape) * ITEM_BITS[dtype] // 8
    if end - begin != nbytes:
        raise WeightsError(
            f"{file}: tensor {name} of shape {shape} and dtype {dtype} cannot take {end - begin} bytes; {AGAIN}"
        )
    if end > available:
        missing = f"tensor {name} ends {end - available} bytes behind the end of the file"
        raise WeightsError(f"{file}: is truncated; {missing}; {AGAIN}")
    return TensorInfo(file, dtype, tuple(shape), nbytes)


@contextmanager
def reading(where: object, remedy: str = "load it again") -> Iterator[None]:
    """Names the file or folder where MLX cannot read a tensor, which it does when the tensor is computed.

    Raises `WeightsError` for what cannot be read and `OutOfMemoryError` where memory ran out. Other errors pass.
    """
    with allocations(f"{where}: the weights", "free memory, or choose a smaller quantisation"):
        try:
            yield
        except RuntimeError as error:
            if not str(error).startswith(("[read]", "[load")):
                raise
            raise WeightsError(f"{where}: the weights cannot be read ({first_line(error)}); {remedy}") from None
