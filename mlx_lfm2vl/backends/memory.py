"""Memory: how much of it is free, how a device says that it ran out, and what MLX may hold.

Free memory is, on Metal, the working set that the system recommends for the device, less what MLX holds; on CUDA what
the device has left; on a CPU what Linux calls available, and swap, within the limits of the control groups, of
RLIMIT_AS and RLIMIT_DATA, and of a system that promises no more than it has. MLX's CPU back end ends the process when
the system refuses it memory; the others raise. Of the last three limits, at which Linux refuses, a good part is kept
free, for what threads and allocators reserve and for activations that are not counted.
"""

from __future__ import annotations

import contextlib
import functools
import os
import resource
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import mlx.core as mx

from ..errors import FEWER_MEDIA, OptionError, OutOfMemoryError, first_line

RESERVED, RESERVED_A_CORE = 384 * 2**20, 128 * 2**20  # bytes of the address space
# Parts of the messages of MLX's allocators and Metal's command buffers, in small letters.
OUT_OF_MEMORY = (
    "insufficient memory",
    "outofmemory",
    "out of memory",
    "unable to allocate",
    "attempting to allocate",
    "bad_alloc",
    "[metal::malloc]",
)


def on_gpu() -> bool:
    """Whether MLX's device is a GPU, of Metal or CUDA."""
    return mx.default_device() != mx.Device(mx.cpu)


def free_memory() -> int | None:
    """Bytes that may still be taken, None where that is not known. What MLX keeps for reuse counts as free."""
    if on_gpu():
        info = mx.device_info()
        if "max_recommended_working_set_size" in info:
            return max(0, int(info["max_recommended_working_set_size"]) - mx.get_active_memory())
        return int(info["free_memory"]) + mx.get_cache_memory() if "free_memory" in info else None
    limits = [_machine(), *map(_group, _groups())]
    own = [resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA)]
    if own != [resource.RLIM_INFINITY] * 2:
        limits.append(_process())
    known = [limit for limit in limits if limit is not None]
    return max(0, min(known)) + mx.get_cache_memory() if known else None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on any device."""
    if isinstance(error, MemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in text for words in OUT_OF_MEMORY)


@contextmanager
def allocations(what: str, remedy: str = f"use {FEWER_MEDIA}, or a smaller quantisation") -> Iterator[None]:
    """Turns an allocation that failed within a `with` block into an `OutOfMemoryError` that begins with `what`."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, OutOfMemoryError) or not is_out_of_memory(error):
            raise
        reason = f" ({first_line(error)})" if str(error) else ""
        raise OutOfMemoryError(f"{what}: memory ran out{reason}; {remedy}") from None


def check_bytes(name: str, value: int) -> int:
    """A number of bytes as it is. Raises `OptionError` where it is none."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise OptionError(f"{name} is {value!r}, expected a number of bytes of at least 0")
    return value


class _Limit:
    """A limit of the process while blocks are open that set it: of theirs the one that `choose` finds counts, and the
    last block that ends sets back what was before the first."""

    def __init__(self, choose: Callable[[Sequence[int]], int]) -> None:
        self._choose, self._lock = choose, threading.Lock()
        self._held: list[int] = []
        self._before = 0

    @contextmanager
    def block(self, own: int, put: Callable[[int], int], inherit: bool = False) -> Iterator[None]:
        """A block with the limit `own`, or with `inherit` that of the blocks around it, if there are any. `put` sets
        the process's and returns the one before."""
        with self._lock:
            own = self._choose(self._held) if inherit and self._held else own
            before = put(self._choose([own, *self._held]))
            if not self._held:
                self._before = before
            self._held.append(own)
        try:
            yield
        finally:
            with self._lock:
                self._held.remove(own)
                put(self._choose(self._held or [self._before]))


_wired, _cached = _Limit(max), _Limit(min)


@contextmanager
def wired_limit(limit: int | None = None) -> Iterator[None]:
    """Keeps weights resident while a `with` block runs, so that macOS does not page them out between answers.

    Args:
        limit: bytes; 0 is none. None is what a block around this one has, or else the working set that Metal recommends
            for the device. Only Metal has such a limit.

    The limit is the process's. Of several blocks at once the largest counts, and the last one that ends sets back what
    was before the first.
    """
    if not mx.metal.is_available():
        yield
        return
    most = int(mx.device_info().get("max_recommended_working_set_size", 0))
    with _wired.block(most if limit is None else min(limit, most), mx.set_wired_limit, inherit=limit is None):
        try:
            yield
        finally:
            mx.synchronize()  # the limit must not change under work that runs


@contextmanager
def cache_limit(limit: int | None = None) -> Iterator[None]:
    """Bounds the freed buffers that MLX keeps for reuse while a `with` block runs. `limit` in bytes; None leaves it as
    it is. Of several blocks at once the smallest limit counts, and the last one that ends sets back what was before the
    first."""
    with contextlib.nullcontext() if limit is None else _cached.block(limit, mx.set_cache_limit):
        yield


def _meminfo() -> dict[str, int]:
    """Linux's account of the machine's memory, in bytes."""
    try:
        lines = [line.split() for line in Path("/proc/meminfo").read_text().splitlines()]
    except OSError:
        return {}
    return {line[0].rstrip(":"): int(line[1]) * 1024 for line in lines if len(line) > 1}


def _machine() -> int | None:
    """Bytes that can be had without ending other processes, swap included; less where the system promises no
    more than it has (vm.overcommit_memory is 2)."""
    known = _meminfo()
    if "MemAvailable" not in known:
        return None
    free = known["MemAvailable"] + known.get("SwapFree", 0)
    with contextlib.suppress(OSError, KeyError):
        if Path("/proc/sys/vm/overcommit_memory").read_text().strip() == "2":
            free = min(free, known["CommitLimit"] - known["Committed_AS"] - _reserve())
    return free


@functools.lru_cache(maxsize=8)
def _groups(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> tuple[Path, ...]:
    """The control groups that limit the process's memory: its own and those above, of either version. They are
    looked up once: a limit that a group without one gets later is not seen."""
    try:
        lines = [line.split(":", 2) for line in own.read_text().splitlines()]
    except OSError:
        lines = []
    paths = [(root, path) for _, kinds, path in lines if not kinds]
    paths += [(root / "memory", path) for _, kinds, path in lines if "memory" in kinds.split(",")]
    folders = {top for top, _ in paths} | {root}  # in a container its own group is the top
    for top, path in paths:
        parts = [part for part in path.split("/") if part not in ("", "..")]
        folders |= {top.joinpath(*parts[:length]) for length in range(1, len(parts) + 1)}
    return tuple(folder for folder in folders if _group(folder) is not None)


def _group(folder: Path) -> int | None:
    """Bytes that a control group leaves; files that the kernel keeps in memory and could let go count as free."""

    def number(*names: str) -> int:
        text = next((folder / name).read_text().strip() for name in names if (folder / name).exists())
        return 2**63 if text == "max" else int(text)

    try:
        lines = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        limit = number("memory.max", "memory.limit_in_bytes")
        memory = limit - number("memory.current", "memory.usage_in_bytes")
        swap = 0
        if (folder / "memory.swap.max").exists():
            most = number("memory.swap.max")
            swap = _meminfo().get("SwapFree", 0) if most == 2**63 else most - number("memory.swap.current")
    except (OSError, ValueError, StopIteration):
        return None
    if limit >= 2**62:
        return None
    names = ("inactive_file", "active_file", "slab_reclaimable")
    return memory + swap + sum(int(lines.get(f"total_{name}", lines.get(name, 0))) for name in names)


def _process() -> int | None:
    """Bytes that RLIMIT_AS and RLIMIT_DATA leave of this process's address space, less a reserve."""
    if not sys.platform.startswith("linux"):
        return None
    pages = Path("/proc/self/statm").read_text().split()
    left = []
    for kind, used in ((resource.RLIMIT_AS, pages[0]), (resource.RLIMIT_DATA, pages[5])):
        limit = resource.getrlimit(kind)[0]
        if limit != resource.RLIM_INFINITY:
            left.append(limit - int(used) * resource.getpagesize() - _reserve())
    return min(left, default=None)


def _reserve() -> int:
    return RESERVED + RESERVED_A_CORE * (os.cpu_count() or 1)
