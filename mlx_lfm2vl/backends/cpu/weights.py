"""Weights as NumPy computes fastest with them: float32 and dense, wide ones laid out by columns.

Nothing is evaluated here: each tensor is read, made float32 and turned when the loader asks for it, one after another.
"""

from __future__ import annotations

from dataclasses import replace

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten

from ..memory import free_memory

MEMORY_SHARE = 0.8  # of what is free, for the weights; the rest is for the work
COLUMNS = 256  # rows that are turned at a time: a core's cache holds them


def dequantize(model: nn.Module, arrays: dict[str, mx.array]) -> tuple[dict[str, mx.array], str]:
    """Makes the parameters of a model float32, and its quantised modules dense.

    Args:
        model: gets dense modules, and a `config` that says so.
        arrays: its parameters by their names, not evaluated.

    Returns:
        The parameters, and a sentence on what was done ("" if nothing was). Where memory does not allow it, all stays
        as it is.
    """
    stored = {array.dtype for array in arrays.values()}
    if stored == {mx.float32}:
        return arrays, ""
    quantised = {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, (nn.QuantizedLinear, nn.QuantizedEmbedding))
    }
    numbers = sum(array.size for name, array in arrays.items() if name.rpartition(".")[0] not in quantised)
    numbers += sum(module.scales.size * module.group_size for module in quantised.values())
    kind = " and ".join(sorted(str(dtype).removeprefix("mlx.core.") for dtype in stored))
    if quantised:
        bits = {module.bits for module in quantised.values()}
        kind = f"{max(bits, key=[m.bits for m in quantised.values()].count)}-bit"
    free = free_memory()
    if free is not None and 4 * numbers > MEMORY_SHARE * free:
        return arrays, f"the {kind} weights stay as they are, slow on a CPU: float32 would take {4e-9 * numbers:.2g} GB"
    out = dict(arrays)
    dense = []
    for path, module in quantised.items():
        names = [f"{path}.{part}" for part in ("weight", "scales", "biases")]
        weight, scales, *biases = (
            _float32(out.pop(name)) for name in names if name in out
        )  # some modes have no biases
        out[names[0]] = mx.dequantize(
            *(weight, scales, biases[0] if biases else None),
            *(module.group_size, module.bits, module.mode),
            dtype=mx.float32,
        )
        rows, width = module.scales.shape[0], module.scales.shape[1] * module.group_size
        plain: nn.Module = nn.Embedding(rows, width)
        if isinstance(module, nn.QuantizedLinear):
            plain = nn.Linear(width, rows, bias="bias" in module)
        dense.append((path, plain))
    if dense:
        model.update_modules(tree_unflatten(dense))
        for part in (model, *(module for module in (getattr(model, "model", None),) if module is not None)):
            part.config = replace(part.config, quantization=None)
    out = {name: _float32(array) for name, array in out.items()}
    return out, f"the {kind} weights were made float32, in which the CPU is fastest ({4e-9 * numbers:.2g} GB)"


def _float32(array: mx.array) -> mx.array:
    return array.astype(mx.float32) if mx.issubdtype(array.dtype, mx.floating) else array


def by_columns(arrays: dict[str, mx.array]) -> dict[str, mx.array]:
    """Lays out wide float32 matrices (out, in) of the backbone as (in, out), which OpenBLAS reads faster when there are
    a few rows to multiply. The matrices are the same."""
    return {
        name: _by_columns(array) if "vision_tower." not in name and "multi_modal_projector." not in name else array
        for name, array in arrays.items()
    }


def _by_columns(weight: mx.array) -> mx.array:
    if weight.ndim != 2 or weight.dtype != mx.float32 or weight.shape[0] < 2 * weight.shape[1]:
        return weight
    blocks = [mx.contiguous(weight[at : at + COLUMNS].T) for at in range(0, weight.shape[0], COLUMNS)]
    return mx.concatenate(blocks, axis=1).T
