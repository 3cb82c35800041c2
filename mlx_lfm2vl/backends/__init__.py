"""The parts that depend on the machine: which functions compute a model, and how much memory there is.

In: a backend's name, the device, a loaded model. Out: "mlx" or "numpy"; free memory; the model with NumPy's layers.
"""

from __future__ import annotations

import ctypes
import os
import sys
from typing import Literal

from ..errors import Lfm2VlError, OptionError, first_line

VARIABLE = "MLX_LFM2VL_BACKEND"
NAMES = ("auto", "mlx", "numpy")
Backend = Literal["mlx", "numpy"]


class BackendError(Lfm2VlError, ImportError):
    """MLX cannot be imported on this machine; the message says why, and what to install."""


def require() -> None:
    """Imports `mlx.core`.

    Raises:
        BackendError: in a sub-interpreter, where MLX would wait for ever; or if that fails. It names the first cause,
            and the extra to install; in a frozen app, where nothing can be installed, the page on building apps.
    """
    if in_subinterpreter():
        raise BackendError("MLX cannot be used in a sub-interpreter; use a process of its own (multiprocessing)")
    try:
        import mlx.core  # noqa: F401
    except ImportError as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        if getattr(sys, "frozen", False):
            raise BackendError(
                f"MLX cannot be imported in this app ({first_line(cause)}); docs/apps.md of mlx-lfm2vl says how an app "
                "is built with all of MLX"
            ) from error
        raise BackendError(f"MLX has no back end here ({first_line(cause)}); {remedy(sys.platform)}") from error


def in_subinterpreter() -> bool:
    """Whether this is not the process's first interpreter."""
    api = ctypes.pythonapi
    api.PyInterpreterState_Get.restype = ctypes.c_void_p
    api.PyInterpreterState_GetID.argtypes, api.PyInterpreterState_GetID.restype = [ctypes.c_void_p], ctypes.c_int64
    return api.PyInterpreterState_GetID(api.PyInterpreterState_Get()) != 0


def remedy(platform: str) -> str:
    """The advice for a missing back end on `platform` (a value of `sys.platform`)."""
    if platform == "darwin":
        return "on a Mac it needs Apple silicon, macOS 14 or later and an arm64 Python: pip install --upgrade mlx"
    return "install one: pip install 'mlx[cpu]', or mlx[cuda12] or mlx[cuda13] for an NVIDIA GPU"


def choose(name: str | None = None) -> Backend:
    """The backend of a model that is loaded now.

    Args:
        name: "mlx", "numpy", or "auto", which is numpy where MLX's default device is a CPU and mlx elsewhere. None is
            the environment's `MLX_LFM2VL_BACKEND`, and "auto" without it.

    Raises:
        OptionError: for another name, and for "numpy" where the default device is a GPU.
    """
    import mlx.core as mx

    said = "backend" if name is not None else VARIABLE
    name = name if name is not None else os.environ.get(VARIABLE) or "auto"
    if name not in NAMES:
        raise OptionError(f"{said} is {name!r}, expected one of {', '.join(NAMES)}")
    on_cpu = mx.default_device() == mx.Device(mx.cpu)
    if name == "auto":
        return "numpy" if on_cpu else "mlx"
    if name == "numpy" and not on_cpu:
        raise OptionError(f"{said} is 'numpy', which computes on a CPU, but MLX's device is a GPU; use 'mlx' or 'auto'")
    return "numpy" if name == "numpy" else "mlx"
