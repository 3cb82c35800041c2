"""Whether weights are numbers, and in the range of their type."""

from __future__ import annotations

import mlx.core as mx

from ..errors import NotFiniteError


def is_finite(array: mx.array) -> bool:
    """Whether a tensor holds neither NaN nor infinity. Evaluates it."""
    if not mx.issubdtype(array.dtype, mx.floating) or not array.size:
        return True
    return bool((mx.isfinite(mx.max(array)) & mx.isfinite(mx.min(array))).item())


def check_finite(name: str, array: mx.array, way: str = "") -> None:
    """Raises `NotFiniteError` for a tensor of NaN or infinity, as numbers beyond the range of its type become. `way`:
    the way out; the dtypes to load the model with by default."""
    if not is_finite(array):
        kind = str(array.dtype).removeprefix("mlx.core.")
        way = way or "load the model with dtype 'bfloat16' or 'float32'"
        raise NotFiniteError(f"tensor {name} holds NaN, infinity or numbers beyond the range of {kind}; {way}")
