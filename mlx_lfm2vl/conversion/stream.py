"""The weights of one folder as those of another: renamed, turned, cast, quantised, one tensor at a time.

Nothing is computed here: the arrays are recipes that `weights.save.write_tensors` evaluates, writes and frees one by
one, so that a conversion takes the memory of the largest tensor and its source.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import mlx.core as mx

from ..config import CausalLMConfig
from ..errors import NotFiniteError
from ..weights.finite import is_finite
from ..weights.load import StoredTensors
from ..weights.names import LAYOUTS, from_module, is_conv_kernel, to_module, turned
from ..weights.quantize import PARTS, Quantization, decode, encode

Widths = Mapping[str, Quantization | None]  # module path: quantised so, or dense; others stay as they are


def dense_weight(stored: StoredTensors, arrays: dict[str, mx.array], path: str) -> mx.array | None:
    """A module's dense weight, not yet evaluated; its tensors leave `arrays`, so that they are freed. None if the
    module has no weight there."""
    parts = {part: arrays.pop(f"{path}.{part}") for part in PARTS if f"{path}.{part}" in arrays}
    if "weight" not in parts:
        return None
    return decode(parts, stored.widths[path], stored.dtype) if path in stored.widths else parts["weight"]


def translate(
    stored: StoredTensors,
    widths: Widths,
    *,
    dtype: mx.Dtype | None = None,
    layout: str = "mlx",
    quantised: Mapping[str, dict[str, mx.array]] = MappingProxyType({}),
) -> dict[str, mx.array]:
    """The tensors under their names in `layout` (of `LAYOUTS`), not yet evaluated.

    `widths` says what becomes of modules; one that has just that width already is kept bit for bit. `dtype` casts what
    is dense, and scales. In a layout of torch's, kernels are turned as torch has them. `quantised` has the tensors of
    modules that are quantised already, by path; the others are rounded plainly.
    """
    assert layout in LAYOUTS
    before = stored.widths
    arrays = stored.read()
    out: dict[str, mx.array] = {}
    for name in list(stored.infos):
        if name not in arrays:
            continue  # went with its module's weight
        path, _, leaf = name.rpartition(".")
        now, then = widths.get(path, before.get(path)), before.get(path)
        if leaf in PARTS and now != then:
            weight = dense_weight(stored, arrays, path)
            assert weight is not None  # a module with other parts has one
            weight = weight if dtype is None else weight.astype(dtype)
            made = {"weight": weight} if now is None else quantised.get(path) or encode(weight, now)
            made = {f"{path}.{part}": array for part, array in made.items()}
        else:
            made = {name: arrays.pop(name)}
        for key, array in made.items():
            if dtype is not None and mx.issubdtype(array.dtype, mx.floating):
                array = array.astype(dtype)
            if layout != "mlx" and is_conv_kernel(key):
                array = turned(array)
            out[from_module(key, layout, isinstance(stored.config, CausalLMConfig))] = array
    return out


def check_finite(stored: StoredTensors, dtype: mx.Dtype, name: str, array: mx.array) -> None:
    """Raises `NotFiniteError` for a tensor of NaN or infinity that would be written: the evaluated one that was made of
    `stored` in `dtype`, by its name in any layout."""
    if is_finite(array):
        return
    name = to_module(name) or name
    path, _, leaf = name.rpartition(".")
    whole = f"{path}.weight" if leaf in PARTS else name
    sources = [each for each in stored.read(mx.float32).items() if each[0].rpartition(".")[0] == path]
    for source, values in sources:
        if not is_finite(values):
            raise NotFiniteError(f"tensor {source} holds NaN or infinity; the model's files are damaged")
    kind = str(dtype).removeprefix("mlx.core.")
    raise NotFiniteError(
        f"tensor {whole} holds numbers beyond the range of {kind} ({mx.finfo(dtype).max:.5g}); choose the dtype "
        "bfloat16 or float32"
    )
