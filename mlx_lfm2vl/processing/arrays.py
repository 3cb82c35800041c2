"""Arrays of torch, NumPy and MLX, known by their types: neither library is imported for it."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np


def is_torch(value: Any) -> bool:
    """Whether a value is a tensor of torch."""
    return type(value).__module__.partition(".")[0] == "torch" and hasattr(value, "detach")


def is_mlx(value: Any) -> bool:
    """Whether a value is an array of MLX."""
    return type(value).__module__ == "mlx.core" and type(value).__name__ == "array"


def is_array(value: Any) -> bool:
    """Whether a value is an array of torch, NumPy or MLX."""
    return isinstance(value, (np.ndarray, np.generic)) or is_mlx(value) or is_torch(value)


def is_bfloat16(value: Any) -> bool:
    """Whether the numbers of an array are bfloat16, which NumPy has not."""
    return str(getattr(value, "dtype", "")).endswith("bfloat16")


def to_numpy(value: Any) -> np.ndarray:
    """An array or a list as NumPy's, where it can be without a copy. bfloat16 becomes float32: the same numbers."""
    if is_torch(value):
        value = value.detach().cpu()
        return (value.float() if is_bfloat16(value) else value).numpy()  # type: ignore[no-any-return]
    if is_mlx(value) and is_bfloat16(value):
        value = value.astype(sys.modules["mlx.core"].float32)
    return np.asarray(value)
