"""Is MLX usable on this machine? Asked before anything computes, so that a no is one line and not a traceback.

On Linux `mlx` alone holds no back end: its import fails until `mlx-cpu` or `mlx-cuda-*` is installed beside it, which
the extras of this package do. The one on the CPU links the reference BLAS, which OpenBLAS beats by a factor of more
than 20 in float32 (1024x1024 on two x86 cores); where the system has OpenBLAS it is loaded before MLX, whose calls the
dynamic linker then binds to it. That cannot be done once MLX is imported.
"""

from __future__ import annotations

import ctypes
import sys

from .errors import Lfm2VlError

OPENBLAS = ("libopenblasp.so.0", "libopenblas.so.0")  # with threads where a distribution has both
_blas: str | None = None  # what `blas` says, once MLX is imported


class BackendError(Lfm2VlError, ImportError):
    """MLX cannot be imported on this machine; the message says what to install."""


def require() -> None:
    """Imports `mlx.core`, after OpenBLAS where there is one. Raises `BackendError` (an `ImportError`) that names the
    extra to install if that fails."""
    global _blas
    if _blas is None:
        _blas = _preload(sys.platform, "mlx.core" in sys.modules)
    try:
        import mlx.core  # noqa: F401
    except ImportError as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BackendError(f"MLX has no back end here ({reason}); {remedy(sys.platform)}") from error


def blas() -> str:
    """In a few words, what multiplies matrices where MLX computes on the CPU."""
    require()
    return str(_blas)


def cpu_note() -> str | None:
    """What multiplies matrices where MLX computes on the CPU, as a sentence; None where it computes on a GPU."""
    said = blas()
    import mlx.core as mx

    return f"computing on the CPU with {said}" if mx.default_device() == mx.Device(mx.cpu) else None


def _preload(platform: str, late: bool) -> str:
    if platform != "linux":
        return "the system's BLAS"
    if late:
        return "the BLAS that MLX was imported with; import mlx_lfm2vl's names before mlx for OpenBLAS"
    for name in OPENBLAS:
        try:
            ctypes.CDLL(name, ctypes.RTLD_GLOBAL)
        except OSError:  # not installed: the next one, or MLX's own
            continue
        return name
    return "MLX's own BLAS, which is slow; install OpenBLAS (Debian, Ubuntu: apt install libopenblas0)"


def remedy(platform: str) -> str:
    """What to do about a missing back end on `platform` (a value of `sys.platform`)."""
    if platform == "darwin":
        return "on a Mac it needs Apple silicon, macOS 14 or later and an arm64 Python: pip install --upgrade mlx"
    return "install one: pip install 'mlx-lfm2vl[cpu]', or [cuda12] or [cuda13] for an NVIDIA GPU"
