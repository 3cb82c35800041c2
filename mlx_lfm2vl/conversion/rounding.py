"""How much the weights of single modules change when they are quantised, before anything is written."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import mlx.core as mx
import numpy as np

from ..weights.files import reading
from ..weights.load import StoredTensors
from ..weights.quantize import Quantization, decode, encode
from .plan import Rounding
from .stream import dense_dtype, dense_weight, stored_widths

Progress = Callable[[str, int, int], None]  # "measuring weights", modules done, modules in all


def measure_rounding(
    stored: StoredTensors,
    paths: Sequence[str],
    spec: Quantization,
    *,
    dtype: mx.Dtype | None = None,
    progress: Progress | None = None,
) -> dict[str, Rounding]:
    """What quantising to `spec` does to the weights of the modules at `paths`, one after another.

    Modules that are quantised already are compared with what they stand for. `dtype`: what weights are cast to before,
    None for the folder's. Takes the memory of one tensor. Raises `WeightsError`.
    """
    before, kind = stored_widths(stored), dense_dtype(stored, dtype)
    arrays = stored.read()
    out: dict[str, Rounding] = {}
    for path in paths:
        weight = dense_weight(stored, arrays, path, before)
        assert weight is not None
        weight = weight.astype(kind)
        error = relative_error(decode(encode(weight, spec), spec, kind), weight, f"{stored.files[0].parent}")
        out[path] = Rounding(error, weight.size)
        del weight
        if progress is not None:
            progress("measuring weights", len(out), len(paths))
    return out


def relative_error(new: mx.array, old: mx.array, where: str) -> float:
    """Frobenius norm of the difference over that of `old`, in float32. Raises `WeightsError` if `where` ends early."""
    old = old.astype(mx.float32)
    with reading(where, "start again"):
        error = mx.linalg.norm(new.astype(mx.float32) - old) / mx.maximum(mx.linalg.norm(old), 1e-30)
        return float(np.array(error))
