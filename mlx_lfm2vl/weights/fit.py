"""Checks of weights that will not fit into memory, said before they are read, with what would fit.

Counted are the bytes of the file, or numbers x the size of the asked type, and the largest tensor once more where types
are changed: what cannot do without, so that nothing is refused that might have worked.
"""

from __future__ import annotations

from collections.abc import Mapping

import mlx.core as mx

from ..backends.memory import free_memory
from ..errors import OutOfMemoryError
from .files import FLOATING, TensorInfo

OFFERED = (8, 6, 4)  # bits that a conversion is advised to


def weight_bytes(infos: Mapping[str, TensorInfo], dtype: mx.Dtype | None = None) -> int:
    """Memory for the tensors, floating-point ones in `dtype` (None: as they are)."""
    sizes = [
        info.nbytes if dtype is None or info.dtype not in FLOATING else info.size * dtype.size
        for info in infos.values()
    ]
    return sum(sizes) + (0 if dtype is None else max(sizes, default=0))


def quantised_bytes(infos: Mapping[str, TensorInfo], bits: int) -> int:
    """Memory for a dense model whose language model is quantised, in groups of 64 with 4 bytes each beside them."""
    total = 0.0
    for name, info in infos.items():
        language = name.startswith(("model.language_model.", "lm_head.")) and name.endswith(".weight")
        if language and len(info.shape) == 2 and info.dtype in FLOATING:
            total += info.size * (bits + 0.5) / 8
        else:
            total += info.nbytes
    return int(total)


def check_weights(where: str, infos: Mapping[str, TensorInfo], dtype: mx.Dtype | None = None, ranks: int = 1) -> None:
    """Raises `OutOfMemoryError` if the weights, or a rank's part, will not fit, naming the widths that would."""
    free, needed = free_memory(), weight_bytes(infos, dtype) // ranks
    if free is None or needed <= free:
        return
    fitting = []
    if not any(name.endswith(".scales") for name in infos):
        fitting = [bits for bits in OFFERED if quantised_bytes(infos, bits) <= free]
    way = "free memory, or choose a smaller model"
    if dtype is not None and weight_bytes(infos) <= free:
        way = f"as they are stored, {gb(weight_bytes(infos))}, they would fit (dtype 'auto')"
    elif fitting:
        size = gb(quantised_bytes(infos, fitting[0]))
        way = f"converted to {fitting[0]} bits they take {size} (mlx-lfm2vl convert -q --q-bits {fitting[0]})"
    raise OutOfMemoryError(f"{where}: its weights take {gb(needed)} and {gb(free)} of memory are free; {way}")


def gb(size: float) -> str:
    """A number of bytes as text."""
    return f"{size / 1e9:.3g} GB"
