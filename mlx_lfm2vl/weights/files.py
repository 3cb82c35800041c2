"""Safetensors on disk: the files of a folder, and what their headers say.

The safetensors library reads a header and holds it to its file: tensors lie side by side from the first byte to the
last, and each has the bytes that its dtype and shape need. Our own bounds stand beside it: the size of a header, names,
axes, dtypes that MLX reads, no name twice. A truncated or lying file is a clear error before any tensor is read.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import numpy as np
from safetensors import SafetensorError, safe_open

from ..backends.memory import allocations, free_memory
from ..config import parse_json, shown
from ..config.files import AGAIN, FETCH_LFS, LFS_POINTER, open_regular
from ..errors import OutOfMemoryError, WeightsError, first_line

MAX_HEADER = 16 * 2**20  # bytes; those of these models have 0.1 MB
MAX_NAME = 512  # characters of a tensor's name
MAX_AXES, MAX_AXIS = 8, 2**31 - 1  # MLX's shapes are int32
DTYPES = {  # safetensors' names of the dtypes that MLX reads; the last of two names is the one that is written
    **{"F32": mx.float32, "F16": mx.float16, "BF16": mx.bfloat16, "C64": mx.complex64, "BOOL": mx.bool_},
    **{"I8": mx.int8, "I16": mx.int16, "I32": mx.int32, "I64": mx.int64},
    **{"F8_E4M3": mx.uint8, "U8": mx.uint8, "U16": mx.uint16, "U32": mx.uint32, "U64": mx.uint64},
}
LOW_BITS = ("F8_", "F6_", "F4")  # how dtypes of quantisations begin; no arrays are made of them (foreign.py)
FLOATING = ("BF16", "F16", "F32")  # of weights that are not packed


@dataclass(frozen=True)
class TensorInfo:
    """The header's entry of a tensor: its file, its safetensors dtype (of `DTYPES` or `LOW_BITS`), its shape, and the
    byte of the file where it begins."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int = 0

    @property
    def size(self) -> int:
        """The count of its numbers."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * DTYPES[self.dtype].size


def state(files: Iterable[Path]) -> tuple[tuple[int, ...], ...]:
    """The marks by which changed or replaced files are told: their inodes, sizes and times. Raises `WeightsError`."""
    found = []
    for file in files:
        try:
            now = file.stat()
        except OSError as error:
            raise WeightsError(f"{file}: cannot be read ({error.strerror or error}); {AGAIN}") from None
        found.append((now.st_dev, now.st_ino, now.st_size, now.st_mtime_ns))
    return tuple(found)


def key_of(folder: Path, weights: Iterable[Path], config: str = "config.json") -> str:
    """The key that tells a folder's model or adapter from others: of its configuration, and names, sizes and times of
    weight files."""
    digest = hashlib.blake2b((folder / config).read_bytes(), digest_size=16)
    for file in weights:
        status = file.stat()
        digest.update(repr((file.name, status.st_size, status.st_mtime_ns)).encode())
    return digest.hexdigest()


def joined(headers: Iterable[Mapping[str, TensorInfo]]) -> dict[str, TensorInfo]:
    """The tensors of several files by name. Raises `WeightsError` for a name that stands twice."""
    tensors: dict[str, TensorInfo] = {}
    for header in headers:
        for name, info in header.items():
            if name in tensors:
                other = tensors[name].file.name
                raise WeightsError(
                    f"{info.file}: holds {name}, which {other} holds too; remove the file that is left over"
                )
            tensors[name] = info
    return tensors


def read_header(file: Path) -> dict[str, TensorInfo]:
    """One file's tensors by name, in the header's order, none of them read.

    Raises:
        WeightsError: for a file that is truncated, that its header is not true of, or that exceeds a bound.
        OutOfMemoryError: where the address space has no room for the file.
    """
    try:
        with open_regular(file) as stream:
            size = os.fstat(stream.fileno()).st_size
            start = stream.read(len(LFS_POINTER))
            length = int.from_bytes(start[:8], "little")
            stream.seek(8)
            if 2 <= length <= min(size - 8, MAX_HEADER):
                header = parse_json(stream.read(length).decode("utf-8"))  # refuses a name twice; the library takes it
    except (OSError, ValueError) as error:
        reason = error.strerror or error if isinstance(error, OSError) else error
        raise WeightsError(f"{file}: its safetensors header cannot be read ({reason}); {AGAIN}") from None
    if start == LFS_POINTER:
        raise WeightsError(f"{file}: {FETCH_LFS}")
    if not 2 <= length <= size - 8:
        raise WeightsError(f"{file}: is truncated or not a safetensors file ({size} bytes); {AGAIN}")
    if length > MAX_HEADER:
        raise WeightsError(f"{file}: has a header of {length:,} bytes, no model needs {MAX_HEADER:,}; {AGAIN}")
    try:
        with safe_open(file, framework="numpy") as opened:
            parts = {name: opened.get_slice(name) for name in header if name != "__metadata__"}
            return {
                name: _tensor(
                    file, name, part.get_dtype(), part.get_shape(), 8 + length + header[name]["data_offsets"][0]
                )
                for name, part in parts.items()
            }
    except MemoryError:  # the library maps the whole file, which a limit of the address space may forbid
        needed, free = size / 1e9, (free_memory() or 0) / 1e9
        raise OutOfMemoryError(
            f"{file.parent}: its weights take {needed:.3g} GB and {free:.3g} GB of memory are free; free memory, or "
            "choose a smaller model"
        ) from None
    except (SafetensorError, OSError) as error:
        reason = first_line(error).removeprefix("Error while deserializing header: ")
        raise WeightsError(f"{file}: is truncated or its safetensors header is not true ({reason}); {AGAIN}") from None


def _tensor(file: Path, name: str, dtype: str, shape: list[int], start: int) -> TensorInfo:
    if len(name) > MAX_NAME or not name.isprintable():
        raise WeightsError(f"{file}: has a tensor called {shown(name)}, which is no name; {AGAIN}")
    if dtype not in DTYPES and not dtype.startswith(LOW_BITS):
        wanted = "save the model in bfloat16, float16 or float32"
        raise WeightsError(f"{file}: tensor {name} has dtype {dtype}, which MLX does not read; {wanted}")
    if len(shape) > MAX_AXES or max(shape, default=0) > MAX_AXIS:
        raise WeightsError(f"{file}: tensor {name} has shape {shown(shape)}, which is none; {AGAIN}")
    return TensorInfo(file, dtype, tuple(shape), start)


def read_part(info: TensorInfo, axis: int, segments: int, rank: int, ranks: int) -> mx.array:
    """A rank's part of a tensor, of which nothing else is read: along an axis, of each of its segments. Raises
    `WeightsError`."""
    width = np.dtype(f"u{DTYPES[info.dtype].size}")
    try:
        stored = np.memmap(info.file, width, "r", info.start, info.shape)
    except (OSError, ValueError) as error:
        raise WeightsError(f"{info.file}: cannot be read ({first_line(error)}); {AGAIN}") from None
    parts = [np.split(segment, ranks, axis)[rank] for segment in np.split(stored, segments, axis)]
    return mx.array(np.concatenate(parts, axis)).view(DTYPES[info.dtype])


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
