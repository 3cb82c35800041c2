"""Is MLX usable on this machine? Asked before anything computes, so that a no is one line and not a traceback.

On Linux `mlx` alone holds no back end: its import fails until `mlx-cpu` or `mlx-cuda-*` is installed beside it, which
the extras of this package do.
"""

from __future__ import annotations

import sys

from .errors import Lfm2VlError


class BackendError(Lfm2VlError, ImportError):
    """MLX cannot be imported on this machine; the message says what to install."""


def require() -> None:
    """Imports `mlx.core`. Raises `BackendError` (an `ImportError`) that names the extra to install if that fails."""
    try:
        import mlx.core  # noqa: F401
    except ImportError as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BackendError(f"MLX has no back end here ({reason}); {remedy(sys.platform)}") from error


def remedy(platform: str) -> str:
    """What to do about a missing back end on `platform` (a value of `sys.platform`)."""
    if platform == "darwin":
        return "on a Mac it needs Apple silicon, macOS 14 or later and an arm64 Python: pip install --upgrade mlx"
    return "install one: pip install 'mlx-lfm2vl[cpu]', or [cuda12] or [cuda13] for an NVIDIA GPU"
