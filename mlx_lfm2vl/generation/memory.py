"""What may be held, in bytes: limits on MLX, the process's and not a model's, in force while a `with` block runs."""

from __future__ import annotations

from types import TracebackType

import mlx.core as mx

from ..errors import OptionError


def check_bytes(name: str, value: int) -> int:
    """A number of bytes as it is. Raises `OptionError` where it is none."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise OptionError(f"{name} is {value!r}, expected a number of bytes of at least 0")
    return value


class MemoryLimits:
    """`cache_limit`: bytes of freed buffers that MLX keeps for reuse (None: as it is). `wired_limit`: bytes that macOS
    must keep resident, so that weights are not paged out between answers (None: the working set that Metal recommends
    for the device, 0: none; only Metal has such a limit). At the end both are as before. Raises `OptionError`."""

    def __init__(self, cache_limit: int | None = None, wired_limit: int | None = None):
        self._cache = None if cache_limit is None else check_bytes("cache_limit", cache_limit)
        self._wired = None if wired_limit is None else check_bytes("wired_limit", wired_limit)
        self._before: tuple[int | None, int | None] = (None, None)

    def __enter__(self) -> MemoryLimits:
        cache = None if self._cache is None else mx.set_cache_limit(self._cache)
        wired = None
        if mx.metal.is_available():
            most = int(mx.device_info().get("max_recommended_working_set_size", 0))
            wired = mx.set_wired_limit(most if self._wired is None else min(self._wired, most))
        self._before = (cache, wired)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        cache, wired = self._before
        if cache is not None:
            mx.set_cache_limit(cache)
        if wired is not None:
            mx.set_wired_limit(wired)
